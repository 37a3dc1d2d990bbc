"""The command fem-hjb."""

import ast
import importlib.util
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, final

import typer
from rich.console import Console
from rich.status import Status
from rich.table import Table
from typer.core import TyperGroup

from fem_hjb import experiments
from fem_hjb.experiments.trial import Trial, save_trial
from fem_hjb.learning.fit import fit
from fem_hjb.learning.measures import law_measure
from fem_hjb.paths.extent import truncation_box
from fem_hjb.paths.simulate import sample_paths
from fem_hjb.plotting import pictures as plotting
from fem_hjb.problems import zoo
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.mesh_refine import refine_on_mesh
from fem_hjb.reference.mesh_solve import solve_on_mesh
from fem_hjb.reference.solve import solve
from fem_hjb.solutions.compare import Comparison, compare
from fem_hjb.solutions.estimate import ToleranceWarning
from fem_hjb.solutions.files import save_solution
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.spaces.space import Space
from fem_hjb.support.errors import FemHjbError, ProblemError
from fem_hjb.support.files import atomic_folder

_CELLS = {1: (16, 8), 2: (8, 4), 3: (3, 2)}  # per axis, and in time: few enough for some thousand trajectories

_RTOL = 1e-3  # of the reference that learned solutions are compared with
_ROWS = 40  # of the table of an experiment that are printed
_TERMINAL = "interpolated"  # as policies are compared: with a penalty, log f is left to chance where f_T is small
_SUBSTEPS = 8  # between two observations, so that what is learned does not hang on the simulation's step

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
            known = isinstance(error, FemHjbError | OSError)
            _fail(str(error) if known else f"{type(error).__name__}: {error}; --debug shows where")
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else 0)
        return code


