"""An interior point with predictor and corrector for linear inequalities: S. Mehrotra, SIAM J. Optim. 2 (1992) 575;
with the further corrections of J. Gondzio, Comput. Optim. Appl. 6 (1996) 137.

It starts where slacks w and multipliers z are equal in units of each row: rows of cells with few samples move a million
times as far under a force as others. Within bounds on the unknowns themselves it starts inside, and never leaves.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import final

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from fem_hjb.learning.active_sets import ACCEPTED, ROUNDING, Iterate, System, active_set, magnitude
from fem_hjb.learning.bordered import Bordered
from fem_hjb.support.checks import FloatArray

_INTERIOR_STEPS = 100
_POLISH_STEPS = 20
_STAGNATION = 6  # interior-point steps without progress after which it is done
_MARGIN = 0.1  # of the width between bounds on the unknowns: what it keeps from them at first
_AWAY = 4.0  # how far inside it starts, in units of the mean slack
_CORRECTIONS = 2  # of a step at most, with the same factors
_FURTHER, _AT_LEAST = 1.5, 0.3  # times a step is to be longer by them, and by how much at least
_UNEVEN = 10.0  # times by which products w z may differ from their goal
_WORTH = 1.05  # times longer that a step is by a correction that is taken
_FINISH = 4  # interior-point steps after which active-set steps are tried in large ones, and so on
_NEAR = 1e-4  # KKT residual within bounds on the unknowns from which on they are tried instead
_CLOSED = 1e-10  # products w z relative to those at the start, below which only the residual is progress


@final
class _Interior:
    """The state of an interior point: M c + G' z + A_e' y = q, G c + w = h, A_e c = b_e, w z = 0, w > 0, z > 0.

    G c <= h are the one-sided rows, upper bounds first; A_e are the rows with equal bounds.
    """

    def __init__(self, system: System, q: FloatArray) -> None:
        rows, equal = system.rows, system.equal
        self.system, self.q = system, q
        self.above = np.flatnonzero(np.isfinite(system.upper) & ~equal)
        self.below = np.flatnonzero(np.isfinite(system.lower) & ~equal)
        self.g = sp.vstack([rows[self.above], -rows[self.below]], format="csr")
        self.h = np.concatenate([system.upper[self.above], -system.lower[self.below]])
        self.fixed, self.target = rows[np.flatnonzero(equal)], system.upper[equal]
        self.mobility = np.concatenate([system.mobility[self.above], system.mobility[self.below]])
        if system.bounds:
            self._begin_inside()
            return
        self.w, self.z = self.mobility, np.ones(self.h.size)
        newton = self._newton()
        self.c, self.y = newton(q + self.g.T @ (self.h / self.mobility), np.empty(0), self.target)[::2]
        unit = np.sqrt(self.mobility)
        slack = np.abs(self.h - self.g @ self.c) / unit
        slack = np.maximum(slack, (_AWAY * slack.mean() if slack.size else 0.0) or 1.0)
        self.w, self.z = unit * slack, slack / unit

    def _begin_inside(self) -> None:
        """A start within bounds on the unknowns, near where they would be without, with equal products w z."""
        system, lower, upper = self.system, self.system.lower, self.system.upper
        nowhere = system.allowed(np.zeros(lower.size, dtype=np.int8))
        self.c, multipliers = system.held(self.q, nowhere, np.zeros(self.q.size))
        self.y = multipliers[system.equal]
        margin = _MARGIN * np.minimum(upper - lower, magnitude(self.c, lower, upper))
        self.c = np.clip(self.c, lower + margin, upper - margin)
        self.w = self.h - self.g @ self.c
        force = np.abs(self.g @ (system.matrix @ self.c - self.q))
        self.z = (float(force @ self.w) or 1.0) / max(self.w.size, 1) / self.w

    @property
    def tight(self) -> NDArray[np.bool_]:
        """The rows whose multiplier is larger than their slack."""
        return np.asarray(self.z * self.mobility > self.w)

    @property
    def left(self) -> FloatArray:
        """What is to become 0: the mean of the products w z, and the largest error of G c + w = h."""
        missing = np.abs(self.g @ self.c + self.w - self.h).max(initial=0.0)
        return np.array([float(self.w @ self.z) / max(self.w.size, 1), float(missing)])

    def _newton(self) -> Callable[[FloatArray, FloatArray, FloatArray], tuple[FloatArray, ...]]:
        """(loads on c, on tight rows, on equal rows) -> (dc, dz of the tight rows, dy).

        Tight rows stay in the system, as eliminating them would lose the matrix next to their weights z / w.
        """
        self.system.alive()
        tight = self.tight
        loose = self.g[np.flatnonzero(~tight)]
        stiff = self.system.matrix + loose.T @ sp.diags((self.z / self.w)[~tight]) @ loose
        border = sp.vstack([self.g[np.flatnonzero(tight)], self.fixed], format="csr")
        ratio = np.concatenate([(self.w / self.z)[tight], np.zeros(self.target.size)])
        mobility = np.concatenate([self.mobility[tight], self.system.mobility[self.system.equal]])
        system, count = self.system, int(tight.sum())
        bordered = Bordered(sp.csr_matrix(stiff), border, ratio, mobility, system.dissection, system.symmetric)

        def solve(on_c: FloatArray, on_tight: FloatArray, on_equal: FloatArray) -> tuple[FloatArray, ...]:
            dc, pressed = bordered.solve(on_c, np.concatenate([on_tight, on_equal]))
            return dc, pressed[:count], pressed[count:]

        return solve

    def iterate(self, iterations: int) -> Iterate:
        """The state, with the bounds as active whose multiplier is larger than their slack."""
        system, count = self.system, self.above.size
        multipliers, sides = np.zeros(system.lower.size), np.zeros(system.lower.size, dtype=np.int8)
        multipliers[self.above] = self.z[:count]
        multipliers[self.below] -= self.z[count:]
        multipliers[system.equal] = self.y
        tight = self.tight
        sides[self.above[tight[:count]]] = 1
        sides[self.below[tight[count:]]] = -1
        sides[system.equal] = 1
        residual = system.residual(self.q, self.c, multipliers)
        return Iterate(self.c, multipliers, sides, residual, iterations, "interior-point")

    def advance(self) -> None:
        """A predictor-corrector step, made longer by corrections of products w z that it would leave uneven."""
        w, z, g = self.w, self.z, self.g
        dual = self.system.matrix @ self.c - self.q + g.T @ z + self.fixed.T @ self.y
        primal = g @ self.c + w - self.h
        missing = self.target - self.fixed @ self.c
        tight, newton = self.tight, self._newton()

        def direction(complement: FloatArray) -> tuple[FloatArray, ...]:
            """Of c, y, w and z, towards w z = w z - complement, and no other residuals."""
            shift = np.where(tight, 0.0, (z * primal - complement) / w)
            dc, pressed, dy = newton(-dual - g.T @ shift, (complement / z - primal)[tight], missing)
            move = g @ dc
            dz = shift + z / w * move
            dz[tight] = pressed
            dw = -primal - move  # which cancels in tight rows
            dw[tight] = ((-complement - w * dz) / z)[tight]
            return dc, dy, dw, dz

        def reach(dw: FloatArray, dz: FloatArray) -> float:
            return float(min(np.min(-v[d < 0] / d[d < 0], initial=np.inf) for v, d in ((w, dw), (z, dz))))

        _, _, dw, dz = direction(w * z)
        length, gap = min(1.0, reach(dw, dz)), float(w @ z) / max(w.size, 1)
        centring = (float((w + length * dw) @ (z + length * dz)) / w.size / gap) ** 3 if gap > 0 else 0.0
        goal = centring * gap
        complement = w * z + dw * dz - goal
        taken = direction(complement)
        for _ in range(_CORRECTIONS):
            _, _, dw, dz = taken
            length = reach(dw, dz)
            if length >= 1.0:
                break
            further = min(1.0, _FURTHER * length + _AT_LEAST)
            products = (w + further * dw) * (z + further * dz)
            uneven = products - np.clip(products, goal / _UNEVEN, goal * _UNEVEN)
            complement = complement + np.minimum(uneven, goal * _UNEVEN)
            corrected = direction(complement)
            if not reach(*corrected[2:]) > _WORTH * length:
                break
            taken = corrected
        length = min(1.0, 0.995 * reach(*taken[2:]))
        self.c, self.y, self.w, self.z = (
            value + length * change for value, change in zip((self.c, self.y, w, z), taken, strict=True)
        )


def interior_point(system: System, q: FloatArray) -> Iterate | None:
    """The best iterate of an interior point, finished by active-set steps where these reduce the residual.

    A few steps bring it so near that active sets, where each takes a factorisation, settle in about ten more. Within
    bounds on the unknowns the last of its steps change few of them, for which active sets need no new factors.
    """
    best: Iterate | None = None
    spent, advanced = 0, 1
    # Iterates that overflow near a singular system have no residual below the best one's: nothing is lost silently.
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        try:
            state = _Interior(system, q)
            first = lowest = state.left
            for iteration in range(1, _INTERIOR_STEPS):
                now, left = state.iterate(iteration), state.left
                if best is None or now.residual < best.residual:
                    best, advanced = now, iteration
                if left[0] > _CLOSED * first[0] and (left < lowest / 2).any():
                    lowest, advanced = np.minimum(lowest, left), iteration
                if best.residual < ROUNDING or iteration - advanced > _STAGNATION:
                    break
                due = now.residual < _NEAR if system.bounds else iteration % _FINISH == 0
                if system.dissection is not None and due:
                    finished = active_set(system, q, now.sides, now.c, _POLISH_STEPS, hasty=True)
                    spent += 0 if finished is None else finished.iterations
                    if finished is not None and finished.residual <= ACCEPTED:
                        return replace(finished, iterations=iteration + spent, how="interior-point")
                state.advance()
        except RuntimeError:  # SuperLU: exactly singular, at the start or where active slacks have become 0
            pass
    if best is None:
        return None
    polished = active_set(system, q, best.sides, best.c, _POLISH_STEPS)
    if polished is not None and polished.residual < best.residual:
        return replace(polished, iterations=best.iterations + spent + polished.iterations, how="interior-point")
    return replace(best, iterations=best.iterations + spent)
