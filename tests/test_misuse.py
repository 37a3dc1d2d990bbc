"""Every public function is called with a list of wrong things for each of its arguments: only errors of ours come out.

A TypeError is one of ours only if Python itself raises it for a call that does not fit the signature.
"""

import contextlib
import inspect
import operator
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.sparse as sp
from matplotlib.figure import Figure

import fem_hjb as fh
from fem_hjb.learning import estimators
from fem_hjb.support.errors import FemHjbError

resource = pytest.importorskip("resource", reason="limits are those of POSIX, the memory in use that of Linux")
MESHES = Path(__file__).parents[1] / "meshes"
Arguments = dict[str, Any]
_SECONDS = 20  # more than any of these calls may take
_BYTES = 4 << 30  # more than any may take


class Odd:
    """Has nothing of what anything could want."""


def nothing() -> None:
    return None


WRONG: dict[str, Any] = {
    "None": None,
    "an object": Odd(),
    "a class": Odd,
    "a callable": nothing,
    "a lambda of anything": lambda *a, **k: None,
    "text": "a",
    "no text": "",
    "bytes": b"a",
    "0": 0,
    "-1": -1,
    "3": 3,
    "1.5": 1.5,
    "10**12": 10**12,
    "10**18": 10**18,
    "10**30": 10**30,
    "1e300": 1e300,
    "1e-320": 1e-320,
    "nan": np.nan,
    "inf": np.inf,
    "True": True,
    "1j": 1j,
    "NumPy's nan": np.float64(np.nan),
    "[]": [],
    "()": (),
    "{}": {},
    "a set": {1, 2},
    "a dict": {"a": 1},
    "a list with None": [None],
    "a list of text": ["a", "b"],
    "a tuple": (1, 2, 3),
    "pairs": [(0, 1), (2, 3)],
    "ragged": [[1.0], [1.0, 2.0]],
    "an empty array": np.zeros(0),
    "an empty matrix": np.zeros((2, 0)),
    "an array without rows": np.zeros((0, 1)),
    "an array of nan": np.full((3, 1), np.nan),
    "an array of text": np.array(["a"]),
    "an array of objects": np.array([Odd(), None], dtype=object),
    "an array of six axes": np.ones((1, 2, 1, 2, 1, 2)),
    "complex": np.ones((2, 1)) * 1j,
    "a generator": (k for k in range(3)),
    "a range": range(3),
    "a path": Path("no/such/file"),
    "a module": os,
}

LQ = fh.zoo.get("lq", dim=1)
LQ2 = fh.zoo.get("lq", dim=2)
QUICK = fh.zoo.get("brownian-mixture", dim=1)  # takes the least time of those on all of the line
WALLED = fh.zoo.get("reflected", dim=1)  # and of all
DOMAIN = fh.Box([0.0], [1.0])
LAW = fh.Gaussian([0.0], 1.0)
LINE = fh.Space(LQ, cells=4, time_cells=2, box=fh.Box([-4.0], [4.0]))
MESH = fh.spaces.box_mesh(fh.Box([-4.0], [4.0]), 8, "line")
PATHS = fh.sample_paths(LQ, n=40, steps=4, rng=0)
SOLUTION = fh.solve_on_mesh(LQ, MESH, steps=4)
CHECKED = fh.solve(LQ, rtol=1e-2)
STAGED = fh.solve_stages(WALLED, {0.5 * WALLED.horizon: WALLED.terminal_reward}, rtol=1e-1)
PRODUCT = fh.solutions.ProductSolution(problem=LQ2, parts=(((0,), CHECKED), ((1,), CHECKED)), status="ok")
MEASURE = fh.learning.empirical_measure(LQ, PATHS)
SYSTEM = fh.learning.assemble(LQ, PATHS, LINE, outside="drop")
GAUGE = fh.problems.Gauge(temperature=1.0, horizon=1.0, terminal=0.0, running=0.0)
YARDSTICK = fh.learning.yardstick(LQ, fh.learning.sampled_law_measure(LQ, LINE, n=40, rng=0), LINE)
COEFFICIENTS = np.asarray(LINE.interpolate(lambda t, x: 1.0 + 0.0 * x[..., 0]))
COMPARISON = fh.compare({"exact": LQ.exact}, LQ.exact, problem=LQ)
DENSITY = fh.fokker_planck.solve(LQ, rtol=1e-3)
REWARD = fh.problems.LogSumExpReward(temperature=1.0, R=[[[1.0]]], s=[[0.0]], s0=[0.0])
MIXTURE = fh.GaussianMixture([1.0], [[0.0]], [[[1.0]]])
DIFFUSION = fh.problems.MixtureDiffusion(MIXTURE, horizon=1.0, beta=1.0)
CLOUD = fh.problems.from_points([[0.0], [1.0]], 0.5, horizon=1.0, beta=1.0)
TILTED = fh.problems.tilted_density(LAW, lambda x: x[..., 0], temperature=1.0)
FEATURES = fh.spaces.HermiteCross(LAW, 2)
SPECTRAL = fh.spaces.SpectralBasis([fh.spaces.SpectralLine([-5.0, 0.0, 5.0], 8)])
ROW = COMPARISON.overall("exact")
BOX = fh.Box([0.0], [1.0], boundary=[("absorbing", "reflecting")])
NAMED = MESH.with_boundaries({"left": lambda x: x[0] < 0.0})
MESH_DOMAIN = fh.MeshDomain(NAMED, {"left": "absorbing", None: "reflecting"})


def steady(x: Any) -> Any:
    return -x


def leftward(x: Any) -> Any:
    return -np.ones_like(x)


