"""The command fem-hjb."""

import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from matplotlib.figure import Figure
from typer.core import TyperGroup

from fem_hjb import cli_output as output
from fem_hjb import experiments
from fem_hjb.cli_atlas import atlas_command
from fem_hjb.cli_certify import certify_command
from fem_hjb.cli_demo import demo_command
from fem_hjb.cli_export import export_command
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
    in_options,
    pairs,
    problem_named,
    route,
)
from fem_hjb.cli_steady import exit_command, ground_state_command
from fem_hjb.experiments.trial import write_trial
from fem_hjb.learning.estimators import ESTIMATORS
from fem_hjb.learning.fit import fit
from fem_hjb.learning.measures import law_measure
from fem_hjb.paths.extent import truncation_box
from fem_hjb.paths.simulate import sample_paths
from fem_hjb.plotting import pictures
from fem_hjb.problems import zoo
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.mesh_refine import refine_on_mesh
from fem_hjb.reference.mesh_solve import solve_on_mesh
from fem_hjb.reference.solve import solve
from fem_hjb.reference.tolerance import checked_rtol
from fem_hjb.solutions.compare import compare
from fem_hjb.solutions.comparison import Comparison
from fem_hjb.solutions.estimate import ToleranceWarning
from fem_hjb.solutions.files import save_solution
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.spaces.basis import element_named
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import one_of
from fem_hjb.support.errors import FemHjbError, MeasureError, TrialError
from fem_hjb.support.files import atomic_folder

_CELLS = {1: (16, 8), 2: (8, 4), 3: (3, 2)}  # per axis, and in time: few enough for some thousand trajectories
_QUICK_CLASS = {1: (8, 4), 2: (6, 3), 3: (2, 2)}  # the same, for some hundred
_PATHS, _QUICK_PATHS = (5000, 64), (500, 16)  # trajectories to learn from, and their steps
_RTOL, _QUICK_RTOL = 1e-3, 1e-2  # of the reference that learned solutions are compared with
_QUICK_MESH, _QUICK_RTOL_TIME = {1: 32, 2: 16, 3: 6}, 1e-3  # cells per axis, and tolerance of time steps
_TERMINAL = "interpolated"  # as policies are compared: with a penalty, log f is left to chance where f_T is small
_SUBSTEPS = 8  # between two observations, so that what is learned does not hang on the simulation's step

AnySolution = Solution | ProductSolution

# What typer raises for a wrong option; it shows these in a box of several lines, we in one.
_UsageError: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
# What is reported in one line: our own errors, the system's, and whatever a user's file may raise.
_REPORTED = (
    *(FemHjbError, OSError, ArithmeticError, AttributeError, ImportError, LookupError, MemoryError, NameError),
    *(RuntimeError, SyntaxError, TypeError, ValueError),
)


