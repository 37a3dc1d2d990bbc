"""fem-hjb exit and fem-hjb ground-state: problems without a horizon."""

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
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
)
from fem_hjb.evaluation.certificate import Certificate
from fem_hjb.evaluation.certify_exit import certify_exit
from fem_hjb.plotting.steady import picture_of
from fem_hjb.problems.exit import ExitProblem
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.reference.exit_box import committor, mean_exit_time, solve_exit
from fem_hjb.reference.exit_mesh import exit_expectation_on_mesh, solve_exit_on_mesh
from fem_hjb.reference.ground_state import ground_state, ground_state_on_mesh
from fem_hjb.reference.tolerance import checked_rtol
from fem_hjb.solutions.estimate import ToleranceWarning
from fem_hjb.solutions.files import save_solution
from fem_hjb.solutions.steady import ExitSolution
from fem_hjb.support.checks import FloatArray, frozen_array, one_of
from fem_hjb.support.files import atomic_folder

_RTOL, _QUICK_RTOL = 1e-4, 1e-2
_QUANTITIES = ("value", "mean-exit-time", "committor")
_PATHS, _QUICK_PATHS = 4096, 512  # that certify
_DRAWS = 4096  # points of the domain, which say how large a function is
_FILES = ("solution.npz", "picture.png")

_LABELS = {
    "value": "value $v(x)$",
    "mean-exit-time": r"mean exit time $E_x\,\tau$",
    "committor": "probability of leaving there",
}

Rtol = Annotated[float | None, typer.Option(help="Relative tolerance; by default 1e-4. Not for meshes.")]
MaxDofs = Annotated[int | None, typer.Option(help="Unknowns on one grid. Not for meshes.", min=1)]
Element = Annotated[str | None, typer.Option(help="Element, where the domain is a mesh; by default P2.")]
Quick = Annotated[bool, typer.Option("--quick", help="A small run: --rtol 1e-2, where not given.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the results; by default results/PROBLEM.")]


