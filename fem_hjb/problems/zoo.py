"""Named control problems, each with its equation, its source and, wherever one exists, its exact solution.

A problem is one function: it takes `dim` and keyword parameters, its docstring is its equation, and
`@register()` enters it under its name with dashes for underscores. The shared tests pick it up by themselves.

>>> problem = get("lq", dim=2, temperature=0.5)
>>> problem.exact.value(0.0, [[0.0, 0.0]]).shape
(1,)
"""

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import solve_continuous_lyapunov

from fem_hjb.problems.box import Box
from fem_hjb.problems.closed_form import CosineSeries, LinearQuadratic, Product
from fem_hjb.problems.laws import Gaussian, GaussianMixture, Law, PointMass, Uniform
from fem_hjb.problems.linear import linear_marginal
from fem_hjb.problems.mixtures import MixtureDiffusion, TiltedMixture
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.problems.rewards import LogSumExpReward
from fem_hjb.support.checks import FloatArray, frozen_array, one_of, positive_integer
from fem_hjb.support.errors import DomainError, ProblemError

Builder = Callable[..., ControlProblem]


@final
@dataclass(frozen=True)
class _Entry:
    build: Builder
    dims: tuple[int, ...] | None  # None: every dimension
    default_dim: int


_REGISTRY: dict[str, _Entry] = {}


def register(*, dims: tuple[int, ...] | None = None, default_dim: int | None = None) -> Callable[[Builder], Builder]:
    """Decorator that enters a builder (dim, *, ...) -> ControlProblem; `dims` is where it makes sense, None all.

    `default_dim` is the dimension `get` takes when none is asked for; None: the first of `dims`, or 1.
    """

    def enter(build: Builder) -> Builder:
        _REGISTRY[build.__name__.replace("_", "-")] = _Entry(build, dims, default_dim or (dims or (1,))[0])
        return build

    return enter


def names() -> tuple[str, ...]:
    """The names `get` knows."""
    return tuple(_REGISTRY)


def dims(name: str) -> tuple[int, ...] | None:
    """The dimensions in which the problem makes sense; None stands for all of them."""
    return _entry(name).dims


def describe(name: str) -> str:
    """One line on the problem, the first of its docstring.

    >>> describe("lq")
    'Linear drift, quadratic rewards.'
    """
    return (inspect.getdoc(_entry(name).build) or name).splitlines()[0]


def parameters(name: str) -> dict[str, Any]:
    """The keyword parameters of the problem and their defaults."""
    signature = inspect.signature(_entry(name).build)
    return {p.name: p.default for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}


def get(name: str, dim: int | None = None, **params: Any) -> ControlProblem:
    """The problem `name` in dimension `dim` (default: that of its source for a benchmark, else the smallest).

    Raises `ProblemError` for an unknown name (naming the close ones), a dimension in which the problem makes no sense,
    and an unknown or ill-formed parameter (naming those accepted).
    """
    entry = _entry(name)
    accepted = ", ".join(f"{key}={value!r}" for key, value in parameters(name).items())
    unknown = sorted(set(params) - set(parameters(name)))
    if unknown:
        raise ProblemError(f"problem {name!r} has no parameter {', '.join(map(repr, unknown))}; it accepts {accepted}")
    d = positive_integer(entry.default_dim if dim is None else dim, "dim", ProblemError)
    if entry.dims is not None and d not in entry.dims:
        raise ProblemError(f"problem {name!r} makes sense in dim = {', '.join(map(str, entry.dims))} only, got dim={d}")
    try:
        return entry.build(d, **params)
    except ProblemError as cause:
        raise type(cause)(f"problem {name!r}, dim={d}: {cause} (parameters and defaults: {accepted})") from cause


def _entry(name: str) -> _Entry:
    if name not in _REGISTRY:
        close = difflib.get_close_matches(str(name), _REGISTRY, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(_REGISTRY)}"
        raise ProblemError(f"there is no problem called {name!r}; {hint}")
    return _REGISTRY[name]


# ---------------------------------------------------------------------------------------------------------------------
# Parameters


