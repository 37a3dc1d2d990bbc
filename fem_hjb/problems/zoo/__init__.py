"""Named control problems, each with its equation, its source and, wherever one exists, its exact solution.

A problem is one function: it takes `dim` and keyword parameters, its docstring is its equation, and `@register()`
enters it under its name with dashes for underscores. The shared tests pick up those of the package by themselves. A
problem of the user's own is entered in the same way from outside, see `register`. Exit problems are entered with
kind=ExitProblem; `exit_names` and `get_exit` know these.

>>> problem = get("lq", dim=2, temperature=0.5)
>>> problem.exact.value(0.0, [[0.0, 0.0]]).shape
(1,)
"""

# Importing a family enters its problems.
from fem_hjb.problems.zoo import (  # noqa: F401
    linear_quadratic,
    log_cost,
    meshed,
    metastable,
    mixtures,
    options,
    points,
    reflected,
    slits,
    soc_matching,
    targets,
    until_exit,
    wells,
)
from fem_hjb.problems.zoo.registry import (
    describe,
    dims,
    exit_names,
    get,
    get_exit,
    names,
    parameters,
    register,
    source,
)

__all__ = ["describe", "dims", "exit_names", "get", "get_exit", "names", "parameters", "register", "source"]