def _fail(message: str) -> None:
    print("fem-hjb: error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


app = typer.Typer(
    cls=_OneLineErrors,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="References and learned solutions for linearly solvable stochastic control.",
)

ProblemName = Annotated[
    str,
    typer.Argument(metavar="PROBLEM", help="A name that `fem-hjb zoo` lists, or PATH.py:NAME for your own problem."),
]
Dim = Annotated[
    int | None, typer.Option(help="Dimension of the state; by default the smallest the problem has.", min=1)
]
Params = Annotated[
    list[str] | None, typer.Option("--param", metavar="KEY=VALUE", help="A parameter of the problem; may be repeated.")
]
MeshFile = Annotated[Path | None, typer.Option(help="Mesh file for the reference, anything meshio reads.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the results; by default results/PROBLEM.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


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


@app.command("compare")
def compare_command(
    problem_name: ProblemName,
    dim: Dim = None,
    samples: Annotated[int, typer.Option(help="Trajectories to learn from.", min=1)] = 5000,
    steps: Annotated[int, typer.Option(help="Time steps of each trajectory.", min=1)] = 64,
    cells: Annotated[
        int | None,
        typer.Option(help="Cells per axis of the class that is learned; by default 16, 8, 3 in 1-D, 2-D, 3-D.", min=1),
    ] = None,
    time_cells: Annotated[int | None, typer.Option(help="Its cells in time; by default 8, 4, 2.", min=1)] = None,
    element: Annotated[str, typer.Option(help="Its element in space.")] = "hermite",
    estimator: Annotated[str, typer.Option(help="generator (C1 elements) or corrected (any element).")] = "generator",
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
    seed: Annotated[int, typer.Option(help="Seed of the trajectories.", min=0)] = 0,
    param: Params = None,
    out: Out = None,
    debug: Debug = False,
) -> None:
    """Solve a problem, learn it from trajectories, and see how far apart they are.

    Errors are against the exact solution where there is one, else against the reference. Writes solution.npz (the
    learned one), comparison.csv and comparison.png.
    """
    console = Console(stderr=True, soft_wrap=True)
    problem = _problem(problem_name, dim, param)
    space = _space(problem, cells, time_cells, element)
    with _stage(console, "reference") as stage:
        if rtol is None and mesh is None and reference_cells is None:
            rtol = _RTOL
        reference = _quietly(problem, rtol=rtol, cells=reference_cells, mesh=mesh, progress=stage.progress)
        stage.note(_describe_reference(reference))
    _warn(console, "reference", reference)
    with _stage(console, "trajectories") as stage:
        paths = sample_paths(problem, n=samples, steps=steps, rng=seed, substeps=_SUBSTEPS)
        stage.note(f"{paths.n} paths of {paths.steps} steps ({paths.scheme})")
    with _stage(console, "learned solution") as stage:
        learned = fit(
            problem, paths, space, estimator=estimator, terminal=_TERMINAL, smoothing=smoothing, outside="drop"
        )
        stage.note(_describe_fit(learned))
    _warn(console, "learned solution", learned)
    candidates: dict[str, Solution | ProductSolution] = {"learned": learned}
    galerkin = None
    if problem.marginal is not None:
        with _stage(console, "galerkin solution") as stage:
            law = law_measure(problem, space)
            galerkin = fit(problem, law, space, estimator=estimator, terminal=_TERMINAL, outside="drop")
            candidates["galerkin"] = galerkin
            stage.note("the same class under the exact law")
    if problem.exact is not None:
        candidates["reference"] = reference
    with _stage(console, "comparison"):
        truth = reference if problem.exact is None else problem.exact
        comparison = compare(candidates, truth, problem=problem, rng=seed)
        figure = plotting.report(problem, learned, reference, galerkin=galerkin)
    folder = _out(out, problem_name)
    with _stage(console, "files"), atomic_folder(folder) as part:
        save_solution(part / "solution.npz", learned)
        comparison.to_csv(part / "comparison.csv")
        figure.savefig(part / "comparison.png", dpi=110)
    against = "reference" if problem.exact is None else "exact solution"
    _print_comparison(comparison, f"{problem.name}, dim {problem.dim}: relative errors against the {against}")
    for name in ("solution.npz", "comparison.csv", "comparison.png"):
        print(folder / name)


@app.command("solve")
def solve_command(
    problem_name: ProblemName,
    dim: Dim = None,
    cells: Annotated[int | None, typer.Option(help="Cells per axis of the box; not with --mesh.", min=1)] = None,
    mesh: MeshFile = None,
    element: Annotated[str | None, typer.Option(help="Element in space; by default P2.")] = None,
    steps: Annotated[int | None, typer.Option(help="Equal time steps instead of adaptive ones.", min=1)] = None,
    rtol_time: Annotated[float | None, typer.Option(help="On a mesh: tolerance of adaptive time steps.")] = None,
    rtol: Annotated[
        float | None,
        typer.Option(help="Relative tolerance of value and policy; by default 1e-4 where no mesh is asked for."),
    ] = None,
    refine: Annotated[bool, typer.Option("--refine", help="Refine a mesh until the tolerance is met.")] = False,
    param: Params = None,
    out: Out = None,
    debug: Debug = False,
) -> None:
    """Solve a problem to a tolerance, or on a mesh, and write solution.npz."""
    console = Console(stderr=True, soft_wrap=True)
    problem = _problem(problem_name, dim, param)
    with _stage(console, "solution") as stage:
        solution = _quietly(
            problem,
            rtol=rtol,
            refine=refine,
            mesh=mesh,
            element=element,
            cells=cells,
            steps=steps,
            rtol_time=rtol_time,
            progress=stage.progress,
        )
    _warn(console, "solution", solution)
    folder = _out(out, problem_name)
    with atomic_folder(folder) as part:
        save_solution(part / "solution.npz", solution)
    print(f"{problem.name}, dim {problem.dim}")
    table = Table(show_header=False)
    if solution.error_estimate is not None:
        table.add_row("estimated error", str(solution.error_estimate))
    for key, value in _flat(solution.stats):
        table.add_row(key, value)
    _stdout().print(table)
    if problem.exact is not None:
        _print_comparison(
            compare({"solution": solution}, problem.exact, problem=problem),
            "relative errors against the exact solution",
        )
    print(folder / "solution.npz")


@app.command("experiment")
def experiment_command(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Which experiment; without one they are listed.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small version, of half a minute at most.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; by default results/experiments.")] = None,
    debug: Debug = False,
) -> None:
    """Run an experiment, print its table and claims, write NAME.csv, NAME.json, NAME.png; exit code 1 if one fails."""
    if name is None:
        listing = Table("name", "what it shows")
        for known in experiments.names():
            listing.add_row(known, str(experiments.get(known).__doc__).splitlines()[0])
        _stdout().print(listing)
        return
    console = Console(stderr=True, soft_wrap=True)
    module = experiments.get(name)
    with _stage(console, name):
        trial = experiments.run(name, quick=quick)
    files = save_trial(Path("results", "experiments") if out is None else out, trial, module.figure(trial))
    print(trial.title)
    _print_trial(trial)
    for file in files:
        print(file)
    if not trial.as_expected:
        raise typer.Exit(1)


def _print_trial(trial: Trial) -> None:
    shown = sorted({round(k * (len(trial.rows) - 1) / (_ROWS - 1)) for k in range(_ROWS)})
    caption = f"{len(shown)} of {len(trial.rows)} rows, all of them in {trial.name}.csv"
    table = Table(*trial.columns, caption=caption if len(shown) < len(trial.rows) else None)
    for row in (trial.rows[k] for k in shown):
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    claims = Table("claim (a control must fall outside its band)", "value", "band", "")
    for claim in trial.claims:
        text = f"control: {claim.text}" if claim.control else claim.text
        claims.add_row(
            text,
            f"{claim.value:.4g}",
            f"[{claim.low:g}, {claim.high:g}]",
            "as expected" if claim.as_expected else "NOT AS EXPECTED",
        )
    Console(width=max(_stdout().width, 12 * len(trial.columns))).print(table)
    _stdout().print(claims)
    print(f"{trial.seconds / 60:.1f} minutes")


@app.command("zoo")
def zoo_command(debug: Debug = False) -> None:
    """List the problems that come with the package."""
    table = Table("name", "dim", "exact", "what it is, and its parameters")
    for name in zoo.names():
        dims = zoo.dims(name)
        exact = "no" if zoo.get(name).exact is None else "yes"
        parameters = ", ".join(zoo.parameters(name))
        table.add_row(name, _range(dims), exact, f"{zoo.describe(name)}\n--param {parameters}")
    _stdout().print(table)


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console that cannot show a character shows a question mark
            stream.reconfigure(errors="replace")
    app()


def _stdout() -> Console:
    """Tables are not cut to 80 columns when they go to a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=110)


def _range(dims: tuple[int, ...] | None) -> str:
    return "any" if dims is None else ", ".join(map(str, dims))


@final
class _Stage:
    """What a step of the work tells the user: how far it is, and in the end a few figures."""

    def __init__(self, name: str, status: Status) -> None:
        self.name, self.status, self.notes = name, status, list[str]()

    def progress(self, fraction: float) -> None:
        self.status.update(f"{self.name} {fraction:.0%}")

    def note(self, text: str) -> None:
        self.notes.append(text)


@contextmanager
def _stage(console: Console, name: str) -> Iterator[_Stage]:
    """Show what is being done, then how long it took and what was noted."""
    start = time.perf_counter()
    with console.status(name) as status:
        stage = _Stage(name, status)
        yield stage
    taken = time.perf_counter() - start
    console.print(f"{name:<18}{taken:7.2f} s  {'; '.join(stage.notes)}", highlight=False, markup=False)


def _quietly(problem: ControlProblem, **how: Any) -> Solution | ProductSolution:
    """`solve`; a tolerance that is not met is told by the status, not by a warning of Python's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ToleranceWarning)
        given = {name: value for name, value in how.items() if value is not None}
        if given.pop("refine", False):
            return refine_on_mesh(problem, **given)
        on_mesh = any(name in given for name in ("mesh", "element", "cells", "steps", "rtol_time"))
        return solve_on_mesh(problem, **given) if on_mesh else solve(problem, **given)


def _describe_reference(solution: Solution | ProductSolution) -> str:
    if solution.error_estimate is not None:
        return f"{solution.stats['dofs']} dofs, estimated error: {solution.error_estimate}"
    return f"{solution.stats['dofs']} dofs, {solution.stats['steps']} time steps"


def _warn(console: Console, name: str, solution: Solution | ProductSolution) -> None:
    if solution.status != "ok":
        console.print(f"note: {name}: {solution.status}", highlight=False, markup=False)


def _space(problem: ControlProblem, cells: int | None, time_cells: int | None, element: str) -> Space:
    """The class to learn in: a box with hardly any mass outside, since samples teach nothing where there are none."""
    default = _CELLS.get(problem.dim, _CELLS[3])
    return Space(
        problem,
        cells=cells or default[0],
        time_cells=time_cells or default[1],
        element=element,
        box=truncation_box(problem, quantile=1e-3, margin=0.0).box,
    )


def _out(out: Path | None, problem_name: str) -> Path:
    return Path("results") / problem_name.rpartition(":")[2] if out is None else out


def _print_comparison(comparison: Comparison, title: str) -> None:
    head, *rows = comparison.table()
    table = Table()
    for k, name in enumerate(head):
        table.add_column(name, justify="right" if k else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    print(title)
    _stdout().print(table)
    print("\n".join(comparison.notes))


def _describe_fit(solution: Solution) -> str:
    stats = solution.stats
    notes = [f"{stats['dofs']} dofs, {stats['samples']} samples"]
    notes += [
        f"{stats[key]} {what}"
        for key, what in (("dropped", "of them outside"), ("pinned", "dofs undetermined"))
        if stats[key]
    ]
    return ", ".join(notes)


def _flat(stats: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in stats.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key} ")
        else:
            yield f"{prefix}{key}", f"{value:.4g}" if isinstance(value, float) else str(value)


def _parameters(given: Sequence[str] | None) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    for item in given or ():
        key, equals, text = item.partition("=")
        if not (key.isidentifier() and equals):
            raise ProblemError(f"--param must be KEY=VALUE, got {item!r}")
        try:
            parameters[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            parameters[key] = text
    return parameters


def _problem(name: str, dim: int | None, given: Sequence[str] | None) -> ControlProblem:
    parameters = _parameters(given)
    path, _, attribute = name.rpartition(":")
    if name.endswith(".py"):
        raise ProblemError(f"{name} names a file but no problem in it; give {name}:NAME")
    if not path.endswith(".py"):
        return zoo.get(name, dim, **parameters)
    made = _load(Path(path), attribute)
    if not isinstance(made, ControlProblem) and callable(made):
        made = made(**parameters)
    elif parameters:
        raise ProblemError(f"{name} is not a function, so it takes no --param")
    if not isinstance(made, ControlProblem):
        raise ProblemError(f"{name} must be a ControlProblem or a function that returns one, got {type(made).__name__}")
    if dim not in (None, made.dim):
        raise ProblemError(f"{name} has dimension {made.dim}, but --dim is {dim}")
    return made


def _load(path: Path, attribute: str) -> Any:
    """The attribute of a Python file, which is run for it."""
    if not path.is_file():
        raise ProblemError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location("fem_hjb_user_problem", path)
    if spec is None or spec.loader is None:
        raise ProblemError(f"{path} is not a Python file")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, attribute):
        raise ProblemError(f"{path} defines no {attribute!r}")
    return getattr(module, attribute)
