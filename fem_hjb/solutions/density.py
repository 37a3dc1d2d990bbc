"""Laws whose density is a function of a basis in space, as the Fokker-Planck solver finds them."""

from dataclasses import dataclass, field
from typing import final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.problems.laws import Law, checked_draws
from fem_hjb.spaces.space import SpatialBasis
from fem_hjb.spaces.spectral import SpectralBasis
from fem_hjb.support.checks import FloatArray, as_points, frozen_array, gauss_order
from fem_hjb.support.errors import ProblemError, SpaceError

_CHUNK_DOUBLES = 1 << 22
_NEGLIGIBLE = 1e-15  # of the maximum of the density: left out of quadrature rules


@final
@dataclass(frozen=True, eq=False, repr=False)
class DensityLaw(Law):
    """The law whose density is a function of a continuous basis in space: values p at the dofs, (n_dofs,).

    Outside the basis' domain the density is 0. Where values are negative (see `DensitySolution.status`) logpdf is -inf
    and the score 0. If mass was absorbed, expectation, covariance and samples are those of the rest.
    """

    basis: SpatialBasis
    values: ArrayLike
    dim: int = field(init=False)
    _p: FloatArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_continuous(self.basis)
        p = frozen_array(self.values, "the values of a DensityLaw", (self.basis.n_dofs,), ProblemError)
        for name, value in (("values", p), ("_p", p), ("dim", self.basis.dim)):
            object.__setattr__(self, name, value)

    @property
    def mass(self) -> float:
        """The integral of the density."""
        return float(self._nodes_rule()[1].sum())

    @property
    def expectation(self) -> FloatArray:
        x, w = self._nodes_rule()
        return np.asarray(w @ x / w.sum())

    @property
    def covariance(self) -> FloatArray:
        x, w = self._nodes_rule()
        centred = x - w @ x / w.sum()
        return np.asarray(np.einsum("n,ni,nj->ij", w, centred, centred) / w.sum())

    def density(self, x: ArrayLike) -> FloatArray:
        """p(x), shape (...), negative values included."""
        points = as_points(x, self.dim)
        return evaluate(self.basis, self._p, points.reshape(-1, self.dim), 0)[0].reshape(points.shape[:-1])

    def logpdf(self, x: ArrayLike) -> FloatArray:
        p = self.density(x)
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(np.maximum(p, 0.0)))

    def score(self, x: ArrayLike) -> FloatArray:
        points = as_points(x, self.dim)
        p, slope = evaluate(self.basis, self._p, points.reshape(-1, self.dim), 1)
        positive = p > 0
        score = np.where(positive[:, None], slope, 0.0) / np.where(positive, p, 1.0)[:, None]
        return np.asarray(score.reshape(points.shape))

    def quadrature(self, order: int) -> tuple[FloatArray, FloatArray]:
        """A Gauss rule on every cell, for polynomials of degree < 2 order times this density: points and weights.

        The weights sum to the mass. Points where |p| is below 1e-15 of its maximum are left out; weights are negative
        where p is.
        """
        x, w, p = self._rule(self.basis.degree + 2 * gauss_order(order, "order", ProblemError) - 1)
        keep = np.abs(p) > _NEGLIGIBLE * np.abs(p).max()
        return x[keep], w[keep]

    def sample(self, n: int, rng: np.random.Generator) -> FloatArray:
        """n draws, shape (n, d), by rejection: exact for the interpolated density, its negative values taken as 0.

        A cell is proposed in proportion to an upper bound of p on it times the volume of its bounding box, a point
        uniformly in this box; should p exceed a bound somewhere, it is raised and all draws begin anew.
        """
        count = checked_draws(n, rng, 8 * self.dim)  # four times as many are proposed
        lower, upper = self.basis.cell_bounds()
        width = upper - lower
        rule = self.basis.quadrature(2 * self.basis.degree)
        local = self._p[self.basis.cell_dofs]
        bound = np.maximum(np.maximum((local @ rule.phi).max(axis=1), local.max(axis=1)), 0.0) * 1.5**self.dim
        drawn: list[FloatArray] = []
        while (missing := count - sum(map(len, drawn))) > 0:
            share = bound * width.prod(axis=1)
            cells = rng.choice(len(share), size=4 * missing + 64, p=share / share.sum())
            x = lower[cells] + width[cells] * rng.random((cells.size, self.dim))
            inside = self.basis.locate(x)[0] == cells
            p = evaluate(self.basis, self._p, x, 0)[0]
            above = inside & (p > bound[cells])
            if above.any():
                np.maximum.at(bound, cells[above], 1.5 * p[above])
                drawn = []
                continue
            drawn.append(x[inside & (rng.random(cells.size) * bound[cells] < p)][:missing])
        return np.concatenate(drawn)

    def _nodes_rule(self) -> tuple[FloatArray, FloatArray]:
        """Points and weights times p for second moments: the nodes of spectral elements, else Gauss points."""
        if isinstance(self.basis, SpectralBasis):
            return self.basis.nodes, self.basis.weights * self._p
        return self._rule(self.basis.degree + 2)[:2]

    def _rule(self, degree: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Points, weights times p, and p, for piecewise polynomials of this degree."""
        rule = self.basis.quadrature(degree)
        p = self._p[self.basis.cell_dofs] @ rule.phi
        return rule.x.reshape(-1, self.dim), (rule.weights * rule.det * p).ravel(), p.ravel()


def check_continuous(basis: SpatialBasis) -> None:
    if not isinstance(basis, SpatialBasis) or basis.smoothness:
        got = repr(basis.element) if isinstance(basis, SpatialBasis) else type(basis).__name__
        raise SpaceError(f"a density needs a basis of a continuous element such as 'P2', got {got}")


def evaluate(basis: SpatialBasis, p: FloatArray, x: FloatArray, order: int) -> list[FloatArray]:
    """p (n,) and, for order 1, grad p (n, d) at points x (n, d); 0 outside the domain."""
    cells, xi = basis.locate(x)
    results = [np.zeros((len(x), *[basis.dim] * k)) for k in range(order + 1)]
    inside = np.flatnonzero(cells >= 0)
    size = max(1, _CHUNK_DOUBLES // (basis.local_size * basis.dim**order))
    for first in range(0, inside.size, size):
        chunk = inside[first : first + size]
        local = p[basis.cell_dofs[cells[chunk]]]
        for result, table in zip(results, basis.tabulate(cells[chunk], xi[chunk], order), strict=True):
            result[chunk] = np.einsum("nl,nl...->n...", local, table)
    return results
