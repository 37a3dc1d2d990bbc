"""What fem-hjb shows: stages of work on stderr, and on stdout tables for people or JSON for programs."""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from fem_hjb.experiments.trial import Trial, summary
from fem_hjb.solutions.comparison import COLUMNS, Comparison
from fem_hjb.solutions.files import Savable
from fem_hjb.solutions.ground import GroundState
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.solutions.steady import ExitExpectation, ExitSolution
from fem_hjb.support.progress import LOGGER

Judged = Solution | ProductSolution | ExitSolution | ExitExpectation | GroundState

_ROWS = 40  # of the table of an experiment that are printed


@final
class Stage:
    """What a step of the work tells the user: how far it is, and in the end a few figures."""

    def __init__(self, name: str, status: Status) -> None:
        self.name, self.status, self.notes = name, status, list[str]()
        self.done, self.doing = "", ""

    def progress(self, fraction: float) -> None:
        self.done = f" {fraction:.0%}"
        self._show()

    def announce(self, text: str) -> None:
        """What is being done now."""
        self.doing = f" ({text})"
        self._show()

    def _show(self) -> None:
        self.status.update(escape(f"{self.name}{self.done}{self.doing}"))

    def note(self, text: str) -> None:
        self.notes.append(text)


@final
class _Announced(logging.Handler):
    """Shows what the package logs as what a stage is doing."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(logging.INFO)
        self.stage = stage

    def emit(self, record: logging.LogRecord) -> None:
        self.stage.announce(record.getMessage())


@contextmanager
def _announcing(stage: Stage) -> Iterator[None]:
    handler, level = _Announced(stage), LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)


@final
class Report:
    """Where the command reports its work: stderr. quiet : nothing but notes of what is not as it should be."""

    def __init__(self, quiet: bool) -> None:
        self._work = Console(stderr=True, soft_wrap=True, quiet=quiet)

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Show what is being done, then how long it took and what was noted."""
        start = time.perf_counter()
        with self._work.status(name) as status:
            stage = Stage(name, status)
            with _announcing(stage):
                yield stage
        taken = time.perf_counter() - start
        self._work.print(f"{name:<18}{taken:7.2f} s  {'; '.join(stage.notes)}", highlight=False, markup=False)

    def warn(self, name: str, solution: Savable) -> None:
        """Tell a status that is not "ok"."""
        if solution.status != "ok":
            note = f"note: {name}: {solution.status}"
            Console(stderr=True, soft_wrap=True).print(note, highlight=False, markup=False)


def print_json(record: Any) -> None:
    """One JSON document on stdout; numbers that are not finite are null."""
    print(json.dumps(_plain(record), indent=2, allow_nan=False))


def _plain(given: Any) -> Any:
    """Only what JSON has; anything else as Python writes it."""
    if isinstance(given, np.generic | np.ndarray):
        given = given.tolist()
    if isinstance(given, Path):
        return str(given)
    if isinstance(given, Mapping):
        return {str(key): _plain(value) for key, value in given.items()}
    if isinstance(given, list | tuple):
        return [_plain(entry) for entry in given]
    if isinstance(given, float):
        return given if math.isfinite(given) else None
    return given if given is None or isinstance(given, str | int) else repr(given)


def stdout() -> Console:
    """Tables are not cut to 80 columns when they go to a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=110)


def describe_reference(solution: Solution | ProductSolution) -> str:
    if solution.error_estimate is not None:
        return f"{solution.stats['dofs']} dofs, estimated error: {solution.error_estimate}"
    return f"{solution.stats['dofs']} dofs, {solution.stats['steps']} time steps"


def describe_fit(solution: Solution) -> str:
    stats = solution.stats
    notes = [f"{stats['dofs']} dofs, {stats['samples']} samples"]
    notes += [
        f"{stats[key]} {what}"
        for key, what in (("dropped", "of them outside"), ("pinned", "dofs undetermined"))
        if stats[key]
    ]
    notes += [f"estimated error: {solution.error_estimate}"] if solution.error_estimate is not None else []
    return ", ".join(notes)


def outline(solution: Judged) -> dict[str, Any]:
    """Status, estimated error, checks and stats, for JSON."""
    estimate = solution.error_estimate
    return {
        "status": solution.status,
        "error_estimate": None if estimate is None else estimate.as_dict(),
        "checks": [{**asdict(check), "passed": check.passed} for check in solution.checks],
        "stats": solution.stats,
    }


def overall(comparison: Comparison) -> dict[str, Any]:
    """The overall errors of each candidate, for JSON."""
    rows = {name: comparison.overall(name) for name in comparison.names}
    return {name: {column: getattr(row, column) for column in COLUMNS} for name, row in rows.items()}


def print_stats(solution: Judged) -> None:
    table = Table(show_header=False)
    if solution.error_estimate is not None:
        table.add_row("estimated error", str(solution.error_estimate))
    for check in solution.checks:
        table.add_row("check", str(check))
    for key, value in _flat(solution.stats):
        table.add_row(key, value)
    stdout().print(table)


def _flat(stats: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in stats.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key} ")
        else:
            yield f"{prefix}{key}", f"{value:.4g}" if isinstance(value, float) else str(value)


def print_comparison(comparison: Comparison, title: str) -> None:
    head, *rows = comparison.table()
    table = Table()
    for k, name in enumerate(head):
        table.add_column(name, justify="right" if k else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    print(title)
    stdout().print(table)
    print("\n".join(comparison.notes))


def trial_record(trial: Trial) -> dict[str, Any]:
    """What an experiment found, its table included, for JSON."""
    rows = [dict(zip(trial.columns, row, strict=True)) for row in trial.rows]
    return {**summary(trial), "as_expected": trial.as_expected, "rows": rows}


def print_trial(trial: Trial) -> None:
    shown = sorted({round(k * (len(trial.rows) - 1) / (_ROWS - 1)) for k in range(_ROWS)})
    caption = f"{len(shown)} of {len(trial.rows)} rows, all of them in {trial.name}.csv"
    table = Table(*trial.columns, caption=caption if len(shown) < len(trial.rows) else None)
    for row in (trial.rows[k] for k in shown):
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    claims = Table("claim (a control must fall outside its band)", "value", "band", "")
    for claim in trial.claims:
        text = f"control: {claim.text}" if claim.control else claim.text
        verdict = "as expected" if claim.as_expected else "NOT AS EXPECTED"
        claims.add_row(text, f"{claim.value:.4g}", f"[{claim.low:g}, {claim.high:g}]", verdict)
    print(trial.title)
    Console(width=max(stdout().width, 12 * len(trial.columns))).print(table)
    stdout().print(claims)
    print(f"{trial.seconds / 60:.1f} minutes")


def print_listing(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*columns)
    for row in rows:
        table.add_row(*row)
    stdout().print(table)