class _OneLineErrors(TyperGroup):
    """Errors become one line on stderr and exit code 2; with --debug they keep their traceback."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        given = list(sys.argv[1:] if args is None else args) or ["--help"]
        try:
            code = super().main(given, prog_name, complete_var, False, windows_expand_args, **extra)
        except _UsageError as error:
            _fail(str(getattr(error, "format_message", error.__str__)()).rstrip(".") + " (see fem-hjb --help)")
        except _REPORTED as error:
            if "--debug" in given:
                raise
            if isinstance(error, OptionError | TrialError | OSError):
                _fail(str(error))
            known = isinstance(error, FemHjbError)
            _fail(in_options(str(error)) if known else f"{type(error).__name__}: {error}; --debug shows where")
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else 0)
        return code


def _fail(message: str) -> NoReturn:
    print("fem-hjb: error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


app = typer.Typer(
    cls=_OneLineErrors,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="References and learned solutions for linearly solvable stochastic control.",
)

MeshFile = Annotated[Path | None, typer.Option(help="Mesh file for the reference, anything meshio reads.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the results; by default results/PROBLEM.")]
_QUICK_COMPARE = (
    "A small run: --samples 500, --steps 16, --cells 8, 6, 2, --time-cells 4, 3, 2 in 1-D, 2-D, 3-D, and --rtol 1e-2,"
    " where not given."
)
_QUICK_SOLVE = (
    "A small run: --rtol 1e-2, or on a mesh --cells 32, 16, 6 in 1-D, 2-D, 3-D and --rtol-time 1e-3, where not given."
)


def _version(asked: bool) -> None:
    if asked:
        print(f"fem-hjb {version('fem_hjb')}")
        raise typer.Exit


@app.callback(epilog="Start with: fem-hjb compare lq")
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """References and learned solutions for linearly solvable stochastic control."""


@app.command("compare", short_help="Solve a problem, learn it from trajectories, compare.")
def compare_command(
    problem_name: ProblemName,
    dim: Dim = None,
    samples: Annotated[int | None, typer.Option(help="Trajectories to learn from; by default 5000.", min=1)] = None,
    steps: Annotated[int | None, typer.Option(help="Time steps of each trajectory; by default 64.", min=1)] = None,
    cells: Annotated[
        int | None,
        typer.Option(help="Cells per axis of the class that is learned; by default 16, 8, 3 in 1-D, 2-D, 3-D.", min=1),
    ] = None,
    time_cells: Annotated[int | None, typer.Option(help="Its cells in time; by default 8, 4, 2.", min=1)] = None,
    element: Annotated[str, typer.Option(help="Its element in space.")] = "hermite",
    estimator: Annotated[
        str, typer.Option(help=f"{', '.join(ESTIMATORS)}; generator and residual need C1 elements.")
    ] = "generator",
    smoothing: Annotated[
        float | None,
        typer.Option(help="Weight, in trajectories, of smoothness in cells where samples say too little.", min=0),
    ] = None,
    mesh: MeshFile = None,
    reference_cells: Annotated[
        int | None, typer.Option(help="Cells per axis, for a reference on a mesh of finite elements.", min=1)
    ] = None,
    rtol: Annotated[
        float | None, typer.Option(help="Relative tolerance of the reference; by default 1e-3 where it is no mesh.")
    ] = None,
    max_seconds: MaxSeconds = SECONDS,
    seed: Annotated[int, typer.Option(help="Seed of the trajectories.", min=0)] = 0,
    param: Params = None,
    quick: Annotated[bool, typer.Option("--quick", help=_QUICK_COMPARE)] = False,
    out: Out = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Solve a problem, learn it from trajectories, and see how far apart they are.

    Errors are against the exact solution where there is one, else against the reference. Writes solution.npz (the
    learned one), comparison.csv and comparison.png.
    """
    report = output.Report(quiet)
    problem = problem_named(problem_name, dim, param)
    how = _reference_options(mesh, reference_cells, rtol, _QUICK_RTOL if quick else _RTOL)
    counts = (_QUICK_CLASS if quick else _CELLS).get(problem.dim, (3, 2))
    space = _space(problem, cells or counts[0], time_cells or counts[1], element, estimator)
    n, count = _QUICK_PATHS if quick else _PATHS
    folder = _out(out, problem_name)
    with atomic_folder(folder) as part:
        with report.stage("reference") as stage:
            reference = _quietly(problem, progress=stage.progress, max_seconds=max_seconds, **how)
            stage.note(output.describe_reference(reference))
        report.warn("reference", reference)
        with report.stage("trajectories") as stage:
            paths = sample_paths(problem, n=samples or n, steps=steps or count, rng=seed, substeps=_SUBSTEPS)
            stage.note(f"{paths.n} paths of {paths.steps} steps ({paths.scheme})")
        options: dict[str, Any] = {"estimator": estimator, "terminal": _TERMINAL, "outside": "drop"}
        options["max_seconds"] = max_seconds
        with report.stage("learned solution") as stage:
            learned = fit(problem, paths, space, smoothing=smoothing, progress=stage.progress, **options)
            stage.note(output.describe_fit(learned))
        report.warn("learned solution", learned)
        galerkin = None
        if problem.marginal is not None:
            with report.stage("galerkin solution") as stage:
                law = law_measure(problem, space)
                galerkin = fit(problem, law, space, progress=stage.progress, verify=False, **options)
                stage.note("the same class under the exact law")
        with report.stage("comparison"):
            comparison, figure = _compared(problem, learned, galerkin, reference, seed)
        with report.stage("files"):
            save_solution(part / "solution.npz", learned)
            comparison.to_csv(part / "comparison.csv")
            figure.savefig(part / "comparison.png", dpi=110)
    files = [folder / name for name in ("solution.npz", "comparison.csv", "comparison.png")]
    against = "reference" if problem.exact is None else "exact solution"
    if json:
        record = {"reference": output.outline(reference), "learned": output.outline(learned)}
        found = {"against": against, "errors": output.overall(comparison), "notes": comparison.notes}
        output.print_json({"problem": problem.name, "dim": problem.dim, **found, **record, "files": files})
        return
    output.print_comparison(comparison, f"{problem.name}, dim {problem.dim}: relative errors against the {against}")
    for file in files:
        print(file)


