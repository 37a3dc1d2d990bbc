"""The page of the atlas: what its records say, as tables of Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from fem_hjb.atlas.entries import Record

_MOST_DECIMALS, _FEWEST_DECIMALS = 10, 3
_NONE = "–"

HEAD = (
    "entry",
    "d",
    "value",
    "error bar",
    "asked",
    "estimate",
    "checks",
    "certified",
    "Euler chain",
    "without",
    "CPU s",
)
FOREVER_HEAD = ("entry", "d", "average reward", "error bar", "gap", "error bar", "asked", "estimate", "checks", "CPU s")
_KNOWN_HEAD = ("entry", "how it is known", "value there", "off by", "error bar")
_SOURCE_HEAD = ("entry", "problem", "what it is", "source")

TEXT = """# The atlas

Settings that papers of the field use, each solved to a tolerance, verified, and certified from the paths of its own
policy. Written by

```sh
fem-hjb atlas --out results/atlas --table docs/atlas.md --picture docs/images/atlas.png
```

`results/atlas` then has a grid file for each entry (`.npz`: value, control, densities where they are known,
[files.md](files.md)) and `atlas.jsonl`, one line of JSON for each, with all figures below in full, parameters, checks,
versions and a hash of the problem. Entries are kept as they are done, and one that fails does not stop the others.
Names after `atlas` make these alone, `--again` makes again what is there, `--quick` is a small run.

![Optimal control of each entry]({picture})

In one dimension the optimal control π over time (across) and state (up), red is up; in two the value at three quarters
of the horizon with the direction of π, in three a slice of it. Of problems in more dimensions one coordinate is shown.
Near the edges of a box, where hardly a path goes, nothing is right to the tolerance.

{main}

- *value*: E v₀(X₀), the most that reward less α times relative entropy can be; the literature's optimal cost is its
  negative. A star: see below.
- *error bar*: the estimated relative error of the value (*estimate*: of value and policy, *asked* is the tolerance of
  both) times the largest norm of v; a measured difference, no bound ([trust.md](trust.md)). *closed form*: nothing was
  solved, as more than three coordinates hang together.
- *checks*: how many of what was looked at passed.
- *certified*: the 95 % interval [lower, upper] of the value by `certify`, from {paths} paths of {fine} steps under the
  entry's own policy; of the diffusion, two step sizes extrapolated ([certificates.md](certificates.md)). Where the
  start is random it is as wide as the spread of v₀ over some hundred starts makes it. Notes below say where it is not
  to be trusted: ends that have crossed, or miss *value*, are narrower than what extrapolating leaves of the steps.
- *Euler chain*: J of the entry's policy on {paths} paths of Euler steps (200 if not noted), with a 95 % interval. What
  it differs by from *value*, beyond that, time steps do, not the control. J in continuous time is in `atlas.jsonl`.
- *without*: J without control.
- *CPU s*: seconds of the reference, and of everything, on one core of a shared machine.

## For ever

What a problem tends to as its horizon grows, by `ground_state`: the average reward, the price of steering taken off,
and the spectral gap, at whose rate it and the law under the stationary policy are approached. The settings are those of
Claeys, Goldman, Shen and He, arXiv 2603.23173, with cost -r. Independent coordinates are solved one by one. Error bars
are what these numbers change by with elements of one degree less; *estimate* is of value and policy, as above. Grid
files have w (v up to a constant), control and stationary density.

{settled}{forever}

## What is not as it should be, and what is to be known

{notes}

## Known otherwise

{known}

*Off by* is the root mean square of the difference over the law of the start, for ever the difference of average
rewards. Costs that papers give as means over paths of some hundred Euler steps differ from -*value* by what *Euler
chain* shows, and policies that were tabulated by first-order differences by what
[soc_benchmarks.md](soc_benchmarks.md) measures.

## What the entries are

Parameters that are not named have the defaults of `fem-hjb zoo`.

{sources}

## Left out

{left_out}
"""

SETTLED = """![Control and law of each entry for ever]({picture})

In one dimension the stationary density under the control (grey) and the control (red, right axis), in two w with the
direction of the control, both where that law is. Of problems in more dimensions one coordinate is shown.

"""

LEFT_OUT = """- Walls inside of the domain. Kappen's double slit is posed as what is to be paid at the wall, up to which
  the process is free: behind it the value is known. A wall that stands for a while would be a running reward of
  -infinity.
- Hitting times without a horizon: there is one, long enough that exp(-rate T) does not matter; targets are faces.
- Mueller-Brown with beta = 0.1, whose barrier is ten temperatures high: no solution within 150 s at 1e-2, nor on a
  small box within 70 s at 1e-1.