def _tridiagonal(d: int, below: float, diagonal: float, above: float) -> FloatArray:
    return below * np.eye(d, k=-1) + diagonal * np.eye(d) + above * np.eye(d, k=1)


def _matrix(value: ArrayLike | None, default: FloatArray, name: str) -> FloatArray:
    """A (d, d) matrix from a matrix, a number (times the identity) or None (the default)."""
    if value is None:
        return default
    if np.ndim(value) == 0:
        return float(frozen_array(value, name, (), ProblemError)) * np.eye(len(default))
    return frozen_array(value, name, default.shape, ProblemError)


def _vector(value: ArrayLike, d: int, name: str) -> FloatArray:
    """A vector (d,) from a vector or a number (the same on every axis)."""
    if np.ndim(value) == 0:
        return np.full(d, frozen_array(value, name, (), ProblemError))
    return frozen_array(value, name, (d,), ProblemError)


def _start(drift: LinearDrift, Lambda: FloatArray, mean: ArrayLike, cov: ArrayLike | None) -> Gaussian:
    """N(mean, cov); with cov None the stationary covariance, where the drift has one."""
    A, a = drift.coefficients
    if cov is None:
        if np.linalg.eigvals(A).real.max() >= 0:
            raise ProblemError("the drift has no stationary law (A is not stable), so cov must be given")
        cov = solve_continuous_lyapunov(A, -Lambda)
    return Gaussian(_vector(mean, len(a), "mean"), _matrix(cov, np.eye(len(a)), "cov"))


# ---------------------------------------------------------------------------------------------------------------------
# Coefficients: functions of the module, so that problems can be pickled


def _quadratic(t: ArrayLike, x: FloatArray, *, Q: FloatArray, q: FloatArray) -> FloatArray:
    """-x'Qx/2 + q'x."""
    return np.asarray(-0.5 * ((x @ Q) * x).sum(-1) + x @ q)


def _square(t: ArrayLike, x: FloatArray, *, weight: float) -> FloatArray:
    """weight |x|^2."""
    return np.asarray(weight * (x**2).sum(-1))


def _constant(t: ArrayLike, x: FloatArray, *, value: float) -> FloatArray:
    return np.full(x.shape[:-1], value)


def _nothing(x: FloatArray) -> FloatArray:
    return np.zeros(x.shape[:-1])


def _stationary(t: float, *, law: Law) -> Law:
    return law


def _well_drift(t: ArrayLike, x: FloatArray, *, kappa: FloatArray) -> FloatArray:
    return np.asarray(-4 * kappa * x * (x**2 - 1))


def _well_reward(x: FloatArray, *, nu: FloatArray) -> FloatArray:
    return np.asarray(-((x**2 - 1) ** 2) @ nu)


def _coupled_well_drift(t: ArrayLike, x: FloatArray, *, kappa: float, coupling: float) -> FloatArray:
    return np.asarray(-4 * kappa * x * (x**2 - 1) - coupling * x[..., ::-1])


def _reward_at_ones(x: FloatArray, *, nu: float) -> FloatArray:
    """-nu |x - (1, .., 1)|^2."""
    return np.asarray(-nu * ((x - 1) ** 2).sum(-1))


# ---------------------------------------------------------------------------------------------------------------------
# Problems


