"""Experiments anyone can run again: each module has a frozen `Config`, its `QUICK` version, `run` and `figure`.

A new one is a new file here: a docstring whose first line says what it shows, `Config`, `QUICK`, `run(config, tell) ->
Trial` (which tells how far it is, from 0 to 1, and ends with `trial.conclude`) and `figure(trial) -> Figure`; the
command line and the tests find it by themselves.
"""

import pkgutil
from importlib import import_module
from types import ModuleType
from typing import Any

from fem_hjb.experiments.trial import Trial, changed
from fem_hjb.support.checks import flag
from fem_hjb.support.errors import ConvergenceError, TrialError
from fem_hjb.support.progress import OutOfTimeError, Progress, checked_progress, checked_seconds, until


def names() -> list[str]:
    """The experiments there are."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__) if module.name != "trial")


def get(name: str) -> ModuleType:
    """The module of an experiment; TrialError lists the names there are."""
    if not isinstance(name, str) or name not in names():
        raise TrialError(f"there is no experiment {name!r}; there are {', '.join(names())}")
    return import_module(f"{__name__}.{name.replace('-', '_')}")


def configuration(name: str, *, quick: bool = False, **changes: Any) -> Any:
    """The `Config` of an experiment, or that of its version of about a minute at most, with some fields changed.

    Raises TrialError for an unknown experiment or field, or a value that is not of the field's type.

    >>> configuration("self-mitigation", quick=True, seeds=8).seeds
    8
    """
    module = get(name)
    flag(quick, "quick", TrialError)
    return changed(module.QUICK if quick else module.Config(), changes)


def run(
    name: str,
    *,
    quick: bool = False,
    config: Any = None,
    progress: Progress | None = None,
    max_seconds: float | None = None,
    **changes: Any,
) -> Trial:
    """Run an experiment as `configuration` gives it, or with a `Config` of your own.

    A `Config` is a frozen dataclass; `dataclasses.replace(experiments.get(name).Config(), seeds=8)` makes another.
    progress : called with the fraction of the work done, which never falls and ends at 1, after every fit.
    max_seconds : when they are over, the work stops at the next fit; claims are about all rows of a table, so that
        there is no best so far to return.

    Raises TrialError as `configuration` does, and for a config together with what would change it, or of another kind;
    ConvergenceError if max_seconds are over.
    """
    module = get(name)
    watch = until(checked_progress(progress), checked_seconds(max_seconds))
    flag(quick, "quick", TrialError)
    if config is None:
        config = configuration(name, quick=quick, **changes)
    elif quick or changes or not isinstance(config, module.Config):
        raise TrialError(f"give a Config of {name!r} alone, or quick= and the fields to change, got {config!r}")
    try:
        trial: Trial = module.run(config, watch)
    except OutOfTimeError:
        if max_seconds is None:  # the limit is that of a caller, whose progress= raised it
            raise
        raise ConvergenceError(
            f"experiment {name!r}: {watch.reached:.0%} done within max_seconds={max_seconds:g}; give it more time, its"
            " quick version, or fewer seeds"
        ) from None
    watch.finished()
    return trial
