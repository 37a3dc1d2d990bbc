"""Trajectories of the uncontrolled, or of a controlled, process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import ArrayLike

from fem_hjb.paths.breaks import around_breaks
from fem_hjb.paths.steering import Policy, require_policy, steer
from fem_hjb.paths.stiffness import stable_substeps
from fem_hjb.paths.walls import inside, moved
from fem_hjb.problems.linear import linear_transition
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.problem import ControlProblem, LinearDrift, require_problem
from fem_hjb.support.checks import (
    FloatArray,
    Rng,
    as_times,
    at_most,
    frozen_array,
    one_of,
    positive_integer,
    real_array,
    spawn_generators,
)
from fem_hjb.support.errors import ConvergenceError, EllipticityError, MeasureError, ProblemError
from fem_hjb.support.matrices import cholesky
from fem_hjb.support.memory import require_room
from fem_hjb.support.objects import Plain

Step = Callable[[float, FloatArray, np.random.Generator], FloatArray]

SCHEMES = ("auto", "exact", "euler", "weak2")
_CHUNK = 16384
_LADDER = (1, 4, 16, 64)  # times as many substeps, tried in turn when none are asked for
_MOST_SUBSTEPS = 1_000_000
_SEEN = 8  # states at which it is seen when coefficients jump
_MANY = 8  # substeps, in which a diffusion that varies hardly changes
_EXPLODED = 1e30  # beyond it a cubic drift still evaluates without overflow, so that we, not the drift, report it


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Paths(Plain):
    """n trajectories observed at the same K+1 times: t (K+1,) increasing from 0, x (n, K+1, d); read-only.

    >>> Paths(t=np.array([0.0, 1.0]), x=np.zeros((3, 2, 1)), scheme="recorded").steps
    1
    """

    t: FloatArray
    x: FloatArray
    scheme: str = "given"

    def __post_init__(self) -> None:
        shape = real_array(self.x, "Paths: x", MeasureError).shape
        if len(shape) != 3 or shape[0] < 1 or shape[1] < 2 or shape[2] < 1:
            raise MeasureError(f"Paths: x must have shape (n, K+1, d) with n, K, d >= 1, got shape {shape}")
        times = frozen_array(self.t, "Paths: t", (shape[1],), MeasureError)
        if times[0] != 0.0 or not (np.diff(times) > 0).all():
            raise MeasureError(
                f"Paths: t must increase strictly from 0, got t[0]={times[0]:g} and smallest step "
                f"{np.diff(times).min():g}"
            )
        object.__setattr__(self, "t", times)
        object.__setattr__(self, "x", frozen_array(self.x, "Paths: x", shape, MeasureError))

    @property
    def n(self) -> int:
        """The number of trajectories."""
        return int(self.x.shape[0])

    @property
    def steps(self) -> int:
        """K, the number of time steps."""
        return int(self.x.shape[1]) - 1

    @property
    def dim(self) -> int:
        """d, the dimension of the state."""
        return int(self.x.shape[2])


def noise_factor(problem: ControlProblem, t: ArrayLike, x: FloatArray) -> FloatArray:
    """The lower Cholesky factor of Lambda_t(x), shape (..., d, d); t is a number or of shape x.shape[:-1]."""
    if problem.constant_diffusion is not None:
        factor = np.asarray(np.linalg.cholesky(problem.constant_diffusion))
        return np.broadcast_to(factor, (*x.shape, problem.dim))
    matrices = problem.Lambda(t, x)
    try:
        return cholesky(matrices)
    except np.linalg.LinAlgError as cause:
        lowest = np.linalg.eigvalsh(matrices)[..., 0]
        worst = np.unravel_index(int(np.argmin(lowest)), lowest.shape)
        raise EllipticityError(
            "diffusion(t, x) must be symmetric positive definite along the paths; at "
            f"t={np.broadcast_to(t, lowest.shape)[worst]:g}, x={x[worst]} its smallest eigenvalue is "
            f"{lowest[worst]:.3g}"
        ) from cause


@final
class _Coefficients:
    """Drift (with the policy) and noise factor, evaluated inside the domain if there is one."""

    def __init__(self, problem: ControlProblem, policy: Policy | None) -> None:
        self.problem, self.policy = problem, policy
        constant = problem.constant_diffusion
        self.constant = None if constant is None else np.asarray(np.linalg.cholesky(constant), dtype=np.float64)

    def drift(self, t: float, x: FloatArray) -> FloatArray:
        x = inside(self.problem, x)
        b = self.problem.b(t, x)
        if self.policy is None:
            return b
        return b + steer(self.policy, t, x)

    def factor(self, t: float, x: FloatArray) -> FloatArray:
        return noise_factor(self.problem, t, inside(self.problem, x))


def _apply(factor: FloatArray, noise: FloatArray) -> FloatArray:
    return noise @ factor.T if factor.ndim == 2 else np.asarray(np.einsum("nij,nj->ni", factor, noise))


def _exact_coefficients(problem: ControlProblem, policy: Policy | None) -> tuple[LinearDrift, FloatArray] | None:
    """Drift and diffusion where the transition law is known, else None."""
    if not isinstance(problem.drift, LinearDrift) or problem.constant_diffusion is None or policy is not None:
        return None
    (A, a), Lambda = problem.drift.coefficients, problem.constant_diffusion
    coupled = (Lambda - np.diag(np.diag(Lambda))).any()
    if isinstance(problem.domain, MeshDomain):
        return None
    if problem.domain is not None and (A.any() or a.any() or coupled or problem.domain.absorbing):
        return None  # folding a path back at the faces is exact only for independent Brownian coordinates
    return problem.drift, Lambda


def _exact_step(drift: LinearDrift, diffusion: FloatArray, h: float) -> Step:
    E, c, S = linear_transition(drift, diffusion, h)
    factor = np.linalg.cholesky(S)

    def step(t: float, x: FloatArray, rng: np.random.Generator) -> FloatArray:
        return np.asarray(x @ E.T + c + rng.standard_normal(x.shape) @ factor.T)

    return step


def _euler_step(of: _Coefficients, h: float) -> Step:
    def step(t: float, x: FloatArray, rng: np.random.Generator) -> FloatArray:
        factor = of.factor(t, x) if of.constant is None else of.constant
        return np.asarray(x + h * of.drift(t, x) + _apply(factor, np.sqrt(h) * rng.standard_normal(x.shape)))

    return step


def _heun_step(of: _Coefficients, h: float) -> Step:
    """x + h/2 (b_t(x) + b_{t+h}(x + h b_t(x) + dW)) + dW with Lambda_t(x) for dW: weak order 2 if that is constant."""

    def step(t: float, x: FloatArray, rng: np.random.Generator) -> FloatArray:
        factor = of.factor(t, x) if of.constant is None else of.constant
        noise = _apply(factor, np.sqrt(h) * rng.standard_normal(x.shape))
        b = of.drift(t, x)
        ahead = in_range(x + h * b + noise, t + h)
        return np.asarray(x + 0.5 * h * (b + of.drift(t + h, ahead)) + noise)

    return step


def _platen_step(of: _Coefficients, h: float) -> Step:
    """Platen's explicit scheme of weak order 2 (Kloeden and Platen 1992, section 15.1, several noises).

    With the columns s^j of the Cholesky factor, R^j = x + h b +- s^j sqrt(h) at time t+h and U^j = x +- s^j sqrt(h) at
    time t; V_{rj} = +-h with equal chances for j < r, antisymmetric, stands for the iterated integrals' area.
    """

    def step(t: float, x: FloatArray, rng: np.random.Generator) -> FloatArray:
        d, root = x.shape[-1], np.sqrt(h)
        dW = root * rng.standard_normal(x.shape)
        b, s = of.drift(t, x), of.factor(t, x)
        ahead = in_range(x + h * b + _apply(s, dW), t + h)
        new = x + 0.5 * h * (b + of.drift(t + h, ahead))
        offsets = root * np.swapaxes(s, -1, -2)  # row j is column s^j
        signs = np.array([1.0, -1.0])[:, None, None, None]
        upper = np.triu(np.where(rng.random((x.shape[0], d, d)) < 0.5, h, -h), 1)
        area = upper - np.swapaxes(upper, -1, -2)  # area[:, r, j] = V_{rj}, 0 on the diagonal
        R = of.factor(
            t + h, in_range((x + h * b)[:, None] + signs * offsets, t + h)
        )  # (2, n, j, d, k): column k at R^j
        plus, minus = (np.einsum("njij->nij", side) for side in R)  # own columns: (n, i, j)
        new = new + 0.25 * np.einsum("nij,nj->ni", plus + minus + 2.0 * s, dW)
        new = new + 0.25 / root * np.einsum("nij,nj->ni", plus - minus, dW**2 - h)
        if d > 1:
            U = of.factor(t, in_range(x[:, None] + signs * offsets, t))  # (2, n, r, i, j)
            other = (1.0 - np.eye(d))[None]
            pair = (dW[:, :, None] * dW[:, None, :] + area) * other  # (n, r, j)
            new = new + 0.25 * np.einsum("nrij,nj,rj->ni", U[0] + U[1] - 2.0 * s[:, None], dW, other[0])
            new = new + 0.25 / root * np.einsum("nrij,nrj->ni", U[0] - U[1], pair)
        return np.asarray(new)

    return step


def in_range(x: FloatArray, t: float) -> FloatArray:
    """The simulated states, or a ConvergenceError if they explode."""
    good = np.abs(x) < _EXPLODED
    if not good.all():
        bad = ~good.all(axis=-1)
        raise ConvergenceError(
            f"{int(bad.sum())} of {bad.size} simulated states left the range of numbers at t={t:g}: the time step is "
            "too long for this drift; take more steps, or substeps=..."
        )
    return x


def sample_paths(
    problem: ControlProblem,
    *,
    n: int,
    steps: int,
    rng: Rng,
    scheme: str = "auto",
    policy: Policy | None = None,
    substeps: int | None = None,
) -> Paths:
    """n paths of dX = (b_t + pi_t)(X) dt + Lambda_t(X)^{1/2} dB, X_0 ~ p_0, observed at steps + 1 equispaced times.

    Parameters
    ----------
    n, steps : how many paths, and K, the number of observed time steps.
    rng : an int or SeedSequence (the same one gives the same bits on every call) or a Generator (which advances: a
        second call with the same object gives fresh paths).
    scheme : "exact" (a LinearDrift, constant diffusion, no policy: the Gaussian transition law itself), "euler" (weak
        order 1), "weak2" (weak order 2: Heun for constant diffusions, else Platen's explicit scheme with the Cholesky
        factor of Lambda, Kloeden and Platen 1992, section 15.1), or "auto": exact where possible, else weak2.
    policy : pi, a callable (t, x) -> (n, d), t a number; None means 0.
    substeps : the schemes other than "exact" take this many steps between two observations; None: 1, but with "auto" up
        to 64, so that -db_k/dx_k times their length is 1/2 at most where the process starts, and if the paths explode
        all the same 4, 16 or 64 times as many. The result's `scheme` says how many.

    In a domain coefficients are evaluated inside only. At reflecting faces each step is mirrored; away from reflected
    Brownian motion, for which it is exact, mirroring is of weak order 1 in the step. At absorbing faces a path is
    stopped: from the first step (or substep) in which it left, it stays at its exit point on the face, which
    `problem.domain.exited(paths.x)` sees. A step whose ends are both inside may have left in between, and does so with
    the probability of a Brownian bridge with the Lambda of its start: exact for constant drift and diffusion and one
    face, of weak order 1 in the step otherwise (Gobet, Stoch. Proc. Appl. 87 (2000) 167-197), where looking at the ends
    alone would be of order 1/2.

    In a `MeshDomain` a step is followed to the facets it meets, mirrored at one that reflects, again and again, and
    stopped at one that absorbs; in between by the chance of a bridge to the nearest absorbing facet: of weak order 1,
    also of reflected Brownian motion.

    Raises
    ------
    MeasureError : n, steps, substeps or rng make no sense, or the paths do not fit into memory.
    ProblemError : "exact" is not possible here, or the policy is no callable, fails, or returns a wrong shape or
        non-finite numbers.
    EllipticityError : Lambda is not positive definite at a simulated point.
    ConvergenceError : the simulated paths explode.
    """
    require_problem(problem, "sample_paths")
    n = positive_integer(n, "n", MeasureError)
    steps = positive_integer(steps, "steps", MeasureError)
    room = "; simulated_source makes paths in chunks"
    require_room((n, steps + 1, problem.dim), f"n={n}, steps={steps}:", MeasureError, room)
    if policy is not None:
        require_policy(policy)
    ladder: tuple[int, ...] = (
        _LADDER if substeps is None else (at_most(substeps, _MOST_SUBSTEPS, "substeps", MeasureError),)
    )
    scheme = one_of(scheme, "scheme", SCHEMES, MeasureError)
    exact = _exact_coefficients(problem, policy) if scheme in ("auto", "exact") else None
    if scheme == "exact" and exact is None:
        raise ProblemError(
            "scheme 'exact' needs drift=LinearDrift(A, a), a constant diffusion, no policy, no MeshDomain, and in a box"
            " no drift, a diagonal diffusion and no absorbing face; take scheme='weak2' or 'auto'"
        )
    times = np.linspace(0.0, problem.horizon, steps + 1)
    lengths = np.full(steps, problem.horizon / steps)
    if exact is not None:
        scheme, ladder = "exact", (1,)
    elif scheme == "auto":
        scheme, ladder = "weak2", _ladder(problem, float(lengths[0])) if substeps is None else ladder
    return _climbed(_Stepper(problem, policy, exact, scheme), times, lengths, ladder, rng, n)


def sample_at(
    problem: ControlProblem,
    times: ArrayLike,
    *,
    n: int,
    rng: Rng,
    policy: Policy | None = None,
    steps: int = 64,
    substeps: int | None = None,
) -> Paths:
    """n paths as `sample_paths` with scheme "auto", observed at 0, at these times, and often enough in between.

    Steps are T / steps at most, and shorter where times lie closer together: times that are geometric towards T let
    the steps shrink with the time to go, as a policy that grows steep there needs it. They end where coefficients jump,
    as `breaks` sees it where the process starts. The result's `t` has all of them. Where steps are cut into eight or
    more for a stiff drift, a Lambda that varies is taken where each of these begins, at a ninth of the cost of Platen's
    scheme in two dimensions: of weak order 1 in what is so short.

    Raises as `sample_paths`; DomainError for times outside [0, T].
    """
    require_problem(problem, "sample_at")
    n = positive_integer(n, "n", MeasureError)
    T, steps = problem.horizon, positive_integer(steps, "steps", MeasureError)
    wanted = np.atleast_1d(as_times(times, T, "times"))
    between = np.linspace(0.0, T, steps + 1)
    gaps = np.abs(between[:, None] - wanted).min(axis=1)
    first = problem.initial_law.sample(_SEEN, np.random.default_rng(0))
    breaks = around_breaks(problem, inside(problem, first))
    grid = np.unique(np.concatenate([[0.0], wanted, between[gaps > 1e-9 * T], breaks]))
    exact = _exact_coefficients(problem, policy)
    if exact is not None:
        ladder: tuple[int, ...] = (1,)
    else:
        ladder = _ladder(problem, T / steps) if substeps is None else (substeps,)
    scheme = "exact" if exact is not None else "weak2" if ladder[0] < _MANY else "heun"
    return _climbed(_Stepper(problem, policy, exact, scheme), grid, np.diff(grid), ladder, rng, n)


def _ladder(problem: ControlProblem, h: float) -> tuple[int, ...]:
    """Substeps of steps h to try in turn: as many as drifts ask for, and more if paths explode."""
    first = stable_substeps(problem, h)
    return tuple(first * times for times in _LADDER)


@final
class _Stepper:
    """One step of a scheme, of any length."""

    def __init__(
        self,
        problem: ControlProblem,
        policy: Policy | None,
        exact: tuple[LinearDrift, FloatArray] | None,
        scheme: str,
    ) -> None:
        self.problem, self.exact, self.scheme = problem, exact, scheme
        self.of = _Coefficients(problem, policy)

    def __call__(self, h: float) -> Step:
        of = self.of
        if self.exact is not None:
            return _exact_step(*self.exact, h)
        if self.scheme == "euler":
            return _euler_step(of, h)
        return _platen_step(of, h) if of.constant is None and self.scheme == "weak2" else _heun_step(of, h)


def _climbed(
    stepper: _Stepper, times: FloatArray, lengths: FloatArray, ladder: tuple[int, ...], rng: Rng, n: int
) -> Paths:
    """Paths with the fewest substeps of the ladder with which none explodes."""
    for count, generator in zip(ladder, spawn_generators(rng, len(ladder)), strict=True):
        made = {h: stepper(h / count) for h in set(lengths.tolist())}
        every = [made[h] for h in lengths.tolist()]
        try:
            x = _simulate_chunks(stepper.problem, every, times, count, generator, n)
            break
        except ConvergenceError:
            if count == ladder[-1]:
                raise
    scheme = stepper.scheme
    return Paths(t=times, x=x, scheme=scheme if count == 1 else f"{scheme}, {count} substeps")


def _simulate_chunks(
    problem: ControlProblem, every: list[Step], times: FloatArray, substeps: int, rng: np.random.Generator, n: int
) -> FloatArray:
    x = np.empty((n, times.size, problem.dim))
    starts = range(0, n, _CHUNK)
    for start, generator in zip(starts, spawn_generators(rng, len(starts)), strict=True):
        rows = slice(start, min(start + _CHUNK, n))
        with np.errstate(over="ignore", invalid="ignore"):  # explosions are found and reported by in_range
            _simulate(problem, every, times, substeps, generator, x[rows])
    return x


def _simulate(
    problem: ControlProblem,
    every: list[Step],
    times: FloatArray,
    substeps: int,
    rng: np.random.Generator,
    out: FloatArray,
) -> None:
    """Fill out (m, K+1, d) with m paths; one step for each interval between times."""

    state = inside(problem, problem.initial_law.sample(out.shape[0], rng))
    out[:, 0] = state
    for k, step in enumerate(every):
        short = (times[k + 1] - times[k]) / substeps
        for j in range(substeps):
            start = float(times[k] + j * short)
            new = in_range(step(start, state, rng), start + short)
            state = moved(problem, start, short, state, new, rng)
        out[:, k + 1] = state