@register()
def lq(
    dim: int,
    *,
    horizon: float = 1.0,
    temperature: float = 1.0,
    A: ArrayLike | None = None,
    a: ArrayLike = 0.0,
    Lambda: ArrayLike | None = None,
    Q: ArrayLike | None = None,
    q: ArrayLike = 0.0,
    R: ArrayLike | None = None,
    s: ArrayLike = 0.0,
    mean: ArrayLike = 0.0,
    cov: ArrayLike | None = None,
) -> ControlProblem:
    """Linear drift, quadratic rewards.

    dX = (A X + a) dt + Lambda^{1/2} dB,  r = -x'Qx/2 + q'x,  y = -x'Rx/2 + s'x,  X_0 ~ N(mean, cov).

    Exact by Riccati equations. Matrices: (d, d), or a number for a multiple of the identity; vectors: (d,) or a number.
    Defaults in one dimension: A = -1, Lambda = Q = R = 1, X_0 ~ N(0, 1/2), which is stationary. In more dimensions
    A, Lambda, Q, R are tridiagonal with off-diagonals (below, above) = (-0.4, 0.5), (0.3, 0.3), (0.25, 0.25),
    (-0.2, -0.2), so that nothing separates and the process is not reversible. cov None: the stationary covariance.
    Source: the linear-quadratic regulator under entropy cost, Fleming and Rishel (1975), section VI.5; run as a
    benchmark for learned control in Domingo-Enrich et al., arXiv 2312.02027.
    """
    diffusion = _matrix(Lambda, _tridiagonal(dim, 0.3, 1.0, 0.3), "Lambda")
    drift = LinearDrift(_matrix(A, _tridiagonal(dim, -0.4, -1.0, 0.5), "A"), _vector(a, dim, "a"))
    Q = _matrix(Q, _tridiagonal(dim, 0.25, 1.0, 0.25), "Q")
    q = _vector(q, dim, "q")
    R = _matrix(R, _tridiagonal(dim, -0.2, 1.0, -0.2), "R")
    reward = LogSumExpReward.quadratic(R, _vector(s, dim, "s"), temperature=temperature)
    exact = LinearQuadratic(drift=drift, diffusion=diffusion, terminal=reward, horizon=horizon, Q=Q, q=q)
    start = _start(drift, diffusion, mean, cov)
    return ControlProblem(
        dim=dim,
        horizon=horizon,
        temperature=temperature,
        drift=drift,
        diffusion=diffusion,
        running_reward=partial(_quadratic, Q=Q, q=q),
        terminal_reward=reward,
        initial_law=start,
        exact=exact,
        marginal=linear_marginal(drift, diffusion, start),
        name="lq",
    )


@register()
def linear_ou(
    dim: int,
    *,
    horizon: float = 1.0,
    temperature: float = 1.0,
    A: ArrayLike | None = None,
    Lambda: ArrayLike | None = None,
    gamma: ArrayLike = 1.0,
    mean: ArrayLike = 0.0,
    cov: ArrayLike | None = None,
) -> ControlProblem:
    """Ornstein-Uhlenbeck process, linear terminal reward.

    dX = A X dt + Lambda^{1/2} dB,  r = 0,  y = gamma'x,  X_0 ~ N(mean, cov).

    Exact: v = p'x + c with p(t) = e^{A'(T-t)} gamma, so the optimal policy does not depend on x. Matrices: (d, d), or a
    number for a multiple of the identity; gamma, mean: (d,) or a number. Defaults: A = -1, Lambda = 1 in one
    dimension, tridiagonal with off-diagonals (below, above) = (-0.4, 0.5) and (0.3, 0.3) in more. cov None: the
    stationary covariance. Source: Nuesken and Richter, arXiv 2005.05409.
    """
    diffusion = _matrix(Lambda, _tridiagonal(dim, 0.3, 1.0, 0.3), "Lambda")
    drift = LinearDrift(_matrix(A, _tridiagonal(dim, -0.4, -1.0, 0.5), "A"), np.zeros(dim))
    reward = LogSumExpReward.linear(_vector(gamma, dim, "gamma"), temperature=temperature)
    start = _start(drift, diffusion, mean, cov)
    return ControlProblem(
        dim=dim,
        horizon=horizon,
        temperature=temperature,
        drift=drift,
        diffusion=diffusion,
        terminal_reward=reward,
        initial_law=start,
        exact=LinearQuadratic(drift=drift, diffusion=diffusion, terminal=reward, horizon=horizon),
        marginal=linear_marginal(drift, diffusion, start),
        name="linear-ou",
    )


