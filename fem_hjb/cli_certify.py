"""fem-hjb certify: bounds of the optimal value from the paths of a policy."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from fem_hjb import cli_output as output
from fem_hjb.cli_input import (
    SECONDS,
    Debug,
    Dim,
    Json,
    MaxSeconds,
    OptionError,
    Params,
    ProblemName,
    Quiet,
    loaded,
    numbers,
    problem_named,
    solution_in,
)
from fem_hjb.evaluation.certify import certify
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.support.errors import ProblemError

_PATHS, _QUICK_PATHS = (8192, 128), (1024, 32)  # trajectories, and their steps
_KINDS = "PATH.py:NAME for what you wrote, SOLUTION.npz, exact"


def certify_command(
    problem_name: ProblemName,
    policy: Annotated[str, typer.Argument(metavar="POLICY", help=f"{_KINDS}, or zero for no control.")],
    dim: Dim = None,
    x0: Annotated[
        str | None, typer.Option(help="A start, numbers separated by commas; by default that of the problem.")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Trajectories; by default 8192.", min=256)] = None,
    steps: Annotated[int | None, typer.Option(help="Their time steps, an even number; by default 128.", min=1)] = None,
    value: Annotated[
        str | None, typer.Option(help=f"An approximate value whose residual is looked at, too: {_KINDS}.")
    ] = None,
    level: Annotated[float, typer.Option(help="Level of the intervals.")] = 0.95,
    max_seconds: MaxSeconds = SECONDS,
    seed: Annotated[int, typer.Option(help="Seed of the trajectories.", min=0)] = 0,
    param: Params = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A small run: --samples 1024 and --steps 32, where not given.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Bounds of the optimal value, and what a policy loses, from paths that follow it: no reference is needed."""
    report = output.Report(quiet)
    problem = problem_named(problem_name, dim, param)
    n, count = _QUICK_PATHS if quick else _PATHS
    start = None if x0 is None else numbers(x0, "--x0")
    pi = _named(problem, policy)
    w = None if value is None else pi if value == policy else _named(problem, value)
    with report.stage("certificate") as stage:
        found = certify(
            problem,
            pi,
            x0=start,
            n=n if samples is None else samples,
            steps=count if steps is None else steps,
            rng=seed,
            value=w,
            level=level,
            progress=stage.progress,
            max_seconds=max_seconds,
        )
    if json:
        output.print_json({"dim": problem.dim, **asdict(found)})
    else:
        print(found)


def _named(problem: ControlProblem, name: str) -> Any:
    """A policy or a value that is named on the command line."""
    if name == "zero":
        return None
    if name == "exact":
        if problem.exact is None:
            raise ProblemError(f"{problem.name!r} has no exact solution; give PATH.py:NAME or SOLUTION.npz")
        return problem.exact
    if name.endswith(".npz"):
        return solution_in(name, problem)
    path, _, attribute = name.rpartition(":")
    if not path.endswith(".py"):
        raise OptionError(f"POLICY must be {_KINDS} or zero, got {name!r}")
    return loaded(Path(path), attribute)