LEAVING = fh.ExitProblem(dim=1, temperature=1.0, drift=steady, diffusion=1.0, domain=BOX)
LEAVING_MESH = fh.ExitProblem(dim=1, temperature=1.0, drift=leftward, diffusion=1.0, domain=MESH_DOMAIN)
LEFT = fh.stationary.sample_exit(LEAVING, [0.5], n=8, rng=0, step=0.1)
GROUND = fh.ground_state(WALLED, rtol=1e-2)
BRIDGE = fh.schroedinger_bridge(WALLED, fh.Uniform(DOMAIN), rtol=1e-2)
GONE = fh.solve_exit(LEAVING, rtol=1e-2)
RESULT = {
    name: getattr(GONE, name)
    for name in ("problem", "function", "method", "status", "error_estimate", "checks", "stats")
}


def b(t: Any, x: Any) -> Any:
    return -x


def r(t: Any, x: Any) -> Any:
    return -(x[..., 0] ** 2)


def square(t: Any, x: Any) -> Any:
    return 0.0 * x[..., None] - 2.0


def y(x: Any) -> Any:
    return -(x[..., 0] ** 2)


def builder(dim: int, *, size: float = 1.0) -> fh.ControlProblem:
    return LQ


FILES = ("solution.npz", "paths.npz", "plain.npz", "exit.npz", "ground.npz", "bridge.npz", "staged.npz")


def write_files(folder: Path) -> None:
    """The files that `functions` reads."""
    fh.save_solution(folder / FILES[0], SOLUTION)
    fh.solutions.save_paths(folder / FILES[1], PATHS)
    fh.paths.write_paths(folder / FILES[2], fh.paths.array_source(PATHS))
    for name, found in zip(FILES[3:], (GONE, GROUND, BRIDGE, STAGED), strict=True):
        fh.save_solution(folder / name, found)