@register()
def mixture_diffusion(
    dim: int,
    *,
    horizon: float = 1.0,
    temperature: float = 1.0,
    weights: ArrayLike | None = None,
    means: ArrayLike | None = None,
    covariances: ArrayLike | None = None,
    beta: float | tuple[float, float] = 2.0,
    eta: float = 1.0,
    reward: str | LogSumExpReward = "quadratic",
    strength: float = 1.0,
    target: ArrayLike = 0.8,
) -> ControlProblem:
    """Reward tilting of a diffusion model whose data are a Gaussian mixture.

    dX = [beta/2 X + (1 + eta^2)/2 beta grad log p_t(X)] dt + eta beta^{1/2} dB,  X_0 ~ p_0,  r = 0,

    the time reversal of dY = -beta/2 Y ds + beta^{1/2} dB from the data law sum_i w_i N(m_i, C_i), beta a number or
    the ends (beta_0, beta_T) of a linear schedule in the noising time s = T - t. p_t is the mixture law of X_t, the
    same for every eta in (0, 1]; p_T is the data law. Rewards, with strength k and target c (a number or (d,)):

        "linear"       y = k c'x
        "quadratic"    y = -k |x - c|^2 / 2
        "log-mixture"  y = alpha log( exp(-k |x - c|^2 / (2 alpha))/2 + exp(-k |x + c|^2 / (2 alpha))/2 )

    or a `LogSumExpReward` of the caller's. Exact for eta = 1; for eta < 1 no closed form is known and `exact` is None.
    Data by default: weights (0.4, 0.6), means (-1, ..)/sqrt(d) and (1.2, ..)/sqrt(d), covariances 0.2 and 0.3 on the
    diagonal with off-diagonals 0.06 and -0.06. Source: Song et al., arXiv 2011.13456 (the process); fine-tuning to a
    reward as stochastic control: Mou, arXiv 2509.02528.
    """
    diagonal = np.full(dim, 1 / np.sqrt(dim))
    data = GaussianMixture(
        [0.4, 0.6] if weights is None else weights,
        np.stack([-diagonal, 1.2 * diagonal]) if means is None else means,
        np.stack([_tridiagonal(dim, c, v, c) for v, c in ((0.2, 0.06), (0.3, -0.06))])
        if covariances is None
        else covariances,
    )
    if data.dim != dim:
        raise ProblemError(f"means must have shape (k, {dim}), got points of dimension {data.dim}")
    process = MixtureDiffusion(data, horizon=horizon, beta=beta, eta=eta)
    y = _tilting_reward(reward, dim, temperature, strength, target)
    constant = process.constant_diffusion
    return ControlProblem(
        dim=dim,
        horizon=horizon,
        temperature=temperature,
        drift=process.drift,
        diffusion=process.diffusion_matrix if constant is None else constant,
        terminal_reward=y,
        initial_law=process.marginal(0.0),
        exact=TiltedMixture(process, y) if process.eta == 1 else None,
        marginal=process.marginal,
        name="mixture-diffusion",
    )


def _tilting_reward(
    reward: str | LogSumExpReward, dim: int, temperature: float, strength: float, target: ArrayLike
) -> LogSumExpReward:
    if isinstance(reward, LogSumExpReward):
        if reward.dim != dim or reward.temperature != temperature:
            raise ProblemError(
                f"reward has dim={reward.dim}, temperature={reward.temperature:g},"
                f" the problem has dim={dim}, temperature={temperature:g}"
            )
        return reward
    kind = one_of(reward, "reward", ("linear", "quadratic", "log-mixture"), ProblemError)
    k = float(frozen_array(strength, "strength", (), ProblemError))
    c = _vector(target, dim, "target")
    if kind == "linear":
        return LogSumExpReward.linear(k * c, temperature=temperature)
    centres = np.stack([c] if kind == "quadratic" else [c, -c])
    return LogSumExpReward(
        temperature=temperature,
        R=np.broadcast_to(k * np.eye(dim), (len(centres), dim, dim)),
        s=k * centres,
        s0=np.full(len(centres), -0.5 * k * (c @ c) - temperature * np.log(len(centres))),
    )


