"""fem-hjb export: a solution as a file that other programs read."""

import warnings
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
    numbers,
    problem_named,
    solution_in,
)
from fem_hjb.interop.export import check_path, export
from fem_hjb.reference.solve import solve
from fem_hjb.reference.tolerance import checked_rtol
from fem_hjb.solutions.estimate import ToleranceWarning

_RTOL = 1e-4


def export_command(
    problem_name: ProblemName,
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="The file; its suffix says the format: .npz, .h5, .nc, .vtu or .pvd."),
    ],
    dim: Dim = None,
    solution: Annotated[
        Path | None, typer.Option(help="A file that `fem-hjb solve` or `compare` wrote; by default it is solved now.")
    ] = None,
    rtol: Annotated[
        float | None, typer.Option(help="Relative tolerance of value and policy; by default 1e-4. Not with --solution.")
    ] = None,
    times: Annotated[
        str | None, typer.Option(help="Times, separated by commas; by default 17, denser towards the end.")
    ] = None,
    max_seconds: MaxSeconds = SECONDS,
    seed: Annotated[int, typer.Option(help="Seed of the samples that say where the process goes.", min=0)] = 0,
    param: Params = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write value, f, control and, where they are known, densities of a solution for other programs.

    .npz is for NumPy, .h5 and .nc for xarray, MATLAB and Julia (regular grids), .vtu and .pvd for ParaView (the
    solution's own mesh).
    """
    report = output.Report(quiet)
    problem = problem_named(problem_name, dim, param)
    check_path(out)
    when = None if times is None else numbers(times, "--times")
    if solution is not None and rtol is not None:
        raise OptionError("give --rtol or --solution, not both: a solution that is read is not solved again")
    found: Any
    if solution is not None:
        found = solution_in(solution, problem)
    else:
        tolerance = _RTOL if rtol is None else checked_rtol(rtol, "--rtol")
        with report.stage("solution") as stage, warnings.catch_warnings():
            warnings.simplefilter("ignore", ToleranceWarning)  # the status says it
            found = solve(problem, rtol=tolerance, rng=seed, progress=stage.progress, max_seconds=max_seconds)
            stage.note(output.describe_reference(found))
    report.warn("solution", found)
    with report.stage("export"):
        export(found, out, times=when)
    if json:
        head = {"problem": problem.name, "dim": problem.dim}
        output.print_json({**head, "status": found.status, "file": out, "bytes": out.stat().st_size})
    else:
        print(out)