def functions(folder: Path) -> dict[str, tuple[Callable[..., Any], Arguments]]:
    """Every public name that can be called, with arguments that are right."""
    process = {"drift": fh.LinearDrift([[-1.0]], [0.0]), "diffusion": 1.0}
    problem = {"dim": 1, "horizon": 1.0, "temperature": 1.0, "drift": b, "diffusion": 1.0, "terminal_reward": y}
    x, t = np.array([[0.1], [0.2]]), 0.5
    solution_file, path_file, plain, *more_files = (folder / name for name in FILES)
    source = fh.paths.array_source(PATHS, chunk=16)
    where = {"t": t, "x": x}
    estimate = fh.solutions.ErrorEstimate(value=0.1, policy=0.1, space=0.1, time=0.1, truncation=0.1)
    found: dict[str, tuple[Any, Arguments]] = {
        "Bounds": (fh.Bounds, {"lower": 0.0, "upper": 1.0}),
        "Box": (fh.Box, {"lower": [0.0], "upper": [1.0], "boundary": "absorbing", "exit_reward": r}),
        "ControlProblem": (
            fh.ControlProblem,
            {
                **problem,
                "initial_law": fh.Uniform(DOMAIN),
                "running_reward": r,
                "domain": BOX,
                "exact": LQ.exact,
                "marginal": lambda t: LAW,
                "name": "a",
            },
        ),
        "Convex": (fh.Convex, {"axis": 0, "concave": True}),
        "EnergyBall": (fh.EnergyBall, {"radius": 1.0}),
        "Gaussian": (fh.Gaussian, {"mean": [0.0], "cov": 1.0}),
        "GaussianMixture": (
            fh.GaussianMixture,
            {"weights": [0.5, 0.5], "means": [[0.0], [1.0]], "covariances": [[[1.0]], [[1.0]]]},
        ),
        "LinearDrift": (fh.LinearDrift, {"A": [[-1.0]], "a": [0.0]}),
        "Monotone": (fh.Monotone, {"axis": 0, "increasing": True}),
        "PointMass": (fh.PointMass, {"point": [0.0]}),
        "Solution": (
            fh.Solution,
            {
                "problem": LQ,
                "space": LINE,
                "coefficients": COEFFICIENTS,
                "gauge": GAUGE,
                "method": "a",
                "status": "ok",
                "stats": {},
                "error_estimate": estimate,
                "floor": 0.1,
            },
        ),
        "Space": (
            fh.Space,
            {
                "problem": LQ,
                "cells": 4,
                "time_cells": 2,
                "element": "P2",
                "time_degree": 2,
                "time_smooth": False,
                "box": fh.Box([-4.0], [4.0]),
                "mesh": None,
            },
        ),
        "Space on a mesh": (fh.Space, {"problem": LQ, "time_cells": 2, "element": "P2", "mesh": MESH}),
        "Uniform": (fh.Uniform, {"box": DOMAIN}),
        "Uniform in a mesh": (fh.Uniform, {"box": MESH_DOMAIN}),
        "certify": (
            fh.certify,
            {"problem": LQ, "policy": b, "x0": [0.0], "n": 64, "steps": 4, "rng": 0, "level": 0.9, "starts": None}
            | {"executor": None, "progress": None, "max_seconds": None, "rewards": {0.5 * LQ.horizon: y}},
        ),
        "certify by a value": (
            fh.certify,
            {"problem": LQ, "policy": LQ.exact, "x0": [0.0], "n": 64, "steps": 2, "rng": 0, "value": LQ.exact}
            | {"bounds": [[0.0, 1.0], [0.0, 1.0]]},
        ),
        "certify over starts": (
            fh.certify,
            {"problem": LQ, "policy": None, "n": 512, "steps": 2, "rng": 0, "starts": 16},
        ),
        "compare": (
            fh.compare,
            {"candidates": {"a": LQ.exact}, "reference": LQ.exact, "problem": LQ, "times": [0.0, 0.5], "order": 8}
            | {"law": "uncontrolled"},
        ),
        "compare by paths": (
            fh.compare,
            {"candidates": {"a": SOLUTION}, "reference": LQ.exact, "problem": LQ, "rng": 0, "points": None},
        ),
        "control_error": (
            fh.control_error,
            {"problem": LQ, "policy": b, "reference": LQ.exact, "under": "optimal", "times": 4, "n": 16, "rng": 0}
            | {"rtol": 1e-2, "progress": None, "max_seconds": None},
        ),
        "evaluate_policy": (
            fh.evaluate_policy,
            {"problem": LQ, "policy": b, "rtol": 1e-2, "rng": 0, "progress": None, "max_seconds": None, "box": None},
        ),
        "fit": (
            fh.fit,
            {
                "problem": LQ,
                "data": PATHS,
                "space": LINE,
                "estimator": "generator",
                "method": "direct",
                "constraint": None,
                "terminal": "penalty",
                "delta": 0.0,
                "smoothing": None,
                "ridge": 0.0,
                "outside": "drop",
                "executor": None,
                "progress": None,
                "max_seconds": None,
                "verify": False,
            },
        ),
        "fit with what verifies it": (
            fh.fit,
            {"problem": LQ, "data": PATHS, "space": LINE, "smoothing": None, "ridge": 0.0, "rng": 0, "accept": 1.0}
            | {"outside": "drop"},
        ),
        "feynman_kac": (
            fh.feynman_kac,
            {"problem": QUICK, "h": y, "rtol": 1e-1, "box": None, "max_dofs": 500, "rng": 0, "progress": None}
            | {"max_seconds": None},
        ),
        "fokker_planck.DensitySolution": (
            fh.fokker_planck.DensitySolution,
            {"problem": LQ, "space": DENSITY.space, "coefficients": DENSITY.coefficients, "status": "ok", "stats": {}}
            | {"start": 0.0, "early": None},
        ),
        "fokker_planck.solve": (
            fh.fokker_planck.solve,
            {"problem": LQ, "policy": b, "box": fh.Box([-4.0], [4.0]), "rtol": 1e-2, "progress": None}
            | {"max_seconds": None},
        ),
        "fokker_planck.solve on spectral elements": (
            fh.fokker_planck.solve,
            {
                "problem": LQ,
                "basis": fh.spaces.SpectralBasis([fh.spaces.SpectralLine([-5.0, 0.0, 5.0], 8)]),
                "rtol": 1e-2,
            },
        ),
        "fokker_planck.solve on a mesh": (
            fh.fokker_planck.solve,
            {"problem": LQ, "mesh": MESH, "element": "P2", "rtol": 1e-2},
        ),
        "law_measure": (
            fh.law_measure,
            {"problem": LQ, "space": LINE, "degree": 3, "times": [0.0, 0.5, 1.0], "marginal": LQ.marginal},
        ),
        "MeshDomain": (
            fh.MeshDomain,
            {"mesh": NAMED, "boundary": {"left": "absorbing", None: "reflecting"}, "exit_reward": r},
        ),
        "MeshDomain with a word": (fh.MeshDomain, {"mesh": MESH, "boundary": "absorbing", "exit_reward": r}),
        "load_mesh": (
            fh.load_mesh,
            {"path": MESHES / "annulus.msh", "dim": 2, "simplices": False, "straight": False},
        ),
        "load_solution": (fh.load_solution, {"path": solution_file, "problem": LQ, "target": None, "check": True}),
        "load_solution of stages": (
            fh.load_solution,
            {"path": more_files[3], "problem": WALLED, "rewards": STAGED.rewards, "target": None, "check": True},
        ),
        "load_solution of an exit": (fh.load_solution, {"path": more_files[0], "problem": LEAVING, "target": None}),
        "load_solution of a ground state": (fh.load_solution, {"path": more_files[1], "problem": WALLED}),
        "load_solution of a bridge": (
            fh.load_solution,
            {"path": more_files[2], "problem": WALLED, "target": fh.Uniform(DOMAIN), "check": True},
        ),
        "objectives": (
            fh.objectives,
            {
                "problem": LQ,
                "policy": b,
                "reference": LQ.exact,
                "steps": 2,
                "n": 16,
                "rng": 0,
                "times": 4,
                "rtol": 1e-2,
                "progress": None,
                "max_seconds": None,
            },
        ),
        "refine_on_mesh": (
            fh.refine_on_mesh,
            {
                "problem": WALLED,
                "mesh": fh.spaces.box_mesh(DOMAIN, 8, "line"),
                "rtol": 0.1,
                "element": "P2",
                "max_dofs": 500,
                "boundary": "natural",
                "rng": 0,
            }
            | {"progress": None, "max_seconds": None},
        ),
        "refine_on_mesh in a box": (
            fh.refine_on_mesh,
            {"problem": LQ, "rtol": 0.1, "cells": 8, "box": fh.Box([-4.0], [4.0]), "boundary": "natural"},
        ),
        "save_solution": (fh.save_solution, {"path": folder / "a.npz", "solution": SOLUTION}),
        "save_solution of a bridge": (fh.save_solution, {"path": folder / "a.npz", "solution": BRIDGE}),
        "solve": (
            fh.solve,
            {"problem": QUICK, "rtol": 1e-1, "form": "linear", "box": None, "max_dofs": 500, "rng": 0, "progress": None}
            | {"max_seconds": None, "verify": False, "workers": 1},
        ),
        "solve_on_mesh": (
            fh.solve_on_mesh,
            {"problem": LQ, "mesh": MESH, "element": "P2", "rtol_time": 1e-2, "boundary": "natural", "progress": None}
            | {"max_seconds": None},
        ),
        "solve_on_mesh to a tolerance": (fh.solve_on_mesh, {"problem": LQ, "mesh": MESH, "rtol": 0.1, "rng": 0}),
        "solve_on_mesh in a box": (
            fh.solve_on_mesh,
            {"problem": LQ, "cells": 8, "box": fh.Box([-4.0], [4.0]), "steps": 2},
        ),
        "ExitProblem": (
            fh.ExitProblem,
            {"dim": 1, "temperature": 1.0, "drift": steady, "diffusion": 1.0, "running_reward": y, "exit_reward": y}
            | {"domain": BOX, "name": "a"},
        ),
        "solve_stages": (
            fh.solve_stages,
            {"problem": WALLED, "rewards": STAGED.rewards, "rtol": 1e-1, "max_dofs": 300, "rng": 0, "progress": None}
            | {"max_seconds": None},
        ),
        "solve_exit": (
            fh.solve_exit,
            {"problem": LEAVING, "rtol": 1e-2, "max_dofs": 500, "progress": None, "max_seconds": None},
        ),
        "schroedinger_bridge": (
            fh.schroedinger_bridge,
            {"problem": WALLED, "target": fh.Uniform(DOMAIN), "rtol": 1e-2, "max_iterations": 3, "box": None}
            | {"progress": None, "max_seconds": None},
        ),
        "stationary.Bridge": (
            fh.stationary.Bridge,
            {name: getattr(BRIDGE, name) for name in inspect.signature(fh.stationary.Bridge).parameters},
        ),
        "ground_state": (
            fh.ground_state,
            {"problem": WALLED, "rtol": 1e-2, "box": None, "max_dofs": 500, "progress": None, "max_seconds": None},
        ),
        "stationary.GroundState": (
            fh.stationary.GroundState,
            {name: getattr(GROUND, name) for name in inspect.signature(fh.stationary.GroundState).parameters},
        ),
        "stationary.ground_state_on_mesh": (
            fh.stationary.ground_state_on_mesh,
            {"problem": WALLED, "mesh": fh.spaces.box_mesh(DOMAIN, 8, "line"), "element": "P2", "estimate": True}
            | {"progress": None, "max_seconds": None},
        ),
        "stationary.ExitSolution": (fh.stationary.ExitSolution, RESULT),
        "stationary.ExitExpectation": (fh.stationary.ExitExpectation, RESULT),
        "stationary.ExitPaths": (
            fh.stationary.ExitPaths,
            {name: getattr(LEFT, name) for name in inspect.signature(fh.stationary.ExitPaths).parameters},
        ),
        "stationary.ExitPaths.log_weights": (LEFT.log_weights, {"problem": LEAVING}),
        "stationary.committor": (
            fh.stationary.committor,
            {"problem": LEAVING, "into": [(0, "lower")], "rtol": 1e-2, "max_dofs": 500, "progress": None}
            | {"max_seconds": None},
        ),
        "stationary.exit_expectation": (
            fh.stationary.exit_expectation,
            {"problem": LEAVING, "h": y, "source": y, "rtol": 1e-2, "max_dofs": 500, "progress": None}
            | {"max_seconds": None},
        ),
        "stationary.exit_expectation_on_mesh": (
            fh.stationary.exit_expectation_on_mesh,
            {"problem": LEAVING, "mesh": MESH, "h": y, "source": y, "element": "P2", "absorbing": "all"}
            | {"estimate": True, "progress": None, "max_seconds": None},
        ),
        "stationary.mean_exit_time": (
            fh.stationary.mean_exit_time,
            {"problem": LEAVING, "rtol": 1e-2, "max_dofs": 500, "progress": None, "max_seconds": None},
        ),
        "stationary.certify_exit": (
            fh.stationary.certify_exit,
            {"problem": LEAVING, "policy": steady, "start": [0.5], "n": 64, "step": 0.1, "rng": 0, "level": 0.9}
            | {"starts": None, "executor": None, "progress": None, "max_seconds": None},
        ),
        "stationary.sample_exit": (
            fh.stationary.sample_exit,
            {"problem": LEAVING, "start": [0.5], "n": 8, "rng": 0, "step": 0.1, "policy": steady, "max_time": 1.0}
            | {"progress": None, "max_seconds": None},
        ),
        "stationary.solve_exit_on_mesh of a domain": (
            fh.stationary.solve_exit_on_mesh,
            {"problem": LEAVING_MESH, "mesh": None, "element": "P1", "absorbing": "all", "estimate": False},
        ),
        "stationary.exit_expectation_on_mesh of a domain": (
            fh.stationary.exit_expectation_on_mesh,
            {"problem": LEAVING_MESH, "mesh": None, "h": {"left": 1.0}, "source": y, "estimate": False},
        ),
        "stationary.sample_exit in a mesh": (
            fh.stationary.sample_exit,
            {"problem": LEAVING_MESH, "start": [0.5], "n": 8, "rng": 0, "step": 0.5, "policy": None, "max_time": 1.0},
        ),
        "stationary.solve_exit_on_mesh": (
            fh.stationary.solve_exit_on_mesh,
            {"problem": LEAVING, "mesh": MESH, "element": "P2", "absorbing": "all", "estimate": True}
            | {"progress": None, "max_seconds": None},
        ),
        "experiments.get": (fh.experiments.get, {"name": "coercivity"}),
        "experiments.names": (fh.experiments.names, {}),
        "experiments.configuration": (fh.experiments.configuration, {"name": "coercivity", "quick": True}),
        "experiments.run": (
            fh.experiments.run,
            {"name": "coercivity", "quick": True, "config": "none"} | {"progress": None, "max_seconds": None},
        ),
        "learning.Candidate": (fh.learning.Candidate, {"space": LINE, "smoothing": 0.1, "ridge": 0.1}),
        "learning.Estimator": (
            fh.learning.Estimator,
            {"name": "own", "terms": nothing, "smoothness": 1, "weighted": False, "exact": True},
        ),
        "learning.LinearSet": (
            fh.learning.LinearSet,
            {
                "rows": sp.csr_matrix(np.eye(2)),
                "lower": np.zeros(2),
                "upper": np.ones(2),
                "radius": 1.0,
                "inverse": None,
            },
        ),
        "learning.Measure": (
            fh.learning.Measure,
            {
                "kind": "empirical",
                "t": np.zeros(2),
                "x": x,
                "weights": np.ones(2),
                "initial_x": x,
                "initial_weights": np.ones(2),
                "terminal_x": x,
                "terminal_weights": np.ones(2),
                "next_t": np.ones(2),
                "next_x": x,
                "score": x,
                "paths": 2,
            },
        ),
        "learning.Operator": (
            fh.learning.Operator,
            {"value": 1.0, "time": 1.0, "gradient": x, "mixed": x, "hessian": np.ones((2, 1, 1))},
        ),
        "learning.Selection": (
            fh.learning.Selection,
            {"best": fh.learning.Candidate(space=LINE), "table": ({"a": 1},), "status": "ok"},
        ),
        "learning.Setting": (fh.learning.Setting, {"problem": LQ, "space": LINE, "gauge": GAUGE, "delta": 0.0}),
        "learning.System": (
            fh.learning.System,
            {name: getattr(SYSTEM, name) for name in inspect.signature(fh.learning.System).parameters},
        ),
        "learning.Terms": (fh.learning.Terms, {"here": [], "ahead": (), "load": ()}),
        "learning.assemble": (
            fh.learning.assemble,
            {
                "problem": LQ,
                "data": PATHS,
                "space": LINE,
                "estimator": "generator",
                "delta": 0.1,
                "outside": "drop",
                "executor": None,
                "constants": GAUGE,
            },
        ),
        "learning.choose_penalty": (
            fh.learning.choose_penalty,
            {"problem": LQ, "data": PATHS, "space": LINE, "smoothing": None, "ridge": 0.0, "terminal": "penalty"}
            | {"outside": "drop"},
        ),
        "learning.cross_validate": (
            fh.learning.cross_validate,
            {
                "problem": LQ,
                "data": PATHS,
                "candidates": [fh.learning.Candidate(space=LINE)],
                "estimator": "generator",
                "criterion": None,
                "folds": 2,
                "delta": 0.0,
                "terminal": "penalty",
                "progress": None,
                "max_seconds": None,
            },
        ),
        "learning.doob": (fh.learning.doob, {"gradient_penalty": 0.1}),
        "learning.empirical_measure": (fh.learning.empirical_measure, {"problem": LQ, "paths": PATHS, "n": 10}),
        "learning.register_estimator": (
            fh.learning.register_estimator,
            {"estimator": fh.learning.Estimator(name="ow", terms=nothing, smoothness=1, weighted=False, exact=True)},
        ),
        "learning.sampled_law_measure": (
            fh.learning.sampled_law_measure,
            {"problem": LQ, "space": LINE, "n": 10, "rng": 0},
        ),
        "learning.solve_system": (
            fh.learning.solve_system,
            {
                "system": SYSTEM,
                "method": "direct",
                "constraint": None,
                "terminal": "penalty",
                "smoothing": 0.1,
                "ridge": 0.1,
                "tol": 1e-6,
                "figures": True,
            },
        ),
        "learning.split_error": (
            fh.learning.split_error,
            {"measuring": YARDSTICK, "learned": COEFFICIENTS, "population": COEFFICIENTS, "observed": COEFFICIENTS},
        ),
        "learning.yardstick": (
            fh.learning.yardstick,
            {"problem": LQ, "measure": MEASURE, "space": LINE, "delta": 0.1, "norm": "mass", "exact": LQ.exact},
        ),
        "paths.Paths": (fh.paths.Paths, {"t": [0.0, 1.0], "x": np.zeros((2, 2, 1)), "scheme": "given"}),
        "export of a ground state": (
            fh.export,
            {"solution": GROUND, "path": folder / "g.npz", "axes": [[0.0, 0.5, 1.0]], "times": None, "density": None},
        ),
        "export": (
            fh.export,
            {"solution": SOLUTION, "path": folder / "d.npz", "axes": [np.linspace(-1.0, 1.0, 3)], "times": [0.0, 0.5]}
            | {"density": DENSITY, "optimal_density": lambda t: LAW},
        ),
        "paths.Truncation": (fh.paths.Truncation, {"box": DOMAIN, "excluded_mass": 0.0, "samples": 0}),
        "paths.array_source": (fh.paths.array_source, {"paths": PATHS, "chunk": 16}),
        "paths.file_source": (fh.paths.file_source, {"path": plain, "chunk": 16}),
        "paths.sample_paths": (
            fh.paths.sample_paths,
            {"problem": LQ, "n": 8, "steps": 2, "rng": 0, "scheme": "euler", "policy": b, "substeps": 1},
        ),
        "paths.simulated_source": (
            fh.paths.simulated_source,
            {"problem": LQ, "n": 8, "steps": 2, "rng": 0, "chunk": 4, "scheme": "euler", "policy": b, "substeps": 1},
        ),
        "paths.tree_sum": (
            fh.paths.tree_sum,
            {"task": float, "count": 4, "add": operator.add, "executor": None, "window": 2, "group": 2}
            | {"enough": None},
        ),
        "paths.truncation_box": (
            fh.paths.truncation_box,
            {"problem": LQ, "quantile": 0.1, "margin": 0.3, "n": 100, "steps": 4, "rng": 0},
        ),
        "paths.write_paths": (fh.paths.write_paths, {"path": folder / "b.npz", "source": source}),
        "plot.compare": (fh.plot.compare, {"comparison": COMPARISON, "column": "value", "ax": None}),
        "plot.report": (
            fh.plot.report,
            {
                "problem": LQ,
                "learned": LQ.exact,
                "reference": LQ.exact,
                "galerkin": LQ.exact,
                "t": 0.0,
                "box": DOMAIN,
                "figure": None,
            },
        ),
        "plot.animate": (
            fh.plot.animate,
            {"of": LQ.exact, "path": folder / "a.gif", "quantity": "policy", "frames": 1, "fps": 5, "problem": LQ}
            | {"box": fh.Box([-2.0], [2.0]), "limits": (0.0, 1.0), "progress": None},
        ),
        "plot.checks": (fh.plot.checks, {"of": CHECKED, "ax": None}),
        "plot.paths": (
            fh.plot.paths,
            {"of": PATHS, "problem": LQ, "density": LAW, "box": fh.Box([-4.0], [4.0]), "most": 3, "ax": None},
        ),
        "plot.policy_field": (
            fh.plot.policy_field,
            {"of": LQ2.exact, "t": 0.0, "kind": "quiver", "problem": LQ2, "density": LQ2.marginal, "ax": None}
            | {"box": fh.Box([-2.0, -2.0], [2.0, 2.0])},
        ),
        "plot.solution": (
            fh.plot.solution,
            {
                "of": LQ.exact,
                "t": 0.0,
                "quantity": "policy",
                "problem": LQ,
                "box": DOMAIN,
                "limits": (0.0, 1.0),
                "ax": None,
                "label": "a",
                "style": {"color": "k"},
            },
        ),
        "plot.ticks_at": (fh.plot.ticks_at, {"axis": Figure().subplots().xaxis, "values": [1.0, 2.0]}),
        "plot.window": (fh.plot.window, {"problem": LQ}),
        "problems.CosineSeries": (
            fh.problems.CosineSeries,
            {"coefficients": [1.0, 0.1], "lower": 0.0, "upper": 1.0, "diffusion": 1.0, "horizon": 1.0}
            | {"temperature": 1.0, "running": 0.0},
        ),
        "problems.Gauge": (
            fh.problems.Gauge,
            {"temperature": 1.0, "horizon": 1.0, "terminal": 0.0, "running": 0.0},
        ),
        "problems.KernelDensity": (
            fh.problems.KernelDensity,
            {"points": [[0.0], [1.0]], "bandwidth": 0.5, "weights": [0.5, 0.5]},
        ),
        "problems.LinearQuadratic": (
            fh.problems.LinearQuadratic,
            {**process, "terminal": REWARD, "horizon": 1.0, "Q": [[1.0]], "q": [0.0], "q0": 0.0},
        ),
        "problems.LogSumExpReward": (
            fh.problems.LogSumExpReward,
            {"temperature": 1.0, "R": [[[1.0]]], "s": [[0.0]], "s0": [0.0]},
        ),
        "problems.MixtureDiffusion": (
            fh.problems.MixtureDiffusion,
            {"data": MIXTURE, "horizon": 1.0, "beta": 1.0, "eta": 1.0},
        ),
        "problems.Product": (lambda factor: fh.problems.Product(factor), {"factor": LQ.exact}),
        "problems.QuadraticGauge": (
            fh.problems.QuadraticGauge,
            {"constants": GAUGE, "centre": [0.0], "P": [[[1.0]]], "p": [[0.0]], "c": [0.0]},
        ),
        "problems.MixtureDiffusion.tilted": (DIFFUSION.tilted, {"reward": REWARD, "temperature": 1.0, "name": "a"}),
        "problems.TiltedKernels": (fh.problems.TiltedKernels, {"process": CLOUD, "reward": REWARD}),
        "problems.TiltedMixture": (fh.problems.TiltedMixture, {"process": DIFFUSION, "reward": REWARD}),
        "problems.ValueGauge": (fh.problems.ValueGauge, {"background": GAUGE}),
        "problems.constant_gauge": (fh.problems.constant_gauge, {"problem": LQ, "x": x, "times": [0.0, 1.0]}),
        "problems.from_points": (
            fh.problems.from_points,
            {"points": [[0.0]], "bandwidth": 0.5, "horizon": 1.0, "beta": 1.0, "eta": 1.0, "weights": [1.0]},
        ),
        "problems.linear_marginal": (fh.problems.linear_marginal, {**process, "initial_law": LAW}),
        "problems.linear_transition": (fh.problems.linear_transition, {**process, "time": 1.0}),
        "problems.manufactured": (
            fh.problems.manufactured,
            {
                **process,
                "value": r,
                "time_derivative": lambda t, x: 0.0 * x[..., 0],
                "gradient": lambda t, x: -2.0 * x,
                "hessian": square,
                "temperature": 1.0,
                "horizon": 1.0,
                "initial_law": LAW,
                "domain": None,
                "marginal": None,
                "name": "a",
            },
        ),
        "problems.tilted_density": (
            fh.problems.tilted_density,
            {"law": LAW, "reward": y, "temperature": 1.0, "rtol": 0.1, "box": fh.Box([-8.0], [8.0])},
        ),
        "problems.zoo.describe": (fh.zoo.describe, {"name": "lq"}),
        "problems.zoo.dims": (fh.zoo.dims, {"name": "lq"}),
        "problems.zoo.get": (fh.zoo.get, {"name": "lq", "dim": 1}),
        "problems.zoo.get_exit": (fh.zoo.get_exit, {"name": "well-exit", "dim": 1, "beta": 1.0}),
        "problems.zoo.exit_names": (fh.zoo.exit_names, {}),
        "problems.zoo.names": (fh.zoo.names, {}),
        "problems.zoo.parameters": (fh.zoo.parameters, {"name": "lq"}),
        "problems.zoo.register": (fh.zoo.register, {"dims": (1, 2), "default_dim": 1, "kind": fh.ExitProblem}),
        "problems.zoo.source": (fh.zoo.source, {"name": "lq"}),
        "solutions.Comparison": (fh.solutions.Comparison, {"rows": (ROW,), "points": "a"}),
        "solutions.DensityLaw": (
            fh.solutions.DensityLaw,
            {"basis": SPECTRAL, "values": np.ones(17)},
        ),
        "solutions.ErrorEstimate": (
            fh.solutions.ErrorEstimate,
            {"value": 0.1, "policy": 0.1, "space": 0.1, "time": 0.1, "truncation": 0.1},
        ),
        "solutions.ProductSolution": (
            fh.solutions.ProductSolution,
            {"problem": LQ2, "parts": PRODUCT.parts, "status": "ok", "stats": {}, "error_estimate": estimate},
        ),
        "solutions.StagedSolution": (
            fh.solutions.StagedSolution,
            {name: getattr(STAGED, name) for name in inspect.signature(fh.solutions.StagedSolution).parameters},
        ),
        "solutions.from_callables": (fh.solutions.from_callables, {"value": r, "gradient": b, "policy": b}),
        "solutions.load_paths": (fh.solutions.load_paths, {"path": path_file}),
        "solutions.save_paths": (fh.solutions.save_paths, {"path": folder / "c.npz", "paths": PATHS}),
        "spaces.Element": (
            fh.spaces.Element,
            {"name": "own", "cells": {}, "degree": 1, "smoothness": 0, "value_order": 2, "gradient_order": 1},
        ),
        "spaces.Envelope": (fh.spaces.Envelope, {"base": FEATURES, "Q": [[1.0]], "q": [0.0]}),
        "spaces.GaussianQuadratic": (
            fh.spaces.GaussianQuadratic,
            {"centres": [[0.0]], "precision": [[[1.0]]], "law": LAW},
        ),
        "spaces.HermiteBasis": (fh.spaces.HermiteBasis, {"grids": [[0.0, 0.5, 1.0]]}),
        "spaces.HermiteCross": (fh.spaces.HermiteCross, {"law": LAW, "degree": 2, "total": True}),
        "spaces.LineBasis": (fh.spaces.LineBasis, {"grid": [0.0, 1.0], "kind": "P2", "flat": False}),
        "spaces.MeshBasis": (fh.spaces.MeshBasis, {"mesh": MESH, "element": "P2"}),
        "spaces.RandomFourier": (fh.spaces.RandomFourier, {"law": LAW, "count": 4, "scale": 1.0, "rng": 0}),
        "spaces.SpectralBasis": (fh.spaces.SpectralBasis, {"lines": [fh.spaces.SpectralLine([0.0, 1.0], 4)]}),
        "spaces.SpectralLine": (fh.spaces.SpectralLine, {"grid": [0.0, 1.0], "degree": 4}),
        "spaces.SplineBasis": (fh.spaces.SplineBasis, {"grids": [[0.0, 0.5, 1.0]], "element": "B3", "flat": False}),
        "spaces.Union": (lambda part: fh.spaces.Union(part), {"part": FEATURES}),
        "spaces.box_mesh": (fh.spaces.box_mesh, {"box": DOMAIN, "cells": 4, "kind": "line", "grading": None}),
        "spaces.spatial_basis": (
            fh.spaces.spatial_basis,
            {"mesh_or_grids": [[0.0, 1.0]], "element": "hermite", "flat": False},
        ),
    }
    evaluated = {**where, "outside": "nan"}
    own = {**evaluated, "nonpositive": "nan"}
    for name, of in (("Solution", SOLUTION), ("ProductSolution", PRODUCT), ("StagedSolution", STAGED)):
        at = {**own, "x": np.array([[0.1, 0.2]])} if name == "ProductSolution" else own
        if name != "StagedSolution":
            found[f"{name}.f"] = of.f, {k: at[k] for k in evaluated}
        found |= {f"{name}.{method}": (getattr(of, method), at) for method in ("value", "gradient", "policy")}
    found |= {f"ControlProblem.{name}": (getattr(LQ, name), where) for name in ("b", "Lambda", "r", "exit_reward")}
    laws = {
        "Gaussian": LAW,
        "GaussianMixture": MIXTURE,
        "KernelDensity": CLOUD.data,
        "Uniform": fh.Uniform(DOMAIN),
        "Uniform in a mesh": fh.Uniform(MESH_DOMAIN),
        "PointMass": fh.PointMass([0.0]),
    }
    for name, law in {**laws, "DensityLaw": DENSITY.marginal(0.5)}.items():
        density = () if name == "PointMass" else ("logpdf", "score")
        found |= {f"{name}.{method}": (getattr(law, method), {"x": x}) for method in density}
        found[f"{name}.quadrature"] = law.quadrature, {"order": 3}
        found[f"{name}.sample"] = law.sample, {"n": 3, "rng": np.random.default_rng(0)}
    found |= {f"TiltedDensity.{name}": (getattr(TILTED, name), {"x": x}) for name in ("logpdf", "density")}
    forms = {
        "LinearQuadratic": LQ.exact,
        "TiltedKernels": CLOUD.tilted(REWARD, temperature=1.0).exact,
        "CosineSeries": fh.zoo.get("reflected", 1).exact,
    }
    for name, form in forms.items():
        found |= {f"{name}.{method}": (getattr(form, method), where) for method in ("value", "gradient", "policy")}
    return found | {
        "ControlProblem.y": (LQ.y, {"x": x}),
        "Solution.with_floor": (SOLUTION.with_floor, {"floor": 0.1}),
        "Box.contains": (BOX.contains, {"x": x}),
        "Box.exited": (BOX.exited, {"x": x}),
        "Box.absorb": (BOX.absorb, {"x": x}),
        "Box.mirror": (BOX.mirror, {"x": x}),
        "MeshDomain.contains": (MESH_DOMAIN.contains, {"x": x}),
        "MeshDomain.exited": (MESH_DOMAIN.exited, {"x": x}),
        "MeshDomain.inside": (MESH_DOMAIN.inside, {"x": x}),
        "MeshDomain.has": (MESH_DOMAIN.has, {"word": "natural"}),
        "Box.has": (BOX.has, {"word": "natural"}),
        "Box.inside": (BOX.inside, {"x": x}),
        "Box.where": (BOX.where, {"word": "natural"}),
        "Comparison.overall": (COMPARISON.overall, {"name": "exact", "law": "uncontrolled"}),
        "Comparison.series": (COMPARISON.series, {"name": "exact", "column": "value", "law": "uncontrolled"}),
        "Comparison.to_csv": (COMPARISON.to_csv, {"path": folder / "a.csv"}),
        "DensitySolution.density": (DENSITY.density, where),
        "DensitySolution.law": (DENSITY.law, {"t": 0.5}),
        "ErrorEstimate.met": (estimate.met, {"rtol": 0.1}),
        "PathSource.chunk": (source.chunk, {"i": 1}),
        "PathSource.rows": (source.rows, {"i": 1}),
        "Space.interpolate": (LINE.interpolate, {"function": lambda t, x: x[..., 0]}),
        "Space.coefficient_grid": (LINE.coefficient_grid, {"coefficients": COEFFICIENTS}),
        "Space.locate": (LINE.locate, where),
        "Space.tabulate": (LINE.tabulate, {**where, "order": 1}),
        "Space.evaluate": (
            LINE.evaluate,
            {"coefficients": COEFFICIENTS, **where, "derivative": "value", "outside": "nan"},
        ),
    }


