# ruff: noqa: E402
"""Matrices for a new drift: a precomputed pattern against scikit-fem's assembly to CSR, timed in one run.

    python benchmarks/bench_reassembly.py [--quick]

Both get the same mesh, element, quadrature and drift values at the quadrature points, and make the same matrix, which
is checked. "from values" starts from these values; "from callable" adds, on both sides, the evaluation of
b(t, x) = -1.3 x / (1 + 0.1 t |x|^2) + 0.1 (x reversed), which is no sum of products of functions of t and of x: of such
a sum nothing would be assembled anew. CPU seconds of one thread, so that other processes do not count.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before NumPy is imported

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
import skfem
from skfem.element import DiscreteField
from skfem.helpers import dot, grad

from fem_hjb.problems.box import Box
from fem_hjb.problems.gauge import Gauge
from fem_hjb.problems.laws import Gaussian
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.mesh_operators import MeshOperators
from fem_hjb.spaces.meshes import box_mesh
from fem_hjb.spaces.space import spatial_basis
from fem_hjb.support.checks import FloatArray

ELEMENTS = {2: (skfem.ElementTriP2, "tri"), 3: (skfem.ElementTetP2, "tet")}


def drift(t: Any, x: FloatArray) -> FloatArray:
    """Depends on time, so that no call finds the coefficients it saw before, nor a combination of them."""
    return x * (-1.3 / (1.0 + 0.1 * np.asarray(t) * (x**2).sum(-1)))[..., None] + 0.1 * x[..., ::-1]


class Replay:
    """The drift above; `record` keeps what it returns at a time, and calls at that time then cost nothing."""

    def __init__(self) -> None:
        self._kept: dict[float, dict[int, FloatArray]] = {}

    def record(self, t: float, evaluate: Callable[[float], Any]) -> None:
        self._kept[t] = {}
        evaluate(t)

    def __call__(self, t: Any, x: FloatArray) -> FloatArray:
        kept = self._kept.get(t) if isinstance(t, float) else None
        if kept is None:
            return drift(t, x)
        key = x.__array_interface__["data"][0]
        if key not in kept:
            kept[key] = drift(t, x)
        return kept[key]


def median_seconds(run: Callable[[int], Any], repeats: int) -> float:
    run(-1)
    seconds = []
    for k in range(repeats):
        start = time.process_time()
        run(k)
        seconds.append(time.process_time() - start)
    return float(np.median(seconds))


def measure(dim: int, cells: int, repeats: int) -> tuple[list[str], float]:
    """Rows of the table for the box [-6, 6]^dim cut into cells^dim boxes and these into simplices, with P2."""
    element, kind = ELEMENTS[dim]
    mesh = box_mesh(Box([-6.0] * dim, [6.0] * dim), cells, kind)
    start = time.process_time()
    basis = spatial_basis(mesh, "P2")
    replay = Replay()
    problem = ControlProblem(
        dim=dim,
        horizon=1.0,
        temperature=1.0,
        drift=replay,
        diffusion=1.0,
        terminal_reward=lambda x: -(x**2).sum(-1) / 2,
        initial_law=Gaussian(np.zeros(dim), 1.0),
    )
    operators = MeshOperators(problem, basis, Gauge(temperature=1.0, horizon=1.0, terminal=0.0, running=0.0))
    operators.K(0.0)
    preparation = time.process_time() - start

    rule = basis.quadrature(2 * basis.degree + 1)
    reference = skfem.Basis(mesh, element(), quadrature=(rule.xi.T, rule.weights))
    form = skfem.BilinearForm(lambda u, v, w: dot(w.b, grad(u)) * v)
    points = reference.global_coordinates().value  # (d, cells, q)
    as_field = [np.moveaxis(drift(0.1 * k, np.moveaxis(points, 0, -1)), -1, 0) for k in range(3)]
    theirs = form.assemble(reference, b=DiscreteField(as_field[0]))

    for t in (0.0, 0.1, 0.2):
        replay.record(t, operators.K)
    seconds_values = median_seconds(lambda k: operators.K(0.1 * (k % 3)), repeats)
    seconds_callable = median_seconds(lambda k: operators.K(0.011 * (k + 2)), repeats)
    operators.K(0.0)
    ours = sp.csr_matrix((operators._parts["drift"].data, theirs.indices, theirs.indptr), shape=theirs.shape)
    difference = abs(ours - theirs).max() / abs(theirs).max()
    seconds_theirs = median_seconds(
        lambda k: form.assemble(reference, b=DiscreteField(as_field[k % 3])), max(2, repeats // 3)
    )
    seconds_theirs_callable = seconds_theirs + median_seconds(
        lambda k: drift(0.011 * (k + 2), np.moveaxis(points, 0, -1)), repeats
    )
    ratio = seconds_theirs / seconds_values
    row = (
        f"{dim}-D P2 {basis.n_dofs:7d} dofs {basis.n_cells:7d} cells | from values: scikit-fem {seconds_theirs:7.3f} s,"
        f" here {seconds_values:7.4f} s, ratio {ratio:5.1f} | from callable: {seconds_theirs_callable:7.3f} s,"
        f" {seconds_callable:7.4f} s, ratio {seconds_theirs_callable / seconds_callable:5.1f} | once:"
        f" {preparation:6.2f} s | max difference {difference:.1e}"
    )
    return [row], ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small meshes: a smoke test, its ratios mean little")
    quick = parser.parse_args().quick
    for dim, cells in ((2, 24 if quick else 158), (3, 6 if quick else 29)):
        rows, _ = measure(dim, cells, 3 if quick else 9)
        print("\n".join(rows), flush=True)


if __name__ == "__main__":
    main()
