"""What an experiment is: a table, claims about it that can fail, controls that must, and how it was made."""

import csv
import dataclasses
import json
import platform
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final, get_args, get_origin, get_type_hints

import numpy as np
import scipy
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from fem_hjb.support.checks import FloatArray, real_array
from fem_hjb.support.errors import TrialError
from fem_hjb.support.files import atomic_folder
from fem_hjb.support.objects import Plain


@final
@dataclass(frozen=True, kw_only=True)
class Slope:
    """An exponent fitted to points in logarithms, with a 95 per cent confidence interval [low, high]."""

    value: float
    low: float
    high: float


def fitted_slope(x: ArrayLike, y: ArrayLike) -> Slope:
    """The p of y = c x^p by least squares in logarithms; the interval is Student's, nan with two points.

    >>> round(fitted_slope([1, 2, 4], [3, 12, 48]).value, 12)
    2.0
    """
    given = [real_array(v, name, TrialError) for v, name in ((x, "x"), (y, "y"))]
    if (
        given[0].ndim != 1
        or given[0].shape != given[1].shape
        or given[0].size < 2
        or not all((v > 0).all() for v in given)
    ):
        raise TrialError(f"a slope needs at least two positive pairs, got shapes {given[0].shape} and {given[1].shape}")
    horizontal, vertical = np.log(given[0]), np.log(given[1])
    if np.ptp(horizontal) == 0:
        raise TrialError(f"a slope needs different x, got {given[0].size} times {given[0][0]:g}")
    horizontal, vertical = horizontal - horizontal.mean(), vertical - vertical.mean()
    square, freedom = float(horizontal @ horizontal), given[0].size - 2
    slope = float(horizontal @ vertical) / square
    left = vertical - slope * horizontal
    margin = students_t(freedom) * float(np.sqrt(left @ left / (freedom * square))) if freedom else float("nan")
    return Slope(value=slope, low=slope - margin, high=slope + margin)


def students_t(freedom: int) -> float:
    """What Student's t is below with a probability of 0.975; scipy.stats has it too, and takes long to import."""
    return float(stdtrit(freedom, 0.975))


@final
@dataclass(frozen=True, kw_only=True)
class Claim:
    """low <= value <= high. A control is the same claim about something broken on purpose: it must not hold."""

    text: str
    value: float
    low: float
    high: float
    control: bool = False

    @property
    def holds(self) -> bool:
        """Whether the value lies in the band."""
        return bool(self.low <= self.value <= self.high)

    @property
    def as_expected(self) -> bool:
        """A claim holds, a control does not."""
        return self.holds != self.control


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Trial(Plain):
    """The outcome of an experiment.

    name, title : which one, and what it shows in a line.
    config : the frozen dataclass it was run with, seed included.
    columns, rows : the table, one tuple of numbers and words per row.
    claims : what must hold, and the controls that must not.
    seconds : how long it took.
    """

    name: str
    title: str
    config: Any
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    claims: tuple[Claim, ...]
    seconds: float

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.columns)]
        if wrong:
            raise TrialError(f"experiment {self.name!r}: a row of {len(wrong[0])} for {len(self.columns)} columns")
        if not any(claim.control for claim in self.claims):
            raise TrialError(f"experiment {self.name!r} has no negative control")

    @property
    def as_expected(self) -> bool:
        """Whether all claims hold and no control does."""
        return all(claim.as_expected for claim in self.claims)

    def column(self, name: str, **where: Any) -> FloatArray:
        """The numbers of a column, in the rows where other columns have the given values."""
        for key in (name, *where):
            if key not in self.columns:
                raise TrialError(f"experiment {self.name!r} has no column {key!r}, but {', '.join(self.columns)}")
        place = {key: self.columns.index(key) for key in (name, *where)}
        chosen = [row[place[name]] for row in self.rows if all(row[place[k]] == v for k, v in where.items())]
        return np.array(chosen, dtype=np.float64)


def check_seeds(seeds: int) -> None:
    """TrialError for one seed, where a spread over seeds is looked at."""
    if seeds < 2:
        raise TrialError(f"the spread over seeds needs at least two of them, got seeds={seeds}")


