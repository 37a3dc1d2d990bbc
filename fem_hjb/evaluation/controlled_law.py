"""The law of the process under a policy: a product of laws of groups of coordinates, none of them simulated.

It is Gaussian where drift and policy are affine (moment equations), and otherwise a product of densities of the
Fokker-Planck equation (`fokker_planck`), one for each group of coordinates that is independent of the others.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import skfem
from numpy.typing import ArrayLike
from scipy.integrate import solve_ivp
from scipy.special import ndtr

from fem_hjb.paths.met import met
from fem_hjb.paths.steering import Policy, require_policy, steer
from fem_hjb.problems.blocks import coordinates, independent_blocks, joined, restrict
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian, Law, MarginalLaw, PointMass
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.problem import ControlProblem, LinearDrift, ValueFunction, require_problem
from fem_hjb.reference import fokker_planck
from fem_hjb.solutions.estimate import ToleranceWarning
from fem_hjb.solutions.solution import ProductSolution, Solution
from fem_hjb.spaces.spectral import SpectralBasis
from fem_hjb.support.calls import call
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError, DomainError, FemHjbError, ProblemError
from fem_hjb.support.progress import Progress, part_of, unheard

Block = tuple[int, ...]

TIMES = (0.07, 0.413, 0.786, 0.98)  # fractions of the horizon at which callables are probed
_PROBES = 16
_LAYER = 1e-6  # of the horizon: a layer before T that does not count
_SAME = 1e-11  # relative change that counts as rounding
_AFFINE = 1e-9  # the same of differences of policies
_FACE = 1e-6  # of its maximum: the largest density at a face of a box that the process does not know of
_OWN_FACE = 1e-3  # of the tolerance: the same at the faces of boxes that follow the law
_DEGREE = 4  # of elements on a line
_GRADING, _FINEST, _HALVINGS = 0.1, 0.02, 12  # cells around a point: relative to the distance, to the spread; how often


def checked_policy(problem: Any, policy: Any, asker: str) -> Policy:
    """A callable policy from a callable or a solution, or a ProblemError."""
    require_problem(problem, asker)
    if isinstance(policy, Solution | ProductSolution):
        return _Continued(policy)
    require_policy(policy)
    return policy  # type: ignore[no-any-return]


def tell_of_layer(policy: Any, asker: str) -> bool:
    """Whether a policy is not right shortly before T, which a ToleranceWarning tells: it may cost most there."""
    if not isinstance(policy, Solution | ProductSolution):
        return False
    T, layer = policy.problem.horizon, float(policy.stats.get("layer", 0.0))
    layered = layer > _LAYER * T
    if layered:
        warnings.warn(
            f"{asker}: rewards at T jump or have kinks, so that the policy of {policy.problem.name!r} is right up to"
            f" t={T - layer:g} only; what it does after that is counted as it is, and may be more than all before",
            ToleranceWarning,
            stacklevel=3,
        )
    return layered


def check_reference(reference: Any) -> None:
    """ProblemError unless it has a value and a gradient."""
    if not isinstance(reference, ValueFunction):
        raise ProblemError(f"reference must have value(t, x) and gradient(t, x), got {type(reference).__name__}")


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


def policy_of(problem: ControlProblem, reference: ValueFunction) -> Policy:
    """The optimal policy, as far as the reference knows it."""
    if isinstance(reference, Solution | ProductSolution):
        return _Continued(reference)
    own = getattr(reference, "policy", None)
    if callable(own):
        return own  # type: ignore[no-any-return]
    return lambda t, x: problem.policy_from_gradient(t, x, of_reference("gradient", reference.gradient, t, x))


def of_reference(name: str, function: Callable[[float, FloatArray], ArrayLike], t: float, x: FloatArray) -> FloatArray:
    """What a reference of the user's says of its value or gradient; errors of solutions pass."""
    return call(f"reference: {name}(t, x)", function, (t, x), ProblemError, passes=FemHjbError)


@final
@dataclass(frozen=True, eq=False)
class ControlledLaw:
    """The law of the process at any time: a product of laws of groups of coordinates."""

    parts: Sequence[tuple[Block, MarginalLaw]]
    how: str


def groups_of(problem: ControlProblem, reference: ValueFunction | None) -> list[Block]:
    """Independent groups of coordinates: those of the reference, or as found by probing the problem where it goes."""
    if isinstance(reference, ProductSolution):
        return [index for index, _ in reference.parts]
    blocks = independent_blocks(problem)
    for draws in met(problem, 0) if len(blocks) > 1 else ():
        blocks = joined(problem, blocks, *draws)
    return blocks


