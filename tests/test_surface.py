"""What a user meets first: the names on top, what importing them costs, and signatures that can be read."""

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fem_hjb as fh

FUNCTIONS = [name for name in fh.__all__ if callable(getattr(fh, name)) and not isinstance(getattr(fh, name), type)]


def typed() -> Iterator[tuple[str, str]]:
    """(name, module) of what the block for readers of types imports."""
    tree = ast.parse(Path(fh.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def test_every_name_on_top_is_there_and_nothing_else_shows() -> None:
    assert sum(not inspect.ismodule(getattr(fh, name)) for name in fh.__all__) < 40  # beside folders
    for name in fh.__all__:
        assert getattr(fh, name) is not None
    assert set(dir(fh)) == {*fh.__all__, "__version__"}
    with pytest.raises(AttributeError, match="module 'fem_hjb' has no attribute 'solv'"):
        fh.solv  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'solv'"):
        exec("from fem_hjb import solv")


def test_what_is_loaded_late_is_what_readers_of_types_see() -> None:
    seen = dict(typed())
    assert {name if name != "plotting" else "plot" for name in seen} == set(fh.__all__)
    for name, place in seen.items():
        module, _, attribute = place.rpartition(".")
        found = getattr(importlib.import_module(module), attribute)
        assert getattr(fh, "plot" if name == "plotting" else name) is found


@pytest.mark.parametrize("folder", [name for name in fh.__all__ if inspect.ismodule(getattr(fh, name))])
def test_namespaces_say_what_is_in_them(folder: str) -> None:
    module = getattr(fh, folder)
    assert module.__doc__
    for name in getattr(module, "__all__", ()):
        assert getattr(module, name) is not None


LQ = fh.zoo.get("lq", dim=1)
LINE = fh.Space(LQ, cells=4, time_cells=2, box=fh.Box([-3.0], [3.0]))
PATHS = fh.sample_paths(LQ, n=8, steps=4, rng=0)
Call = Callable[[Any], Any]
SOLVERS: dict[str, Call] = {
    "sample_paths": lambda of: fh.sample_paths(of, n=8, steps=4, rng=0),
    "truncation_box": lambda of: fh.paths.truncation_box(of),
    "Space": lambda of: fh.Space(of),
    "fit": lambda of: fh.fit(of, PATHS, "auto"),
    "cross_validate": lambda of: fh.learning.cross_validate(of, PATHS, []),
    "law_measure": lambda of: fh.law_measure(of, LINE),
    "load_solution": lambda of: fh.load_solution("none.npz", of),
    "compare": lambda of: fh.compare({"exact": LQ.exact}, LQ.exact, problem=of),
    "certify": lambda of: fh.certify(of, None, n=512, steps=2, rng=0),
    "control_error": lambda of: fh.control_error(of, LQ.exact.policy, LQ.exact),
    "evaluate_policy": lambda of: fh.evaluate_policy(of, None),
    "objectives": lambda of: fh.objectives(of, LQ.exact.policy, LQ.exact, steps=4, n=8, times=4),
    "solve": lambda of: fh.solve(of),
    "solve_on_mesh": lambda of: fh.solve_on_mesh(of),
    "refine_on_mesh": lambda of: fh.refine_on_mesh(of, rtol=1e-2),
    "solve_stages": lambda of: fh.solve_stages(of, {0.5: LQ.terminal_reward}),
    "fokker_planck.solve": lambda of: fh.fokker_planck.solve(of),
}


@pytest.mark.parametrize("asker", SOLVERS)
def test_what_needs_a_problem_says_so(asker: str) -> None:
    with pytest.raises(fh.errors.ProblemError, match=f"^{asker} needs a ControlProblem, got str"):
        SOLVERS[asker]("lq")


def compared(**options: Any) -> Any:
    return fh.compare({"exact": LQ.exact}, LQ.exact, problem=LQ, **options)


WRONG: dict[str, Call] = {
    "fit needs a Space, got Paths": lambda _: fh.fit(LQ, LINE, PATHS),
    "fit needs a Space, got NoneType": lambda _: fh.fit(LQ, PATHS, None),
    "law_measure needs a Space, got int": lambda _: fh.law_measure(LQ, 3),
    r"save_solution\(path, solution\) writes solutions, got str": lambda _: fh.save_solution(LQ.exact, "a.npz"),
    "cross_validate needs a Candidate, got Space": lambda _: fh.learning.cross_validate(LQ, PATHS, [LINE]),
    "cross_validate needs a sequence of candidates": lambda _: fh.learning.cross_validate(LQ, PATHS, LINE),
    "solve_system needs a System, got Paths": lambda _: fh.learning.solve_system(PATHS),
    "delta must be a finite number >= 0, got 'a'": lambda _: fh.learning.assemble(LQ, PATHS, LINE, delta="a"),
    "executor= needs an Executor, got int": lambda _: fh.fit(LQ, PATHS, LINE, executor=3),
    "save_paths needs a Paths, got int": lambda _: fh.solutions.save_paths("a.npz", 3),
    "got Paths; array_source": lambda _: fh.paths.write_paths("a.npz", PATHS),
    "box must be a Box of dimension 1, got int": lambda _: fh.plot.report(LQ, LQ.exact, LQ.exact, box=3),
    "compare needs a Comparison, got int": lambda _: fh.plot.compare(3),
    "policy must be a callable .*got int$": lambda _: fh.sample_paths(LQ, n=8, steps=4, rng=0, policy=3),
    r"got LinearQuadratic; give its method \.policy": lambda _: fh.sample_paths(
        LQ, n=8, steps=4, rng=0, policy=LQ.exact
    ),
    "quantile must be a finite number >= 0, got 'a'": lambda _: fh.paths.truncation_box(LQ, quantile="a"),
    "margin must be a finite number >= 0, got nan": lambda _: fh.paths.truncation_box(LQ, margin=np.nan),
    "cells on axis 0 must be a positive integer, got 2.5": lambda _: fh.solve_on_mesh(LQ, cells=2.5),
    "times must be an array of real numbers, got 'a'": lambda _: compared(times="a"),
    "points must be what law_points returns, got int": lambda _: compared(points=3),
    "name must be text, got 3": lambda _: replace(LQ, name=3),
    "temperature must be a positive number, got 'a'": lambda _: fh.zoo.get("brownian-mixture", temperature="a"),
    "temperature must be a positive number, got None": lambda _: fh.zoo.get("mixture-diffusion", temperature=None),
    "means must be an array of real numbers, got 'a'": lambda _: fh.zoo.get("brownian-mixture", means="a"),
    "A must be an array of real numbers, got .*2": lambda _: fh.zoo.get("lq", dim=2, A=[[1.0], [1.0, 2.0]]),
    "coefficients must be an array of real numbers": lambda _: fh.zoo.get("reflected", coefficients=[[1.0], 2.0]),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_told_by_their_names(message: str) -> None:
    with pytest.raises(fh.FemHjbError, match=message):
        WRONG[message](None)


def loaded_after(code: str) -> set[str]:
    told = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(told.stdout.split())


def test_importing_the_package_loads_nothing_that_is_not_needed() -> None:
    alone = loaded_after("import fem_hjb")
    assert not {"numpy", "scipy", "matplotlib", "skfem", "meshio", "typer"} & alone
    solving = loaded_after("import fem_hjb as fh\nfh.solve, fh.fit, fh.compare, fh.control_error, fh.zoo, fh.paths")
    assert "fem_hjb.reference.solve" in solving
    late = {"matplotlib", "typer", "fem_hjb.plotting", "fem_hjb.experiments", "fem_hjb.interop"}
    late |= {"h5py", "dask", "zarr", "scipy.stats"}
    assert not late & solving
    commanded = loaded_after("import fem_hjb.cli")
    assert {"matplotlib", "typer", "fem_hjb.plotting"} <= commanded  # so that the test can see them
    assert not {"matplotlib.pyplot", "h5py", "dask", "zarr", "scipy.stats"} & commanded


@pytest.mark.parametrize("name", [*FUNCTIONS, "ControlProblem", "Space", "Solution"])
def test_signatures_can_be_read(name: str) -> None:
    assert len(str(inspect.signature(getattr(fh, name)))) < 600


FOLDERS = [
    "experiments",
    "interop",
    "learning",
    "paths",
    "plot",
    "problems",
    "solutions",
    "spaces",
    "stationary",
    "zoo",
]


@pytest.mark.parametrize("folder", FOLDERS)
def test_signatures_in_the_folders_can_be_read_too(folder: str) -> None:
    module = getattr(fh, folder)
    public = {name: getattr(module, name) for name in getattr(module, "__all__", ("run", "get", "names"))}
    warnings = [name for name, of in public.items() if isinstance(of, type) and issubclass(of, Warning)]
    for name in warnings:
        del public[name]  # they have no signature
    for name, thing in list(public.items()):
        if isinstance(thing, type):
            public |= {f"{name}.{key}": of for key, of in vars(thing).items() if key[0] != "_" and callable(of)}
    for name in set(public) & set(fh.__all__):  # what is on top, too, is looked at there
        del public[name]
    long = [name for name, of in public.items() if callable(of) and len(str(inspect.signature(of))) > 500]
    assert long == []