def _reference_options(mesh: Path | None, cells: int | None, rtol: float | None, usual: float) -> dict[str, Any]:
    """What `_quietly` is told about the reference."""
    if mesh is not None and cells is not None:
        raise OptionError("give --mesh or --reference-cells, not both")
    tolerance = None if rtol is None else checked_rtol(rtol, "--rtol")
    if mesh is None and cells is None:
        return {"way": "boxes", "rtol": usual if tolerance is None else tolerance}
    return {"way": "mesh", "mesh": mesh, "cells": cells, "rtol": tolerance}


def _space(problem: ControlProblem, cells: int, time_cells: int, element: str, estimator: str) -> Space:
    """The class to learn in: a box with hardly any mass outside, since samples teach nothing where there are none."""
    row = ESTIMATORS[one_of(estimator, "estimator", tuple(ESTIMATORS), MeasureError)]
    element_named(element).kind_in(problem.dim)
    space = Space(
        problem,
        cells=cells,
        time_cells=time_cells,
        element=element,
        box=truncation_box(problem, quantile=1e-3, margin=0.0).box,
    )
    row.check(space, 0.0)
    return space


def _compared(
    problem: ControlProblem, learned: Solution, galerkin: Solution | None, reference: AnySolution, seed: int
) -> tuple[Comparison, Figure]:
    """Errors of all that there is against the exact solution, or the reference, and a picture."""
    candidates: dict[str, AnySolution] = {"learned": learned}
    if galerkin is not None:
        candidates["galerkin"] = galerkin
    if problem.exact is not None:
        candidates["reference"] = reference
    truth = reference if problem.exact is None else problem.exact
    comparison = compare(candidates, truth, problem=problem, rng=seed)
    return comparison, pictures.report(problem, learned, reference, galerkin=galerkin)