def exit_command(
    problem_name: ProblemName,
    of: Annotated[str, typer.Option(help=f"{', '.join(_QUANTITIES)}: what is asked for.")] = "value",
    into: Annotated[
        str | None,
        typer.Option(
            help="Of a committor, through what the process is to leave: faces such as 0:upper, or names of the boundary"
            " of a mesh, separated by commas."
        ),
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            help="A point, numbers separated by commas; may be repeated. By default the middle,"
            " in a mesh the middle of a cell far from where it absorbs."
        ),
    ] = None,
    certify: Annotated[
        float | None,
        typer.Option(
            metavar="STEP",
            help="Certify the value at each point, by 4096 paths (512 with --quick) that follow the policy found until"
            " they leave, in steps of this length.",
        ),
    ] = None,
    dim: Dim = None,
    rtol: Rtol = None,
    max_dofs: MaxDofs = None,
    element: Element = None,
    max_seconds: MaxSeconds = SECONDS,
    param: Params = None,
    quick: Quick = False,
    out: Out = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Solve an exit problem: value and policy, mean exit time without control, or the probability to leave somewhere.

    Where the domain is a box to a tolerance, where it is a mesh on that mesh. Writes solution.npz and picture.png.
    Error bars at points are the estimated relative error times the root mean square of the function.
    """
    report = output.Report(quiet)
    problem = problem_named(problem_name, dim, param, ExitProblem)
    one_of(of, "--of", _QUANTITIES, OptionError)
    if problem.domain is None:
        raise OptionError(f"{problem_name} has no domain; give it domain=Box(...) or MeshDomain(...)")
    if (into is None) == (of == "committor"):
        raise OptionError("--of committor needs --into, and nothing else takes it")
    if certify is not None and of != "value":
        raise OptionError(f"--certify is of values, not with --of {of}; leave one of them out")
    solve = _way(problem, of, into, _how(isinstance(problem.domain, MeshDomain), rtol, max_dofs, element, quick))
    points = _points(problem, at)
    folder = Path("results") / problem_name.rpartition(":")[2] if out is None else out
    found = _written(report, folder, solve, max_seconds, _LABELS[of])
    size = _size(problem, found)
    bar = found.error_estimate.value * size
    values = found.value(points).tolist()
    files = [folder / name for name in _FILES]
    proved = [] if certify is None else _proved(report, problem, found, points, certify, quick, max_seconds)
    if json:
        rows: list[dict[str, Any]] = [
            {"x": x, "value": value, "error": bar} for x, value in zip(points.tolist(), values, strict=True)
        ]
        for row, one in zip(rows, proved, strict=False):
            row["certificate"] = asdict(one)
        head = {"problem": problem.name, "dim": problem.dim, "of": of}
        output.print_json({**head, **output.outline(found), "at": rows, "files": files})
        return
    print(f"{problem.name}, dim {problem.dim}: {of.replace('-', ' ')}")
    output.print_stats(found)
    for x, value in zip(points.tolist(), values, strict=True):
        print(f"at {', '.join(f'{c:g}' for c in x)}: {value:.10g} ± {bar:.1e}")
    for one in proved:
        print(one)
    for file in files:
        print(file)


def ground_state_command(
    problem_name: ProblemName,
    dim: Dim = None,
    rtol: Rtol = None,
    max_dofs: MaxDofs = None,
    element: Element = None,
    max_seconds: MaxSeconds = SECONDS,
    param: Params = None,
    quick: Quick = False,
    out: Out = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """What a problem tends to as its horizon grows: average reward, spectral gap, stationary policy and law.

    Its coefficients do not depend on time; horizon, terminal reward and start play no role. Writes solution.npz and
    picture.png. Error bars are what numbers change by with elements of one degree less, or on the mesh refined once.
    """
    report = output.Report(quiet)
    problem = problem_named(problem_name, dim, param)
    meshed = isinstance(problem.domain, MeshDomain)
    how = _how(meshed, rtol, max_dofs, element, quick)

    def solve(**more: Any) -> Any:
        return (ground_state_on_mesh if meshed else ground_state)(problem, **how, **more)

    folder = Path("results") / problem_name.rpartition(":")[2] if out is None else out
    found = _written(report, folder, solve, max_seconds, "$w(x)$")
    stats, files = found.stats, [folder / name for name in _FILES]
    numbered = {
        "average_reward": (found.average_reward, stats["average_reward_error"]),
        "gap": (found.gap, stats["gap_error"]),
    }
    if json:
        record = {name: {"value": value, "error": off} for name, (value, off) in numbered.items()}
        head = {"problem": problem.name, "dim": problem.dim}
        output.print_json({**head, **output.outline(found), **record, "files": files})
        return
    print(f"{problem.name}, dim {problem.dim}: for ever")
    output.print_stats(found)
    for name, (value, off) in numbered.items():
        print(f"{name.replace('_', ' ')}: {value:.10g} ± {off:.1e}")
    for file in files:
        print(file)


def _proved(
    report: output.Report,
    problem: ExitProblem,
    found: ExitSolution,
    points: FloatArray,
    step: float,
    quick: bool,
    seconds: float,
) -> list[Certificate]:
    """Certificates of the policy that was found, from each point."""
    certificates = []
    for x in points:
        with report.stage("certificate") as stage:
            more: Any = {"progress": stage.progress, "max_seconds": seconds}
            n = _QUICK_PATHS if quick else _PATHS
            certificates.append(certify_exit(problem, found, x, n=n, step=step, rng=0, **more))
    return certificates


def _how(meshed: bool, rtol: float | None, max_dofs: int | None, element: str | None, quick: bool) -> dict[str, Any]:
    """What solvers are told; OptionError for what the domain does not take."""
    refused = {"--rtol": rtol, "--max-dofs": max_dofs} if meshed else {"--element": element}
    wrong = [name for name, value in refused.items() if value is not None]
    if wrong:
        where = "a box, and this one is a mesh" if meshed else "a mesh, and this one is none"
        raise OptionError(f"{' and '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} for a domain that is {where}")
    if meshed:
        return {"element": element}
    usual = _QUICK_RTOL if quick else _RTOL
    return {"rtol": usual if rtol is None else checked_rtol(rtol, "--rtol"), "max_dofs": max_dofs}


def _way(problem: ExitProblem, of: str, into: str | None, how: dict[str, Any]) -> Callable[..., Any]:
    """The solver of a quantity, told all but how far it may go."""
    if not isinstance(problem.domain, MeshDomain):
        if of == "value":
            return lambda **more: solve_exit(problem, **how, **more)
        if of == "mean-exit-time":
            return lambda **more: mean_exit_time(problem, **how, **more)
        faces = [_face(text) for text in (into or "").split(",")]
        return lambda **more: committor(problem, faces, **how, **more)
    if of == "value":
        return lambda **more: solve_exit_on_mesh(problem, **how, **more)
    if of == "mean-exit-time":
        return lambda **more: exit_expectation_on_mesh(problem, source=_one, **how, **more)
    h = _numbers_at(problem.domain, (into or "").split(","))
    return lambda **more: exit_expectation_on_mesh(problem, h=h, **how, **more)


def _one(x: FloatArray) -> FloatArray:
    return np.ones(x.shape[:-1])


def _face(text: str) -> tuple[int, str]:
    """0:upper as a face."""
    axis, _, side = text.strip().partition(":")
    if not axis.isdigit() or side not in ("lower", "upper"):
        raise OptionError(f"--into must be faces such as 0:upper or 1:lower, separated by commas, got {text!r}")
    return int(axis), side


def _numbers_at(domain: MeshDomain, wanted: list[str]) -> dict[str, float]:
    """1 for each name that is wanted, and 0 for the other names that absorb."""
    words = domain.boundary if not isinstance(domain.boundary, str) else {}
    known = [name for name, word in words.items() if name is not None and word == "absorbing"]
    names = [name.strip() for name in wanted]
    strange = [name for name in names if name not in known]
    if strange:
        raise OptionError(f"--into must be names of what absorbs, {', '.join(map(repr, known))}, got {strange[0]!r}")
    return {name: float(name in names) for name in known}


def _points(problem: ExitProblem, at: list[str] | None) -> FloatArray:
    """Points (n, d) of the domain."""
    domain = problem.domain
    if domain is None:
        raise OptionError("there is no domain")
    if at:
        rows = [frozen_array(numbers(text, "--at"), "--at", (problem.dim,), OptionError) for text in at]
        outside = [row.tolist() for row in rows if not domain.contains(row)]
        if outside:
            raise OptionError(f"--at must lie in the domain, {domain.place}, got {outside[0]}")
        return np.stack(rows)
    if isinstance(domain, MeshDomain):
        middles = domain.mesh.p[:, domain.mesh.t].mean(axis=1).T
        return np.asarray(middles[[int(np.argmax(domain.distance("absorbing", middles)))]])
    lower, upper = domain.bounds
    return np.asarray(0.5 * (lower + upper)[None])


def _size(problem: ExitProblem, found: Any) -> float:
    """The root mean square of a function over the domain."""
    domain = problem.domain
    lower, upper = found.function.basis.box.bounds if domain is None else domain.bounds
    x = lower + (upper - lower) * np.random.default_rng(0).random((_DRAWS, problem.dim))
    return math.sqrt(float(np.nanmean(found.value(x, outside="nan") ** 2)))


def _written(report: output.Report, folder: Path, solve: Callable[..., Any], max_seconds: float, label: str) -> Any:
    """What a solver finds, in a file and as a picture."""
    with atomic_folder(folder) as part:
        with report.stage("solution") as stage, warnings.catch_warnings():
            warnings.simplefilter("ignore", ToleranceWarning)  # the status says it
            found = solve(progress=stage.progress, max_seconds=max_seconds)
            stage.note(f"{found.stats['dofs']} dofs, estimated error: {found.error_estimate}")
        report.warn("solution", found)
        with report.stage("files"):
            save_solution(part / _FILES[0], found)
            picture_of(found, label).savefig(part / _FILES[1], dpi=110)
    return found