- The funnel in ten dimensions, whose coordinates hang together: two are here.
- Figures of networks that were trained: they depend on seeds and steps. What 200 Euler steps do to J is in the
  table."""


def page(records: Sequence[Record], picture: str = "images/atlas.png") -> str:
    """The whole page, Markdown; picture : where its picture is, seen from the page."""
    followed = [record["asked"] for record in records if not for_ever(record)]
    paths, fine = (sorted({asked[name] for asked in followed}) for name in ("paths", "fine"))
    return TEXT.format(
        picture=picture,
        paths=" or ".join(map(str, paths)) or "no",
        fine=" to ".join(map(str, fine[:: max(len(fine) - 1, 1)])) or "no",
        main=table(HEAD, [row(record) for record in records if not for_ever(record)]),
        settled=SETTLED.format(picture=beside(picture)) if any(map(for_ever, records)) else "",
        forever=table(FOREVER_HEAD, [_forever_row(record) for record in records if for_ever(record)]),
        notes="\n".join(map(_note, filter(notes_of, records))) or "Nothing.",
        known=table(_KNOWN_HEAD, [line for record in records for line in _known(record)]),
        sources=table(_SOURCE_HEAD, map(_source, records)),
        left_out=LEFT_OUT,
    )


def for_ever(record: Record) -> bool:
    """Whether an entry is one for ever."""
    return bool(record["asked"].get("forever"))


def beside(picture: str) -> str:
    """Beside a picture, a.png, that of the entries for ever, a-forever.png."""
    return f"{picture.removesuffix('.png')}-forever.png"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    rows = [head, ("---",) * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |" for cells in rows)


def row(record: Record) -> tuple[str, ...]:
    """An entry in the main table."""
    asked = record["asked"]["rtol"]
    head = (f"`{record['name']}`" + ("*" if notes_of(record) else ""), str(record["dim"]))
    tolerance = "closed form" if asked is None else f"{asked:.0e}"
    if record["error"] is not None:
        return (*head, "not solved", _NONE, tolerance, *(_NONE,) * 6)
    estimate, bar = record["estimate"], record["value_error"]
    checks = record["checks"]
    return (
        *head,
        in_digits(record["value"], bar),
        _short(bar) if asked is not None else _NONE,
        tolerance,
        _NONE if estimate is None else f"{_short(estimate['value'])}, {_short(estimate['policy'])}",
        f"{sum(check['passed'] for check in checks)} of {len(checks)}" if checks else _NONE,
        _interval(record.get("certificate", {})),
        _euler(record),
        _objective(record, "uncontrolled"),
        f"{record['seconds']['reference']:.1f}, {sum(record['seconds'].values()):.1f}",
    )


def _forever_row(record: Record) -> tuple[str, ...]:
    """An entry in the table of long horizons."""
    name, dim, value, bar, asked, estimate, checks, *_, seconds = row(record)
    if record["error"] is not None:
        return name, dim, value, bar, _NONE, _NONE, asked, estimate, checks, seconds
    gap = in_digits(record["gap"], record["gap_error"]), _short(record["gap_error"])
    return name, dim, value, bar, *gap, asked, estimate, checks, f"{record['seconds']['reference']:.1f}"


def notes_of(record: Record) -> list[str]:
    """What is not as it should be, and what a reader must know of an entry."""
    found = [record["note"]] if record["note"] else []
    if record["error"] is not None:
        return [*found, record["error"]]
    found += [record["status"]] if record["status"] != "ok" else []
    for name in ("certificate", "objectives", "files"):
        part = record.get(name)
        if isinstance(part, dict) and "error" in part:
            found.append(f"{name}: {part['error']}")
    certificate = record.get("certificate", {})
    if certificate.get("status", "ok") != "ok":
        found.append(f"certificate: {certificate['status']}")
    return found


def in_digits(value: float | None, bar: float | None) -> str:
    """As many decimals as an error bar leaves, and one more."""
    if value is None:
        return _NONE
    decimals = math.ceil(-math.log10(bar)) + 1 if bar and bar > 0 else _MOST_DECIMALS - 4
    places = min(max(decimals, _FEWEST_DECIMALS), _MOST_DECIMALS)
    return f"{round(value, places) + 0.0:.{places}f}"


def _short(number: float | None) -> str:
    return "unknown" if number is None else f"{number:.0e}" if number else "0"


def _interval(part: Record) -> str:
    if "error" in part or part.get("lower") is None:
        return _NONE
    upper = part["upper"]
    width = None if upper is None else (upper - part["lower"]) / 20
    return f"[{in_digits(part['lower'], width)}, {'∞' if upper is None else in_digits(upper, width)}]"


def _euler(record: Record) -> str:
    found = record.get("objectives", {}).get("euler")
    if not found:
        return _NONE
    margin = (found["high"] - found["low"]) / 2
    steps = "" if record["asked"]["steps"] == 200 else f" ({record['asked']['steps']} steps)"
    return f"{in_digits(found['value'], margin)} ± {_short(margin)}{steps}"


def _objective(record: Record, name: str) -> str:
    found = record.get("objectives", {}).get(name)
    return in_digits(found["value"], max(found["standard_error"] or 0.0, 1e-4)) if found else _NONE


def _note(record: Record) -> str:
    return f"- `{record['name']}`: " + "; ".join(notes_of(record))


def _known(record: Record) -> list[tuple[str, ...]]:
    if record["error"] is not None:
        return []
    name, bar = f"`{record['name']}`", record["value_error"]
    found: list[tuple[str, ...]] = []
    if "true_error" in record:
        how = "closed form" if "known" not in record else "the target is normalised"
        there = in_digits(record.get("known", record["value"]), bar)
        found.append((name, how, there, _short(record["true_error"]), _short(bar)))
    if "published" in record:
        other: dict[str, Any] = record["published"]
        sign = "-v" if other["sign"] < 0 else "v"
        off = abs(other["ours"] - other["figure"])
        how = f"published, {sign} = {other['figure']:g}: {other['source']}; {other['remark']}"
        found.append((name, how, f"{sign} = {other['ours']:.6f}", _short(off), _NONE))
    return found


def _source(record: Record) -> tuple[str, ...]:
    given = ", ".join(f"{key}={value}" for key, value in record["asked"]["given"].items())
    problem = f"`{record['problem']}`, d = {record['dim']}" + (f", {given}" if given else "")
    return f"`{record['name']}`", problem, record["what"], record["source"]
