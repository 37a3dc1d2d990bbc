r"""How far a control is from the optimal one, and what it earns: the figures of the literature on control matching.

That literature steers dX = (b + sigma u) dt + lambda^{1/2} sigma dB at the cost E[ int |u|^2/2 - r dt - y(X_T) ]. With
Lambda = lambda sigma sigma', alpha = lambda and pi = sigma u this is our problem, its cost is -J, and

    |u|^2 = pi' (sigma sigma')^{-1} pi = alpha pi' Lambda^{-1} pi.

Its measure of a control is the error of u under the law P* of the optimally controlled process,

    (1/T) E* int_0^T |u_t - u*_t|^2 dt = (alpha/T) E* int_0^T (pi - pi*)' Lambda^{-1} (pi - pi*) dt,

the integral ending where the process does. The same under the law of pi's own paths is twice the reward lost per unit
of time, J(pi*) - J(pi) = 1/2 E^pi int |u - u*|^2 dt.

Laws are not simulated. They are Gaussian where drift and control are affine (moment equations), and otherwise products
of densities of the Fokker-Planck equation (`fokker_planck`), one for each group of coordinates that is independent of
the others. No importance sampling is involved, so no variance of its weights either.
Source: Domingo-Enrich et al., arXiv 2312.02027, section 4 and appendix F; Nuesken and Richter, arXiv 2005.05409.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import skfem
from numpy.typing import ArrayLike
from scipy.integrate import solve_ivp
from scipy.special import roots_legendre
from scipy.stats import norm

from fem_hjb.paths.simulate import Policy, sample_paths
from fem_hjb.problems.blocks import coordinates, independent_blocks, restrict
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian, Law, MarginalLaw, PointMass
from fem_hjb.problems.problem import ControlProblem, LinearDrift, ValueFunction
from fem_hjb.reference import fokker_planck
from fem_hjb.solutions.density import DensityLaw
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.spaces.spectral import SpectralBasis
from fem_hjb.support.checks import FloatArray, Rng, frozen_array, one_of, positive_integer, real_array, spawn_generators
from fem_hjb.support.errors import ConvergenceError, DomainError, MeasureError, ProblemError

Integrand = Callable[[float, FloatArray], FloatArray]
Block = tuple[int, ...]

_TIMES = (0.07, 0.413, 0.786, 0.98)  # fractions of the horizon at which callables are probed
_PROBES = 16
_SAME = 1e-11  # relative change that counts as rounding
_AFFINE = 1e-9  # the same of differences of policies
_ORDER = {1: 64, 2: 24, 3: 12}  # Gauss points per coordinate of laws in closed form
_NEGLIGIBLE = 1e-15  # weight of a point of a rule, relative to the largest
_ORDER_OF_DENSITIES = 4  # on every cell, beyond the degree of the density
_FACE = 1e-6  # of its maximum: the largest density at a face of a box that the process does not know of
_DEGREE = 4  # of elements on a line
_GRADING, _FINEST, _HALVINGS = 0.1, 0.02, 12  # cells around a point: relative to the distance, to the spread; how often
_CHUNK = 4096  # paths simulated at a time
_FINER = 4  # times the Euler steps, for continuous time by simulation


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Estimate:
    """A number; its standard error, 0 unless it was sampled; and how it was computed."""

    value: float
    standard_error: float
    how: str


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class ControlError:
    """The squared error of a control, averaged over a law of paths and over time; see the module.

    value : (1/T) int_0^T profile dt;  standard_error : 0 unless it was sampled;  how : in words.
    times (k,), weights (k,) : a Gauss rule for (1/T) int_0^T dt;  profile (k,) : E |u_t - u*_t|^2 at these times.
    """

    value: float
    standard_error: float
    how: str
    times: ArrayLike
    weights: ArrayLike
    profile: ArrayLike

    def __post_init__(self) -> None:
        size = np.size(self.times)
        for name in ("times", "weights", "profile"):
            given = getattr(self, name)
            object.__setattr__(self, name, frozen_array(given, f"ControlError: {name}", (size,), MeasureError))


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Objectives:
    """Rewards J, to be maximised; the literature's costs are their negatives.

    exact : J(pi) of the process in continuous time;  euler : the same of its Euler scheme, `steps` steps, integrals as
    left sums;  uncontrolled : J(0), in continuous time;  optimal : E v_0(X_0) = J(pi*), None without a reference.
    """

    exact: Estimate
    euler: Estimate
    uncontrolled: Estimate
    optimal: Estimate | None
    steps: int


def control_error(
    problem: ControlProblem,
    policy: Policy | Solution | ProductSolution,
    reference: ValueFunction,
    *,
    under: str = "optimal",
    times: int = 64,
    n: int = 4096,
    rng: Rng = 0,
    rtol: float = 1e-6,
) -> ControlError:
    """The averaged squared error of a control against the optimal one, under the optimally controlled law.

    Where coordinates form independent groups of at most three and the policy respects them (its part in a group depends
    on this group alone, as found by probing it), the expectation is a sum of low-dimensional ones, by quadrature. Where
    the integrand is quadratic in x it follows from mean and covariance, in any dimension. Otherwise n points are drawn
    from the law at every time, and the result has a standard error.

    Parameters
    ----------
    policy : pi, a callable (t, x (n, d)) -> (n, d), t a number: sigma u for a control u. Or a solution, for its policy.
    reference : what has the optimal policy: `solve(problem)`, or problem.exact. Solutions are continued outside their
        boxes by the policy of the nearest point, where the law may have next to no mass, see DomainError.
    under : "optimal", the law of the process under the reference's policy, or "policy", under the policy itself.
    times : the number of Gauss points in time.
    rtol : the tolerance of densities in time, see `fokker_planck.solve`; on the box of the reference, where it has one.

    Raises
    ------
    ProblemError : policy or reference is not as said above, or returns a wrong shape or numbers that are not finite.
    MeasureError : times or n make no sense.
    DomainError : the law is not to be had (more than three coordinates hang together and drift or control are not
        affine), or it reaches the faces of the reference's box.
    """
    policy = _checked(problem, policy)
    if not isinstance(reference, ValueFunction):
        raise ProblemError(f"reference must have value(t, x) and gradient(t, x), got {type(reference).__name__}")
    one_of(under, "under", ("optimal", "policy"), MeasureError)
    positive_integer(n, "n", MeasureError)
    groups = _groups(problem, reference)
    best = _policy_of(problem, reference)
    respects = _respects(problem, policy, groups)
    blocks = groups if under == "optimal" or respects else [tuple(range(problem.dim))]
    flow = _flow(problem, best if under == "optimal" else policy, blocks, reference, rtol)
    if flow is None:
        raise DomainError(
            f"{max(map(len, blocks))} coordinates of {problem.name!r} hang together under the {under} law, which is not"
            " Gaussian; densities are solved for up to three"
        )

    def square(t: float, x: FloatArray) -> FloatArray:
        return problem.temperature * _norm(problem, t, x, _steer(policy, t, x) - _steer(best, t, x))

    nodes, weights = roots_legendre(positive_integer(times, "times", MeasureError))
    nodes, weights = (1 + nodes) * problem.horizon / 2, weights / 2
    mean = _Expectation(problem, flow, square, respects, n, rng)
    rows = np.array([mean(float(t)) for t in nodes])
    return ControlError(
        value=float(weights @ rows[:, 0]),
        standard_error=float(np.sqrt(weights**2 @ rows[:, 1])),
        how=f"{mean.how}; {flow.how}",
        times=nodes,
        weights=weights,
        profile=rows[:, 0],
    )


def objectives(
    problem: ControlProblem,
    policy: Policy | Solution | ProductSolution,
    reference: ValueFunction | None = None,
    *,
    steps: int,
    n: int = 16384,
    rng: Rng = 0,
    times: int = 64,
    rtol: float = 1e-6,
) -> Objectives:
    r"""What a control earns: J(pi) = E^pi[ y(X_T) + int_0^T r - (alpha/2) pi' Lambda^{-1} pi dt ], plus exit rewards.

    In continuous time from the law of the process where `control_error` would know it, else from n paths by steps of
    weak order 2, four to an Euler step, with a standard error (and a bias of the order of the square of a step). The
    Euler objective is simulated, n paths. Arguments as those of `control_error`; without a reference `optimal` is None.

    Raises
    ------
    ProblemError, MeasureError : as `control_error`.
    ConvergenceError : the Euler scheme explodes with so few steps.
    """
    policy = _checked(problem, policy)
    if reference is not None and not isinstance(reference, ValueFunction):
        raise ProblemError(f"reference must have value(t, x) and gradient(t, x), got {type(reference).__name__}")
    positive_integer(steps, "steps", MeasureError)
    positive_integer(n, "n", MeasureError)
    groups = _groups(problem, reference)
    seeds = spawn_generators(rng, 4)

    def nothing(t: ArrayLike, x: FloatArray) -> FloatArray:
        return np.zeros_like(x)

    def exact(pi: Policy, k: int) -> Estimate:
        return _reward(problem, pi, groups, reference, times, n, seeds[k], rtol, _FINER * steps)

    return Objectives(
        exact=exact(policy, 0),
        euler=_simulated(problem, policy, n, steps, seeds[1], "euler"),
        uncontrolled=exact(nothing, 2),
        optimal=None if reference is None else _initial_mean(problem, reference, groups, n, seeds[3]),
        steps=steps,
    )


def _checked(problem: Any, policy: Any) -> Policy:
    if not isinstance(problem, ControlProblem):
        raise ProblemError(f"problem must be a ControlProblem, got {type(problem).__name__}")
    if isinstance(policy, Solution | ProductSolution):
        return _Continued(policy)
    if not callable(policy):
        hint = "; give its method .policy" if hasattr(policy, "policy") else ""
        raise ProblemError(f"policy must be a callable (t, x) -> (n, d), got {type(policy).__name__}{hint}")
    return policy  # type: ignore[no-any-return]


def _steer(policy: Policy, t: float, x: FloatArray) -> FloatArray:
    pi = real_array(policy(t, x), "what the policy returns", ProblemError)
    if pi.shape != x.shape:
        raise ProblemError(f"policy(t, x) returned shape {pi.shape} for x of shape {x.shape}, expected {x.shape}")
    bad = ~np.isfinite(pi).all(axis=1)
    if bad.any():
        raise ProblemError(
            f"policy(t, x) is not finite at {int(bad.sum())} of {bad.size} points, the first is t={t:g}, x={x[bad][0]}"
        )
    return pi


@final
class _Continued:
    """The policy of a solution on its box, outside that of the nearest point of the box."""

    def __init__(self, solution: Solution | ProductSolution) -> None:
        d = solution.problem.dim
        self.solution = solution
        self.lower, self.upper = np.empty(d), np.empty(d)
        for index, part in solution.parts if isinstance(solution, ProductSolution) else [(tuple(range(d)), solution)]:
            self.lower[list(index)], self.upper[list(index)] = _box_of(part).bounds

    def __call__(self, t: ArrayLike, x: FloatArray) -> FloatArray:
        return self.solution.policy(t, np.clip(x, self.lower, self.upper))


def _box_of(solution: Solution) -> Box:
    nodes = solution.space.spatial.nodes
    return Box(nodes.min(axis=0), nodes.max(axis=0))


def _policy_of(problem: ControlProblem, reference: ValueFunction) -> Policy:
    if isinstance(reference, Solution | ProductSolution):
        return _Continued(reference)
    own = getattr(reference, "policy", None)
    if callable(own):
        return own  # type: ignore[no-any-return]
    return lambda t, x: problem.policy_from_gradient(t, x, reference.gradient(t, x))


def _norm(problem: ControlProblem, t: float, x: FloatArray, pi: FloatArray) -> FloatArray:
    """pi' Lambda^{-1} pi, (n,)."""
    constant = problem.constant_diffusion
    if constant is not None:
        return np.asarray((pi * np.linalg.solve(constant, pi.T).T).sum(axis=1))
    return np.asarray((pi * np.linalg.solve(problem.Lambda(t, x), pi[..., None])[..., 0]).sum(axis=1))


# ---------------------------------------------------------------------------------------------------------------------
# Laws


@final
@dataclass(frozen=True, eq=False)
class _Flow:
    """The law of the process at any time: a product of laws of groups of coordinates."""

    parts: Sequence[tuple[Block, MarginalLaw]]
    how: str


def _groups(problem: ControlProblem, reference: ValueFunction | None) -> list[Block]:
    return (
        [index for index, _ in reference.parts]
        if isinstance(reference, ProductSolution)
        else independent_blocks(problem)
    )


def _probes(problem: ControlProblem) -> tuple[FloatArray, FloatArray]:
    """Points near where the process starts, inside the domain, and others."""
    rng = np.random.default_rng(0)
    x, y = (
        problem.initial_law.sample(_PROBES, rng)
        + np.sqrt(0.1 * problem.horizon * np.diagonal(problem.Lambda(0.0, problem.initial_law.expectation)))
        * rng.uniform(-1.0, 1.0, (_PROBES, problem.dim))
        for _ in range(2)
    )
    if problem.domain is None:
        return x, y
    return tuple(problem.domain.absorb(problem.domain.mirror(z)) for z in (x, y))  # type: ignore[return-value]


def _respects(problem: ControlProblem, policy: Policy, groups: list[Block]) -> bool:
    """Whether the policy's part in each group depends on the coordinates of that group alone."""
    x, y = _probes(problem)
    for t in (float(fraction * problem.horizon) for fraction in _TIMES):
        base = _steer(policy, t, x)
        size = max(float(np.abs(base).max()), 1e-300)
        for group in groups if len(groups) > 1 else []:
            moved = y.copy()
            moved[:, group] = x[:, group]
            if float(np.abs(_steer(policy, t, moved) - base)[:, group].max()) > _SAME * size:
                return False
    return True


def _flow(
    problem: ControlProblem, policy: Policy, groups: list[Block], reference: ValueFunction | None, rtol: float
) -> _Flow | None:
    """The law under a policy that respects the groups, None if it is not to be had."""
    gaussian = _gaussian(problem, policy)
    if gaussian is not None:
        if isinstance(reference, Solution | ProductSolution):
            _check_inside(_Continued(reference), gaussian, problem.horizon)
        return _Flow([(group, _marginal(gaussian, group)) for group in groups], "a Gaussian law, by moment equations")
    if max(map(len, groups)) > 3:
        return None
    best = (isinstance(policy, _Continued) and policy.solution is reference) or policy == getattr(
        reference, "policy", None
    )
    parts: list[tuple[Block, MarginalLaw]] = []
    solved: list[tuple[Solution, FloatArray, MarginalLaw]] = []
    for group, piece in zip(groups, _pieces(reference, groups), strict=True):
        sub = problem if len(groups) == 1 else restrict(problem, group, len(groups))
        steering = piece.policy if piece is not None and best else _embedded(problem, policy, group)
        seen = np.stack([steering(float(fraction * problem.horizon), _probes(sub)[0]) for fraction in _TIMES])
        # one solution for several groups that are alike, and the same policy in them
        law = next((law for other, values, law in solved if other is piece and np.array_equal(values, seen)), None)
        if law is None:
            density = fokker_planck.solve(sub, policy=steering, **_where(sub, piece), rtol=rtol)
            if piece is not None and density.stats["face"] > _FACE:
                raise DomainError(
                    "the process reaches the faces of the reference's box: its density there is"
                    f" {density.stats['face']:.1e} of its maximum; solve the reference on a larger box"
                )
            law = density.law
        parts.append((group, law))
        if piece is not None:
            solved.append((piece, seen, law))
    return _Flow(parts, f"the law by the Fokker-Planck equation, rtol={rtol:g}")


def _check_inside(reference: _Continued, law: MarginalLaw, horizon: float) -> None:
    for t in (horizon / 4, horizon / 2, horizon):
        middle, spread = law(t).expectation, np.sqrt(np.diag(law(t).covariance))
        outside = norm.cdf((reference.lower - middle) / spread) + norm.sf((reference.upper - middle) / spread)
        if outside.max() > _FACE:
            raise DomainError(
                f"the process is outside the reference's box with probability {outside.max():.1e} at t={t:g}; solve the"
                " reference on a larger box"
            )


def _pieces(reference: ValueFunction | None, groups: list[Block]) -> list[Solution | None]:
    """The solution of each group, where there is one with a box."""
    if isinstance(reference, ProductSolution) and [index for index, _ in reference.parts] == groups:
        return [part for _, part in reference.parts]
    if isinstance(reference, Solution) and len(groups) == 1:
        return [reference]
    return [None] * len(groups)


def _where(problem: ControlProblem, piece: Solution | None) -> dict[str, Any]:
    """Where the density is solved: on the box of a reference; in one dimension on a mesh, whose systems are banded.

    Its cells are those of the reference, cut to the degree of the element, and smaller around the point of a start.
    """
    if piece is None:
        return {}
    basis = piece.space.spatial
    if not isinstance(basis, SpectralBasis) or basis.dim > 1:
        return {"box": _box_of(piece)}
    line, law = basis.lines[0], problem.initial_law
    parts = -(-line.degree // _DEGREE)
    grid = np.interp(np.arange(parts * line.n_cells + 1) / parts, np.arange(line.n_cells + 1), line.grid)
    if isinstance(law, PointMass):
        x0 = law.expectation
        spread = float(np.sqrt(problem.Lambda(0.0, x0)[0, 0] * problem.horizon))
        for _ in range(_HALVINGS):
            middle = (grid[1:] + grid[:-1]) / 2
            large = np.diff(grid) > _GRADING * np.hypot(middle - x0[0], _FINEST * spread)
            grid = np.sort(np.concatenate([grid, middle[large]]))
    return {"mesh": skfem.MeshLine(grid), "element": f"P{_DEGREE}"}


def _marginal(law: MarginalLaw, group: Block) -> MarginalLaw:
    return lambda t: coordinates(law(t), group)


def _embed(x: FloatArray, group: Block, anchor: FloatArray) -> FloatArray:
    full = np.repeat(anchor[None], len(x), axis=0)
    full[:, group] = x
    return full


def _embedded(problem: ControlProblem, policy: Policy, group: Block) -> Callable[[float, FloatArray], FloatArray]:
    anchor = problem.initial_law.expectation
    return lambda t, x: _steer(policy, t, _embed(x, group, anchor))[:, group]


def _gaussian(problem: ControlProblem, policy: Policy) -> MarginalLaw | None:
    """The law of dX = ((A + K_t) X + a + k_t) dt + Lambda^{1/2} dB if that is what the problem is, else None.

    m' = (A + K) m + a + k,   C' = (A + K) C + C (A + K)' + Lambda.
    """
    Lambda, drift, law = problem.constant_diffusion, problem.drift, problem.initial_law
    if Lambda is None or not isinstance(drift, LinearDrift) or problem.domain is not None:
        return None
    if not isinstance(law, Gaussian | PointMass):
        return None
    d, T = problem.dim, problem.horizon
    A, a = drift.coefficients
    reach = np.sqrt(0.1 * T * np.diag(Lambda))
    corners = np.concatenate([np.zeros((1, d)), np.diag(reach)]) + law.expectation

    def feedback(t: float) -> tuple[FloatArray, FloatArray]:
        values = _steer(policy, t, corners)
        K = (values[1:] - values[0]).T / reach
        return K, values[0] - K @ corners[0]

    x, _ = _probes(problem)
    for t in (float(fraction * T) for fraction in _TIMES):
        K, k = feedback(t)
        values = _steer(policy, t, x)
        if np.abs(x @ K.T + k - values).max() > _AFFINE * max(float(np.abs(values).max()), 1e-300):
            return None

    def slope(t: float, state: FloatArray) -> FloatArray:
        K, k = feedback(t)
        m, C = state[:d], state[d:].reshape(d, d)
        growth = (A + K) @ C
        return np.concatenate([(A + K) @ m + a + k, (growth + growth.T + Lambda).ravel()])

    start = np.concatenate([law.expectation, law.covariance.ravel()])
    moments = solve_ivp(slope, (0.0, T), start, method="DOP853", rtol=1e-12, atol=1e-13, dense_output=True)
    if not moments.success:
        raise ConvergenceError(f"the moments of {problem.name!r} under the policy: {moments.message}")

    def marginal(t: float) -> Law:
        if t == 0.0:
            return law
        state = moments.sol(t)
        C = state[d:].reshape(d, d)
        return Gaussian(state[:d], (C + C.T) / 2)

    return marginal


# ---------------------------------------------------------------------------------------------------------------------
# Expectations


@final
class _Expectation:
    """t -> (mean, variance of the mean) of an integrand g(t, X_t).

    additive : whether g is a sum of functions of the groups B: E g = g(z) + sum_B E[ g(z with X_B) - g(z) ] for any z.
    """

    def __init__(
        self, problem: ControlProblem, flow: _Flow, integrand: Integrand, additive: bool, n: int, rng: Rng
    ) -> None:
        self.dim, self.flow, self.integrand, self.n = problem.dim, flow, integrand, n
        self.anchor = problem.initial_law.expectation
        self.rng = spawn_generators(rng, 1)[0]
        if (additive or len(flow.parts) == 1) and max(len(group) for group, _ in flow.parts) <= 3:
            self._rule, self.how = self._quadrature, "quadrature"
        elif self._quadratic(problem):
            self._rule, self.how = self._moments, "from mean and covariance, as the integrand is quadratic"
        else:
            self._rule, self.how = self._sample, f"{n} draws from the law at every time"

    def __call__(self, t: float) -> tuple[float, float]:
        return self._rule(t, [(group, law(t)) for group, law in self.flow.parts])

    def _quadratic(self, problem: ControlProblem) -> bool:
        """Whether third differences of g vanish."""
        x, y = _probes(problem)
        for t in (float(fraction * problem.horizon) for fraction in _TIMES):
            rows = np.stack([self.integrand(t, x + k * (y - x)) for k in range(4)])
            if np.abs(rows[3] - 3 * rows[2] + 3 * rows[1] - rows[0]).max() > _AFFINE * np.abs(rows).max():
                return False
        return True

    def _quadrature(self, t: float, laws: list[tuple[Block, Law]]) -> tuple[float, float]:
        rules = [
            _negligible_left_out(
                *law.quadrature(_ORDER_OF_DENSITIES if isinstance(law, DensityLaw) else _ORDER[len(group)])
            )
            for group, law in laws
        ]
        if len(rules) == 1:  # a law that may have lost mass
            x, w = rules[0]
            return float(w @ self.integrand(t, x)), 0.0
        points = [_embed(x, group, self.anchor) for (group, _), (x, _) in zip(laws, rules, strict=True)]
        values = self.integrand(t, np.concatenate([self.anchor[None], *points]))
        ends = np.cumsum([len(x) for x in points])[:-1]
        means = [w @ g / w.sum() for g, (_, w) in zip(np.split(values[1:], ends), rules, strict=True)]
        return float(values[0] + sum(mean - values[0] for mean in means)), 0.0

    def _moments(self, t: float, laws: list[tuple[Block, Law]]) -> tuple[float, float]:
        """By 2 d points with the mean and covariance of the law."""
        mean, points = np.empty(self.dim), np.zeros((2, self.dim, self.dim))
        for group, law in laws:
            mean[list(group)] = law.expectation
            values, vectors = np.linalg.eigh(law.covariance)
            root = (vectors * np.sqrt(self.dim * np.maximum(values, 0.0))).T
            points[np.ix_([0], group, group)], points[np.ix_([1], group, group)] = root, -root
        return float(self.integrand(t, mean + points.reshape(-1, self.dim)).mean()), 0.0

    def _sample(self, t: float, laws: list[tuple[Block, Law]]) -> tuple[float, float]:
        x = np.empty((self.n, self.dim))
        for group, law in laws:
            x[:, group] = law.sample(self.n, self.rng)
        values = self.integrand(t, x)
        return float(values.mean()), float(values.var(ddof=1) / self.n) if self.n > 1 else np.inf


def _negligible_left_out(x: FloatArray, w: FloatArray) -> tuple[FloatArray, FloatArray]:
    """A rule without the points, far out mostly, that do not count."""
    keep = np.abs(w) > _NEGLIGIBLE * np.abs(w).max()
    return x[keep], w[keep]


def _reward(
    problem: ControlProblem,
    policy: Policy,
    groups: list[Block],
    reference: ValueFunction | None,
    times: int,
    n: int,
    rng: np.random.Generator,
    rtol: float,
    steps: int,
) -> Estimate:
    """J(pi) in continuous time."""
    respects = _respects(problem, policy, groups)
    blocks = groups if respects else [tuple(range(problem.dim))]
    pays = problem.domain is not None and problem.domain.exit_reward is not None
    flow = None if pays else _flow(problem, policy, blocks, reference, rtol)
    if flow is None:
        return _simulated(problem, policy, n, steps, rng, "weak2")

    def gain(t: float, x: FloatArray) -> FloatArray:
        return problem.r(t, x) - problem.temperature / 2 * _norm(problem, t, x, _steer(policy, t, x))

    nodes, weights = roots_legendre(positive_integer(times, "times", MeasureError))
    nodes, weights = (1 + nodes) * problem.horizon / 2, weights * problem.horizon / 2
    running = _Expectation(problem, flow, gain, respects, n, rng)
    final = _Expectation(problem, flow, lambda t, x: problem.y(x), True, n, rng)
    rows = np.array([running(float(t)) for t in nodes])
    last, variance = final(problem.horizon)
    return Estimate(
        value=float(weights @ rows[:, 0]) + last,
        standard_error=float(np.sqrt(weights**2 @ rows[:, 1] + variance)),
        how=f"{running.how}; {flow.how}",
    )


def _initial_mean(
    problem: ControlProblem, reference: ValueFunction, groups: list[Block], n: int, rng: np.random.Generator
) -> Estimate:
    """E v_0(X_0)."""
    law = problem.initial_law
    parts: list[tuple[Block, MarginalLaw]] = [(group, _marginal(lambda t: law, group)) for group in groups]
    if len(groups) == 1 or isinstance(law, PointMass):
        parts = [(tuple(range(problem.dim)), lambda t: law)]
    if isinstance(law, PointMass):
        return Estimate(
            value=float(reference.value(0.0, law.expectation)), standard_error=0.0, how="the value at the start"
        )
    mean = _Expectation(problem, _Flow(parts, ""), lambda t, x: reference.value(0.0, x), True, n, rng)
    value, variance = mean(0.0)
    return Estimate(value=value, standard_error=float(np.sqrt(variance)), how=mean.how)


def _simulated(
    problem: ControlProblem, policy: Policy, n: int, steps: int, rng: np.random.Generator, scheme: str
) -> Estimate:
    """J(pi) from n simulated paths: left sums for "euler", which are part of the scheme, else the trapezoidal rule."""
    counts = [min(_CHUNK, n - start) for start in range(0, n, _CHUNK)]
    weights = np.full(steps + 1, problem.horizon / steps)
    weights[-1] = 0.0
    if scheme != "euler":
        weights[0] = weights[-1] = 0.5 * weights[0]
    rewards = []
    for count, generator in zip(counts, spawn_generators(rng, len(counts)), strict=True):
        paths = sample_paths(
            problem,
            n=count,
            steps=steps,
            rng=generator,
            scheme=scheme,
            policy=policy,
            substeps=1 if scheme == "euler" else None,
        )
        rewards.append(_rewards_along(problem, policy, np.asarray(paths.t), np.asarray(paths.x), weights))
    values = np.concatenate(rewards)
    error = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else np.inf
    return Estimate(
        value=float(values.mean()), standard_error=error, how=f"{n} paths, {steps} steps, scheme {scheme!r}"
    )


def _rewards_along(
    problem: ControlProblem, policy: Policy, times: FloatArray, x: FloatArray, weights: FloatArray
) -> FloatArray:
    """y (or the exit reward) plus the integral of r - (alpha/2) pi' Lambda^{-1} pi, for each path of x (n, K+1, d)."""
    domain = problem.domain
    stops = domain is not None and domain.absorbing
    total, alive = np.zeros(len(x)), np.ones(len(x), dtype=np.bool_)
    for k, (t, weight) in enumerate(zip(times.tolist(), weights, strict=True)):
        if domain is not None and stops:
            leaving = alive & domain.exited(x[:, k])
            total[leaving] += problem.exit_reward(t, x[leaving, k])
            alive &= ~leaving
        here = x[alive, k]
        if weight and len(here):
            effort = _norm(problem, t, here, _steer(policy, t, here))
            total[alive] += weight * (problem.r(t, here) - problem.temperature / 2 * effort)
    total[alive] += problem.y(x[alive, -1])
    return total
