r"""Linear variational inequalities on matrices: a certificate for any candidate, and how well posed they are.

For a closed convex set F of coefficients, a form B that need not be symmetric and a load l, find c in F with

    (B c - l)' (g - c) >= 0    for all g in F,

which is B c = l where F is the whole space. Errors are measured by an energy c' E c, E symmetric positive definite.
With T = E^{-1} B in that metric, three figures say how well posed the inequality is:

    coercivity  mu    = min c' B c / c' E c                 (smallest eigenvalue of the symmetric part of T)
    norm        L     = max |T c|_E / |c|_E
    stability   sigma = min |T c|_E / |c|_E >= mu           (the inf-sup constant)

If mu > 0 the solution exists, is unique, and c -> P_F(c - gamma T c + gamma E^{-1} l), P_F the projection onto F in
the metric E, contracts at rate |I - gamma T|_E, which is less than 1 for 0 < gamma < 2 mu / L^2 (arXiv 2509.02528;
J.-L. Lions and G. Stampacchia, Comm. Pure Appl. Math. 20 (1967) 493-519). The natural residual
|c - P_F(c - T c + E^{-1} l)|_E of a candidate c vanishes at the solution only, whichever way c was found (F. Facchinei
and J.-S. Pang, Finite-Dimensional Variational Inequalities, Springer 2003, section 1.5).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike
from scipy.linalg import LinAlgError, cholesky, eigh, solve_triangular
from scipy.sparse.linalg import LinearOperator, onenormest

from fem_hjb.learning.dissection import Dissection, dissect
from fem_hjb.learning.factors import ADVICE, BACKWARD, Factors
from fem_hjb.support.checks import FloatArray, frozen_array
from fem_hjb.support.errors import ConvergenceError
from fem_hjb.support.progress import Progress, to_the_end, unheard

Projection = Callable[[FloatArray], FloatArray]

_DIRECT = 1_000_000  # non-zeros up to which LU factors are cheap enough in any dimension
_DIRECT_IF_REUSED = 3_000_000  # likewise for the energy, which is solved with a hundred times
_FEW = 1000  # unknowns up to which LU factors are as fast as fronts
_PIVOT = 0.01  # a diagonal pivot is kept down to this share of its column, as it keeps the fill low
_ILL_CONDITIONED = 1e12
_UNSTABLE = 1e-3
_NOT_COERCIVE = -1.0
_ASYMMETRY = 1e-10
_ROUNDING = 1e-12  # relative to the sum of squares: what c' E c may fall below 0 for E positive semidefinite

_DENSE = 600  # unknowns up to which figures are computed by dense algebra
_EXPANSIONS = 40  # of the subspace, for one figure
_FIGURES = 1e-2  # relative accuracy of figures from a subspace
_INEXACT = 1e-5  # relative residual of the solves behind them
_CUTS = 20


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class VariationalInequality:
    """Find c in F with (form c - load)' (g - c) >= 0 for all g in F; its factorisations and figures are made once.

    form (N, N) : B, sparse; its symmetric part should be positive definite.
    load (N,) : l, not 0.
    energy (N, N) : E, sparse, symmetric positive definite. Scale the unknowns so that its diagonal is about 1.
    project : target (N,) -> the point of F nearest to it in the metric E; None: F is the whole space.
    places (N, k) : points such that only unknowns at neighbouring ones are coupled, by which large systems are
        dissected; None: they are not.
    tell : given signs of life; an OutOfTimeError stops what iterates.

    Raises ConvergenceError where shapes do not match, entries are not finite, the load is 0, or the energy is not
    symmetric or, when it is first used, not positive definite.
    """

    form: sp.csc_matrix
    load: FloatArray
    energy: sp.csc_matrix
    project: Projection | None = None
    places: FloatArray | None = None
    tell: Progress = unheard

    def __post_init__(self) -> None:
        size = np.size(self.load)
        object.__setattr__(self, "load", frozen_array(self.load, "load", (size,), ConvergenceError))
        for name in ("form", "energy"):
            matrix = sp.csc_matrix(getattr(self, name), dtype=np.float64)
            if matrix.shape != (size, size):
                raise ConvergenceError(f"{name} must have shape ({size}, {size}) as the load has, got {matrix.shape}")
            if not np.isfinite(matrix.data).all():
                raise ConvergenceError(f"{name} must be finite; {ADVICE}")
            object.__setattr__(self, name, matrix)
        skew = float(abs(self.energy - self.energy.T).max())
        if skew > _ASYMMETRY * float(abs(self.energy).max()):
            raise ConvergenceError(
                f"energy must be symmetric, got entries that differ by {skew:.3g} across the diagonal"
            )
        if self.places is not None:
            there = frozen_array(self.places, "places", (size, np.shape(self.places)[-1]), ConvergenceError)
            object.__setattr__(self, "places", there)
        if not self.load.any():
            raise ConvergenceError(
                "exp((y - max y)/alpha) underflows to 0 at every terminal sample, which leaves nothing to learn from: "
                "raise the temperature, or shrink the box so that max y over it is not so far from where the samples"
                " end"
            )

    @property
    def size(self) -> int:
        """The number of unknowns N."""
        return int(self.load.size)

    @cached_property
    def dissection(self) -> Dissection | None:
        """An order for form and energy."""
        if self.places is None or self.size <= _FEW:
            return None
        return dissect(abs(self.form) + abs(self.energy), self.places)

    @cached_property
    def form_factors(self) -> Factors:
        to_the_end(self.tell)(0.0)
        return Factors(self.form, _PIVOT, _DIRECT, self.dissection)

    @cached_property
    def energy_factors(self) -> Factors:
        factors = Factors(self.energy, 0.0, _DIRECT_IF_REUSED, self.dissection, symmetric=True)
        to_the_end(self.tell)(0.0)
        if not factors.has_positive_pivots:
            raise _indefinite(self.size)
        return factors

    @property
    def factors(self) -> dict[str, str]:
        """The kinds of the factors of "form" and "energy" that were made so far; see `Factors`."""
        made = {name: self.__dict__.get(f"{name}_factors") for name in ("form", "energy")}
        return {name: of.kind for name, of in made.items() if of is not None}

    @cached_property
    def compression(self) -> "Compression":
        """What the figures are computed from."""
        return Compression(self)

    @cached_property
    def best_step(self) -> tuple[float, float]:
        """The gamma >= 0 that minimises |I - gamma T|_E, and that norm."""
        return self.compression.best_step()

    @cached_property
    def target(self) -> FloatArray:
        """E^{-1} l."""
        return self.riesz(self.load)

    def riesz(self, functional: FloatArray, rtol: float = BACKWARD) -> FloatArray:
        """E^{-1} functional: the function that represents it in the energy; or of several, (N, m)."""
        to_the_end(self.tell)(0.0)
        return self.energy_factors.solve(functional, rtol=rtol)

    def norm(self, c: FloatArray) -> float:
        """|c|_E."""
        square, bound = float(c @ (self.energy @ c)), _ROUNDING * float(c @ c)
        if square < -bound:
            raise _indefinite(self.size)
        return float(np.sqrt(max(square, 0.0)))

    def step(self, c: FloatArray, gamma: float) -> FloatArray:
        """P_F(c - gamma E^{-1} (B c - l))."""
        moved = c - gamma * self.riesz(self.form @ c - self.load)
        return moved if self.project is None else np.asarray(self.project(moved))


def _indefinite(size: int) -> ConvergenceError:
    return ConvergenceError(f"the energy of {size} unknowns is not positive definite to working precision; {ADVICE}")


def natural_residual(inequality: VariationalInequality, c: ArrayLike) -> float:
    """|c - P_F(c - E^{-1} (B c - l))|_E relative to |E^{-1} l|_E: 0 at the solution only, however c was found.

    The error obeys |c - c*|_E <= (1 + L)/mu times the absolute residual. Raises ConvergenceError where c is not a
    finite (N,).
    """
    candidate = frozen_array(c, "c", (inequality.size,), ConvergenceError)
    return inequality.norm(candidate - inequality.step(candidate, 1.0)) / inequality.norm(inequality.target)


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Diagnostics:
    """How well posed an inequality is, see the head of the module: mu, L, sigma, min |I - gamma T|_E, |B| |B^{-1}|.

    coercivity : mu. Positive: the solution is unique with any set, and the projected iteration contracts.
    norm : L.
    stability : sigma.
    contraction, gamma : the smallest |I - gamma T|_E and the gamma >= 0 where it is found; 1 and 0 if mu <= 0.
    condition : 1-norm estimate of the condition number of B.

    Beyond 600 unknowns they are Ritz values, a per cent or so on the inner side (mu and sigma from above, L and the
    contraction from below).
    """

    coercivity: float
    norm: float
    stability: float
    contraction: float
    gamma: float
    condition: float


def diagnose(inequality: VariationalInequality) -> Diagnostics:
    """The figures of an inequality without its set: dense algebra up to 600 unknowns, a Krylov subspace beyond.

    Raises ConvergenceError where B is singular or E is not positive definite.
    """
    compression, factors = inequality.compression, inequality.form_factors
    gamma, contraction = inequality.best_step
    inverse = LinearOperator(
        inequality.form.shape,
        matvec=lambda b: factors.solve(np.ravel(b), rtol=_INEXACT),
        rmatvec=lambda b: factors.solve(np.ravel(b), transposed=True, rtol=_INEXACT),
        dtype=np.float64,
    )
    return Diagnostics(
        coercivity=compression.coercivity,
        norm=compression.norm,
        stability=compression.stability,
        contraction=contraction,
        gamma=gamma,
        condition=float(abs(inequality.form).sum(axis=0).max()) * float(onenormest(inverse, t=1)),
    )


def status(diagnostics: Diagnostics) -> str:
    """ "ok", or what is doubtful about the solution of an inequality with these diagnostics, and what to do.

    Left-point sums over few steps per time cell can take coercivity to about -0.6 without harm, hence stability and the
    condition number count first, and coercivity below -1 only.
    """
    doubts = []
    if not diagnostics.stability >= _UNSTABLE:
        doubts.append(f"unstable (smallest singular value {diagnostics.stability:.1g} relative to the energy)")
    if not diagnostics.coercivity >= _NOT_COERCIVE:
        doubts.append(f"coercivity lost (smallest eigenvalue {diagnostics.coercivity:.2g} relative to the energy)")
    if not diagnostics.condition <= _ILL_CONDITIONED:
        doubts.append(f"ill-conditioned (condition number about {diagnostics.condition:.0e})")
    return f"{', '.join(doubts)}: {ADVICE}" if doubts else "ok"


class Compression:
    """S = (T + T*)/2 and H = T* T, adjoints in the metric E, in an E-orthonormal basis of everything or a subspace.

    Every figure is the largest eigenvalue of some a I + b S + c H. In a subspace it is a Ritz value; the residual of
    its vector is added to the subspace until it is accurate. The figures share the subspace.
    """

    def __init__(self, inequality: VariationalInequality) -> None:
        self._inequality = inequality
        self._complete = inequality.size <= _DENSE
        if self._complete:
            try:
                lower = cholesky(inequality.energy.toarray(), lower=True)
            except LinAlgError as cause:
                raise _indefinite(inequality.size) from cause
            half = solve_triangular(lower, inequality.form.toarray(), lower=True)
            T = solve_triangular(lower, half.T, lower=True).T
            self._S, self._H = (T + T.T) / 2, T.T @ T
            return
        # A basis V of the subspace, E V, W = T V, T* V, B V and E W.
        self._V, self._EV, self._W, self._adjoint, self._BV, self._EW = np.empty((6, inequality.size, 0))
        self._add(np.random.default_rng(0).standard_normal(inequality.size))

    @cached_property
    def coercivity(self) -> float:
        return -self._largest(0.0, -1.0, 0.0)[0]

    @cached_property
    def norm(self) -> float:
        return float(self._largest(0.0, 0.0, 1.0)[0] ** 0.5)

    @cached_property
    def stability(self) -> float:
        return float(max(-self._largest(0.0, 0.0, -1.0)[0], 0.0) ** 0.5)

    def contraction(self, gamma: float) -> float:
        """|I - gamma T|_E."""
        return float(max(self._largest(1.0, -2 * gamma, gamma**2)[0], 0.0) ** 0.5)

    def best_step(self) -> tuple[float, float]:
        """The gamma >= 0 that minimises |I - gamma T|_E, and that norm.

        The square is the largest of the parabolas 1 - 2 gamma s + gamma^2 h over unit vectors x, s = x' S x and
        h = x' H x. Minimise the largest of a few, add the one that is largest there, and so on.
        """
        cuts = [self._largest(0.0, -1.0, 0.0)[1:], self._largest(0.0, 0.0, 1.0)[1:]]
        if cuts[0][0] <= 0:
            return 0.0, 1.0
        best, gamma = np.inf, 0.0
        for _ in range(_CUTS):
            trial, below = _lowest(np.array(cuts))
            value, s, h = self._largest(1.0, -2 * trial, trial**2)
            if value < best:
                best, gamma = value, trial
            if best - below <= 0.1 * _FIGURES * (1 - below):
                break
            cuts.append((s, h))
        return gamma, float(max(best, 0.0) ** 0.5)

    def _largest(self, a: float, b: float, c: float) -> tuple[float, float, float]:
        """Largest eigenvalue of a I + b S + c H, with x' S x and x' H x at its unit vector x."""
        for left in reversed(range(_EXPANSIONS)):
            S, H = (self._S, self._H)
            k = len(S)
            values, vectors = eigh(b * S + c * H, subset_by_index=[max(k - 2, 0), k - 1])
            y, gap = vectors[:, -1], float(values[-1] - values[0])
            if self._complete or not left or not self._expand(y, b, c, float(values[-1]), gap):
                break
        return a + float(values[-1]), float(y @ S @ y), float(y @ H @ y)

    def _expand(self, y: FloatArray, b: float, c: float, value: float, gap: float) -> bool:
        """Add the residual of a Ritz pair of b S + c H to the subspace; False if it is small already.

        gap : to the next Ritz value; 0 if there is none.
        """
        inequality = self._inequality
        inequality.tell(0.0)
        x, image = self._V @ y, self._W @ y
        symmetric = (image + self._adjoint @ y) / 2
        if (b, c) == (0.0, -1.0):
            # The bottom of H may lie far below its top: one step of inverse iteration finds it, no Krylov space would.
            back = inequality.form_factors.solve(inequality.energy @ x, transposed=True, rtol=_INEXACT)
            new = inequality.form_factors.solve(inequality.energy @ back, rtol=_INEXACT)
            new /= inequality.norm(new)
            new -= self._V @ (self._EV.T @ new)
            if inequality.norm(new) <= _FIGURES:
                return False
        else:
            new = b * symmetric - value * x
            if c:
                new += c * inequality.riesz(inequality.form.T @ image, rtol=_INEXACT)
            if _off(inequality.norm(new), gap) <= _FIGURES * abs(value):
                return False
        self._add(new)
        return True

    def _add(self, new: FloatArray) -> None:
        inequality, V = self._inequality, self._V
        for _ in range(2):
            new = new / np.linalg.norm(new)
            new = new - V @ (self._EV.T @ new)
        new = new / inequality.norm(new)
        applied = inequality.form @ new
        image, adjoint = inequality.riesz(np.column_stack([applied, inequality.form.T @ new]), rtol=_INEXACT).T
        self._V, self._BV = np.column_stack([V, new]), np.column_stack([self._BV, applied])
        self._EV = np.column_stack([self._EV, inequality.energy @ new])
        self._W, self._adjoint = np.column_stack([self._W, image]), np.column_stack([self._adjoint, adjoint])
        self._EW = np.column_stack([self._EW, inequality.energy @ image])
        S, mixed = self._V.T @ self._BV, self._BV.T @ self._W
        self._S = (S + S.T) / 2
        # Twice the mixed product less the plain one: the error of the images enters squared.
        self._H = mixed + mixed.T - self._W.T @ self._EW


def _off(residual: float, gap: float) -> float:
    """How far a Ritz value is from an eigenvalue: T. Kato, J. Phys. Soc. Japan 4 (1949) 334."""
    return residual if gap <= residual else residual**2 / gap


def _lowest(cuts: FloatArray) -> tuple[float, float]:
    """Where the largest of the parabolas 1 - 2 gamma s + gamma^2 h, rows (s, h), is lowest, and its value there."""
    s, h = cuts.T
    i, j = np.triu_indices(len(s), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        crossings = 2 * (s[i] - s[j]) / (h[i] - h[j])
    candidates = np.concatenate([s / h, crossings])
    candidates = candidates[np.isfinite(candidates) & (candidates > 0)]
    heights = (1 - 2 * np.outer(candidates, s) + np.outer(candidates**2, h)).max(axis=1)
    return float(candidates[heights.argmin()]), float(heights.min())