@register()
def brownian_mixture(
    dim: int,
    *,
    horizon: float = 1.0,
    temperature: float = 1.0,
    A: ArrayLike = 0.0,
    Lambda: ArrayLike = 1.0,
    weights: ArrayLike | None = None,
    means: ArrayLike | None = None,
    covariances: ArrayLike | None = None,
    mean: ArrayLike = 0.0,
    cov: ArrayLike = 0.25,
) -> ControlProblem:
    """Brownian motion steered to a Gaussian mixture.

    dX = A X dt + Lambda^{1/2} dB,  r = 0,  X_0 ~ N(mean, cov),
    y = alpha log sum_j w_j exp(-(x - m_j)' C_j^{-1} (x - m_j) / 2).

    A = 0 by default (A = -1: an Ornstein-Uhlenbeck process instead). Exact: each term is carried back by a Riccati
    equation, f is their sum. The target's weights w (k,), means (k, d) and covariances (k, d, d) default to (0.5, 1),
    (-1, ..)/sqrt(d) and (1, ..)/sqrt(d), and 0.3 and 0.4 on the diagonal with off-diagonals 0.1 and -0.1. A, Lambda,
    cov: (d, d), or a number for a multiple of the identity; mean (d,) or a number.
    Source: the Hopf-Cole transform, Evans, Partial Differential Equations (2010), section 4.4.1; as a sampler,
    Tzen and Raginsky, arXiv 1903.01608.
    """
    diagonal = np.full(dim, 1 / np.sqrt(dim))
    diffusion = _matrix(Lambda, np.eye(dim), "Lambda")
    drift = LinearDrift(_matrix(A, np.zeros((dim, dim)), "A"), np.zeros(dim))
    reward = LogSumExpReward.log_mixture(
        [0.5, 1.0] if weights is None else weights,
        np.stack([-diagonal, diagonal]) if means is None else means,
        np.stack([_tridiagonal(dim, c, v, c) for v, c in ((0.3, 0.1), (0.4, -0.1))])
        if covariances is None
        else covariances,
        temperature=temperature,
    )
    start = _start(drift, diffusion, mean, cov)
    return ControlProblem(
        dim=dim,
        horizon=horizon,
        temperature=temperature,
        drift=drift,
        diffusion=diffusion,
        terminal_reward=reward,
        initial_law=start,
        exact=LinearQuadratic(drift=drift, diffusion=diffusion, terminal=reward, horizon=horizon),
        marginal=linear_marginal(drift, diffusion, start),
        name="brownian-mixture",
    )


@register()
def reflected(
    dim: int,
    *,
    horizon: float = 1.0,
    temperature: float = 1.0,
    lower: ArrayLike = 0.0,
    upper: ArrayLike = 1.0,
    Lambda: ArrayLike = 0.25,
    coefficients: ArrayLike = (1.0, 0.5, -0.25),
    running: float = 0.0,
) -> ControlProblem:
    """Brownian motion reflected in a box, cosine rewards.

    dX_i = Lambda_i^{1/2} dB_i, reflected at lower_i and upper_i,  r = `running` (a constant),  X_0 uniform,
    y = alpha sum_i log sum_n c_n cos(n pi (x_i - lower_i) / (upper_i - lower_i)).

    Exact by cosine series; the uniform law is stationary. lower, upper, Lambda: (d,) or a number; the coefficients
    c_n (N,) are shared by all axes and must make a positive series. Source: separation of variables for the heat
    equation with Neumann conditions, Evans, Partial Differential Equations (2010), section 6.5.
    """
    bounds = _vector(lower, dim, "lower"), _vector(upper, dim, "upper")
    diffusion = _vector(Lambda, dim, "Lambda")
    try:
        box = Box(*bounds)
    except DomainError as cause:
        raise ProblemError(str(cause)) from cause
    rate = float(frozen_array(running, "running", (), ProblemError))
    factors = [
        CosineSeries(
            coefficients,
            lower=low,
            upper=high,
            diffusion=noise,
            horizon=horizon,
            temperature=temperature,
            running=rate / dim,
        )
        for low, high, noise in zip(*bounds, diffusion, strict=True)
    ]
    exact = Product(*factors)
    start = Uniform(box)
    return ControlProblem(
        dim=dim,
        horizon=horizon,
        temperature=temperature,
        drift=LinearDrift(np.zeros((dim, dim)), np.zeros(dim)),
        diffusion=diffusion,
        running_reward=partial(_constant, value=rate) if rate else None,
        terminal_reward=partial(exact.value, horizon),
        initial_law=start,
        domain=box,
        exact=exact,
        marginal=partial(_stationary, law=start),
        name="reflected",
    )