def conclude(
    config: Any, columns: Sequence[str], rows: Iterable[Sequence[Any]], claims: Iterable[Claim], started: float
) -> Trial:
    """The trial of an experiment, which is the module that `config` comes from: its name, and its first line as title.

    started : what time.perf_counter() was then.
    """
    module = sys.modules[type(config).__module__]
    return Trial(
        name=module.__name__.rpartition(".")[2].replace("_", "-"),
        title=str(module.__doc__).splitlines()[0],
        config=config,
        columns=tuple(columns),
        rows=tuple(map(tuple, rows)),
        claims=tuple(claims),
        seconds=time.perf_counter() - started,
    )


def changed(config: Any, changes: Mapping[str, Any]) -> Any:
    """A frozen `Config` with some of its fields replaced.

    Raises TrialError for a field that it does not have, naming those it has and their values, and for a value that is
    not of the field's type, an empty tuple or, as integers are counts, one below 1 (`seed`: 0). Lists stand for tuples
    and integers for floats.

    >>> from fem_hjb.experiments.iteration import QUICK
    >>> changed(QUICK, {"paths": [50, 100], "reward": 2}).reward
    2.0
    """
    kinds = get_type_hints(type(config))
    unknown = sorted(set(changes) - set(kinds))
    if unknown:
        known = ", ".join(f"{field.name}={getattr(config, field.name)!r}" for field in dataclasses.fields(config))
        raise TrialError(f"the configuration has no {', '.join(unknown)}; it is {known}")
    made = {}
    for name, value in changes.items():
        try:
            made[name] = _of_kind(value, kinds[name])
        except TypeError as cause:
            raise TrialError(f"{name} must be of type {_words(kinds[name])}, got {value!r}") from cause
        entries, low = _entries(made[name]), 0 if name == "seed" else 1
        if not entries or any(type(entry) is int and entry < low for entry in entries):
            raise TrialError(f"{name} must not be empty, and its integers at least {low}, got {value!r}")
    return dataclasses.replace(config, **made)


def _of_kind(value: Any, kind: Any) -> Any:
    """The value as one of this type (int, float, str, bool, tuples of them); TypeError if it is not."""
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if not isinstance(value, tuple | list) or (kinds[-1] is not ... and len(value) != len(kinds)):
            raise TypeError(kind)
        each = (kinds[0],) * len(value) if kinds[-1] is ... else kinds
        return tuple(_of_kind(entry, own) for entry, own in zip(value, each, strict=True))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(kind)
    return value


def _entries(value: Any) -> list[Any]:
    """The numbers and words in nested tuples."""
    return [inner for entry in value for inner in _entries(entry)] if isinstance(value, tuple) else [value]


def _words(kind: Any) -> str:
    return str(kind) if get_args(kind) else str(kind.__name__)


def summary(trial: Trial) -> dict[str, Any]:
    """Name, title, config, claims, seconds and versions, for a file."""
    return {
        "experiment": trial.name,
        "title": trial.title,
        "config": dataclasses.asdict(trial.config),
        "claims": [
            {**dataclasses.asdict(claim), "holds": claim.holds, "as_expected": claim.as_expected}
            for claim in trial.claims
        ],
        "seconds": trial.seconds,
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__},
    }


def save_trial(folder: str | Path, trial: Trial, figure: Figure) -> list[Path]:
    """Write NAME.csv (the table), NAME.json (config, claims, versions, seconds) and NAME.png; all or nothing.

    Raises OutputError if the folder cannot be written.
    """
    with atomic_folder(folder) as part:
        names = write_trial(part, trial, figure)
    return [Path(folder, name) for name in names]


def write_trial(folder: Path, trial: Trial, figure: Figure) -> list[str]:
    """Write the files of `save_trial` into a folder that exists, one after the other; their names."""
    with (folder / f"{trial.name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(trial.columns)
        writer.writerows(trial.rows)
    text = json.dumps(summary(trial), indent=2, default=_plain)
    (folder / f"{trial.name}.json").write_text(text + "\n", encoding="utf-8")
    figure.savefig(folder / f"{trial.name}.png", dpi=150)
    return [f"{trial.name}.{kind}" for kind in ("csv", "json", "png")]


def _plain(given: Any) -> Any:
    if isinstance(given, np.generic):
        return given.item()
    if isinstance(given, np.ndarray | Sequence):
        return list(given)
    return repr(given)
