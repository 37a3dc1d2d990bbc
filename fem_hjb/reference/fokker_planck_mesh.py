"""The Fokker-Planck equation on a mesh."""

from typing import Any, final

import numpy as np
from scipy.sparse import csr_matrix

from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.faces import absorbed_nodes
from fem_hjb.reference.fokker_planck_start import Begin, March, no_gauge
from fem_hjb.reference.mesh_in_time import inside
from fem_hjb.reference.mesh_operators import MeshOperators
from fem_hjb.spaces.basis import SpatialBasis
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.space import Space
from fem_hjb.stepping.esdirk import ESDIRK43, LinearSystem, Solve, esdirk
from fem_hjb.support.checks import FloatArray, IntArray
from fem_hjb.support.errors import DomainError
from fem_hjb.support.progress import Progress


@final
class _Forward(LinearSystem):
    """M p' = K(t)' p; p = 0 at the nodes of absorbing faces."""

    def __init__(
        self, problem: ControlProblem, basis: SpatialBasis, p0: FloatArray, fixed: IntArray, tell: Progress
    ) -> None:
        self.tell = tell
        self.operators = MeshOperators(problem, basis, no_gauge(problem), tell)
        self.mass, self.factors, self.fixed = self.operators.M, self.operators.direct, fixed
        self.weights = np.asarray(self.mass @ np.ones(basis.n_dofs))
        self._unit = p0 / (self.weights @ p0)
        self._last: tuple[Any, Any] = (None, None)
        self.breaks, self._horizon = self.operators.jumps, problem.horizon
        self.within = (0.0, problem.horizon)
        self._room, self._turned = np.empty(self.mass.nnz), np.empty(self.mass.nnz)
        # Of the same symmetric pattern as K: where in K the entries of its transpose are.
        places = np.arange(self.mass.nnz)
        self._across = csr_matrix((places, self.mass.indices, self.mass.indptr), shape=self.mass.shape).T.tocsr().data

    def enter(self, start: float, end: float) -> None:
        self.within = inside(start, end, self.operators.jumps, self._horizon)

    def _time(self, t: float) -> float:
        return float(min(max(t, self.within[0]), self.within[1]))

    def stiffness(self, t: float) -> Any:
        self.tell(0.0)
        K = self.operators.K(self._time(t), self._room)
        if K is not self._last[0]:
            np.take(K.data, self._across, out=self._turned)
            self._last = K, csr_matrix((self._turned, K.indices, K.indptr), shape=K.shape)
        return self._last[1]

    def seen(self, t: float, h: float) -> float:
        return h * self.operators.seen(self._time(t), self._time(t + h), ESDIRK43.c)

    def solver(self, stiffness: Any, shift: float) -> Solve:
        inner = self.operators.solver(stiffness, shift, self.fixed)
        if self.fixed.size:
            return inner

        def solve_exactly_in_mass(rhs: FloatArray, guess: FloatArray, rtol: float) -> FloatArray:
            """1' (M - shift K') p = 1' M p; what an iterative solver spoils of it, p_0 makes up for."""
            p = inner(rhs, guess, rtol)
            return np.asarray(p + (rhs.sum() - self.weights @ p) * self._unit)

        return solve_exactly_in_mass


def on_mesh(problem: ControlProblem, basis: SpatialBasis, begin: Begin, rtol: float, tell: Progress) -> March:
    """The march on a mesh; tell hears of every stage of every step, and what it raises stops the work."""
    p0 = basis.project(lambda x: np.exp(begin.law.logpdf(x)))
    if not p0.any():
        raise DomainError(f"no point of the mesh sees the initial law of {problem.name!r}; take smaller cells")
    absorbed = absorbed_nodes(problem, basis)
    p0[absorbed] = 0.0
    fixed = np.flatnonzero(absorbed).astype(np.int64)
    system = _Forward(problem, basis, p0, fixed, tell)
    rows, ends, spent, T = [p0], [begin.time], dict[str, int](), problem.horizon
    for step in esdirk(system, p0, begin.time, T, rtol=rtol, counts=spent):
        rows += [step.dense(1 / 3), step.dense(2 / 3), step.u1]
        ends.append(step.s + step.h)
        tell(ends[-1] / T)
    counts = {
        "route": "mesh",
        "steps": spent["steps"],
        "rejected": spent["rejected"],
        "linear_solver": system.operators.linear_solver,
    }
    ends[-1] = T
    if begin.time > 0.0:  # the law is a Gaussian up to here
        rows, ends = [p0] * 3 + rows, [0.0, *ends]
    return March([(Space.product(LineBasis(np.array(ends), "P3"), basis), np.array(rows))], [system.weights], counts)