@register()
def double_well(
    dim: int,
    *,
    horizon: float = 1.0,
    temperature: float = 1.0,
    kappa: ArrayLike = 5.0,
    nu: ArrayLike = 3.0,
    Lambda: ArrayLike = 1.0,
    mean: ArrayLike = 0.0,
    cov: ArrayLike = 0.25,
) -> ControlProblem:
    """A double well on every axis.

    dX_i = -4 kappa_i X_i (X_i^2 - 1) dt + Lambda_i^{1/2} dB_i,  r = 0,  y = -sum_i nu_i (x_i^2 - 1)^2,
    X_0 ~ N(mean, cov).

    The drift is -grad of sum_i kappa_i (x_i^2 - 1)^2; the coordinates are independent, so v is a sum of one-dimensional
    values, none in closed form. kappa > 0, nu >= 0, Lambda > 0 and mean: (d,) or a number; cov (d, d) or a number.
    Source: Nuesken and Richter, arXiv 2005.05409; with this reward and kappa = 5, nu = 3 (from X_0 = 0)
    Domingo-Enrich et al., arXiv 2312.02027.
    """
    k, n = _vector(kappa, dim, "kappa"), _vector(nu, dim, "nu")
    if (k <= 0).any() or (n < 0).any():
        raise ProblemError(f"kappa must be positive and nu non-negative, got {k.tolist()} and {n.tolist()}")
    return ControlProblem(
        dim=dim,
        horizon=horizon,
        temperature=temperature,
        drift=partial(_well_drift, kappa=k),
        diffusion=_vector(Lambda, dim, "Lambda"),
        terminal_reward=partial(_well_reward, nu=n),
        initial_law=Gaussian(_vector(mean, dim, "mean"), _matrix(cov, np.eye(dim), "cov")),
        name="double-well",
    )


@register(dims=(2,))
def double_well_2d_coupled(
    dim: int,
    *,
    horizon: float = 1.0,
    temperature: float = 1.0,
    kappa: float = 1.5,
    coupling: float = 1.0,
    nu: float = 1.0,
    Lambda: ArrayLike = 1.0,
    mean: ArrayLike = 0.0,
    cov: ArrayLike = 0.25,
) -> ControlProblem:
    """Two coupled double wells, with no closed form.

    dX = -grad U(X) dt + Lambda^{1/2} dB,  U(x) = kappa (x_1^2 - 1)^2 + kappa (x_2^2 - 1)^2 + coupling x_1 x_2,
    r = 0,  y = -nu |x - (1, 1)|^2,  X_0 ~ N(mean, cov).

    The coupling makes U non-separable: for coupling > 0 the wells at (1, -1) and (-1, 1) are the deeper ones, while the
    reward asks for (1, 1). kappa > 0, nu >= 0. Lambda, cov: (2, 2) or a number; mean: (2,) or a number.
    Source: the double well of Nuesken and Richter, arXiv 2005.05409, with a bilinear coupling added here.
    """
    k, c, n = (
        float(frozen_array(v, name, (), ProblemError))
        for v, name in ((kappa, "kappa"), (coupling, "coupling"), (nu, "nu"))
    )
    if k <= 0 or n < 0:
        raise ProblemError(f"kappa must be positive and nu non-negative, got {k:g} and {n:g}")
    return ControlProblem(
        dim=dim,
        horizon=horizon,
        temperature=temperature,
        drift=partial(_coupled_well_drift, kappa=k, coupling=c),
        diffusion=_matrix(Lambda, np.eye(2), "Lambda"),
        terminal_reward=partial(_reward_at_ones, nu=n),
        initial_law=Gaussian(_vector(mean, 2, "mean"), _matrix(cov, np.eye(2), "cov")),
        name="double-well-2d-coupled",
    )


# ---------------------------------------------------------------------------------------------------------------------
# The benchmarks of stochastic optimal control matching