def callables(module: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and callables of the public surface, without errors, warnings, protocols and abstract bases."""
    names = getattr(module, "__all__", None)
    own = [k for k in vars(module) if k[0] != "_" and getattr(vars(module)[k], "__module__", "") == module.__name__]
    for name in own if names is None else names:
        thing = getattr(module, name)
        if inspect.ismodule(thing):
            yield from callables(thing, f"{prefix}{name}.")
        elif callable(thing) and not (isinstance(thing, type) and (_apart(thing) or inspect.isabstract(thing))):
            yield prefix + name, thing


def _apart(kind: type) -> bool:
    return issubclass(kind, BaseException) or getattr(kind, "_is_protocol", False)


EXCUSED = {
    ("progress", "a class"),  # what progress raises is how it stops the work
    ("progress", "a callable"),
    ("add", "a class"),  # what the caller's addition raises is the caller's own error
    ("add", "a callable"),
    ("enough", "a class"),  # so is what its judgement raises
    ("enough", "a callable"),
    ("task", "a lambda of anything"),  # whose results cannot be added
}
ALIKE = {  # as right as others of the list, and all that a call does with them is the same
    *(("rng", kind) for kind in ("3", "10**12", "10**18")),
    *(("max_seconds", kind) for kind in ("3", "1.5", "10**12", "10**18", "10**30", "1e300")),  # see test_seconds
    ("progress", "a lambda of anything"),  # test_seconds, too
    *(("workers", kind) for kind in ("3", "10**12", "10**18")),
    *((much, "10**18") for much in ("horizon", "diffusion")),  # between two that are tried
    *((most, kind) for most in ("max_dofs", "max_iterations") for kind in ("10**12", "10**18")),
    *((weight, kind) for weight in ("ridge", "smoothing") for kind in ("1.5", "3", "10**12", "10**18")),
    ("ridge", "0"),  # which is 0.0
    ("config", "None"),  # all of an experiment, which tests of experiments run
}


class Slow(BaseException):
    """A call that takes too long."""


def stopped(*_: Any) -> None:
    raise Slow


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Of time and memory, so that a call that hangs or fills the machine fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    handler = signal.signal(signal.SIGALRM, stopped)
    resource.setrlimit(resource.RLIMIT_AS, (used + _BYTES, before[1]))
    signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def foreign(function: Callable[..., Any], arguments: Arguments) -> str | None:
    """What comes out of a call that is neither a result nor an error of ours."""
    try:
        with limits(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(**arguments)
    except FemHjbError:
        return None
    except Slow:
        return "takes too long"
    except Exception as error:
        trace = error.__traceback__
        if isinstance(error, TypeError) and trace is not None and trace.tb_next is None:
            return None  # the call does not fit the signature
        return f"{type(error).__name__}: {error}"
    return None


NAMES = list(functions(Path()))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Callable[..., Any], Arguments]]:
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    return functions(folder)


@pytest.mark.parametrize("name", NAMES)
def test_only_errors_of_ours_come_out(
    name: str,
    table: dict[str, tuple[Callable[..., Any], Arguments]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # where a file of the name "a" does no harm
    monkeypatch.setattr(estimators, "_REGISTERED", dict(estimators._REGISTERED))  # other tests are not to know "ow"
    function, arguments = table[name]
    with limits(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name != "experiments.run":
            function(**arguments)
    parameters, left_out = inspect.signature(function).parameters, EXCUSED | ALIKE
    left_out |= {(name, "None") for name, one in parameters.items() if one.default is None}  # as without the argument
    found = {
        f"{argument}={kind}": foreign(function, {**arguments, argument: thing})
        for argument in arguments
        for kind, thing in WRONG.items()
        if (argument, kind) not in left_out and thing is not arguments[argument]  # that is the right call
    }
    plt.close("all")
    assert {call: error for call, error in found.items() if error is not None} == {}


def test_the_table_has_every_public_function() -> None:
    tested, places = {name.partition(" ")[0] for name in NAMES}, {}
    for name, thing in callables(fh):
        places.setdefault(id(thing), []).append(name)
    assert [names for names in places.values() if not tested & set(names)] == []
    assert len(places) > 90


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda x: x.dim, "AttributeError: 'NoneType' object has no attribute 'dim'"),
        (lambda x: len(x), "TypeError: object of type 'NoneType' has no len()"),
        (lambda x: np.zeros(2**46), "MemoryError: Unable to allocate 512. TiB"),
        (lambda y: y, None),
        (lambda x: fh.zoo.get(x), None),
        (lambda x: x, None),
    ],
)
def test_the_test_tells_foreign_errors_from_ours(function: Callable[..., Any], told: str | None) -> None:
    assert (foreign(function, {"x": None}) or "").startswith(told or "")
    assert (foreign(function, {"x": None}) is None) == (told is None)


def test_the_test_stops_what_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "_SECONDS", 0.2)
    assert foreign(lambda x: all(True for _ in iter(int, 1)), {"x": None}) == "takes too long"
