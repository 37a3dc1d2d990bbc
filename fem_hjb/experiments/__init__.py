"""Experiments anyone can run again: each module has a frozen `Config`, its `QUICK` version, `run` and `figure`.

A new one is a new file here: a docstring whose first line says what it shows, `Config`, `QUICK`, `run(config) -> Trial`
(which ends with `trial.conclude`) and `figure(trial) -> Figure`; the command line and the tests find it by themselves.
"""

import pkgutil
from importlib import import_module
from types import ModuleType

from fem_hjb.experiments.trial import Trial
from fem_hjb.support.errors import TrialError


def names() -> list[str]:
    """The experiments there are."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__) if module.name != "trial")


def get(name: str) -> ModuleType:
    """The module of an experiment; TrialError lists the names there are."""
    if name not in names():
        raise TrialError(f"there is no experiment {name!r}; there are {', '.join(names())}")
    return import_module(f"{__name__}.{name.replace('-', '_')}")


def run(name: str, *, quick: bool = False) -> Trial:
    """Run an experiment as it is configured, or its version of about a minute at most."""
    module = get(name)
    trial: Trial = module.run(module.QUICK if quick else module.Config())
    return trial