def _soc_linear(
    name: str,
    dim: int,
    *,
    A: FloatArray,
    sigma: FloatArray,
    f: float,
    reward: LogSumExpReward,
    horizon: float,
    start: Law,
) -> ControlProblem:
    """dX = A X dt + lambda^{1/2} sigma dB under the running cost f |x|^2 and the terminal reward, alpha = lambda."""
    drift = LinearDrift(A, np.zeros(dim))
    diffusion = reward.temperature * sigma @ sigma.T
    exact = LinearQuadratic(
        drift=drift, diffusion=diffusion, terminal=reward, horizon=horizon, Q=2 * f * np.eye(dim) if f else None
    )
    return ControlProblem(
        dim=dim,
        horizon=horizon,
        temperature=reward.temperature,
        drift=drift,
        diffusion=diffusion,
        running_reward=partial(_square, weight=-f) if f else None,
        terminal_reward=reward,
        initial_law=start,
        exact=exact,
        marginal=linear_marginal(drift, diffusion, start),
        name=name,
    )


@register(default_dim=20)
def soc_ou_quadratic(
    dim: int,
    *,
    setting: str = "easy",
    x0: ArrayLike | None = None,
    horizon: float = 1.0,
    temperature: float = 1.0,
) -> ControlProblem:
    """SOC matching's quadratic Ornstein-Uhlenbeck settings.

    dX = (a X + u) dt + lambda^{1/2} dB, minimise E[ int_0^T |u|^2/2 + p |X|^2 dt + q |X_T|^2 ], lambda = temperature,

    with setting="easy": a = 0.2, p = 0.2, q = 0.1, and "hard": a = 1, p = 1, q = 0.5. Here: Lambda = lambda I,
    r = -p |x|^2, y = -q |x|^2, alpha = lambda; the source's control is u = pi, its value -v.

    Exact by Riccati equations. x0 None: X_0 ~ N(0, I/4), the law from which a run of the source draws the one point
    that all its paths start from ((0.4, 0.6) if dim is 2); x0 a point (d,) or a number starts there. The source has
    dim 20.
    Source: Domingo-Enrich et al., arXiv 2312.02027, "Quadratic OU"; parameters from
    github.com/facebookresearch/SOC-matching, SOC_matching/experiment_settings/settings.py and OU_quadratic.py.
    """
    kind = one_of(setting, "setting", ("easy", "hard"), ProblemError)
    a, p, q = (0.2, 0.2, 0.1) if kind == "easy" else (1.0, 1.0, 0.5)
    return _soc_linear(
        "soc-ou-quadratic",
        dim,
        A=a * np.eye(dim),
        sigma=np.eye(dim),
        f=p,
        reward=LogSumExpReward.quadratic(2 * q * np.eye(dim), np.zeros(dim), temperature=temperature),
        horizon=horizon,
        start=Gaussian(np.zeros(dim), 0.25) if x0 is None else PointMass(_vector(x0, dim, "x0")),
    )