@app.command("solve", short_help="Solve a problem to a tolerance, or on a mesh.")
def solve_command(
    problem_name: ProblemName,
    dim: Dim = None,
    rtol: Annotated[
        float | None,
        typer.Option(help="Relative tolerance of value and policy; by default 1e-4 where no mesh is asked for."),
    ] = None,
    form: Annotated[str | None, typer.Option(help="linear or value; by default what fits. Not on a mesh.")] = None,
    max_dofs: Annotated[int | None, typer.Option(help="Unknowns in space; not on a mesh that is kept.", min=1)] = None,
    mesh: MeshFile = None,
    cells: Annotated[int | None, typer.Option(help="Cells per axis of a mesh; not with --mesh.", min=1)] = None,
    element: Annotated[str | None, typer.Option(help="Element of the mesh; by default P2.")] = None,
    steps: Annotated[int | None, typer.Option(help="On a mesh: equal time steps, not adaptive ones.", min=1)] = None,
    rtol_time: Annotated[float | None, typer.Option(help="On a mesh: tolerance of adaptive time steps.")] = None,
    refine: Annotated[bool, typer.Option("--refine", help="Refine a mesh until --rtol is met.")] = False,
    max_seconds: MaxSeconds = SECONDS,
    seed: Annotated[int, typer.Option(help="Seed of the samples that say where the process goes.", min=0)] = 0,
    param: Params = None,
    quick: Annotated[bool, typer.Option("--quick", help=_QUICK_SOLVE)] = False,
    out: Out = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Solve a problem to a tolerance, or on a mesh, and write solution.npz.

    With --mesh, --cells or --element on that mesh, which --refine refines; else on boxes that are chosen.
    """
    report = output.Report(quiet)
    problem = problem_named(problem_name, dim, param)
    on_a_mesh = {"--mesh": mesh, "--cells": cells, "--element": element, "--steps": steps, "--rtol-time": rtol_time}
    to_a_tolerance = {"--rtol": rtol, "--form": form, "--max-dofs": max_dofs, "--refine": refine}
    way, given = _solve_options(problem, {**on_a_mesh, **to_a_tolerance}, quick)
    given["max_seconds"] = max_seconds
    folder = _out(out, problem_name)
    with atomic_folder(folder) as part:
        with report.stage("solution") as stage:
            solution = _quietly(problem, way, rng=seed, progress=stage.progress, **given)
        report.warn("solution", solution)
        save_solution(part / "solution.npz", solution)
        exact = problem.exact
        comparison = None if exact is None else compare({"solution": solution}, exact, problem=problem, rng=seed)
    file = folder / "solution.npz"
    if json:
        errors = None if comparison is None else output.overall(comparison)["solution"]
        head = {"problem": problem.name, "dim": problem.dim}
        output.print_json({**head, **output.outline(solution), "errors": errors, "file": file})
        return
    print(f"{problem.name}, dim {problem.dim}")
    output.print_stats(solution)
    if comparison is not None:
        output.print_comparison(comparison, "relative errors against the exact solution")
    print(file)


def _solve_options(problem: ControlProblem, options: dict[str, Any], quick: bool) -> tuple[str, dict[str, Any]]:
    """Which of the three solvers options ask for, and what it is told."""
    if quick:
        meshed = any(options[name] for name in ("--mesh", "--cells", "--element"))
        fresh = {"--rtol": _QUICK_RTOL if options["--refine"] or not meshed else None}
        if meshed and not options["--refine"]:
            fresh["--cells"] = None if options["--mesh"] else _QUICK_MESH.get(problem.dim)
            fresh["--rtol-time"] = None if options["--steps"] else _QUICK_RTOL_TIME
        options = {name: fresh.get(name) if value is None else value for name, value in options.items()}
    way = route(options)
    told = {name for name, value in options.items() if value is not None} - {"--refine"}
    return way, {name[2:].replace("-", "_"): options[name] for name in options if name in told}


def _quietly(problem: ControlProblem, way: str, **how: Any) -> AnySolution:
    """A reference; a tolerance that is not met is told by the status, not by a warning of Python's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ToleranceWarning)
        if way == "refine":
            return refine_on_mesh(problem, **how)
        return solve_on_mesh(problem, **how) if way == "mesh" else solve(problem, **how)


def _out(out: Path | None, problem_name: str) -> Path:
    return Path("results") / problem_name.rpartition(":")[2] if out is None else out


@app.command("experiment", short_help="Run an experiment, or list them.")
def experiment_command(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Which experiment; without one they are listed.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small version, of half a minute at most.")] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another value of its configuration; may be repeated."),
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option(help="After so many seconds there is no result; by default there is no limit.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; by default results/experiments.")] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run an experiment, print its table and claims, write NAME.csv, NAME.json, NAME.png; exit code 1 if one fails."""
    if name is None:
        titles = {known: str(experiments.get(known).__doc__).splitlines()[0] for known in experiments.names()}
        if json:
            output.print_json(titles)
        else:
            output.print_listing(("name", "what it shows"), list(titles.items()))
        return
    report, module = output.Report(quiet), experiments.get(name)
    try:
        config = experiments.configuration(name, quick=quick, **pairs(changes, "--set"))
    except TrialError as error:
        raise OptionError(f"--set: {error}") from error
    folder = Path("results", "experiments") if out is None else out
    with atomic_folder(folder) as part:
        with report.stage(name) as stage:
            trial = experiments.run(name, config=config, progress=stage.progress, max_seconds=max_seconds)
        files = [folder / file for file in write_trial(part, trial, module.figure(trial))]
    if json:
        output.print_json({**output.trial_record(trial), "files": files})
    else:
        output.print_trial(trial)
        for file in files:
            print(file)
    if not trial.as_expected:
        raise typer.Exit(1)


app.command("demo", short_help="One small problem solved, learned, certified and drawn, in seconds.")(demo_command)
app.command("exit", short_help="Value, mean time or probability of an exit.")(exit_command)
app.command("ground-state", short_help="What a problem tends to as its horizon grows.")(ground_state_command)
app.command("certify", short_help="Bounds of the optimal value from the paths of a policy.")(certify_command)
app.command("export", short_help="Write a solution for other programs: .npz, .h5, .nc, .vtu, .pvd.")(export_command)
app.command("atlas", short_help="Settings of the literature, solved, verified and certified.")(atlas_command)


@app.command("zoo")
def zoo_command(json: Json = False, debug: Debug = False) -> None:
    """List the problems that come with the package."""
    if json:
        output.print_json([_entry(name) for name in (*zoo.names(), *zoo.exit_names())])
        return
    rows = []
    for entry in map(_entry, (*zoo.names(), *zoo.exit_names())):
        dims = "any" if entry["dims"] is None else ", ".join(map(str, entry["dims"]))
        what = f"{'Exit: ' if entry['exit'] else ''}{entry['what']}\n--param {', '.join(entry['parameters'])}"
        rows.append((entry["name"], dims, "yes" if entry["exact"] else "no", what))
    output.print_listing(("name", "dim", "exact", "what it is, and its parameters"), rows)


def _entry(name: str) -> dict[str, Any]:
    """What the zoo says of a problem; dims None: any."""
    return {
        "name": name,
        "dims": zoo.dims(name),
        "exact": name in zoo.names() and zoo.get(name).exact is not None,
        "exit": name in zoo.exit_names(),
        "what": zoo.describe(name),
        "parameters": zoo.parameters(name),
    }


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console that cannot show a character shows a question mark
            stream.reconfigure(errors="replace")
    app()