def probes(problem: ControlProblem) -> tuple[FloatArray, FloatArray]:
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
    return problem.domain.inside(x), problem.domain.inside(y)


def respects(problem: ControlProblem, policy: Policy, groups: list[Block]) -> bool:
    """Whether the policy's part in each group depends on the coordinates of that group alone."""
    x, y = probes(problem)
    for t in (float(fraction * problem.horizon) for fraction in TIMES):
        base = steer(policy, t, x)
        size = max(float(np.abs(base).max()), 1e-300)
        for group in groups if len(groups) > 1 else []:
            moved = y.copy()
            moved[:, group] = x[:, group]
            if float(np.abs(steer(policy, t, moved) - base)[:, group].max()) > _SAME * size:
                return False
    return True


def controlled_law(
    problem: ControlProblem,
    policy: Policy,
    groups: list[Block],
    reference: ValueFunction | None,
    rtol: float,
    tell: Progress = unheard,
) -> ControlledLaw | None:
    """The law under a policy that respects the groups, None if it is not to be had.

    tell : hears of every step in time; what it raises stops the work.
    """
    gaussian = _gaussian(problem, policy, tell)
    if gaussian is not None:
        if isinstance(reference, Solution | ProductSolution):
            _check_inside(_Continued(reference), gaussian, problem.horizon)
        return ControlledLaw(
            [(group, marginal_of(gaussian, group)) for group in groups], "a Gaussian law, by moment equations"
        )
    if max(map(len, groups)) > 3 or isinstance(problem.domain, MeshDomain):  # densities on a mesh have no tolerance
        return None
    best = (isinstance(policy, _Continued) and policy.solution is reference) or policy == getattr(
        reference, "policy", None
    )
    parts: list[tuple[Block, MarginalLaw]] = []
    solved: list[tuple[Solution, FloatArray, MarginalLaw]] = []
    for k, (group, piece) in enumerate(zip(groups, _pieces(reference, groups), strict=True)):
        sub = problem if len(groups) == 1 else restrict(problem, group, len(groups))
        steering = piece.policy if piece is not None and best else _embedded(problem, policy, group)
        seen = np.stack([steering(float(fraction * problem.horizon), probes(sub)[0]) for fraction in TIMES])
        # one solution for several groups that are alike, and the same policy in them
        law = next((law for other, values, law in solved if other is piece and np.array_equal(values, seen)), None)
        if law is None:
            told = part_of(tell, k / len(groups), (k + 1) / len(groups))
            density = fokker_planck.solve_watched(sub, policy=steering, **_where(sub, piece), rtol=rtol, tell=told)
            if piece is not None and density.stats["face"] > max(_FACE, _OWN_FACE * rtol):
                raise DomainError(
                    "the process reaches the faces of the reference's box: its density there is"
                    f" {density.stats['face']:.1e} of its maximum; solve the reference on a larger box"
                )
            law = density.law
        parts.append((group, law))
        if piece is not None:
            solved.append((piece, seen, law))
    return ControlledLaw(parts, f"the law by the Fokker-Planck equation, rtol={rtol:g}")


def _check_inside(reference: _Continued, law: MarginalLaw, horizon: float) -> None:
    for t in (horizon / 4, horizon / 2, horizon):
        middle, spread = law(t).expectation, np.sqrt(np.diag(law(t).covariance))
        outside = ndtr((reference.lower - middle) / spread) + ndtr((middle - reference.upper) / spread)
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


def marginal_of(law: MarginalLaw, group: Block) -> MarginalLaw:
    """The law of these coordinates."""
    return lambda t: coordinates(law(t), group)


def embed(x: FloatArray, group: Block, anchor: FloatArray) -> FloatArray:
    """Points (n, d) with these coordinates of the group, elsewhere those of the anchor."""
    full = np.repeat(anchor[None], len(x), axis=0)
    full[:, group] = x
    return full


def _embedded(problem: ControlProblem, policy: Policy, group: Block) -> Callable[[float, FloatArray], FloatArray]:
    anchor = problem.initial_law.expectation
    return lambda t, x: steer(policy, t, embed(x, group, anchor))[:, group]


def _gaussian(problem: ControlProblem, policy: Policy, tell: Progress) -> MarginalLaw | None:
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
        values = steer(policy, t, corners)
        K = (values[1:] - values[0]).T / reach
        return K, values[0] - K @ corners[0]

    x, _ = probes(problem)
    for t in (float(fraction * T) for fraction in TIMES):
        K, k = feedback(t)
        values = steer(policy, t, x)
        if np.abs(x @ K.T + k - values).max() > _AFFINE * max(float(np.abs(values).max()), 1e-300):
            return None

    def slope(t: float, state: FloatArray) -> FloatArray:
        tell(t / T)
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