@register(default_dim=10)
def soc_ou_linear(
    dim: int,
    *,
    seed: int = 0,
    xi: ArrayLike | None = None,
    x0: ArrayLike = 0.0,
    horizon: float = 1.0,
    temperature: float = 1.0,
) -> ControlProblem:
    """SOC matching's linear Ornstein-Uhlenbeck setting.

    dX = (A X + sigma u) dt + lambda^{1/2} sigma dB, minimise E[ int_0^T |u|^2/2 dt + sum_i X_T^i ], from X_0 = x0,

    with A = -I + xi, sigma = I + xi, lambda = temperature. Here: Lambda = lambda sigma sigma', r = 0, y = -sum_i x_i,
    alpha = lambda; the source's control is u = sigma^{-1} pi, its value -v.

    Exact: u = -sigma' e^{A'(T-t)} (1, .., 1), which does not see x. xi (d, d) None: independent N(0, 0.01) entries from
    the seed (not the source's draw, which comes from PyTorch's generator; give xi to have that one). x0: (d,) or a
    number. The source has dim 10 and x0 = 0.
    Source: Domingo-Enrich et al., arXiv 2312.02027, "Linear OU"; parameters from
    github.com/facebookresearch/SOC-matching, SOC_matching/experiment_settings/settings.py (nu = 0.1) and OU_linear.py.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ProblemError(f"seed must be a non-negative integer, got {seed!r}")
    random = _matrix(xi, 0.1 * np.random.default_rng(seed).standard_normal((dim, dim)), "xi")
    return _soc_linear(
        "soc-ou-linear",
        dim,
        A=-np.eye(dim) + random,
        sigma=np.eye(dim) + random,
        f=0.0,
        reward=LogSumExpReward.linear(-np.ones(dim), temperature=temperature),
        horizon=horizon,
        start=PointMass(_vector(x0, dim, "x0")),
    )


@register(default_dim=10)
def soc_double_well(
    dim: int,
    *,
    kappa: ArrayLike | None = None,
    nu: ArrayLike | None = None,
    x0: ArrayLike = 0.0,
    horizon: float = 1.0,
    temperature: float = 1.0,
) -> ControlProblem:
    """SOC matching's double wells, deep ones on the first three axes.

    dX = (-4 kappa X (X^2 - 1) + u) dt + lambda^{1/2} dB (axis by axis), from X_0 = x0,
    minimise E[ int_0^T |u|^2/2 dt + sum_i nu_i ((X_T^i)^2 - 1)^2 ], lambda = temperature.

    Here: Lambda = lambda I, r = 0, y = -sum_i nu_i (x_i^2 - 1)^2, alpha = lambda; the source's control is u = pi, its
    value -v. kappa, nu: (d,) or a number; None: (kappa_i, nu_i) = (5, 3) on the first three axes and (1, 1) on the
    others. v is a sum of one-dimensional values, none in closed form. The source has dim 10 and x0 = 0.
    Source: Domingo-Enrich et al., arXiv 2312.02027, "Double Well"; parameters from
    github.com/facebookresearch/SOC-matching, SOC_matching/experiment_settings/settings.py and double_well.py.
    """
    deep = np.arange(dim) < 3
    return replace(
        double_well(
            dim,
            horizon=horizon,
            temperature=temperature,
            kappa=np.where(deep, 5.0, 1.0) if kappa is None else kappa,
            nu=np.where(deep, 3.0, 1.0) if nu is None else nu,
            Lambda=temperature,
        ),
        initial_law=PointMass(_vector(x0, dim, "x0")),
        name="soc-double-well",
    )


@register(dims=(1,))
def soc_molecular_dynamics(
    dim: int, *, kappa: float = 1.0, x0: float = -1.0, horizon: float = 1.0, temperature: float = 1.0
) -> ControlProblem:
    """SOC matching's double well with a stopping time: leave the left well soon.

    dX = (-4 kappa X (X^2 - 1) + u) dt + lambda^{1/2} dB, from X_0 = x0 < 0, stopped at tau, when X first meets 0;
    minimise E[ int_0^{min(tau, T)} |u|^2/2 + 1 dt ], lambda = temperature.

    Here: Lambda = lambda, r = -1, y = 0, alpha = lambda, on the half line (-inf, 0] that absorbs at 0 and pays nothing
    there; the source's control is u = pi, its value -v = -lambda log E[ exp(-min(tau, T)/lambda) ]. No closed form.
    Source: Domingo-Enrich et al., arXiv 2312.02027; parameters from github.com/facebookresearch/SOC-matching,
    SOC_matching/experiment_settings/settings.py and molecular_dynamics.py, which run it in dim 1.
    """
    start = _vector(x0, dim, "x0")
    if (start >= 0).any():
        raise ProblemError(f"x0 must be negative, as the process is stopped at 0, got {x0!r}")
    return replace(
        double_well(dim, horizon=horizon, temperature=temperature, kappa=kappa, nu=0.0, Lambda=temperature),
        running_reward=partial(_constant, value=-1.0),
        terminal_reward=_nothing,
        initial_law=PointMass(start),
        domain=Box([-np.inf], [0.0], boundary=[("natural", "absorbing")]),
        name="soc-molecular-dynamics",
    )
