"""The result of `compare`: errors of each candidate under each law at each time, as rows, text and a file."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from typing import final

import numpy as np

from fem_hjb.support.checks import FloatArray, one_of
from fem_hjb.support.errors import ComparisonError
from fem_hjb.support.files import atomic_file
from fem_hjb.support.objects import Plain

COLUMNS = ("value", "value_h1", "policy", "excluded")


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Row:
    """Relative errors of one candidate at one time, or overall (time None); `excluded` is a mass, see `compare`.

    law : "uncontrolled" (P) or "controlled" (P*); "both" in a row that holds the larger of the two.
    """

    candidate: str
    law: str
    time: float | None
    value: float
    value_h1: float
    policy: float
    excluded: float


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Comparison(Plain):
    """The result of `compare`: rows per candidate, law and time, then overall; prints as a table of overall errors.

    unseen : why there are no rows under P* although they were asked for; empty where there are.
    """

    rows: tuple[Row, ...]
    points: str
    unseen: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The candidates, in the order given."""
        return tuple(dict.fromkeys(row.candidate for row in self.rows))

    @property
    def laws(self) -> tuple[str, ...]:
        """The laws compared under: "uncontrolled", "controlled" or both."""
        return tuple(dict.fromkeys(row.law for row in self.rows))

    @property
    def times(self) -> FloatArray:
        """The times compared."""
        first = self.rows[0]
        return np.array([row.time for row in self._of(first.candidate, first.law) if row.time is not None])

    def overall(self, name: str, law: str | None = None) -> Row:
        """max_t ||error_t|| / max_t ||reference_t|| of one candidate and its largest excluded mass, under one law.

        law None: the larger under the laws compared, column by column.
        """
        rows = [next(row for row in self._of(name, each) if row.time is None) for each in self._asked(law)]
        return rows[0] if len(rows) == 1 else _larger(name, rows)

    def series(self, name: str, column: str, law: str | None = None) -> FloatArray:
        """One column of one candidate against `times`; law as in `overall`."""
        one_of(column, "column", COLUMNS, ComparisonError)
        found = [
            [getattr(row, column) for row in self._of(name, each) if row.time is not None] for each in self._asked(law)
        ]
        return np.asarray(np.max(found, axis=0))

    def _asked(self, law: str | None) -> tuple[str, ...]:
        return self.laws if law is None else (one_of(law, "law", self.laws, ComparisonError),)

    def _of(self, name: str, law: str) -> list[Row]:
        rows = [row for row in self.rows if isinstance(name, str) and row.candidate == name and row.law == law]
        if not rows:
            raise ComparisonError(f"there is no candidate {name!r} here, only {', '.join(map(repr, self.names))}")
        return rows

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the table must know: how the norms were computed, and over how much of the mass."""
        notes = [f"relative errors, largest over {self.times.size} times; {self.points}"]
        if any(row.excluded > 0 for row in self.rows):
            notes.append(
                "excluded: p_t mass where the candidate has no value (outside its mesh, or f <= 0);"
                " the norms are over the rest"
            )
        if self.unseen:
            notes.append(f"not compared under the optimally controlled law: {self.unseen}")
        return tuple(notes)

    def table(self, *, per_time: bool = False) -> list[tuple[str, ...]]:
        """Header and rows as text, overall only or each time too."""
        chosen = [row for row in self.rows if per_time or row.time is None]
        time = [("overall" if row.time is None else f"{row.time:g}",) if per_time else () for row in chosen]
        cells = [tuple(_text(getattr(row, column)) for column in COLUMNS) for row in chosen]
        several = len(self.laws) > 1
        law = [(row.law,) if several else () for row in chosen]
        head = ("candidate", *(("law",) if several else ()), *(("time",) if per_time else ()), *COLUMNS)
        return [head, *((row.candidate, *p, *t, *c) for row, p, t, c in zip(chosen, law, time, cells, strict=True))]

    def __str__(self) -> str:
        lines = self.table()
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        body = [
            "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
            for line in lines
        ]
        rule = "-" * len(body[0])
        return "\n".join([body[0], rule, *body[1:], rule, *self.notes])

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write every row, at full precision; the overall rows have the time `overall`. OutputError if it cannot."""
        with atomic_file(path) as part, part.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["candidate", "law", "time", *COLUMNS])
            for row in self.rows:
                time = "overall" if row.time is None else repr(row.time)
                writer.writerow([row.candidate, row.law, time, *(repr(float(getattr(row, c))) for c in COLUMNS)])


def _larger(name: str, rows: list[Row]) -> Row:
    """The largest of each column; nan where a column is not known."""
    most = {column: float(np.max([getattr(row, column) for row in rows])) for column in COLUMNS}
    return Row(candidate=name, law="both", time=None, **most)


def _text(number: float) -> str:
    return "-" if np.isnan(number) else "0" if number == 0 else f"{number:.2e}"
