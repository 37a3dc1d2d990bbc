r"""As ellipticity fails the iteration is lost, and f is not: from SDE to flow, and noise added to a kinetic process.

flow. A diffusion model of a Gaussian mixture, with the same marginals p_t for every eta (`mixture_diffusion`),

    dX = [beta/2 X + (1 + eta^2)/2 beta grad log p_t(X)] dt + eta beta^{1/2} dB,

down to its probability-flow ODE at eta = 0, whose value is v_t(x) = y(X_T), X the flow from x. |v_eta - v_0| ~ eta^2.

kinetic. Noise in one of two coordinates, dq = p dt + eps^{1/2} dB', dp = -(q + p) dt + dB, and a mixture as reward. At
eps = 0 f is smooth all the same, as noise reaches q through p, and known: X_T given X_t is a Gaussian,

    X_T | x ~ N(Phi x, S),  Phi = e^{A(T-t)},  S = int_0^{T-t} e^{As} Lambda e^{A's} ds  (of full rank for all that),
    f_t(x) = sum_j w_j (|C_j| / |C_j + S|)^{1/2} exp(-(Phi x - m_j)' (C_j + S)^{-1} (Phi x - m_j) / 2).

What is added to q for the sake of the theory costs a bias of order eps.

At each level, in a fixed class under the law: mu, L, the inf-sup constant sigma of the form with tests g - delta d_t g,
and the steps to 1e-3 that the best |I - gamma E^{-1} B| predicts for the projected iteration (arXiv 2509.02528); delta
is the best of a geometric ladder. It is run, too, from 0 until the residual |E^{-1} (B c - l)|_E is 1e-3 of the first:
never longer than that, which is a bound by a norm; the form is far from normal, and what is left after a while falls by
the spectral radius of I - gamma E^{-1} B. Accelerated it takes fewer. E holds |grad f|_Lambda, hence ever less of grad
f, and mu falls with the noise, as B pairs delta d_t g with b grad f: the more so the finer the class. sigma, for one
delta, does not, nor does the error of the equation solved directly. Errors of f are in the norm of int E f^2 dt + E
f_T^2, against the value of that level, relative; that of the policy is in the norm of Lambda^-1 in L2(p_t) where |x_i|
< 2.8, beyond which is 0.3 per cent of the law at most and f too small for its logarithm; the largest over times up to
3T/4. "weak" under n paths has noise proportional to |grad f|_Lambda.

Controls: the drift of eta = 1 kept while the noise falls (other marginals, another limit); in the kinetic series, the
limit without any noise in its place; delta of the most elliptic level kept; steps ten times as long; and a box that
cuts the law at 3.7 deviations, where what the current carries through its faces makes the form indefinite, whatever
delta is.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast, final

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy.integrate import solve_ivp
from scipy.linalg import eigvals, expm
from scipy.linalg import solve as solve_dense

from fem_hjb.experiments.trial import Claim, Trial, check_seeds, conclude, fitted_slope
from fem_hjb.learning.inequality import Diagnostics, VariationalInequality, diagnose
from fem_hjb.learning.measures import law_measure
from fem_hjb.learning.population import yardstick
from fem_hjb.learning.solve_system import reduce_system, solve_system
from fem_hjb.learning.solvers import projected
from fem_hjb.learning.system import assemble
from fem_hjb.paths.simulate import sample_paths
from fem_hjb.plotting.pictures import STYLES
from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import MarginalLaw
from fem_hjb.problems.problem import ControlProblem, ValueFunction
from fem_hjb.reference.solve import solve
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.progress import Progress, steps_of


@final
@dataclass(frozen=True, kw_only=True)
class Config:
    """etas, epsilons : levels, falling from 1.  deltas : how many of the ladder 2^-k / 25 there are.

    classes : (cells per axis, time cells) of flow and kinetic.  n, steps, seeds : of the paths of "weak".
    rtol : of `solve`.  seed : of the paths.
    """

    etas: tuple[float, ...] = (1.0, 0.707, 0.5, 0.354, 0.25, 0.177, 0.125, 0.0884, 0.0625)
    epsilons: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)
    deltas: int = 7
    classes: tuple[tuple[int, int], tuple[int, int]] = ((16, 8), (10, 2))
    n: int = 4000
    steps: int = 64
    seeds: int = 8
    rtol: float = 1e-7
    seed: int = 0


QUICK = Config(
    etas=(1.0, 0.125, 0.0625),
    epsilons=(1.0, 0.1, 1e-3),
    deltas=3,
    classes=((8, 4), (6, 2)),
    n=100,
    steps=32,
    seeds=2,
    rtol=3e-3,
)

_COLUMNS = (
    *(
        "series",
        "level",
        "delta",
        "mu",
        "L",
        "steps",
        "steps, run",
        "steps, accelerated",
        "steps, spectral",
        "steps, too long",
        "mu, control",
        "sigma, first delta",
        "condition",
        "approximation",
        "f",
    ),
    *("policy", "weak", "f, limit", "bias", "control"),
)
_FIRST_DELTA, _STEPS_TO = 0.04, 1e-3
_TOO_LONG = 10.0  # times the step
_PATIENCE = 4.0  # times the steps by the spectral radius
_SMALL = 0.2  # levels below this are those exponents are fitted to
_BAND = 0.15
_NEAR = 4.0  # points beyond, of a law of deviation 1, may lie outside the box of `solve`
_TIMES, _REACH = (0.0, 0.25, 0.5, 0.75), 2.8  # of the horizon 1; of points at which policies are judged
_WEIGHTS, _MEANS = np.array([0.5, 1.0]), np.array([[-1.2, 0.0], [1.2, 0.0]])
_COVARIANCE = np.diag([2.5, 3.0])
_KINETIC = np.array([[0.0, 1.0], [-1.0, -1.0]])


def _flow_problem(eta: float) -> ControlProblem:
    data: dict[str, Any] = {"means": [[-0.4], [0.6]], "covariances": [[[0.2]], [[0.25]]]}
    return zoo.get("mixture-diffusion", dim=1, eta=eta, reward="log-mixture", target=1.0, **data)


def _kinetic_problem(eps: float) -> ControlProblem:
    target: dict[str, Any] = {"weights": _WEIGHTS, "means": _MEANS, "covariances": np.stack([_COVARIANCE] * 2)}
    noise = np.diag([eps, 1.0])
    return zoo.get("brownian-mixture", dim=2, A=_KINETIC, Lambda=noise, cov=0.5, **target)


@final
@dataclass(frozen=True, eq=False)
class _Degenerate:
    """The value of the kinetic process with noise in p alone, of this strength."""

    strength: float

    def _f(self, t: float, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        block = np.zeros((4, 4))  # C. F. Van Loan, IEEE Trans. Automat. Control 23 (1978) 395-404
        block[:2, :2], block[2:, 2:] = -_KINETIC, _KINETIC.T
        block[1, 3] = self.strength
        whole = expm(block * (1.0 - t))
        Phi = whole[2:, 2:].T
        spread = _COVARIANCE + Phi @ whole[:2, 2:]
        scale = np.sqrt(np.linalg.det(_COVARIANCE) / np.linalg.det(spread))
        away = (x @ Phi.T)[..., None, :] - _MEANS
        pull = away @ np.linalg.inv(spread)
        terms = scale * _WEIGHTS * np.exp(-0.5 * (away * pull).sum(-1))
        return terms.sum(-1), -np.einsum("...k,...ki,ij->...j", terms, pull, Phi)

    def value(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        return self._at_times(t, np.asarray(x), lambda f, _: np.log(f))

    def gradient(self, t: ArrayLike, x: ArrayLike) -> FloatArray:
        return self._at_times(t, np.asarray(x), lambda f, slope: slope / f[..., None])

    def _at_times(self, t: ArrayLike, x: FloatArray, of: Callable[[FloatArray, FloatArray], FloatArray]) -> FloatArray:
        times = np.asarray(t, dtype=np.float64)
        if times.ndim == 0:
            return of(*self._f(float(times), x))
        every, which = np.unique(times, return_inverse=True)
        order = np.argsort(which, kind="stable")
        cuts = np.searchsorted(which[order], np.arange(1, every.size))
        parts = [of(*self._f(float(s), x[rows])) for s, rows in zip(every, np.split(order, cuts), strict=True)]
        return np.concatenate(parts)[np.argsort(order, kind="stable")]


def _after_flow(x: FloatArray, t: float) -> FloatArray:
    """v_t(x) at eta = 0: the reward at the end of the flow. The drift at eta = 1 is X + 2 score, beta = 2."""
    problem = _flow_problem(1.0)

    def rate(s: float, z: FloatArray) -> FloatArray:
        return np.asarray((problem.b(s, z[:, None])[:, 0] + z) / 2)

    end = solve_ivp(rate, (t, problem.horizon), x[:, 0], "DOP853", rtol=1e-10, atol=1e-10).y[:, -1]
    return problem.y(end[:, None])


def run(config: Config, tell: Progress) -> Trial:
    """One row per level of noise."""
    check_seeds(config.seeds)
    started = time.perf_counter()
    each = config.deltas + config.seeds + 4
    step = steps_of(tell, each * (len(config.etas) + len(config.epsilons)))
    rows: list[tuple[Any, ...]] = []
    for levels, judged in ((config.etas, _flow), (config.epsilons, _kinetic)):
        kept = None
        for level in levels:
            rows.append(judged(config, level, kept, step))
            kept = rows[-1][2] if kept is None else kept
    return conclude(config, _COLUMNS, rows, _claims(config, rows), started)


def _flow(config: Config, eta: float, kept: float | None, step: Callable[[], None]) -> tuple[Any, ...]:
    problem = _flow_problem(eta)
    wrong = replace(problem, drift=_flow_problem(1.0).drift, marginal=None)
    own = solve(problem, rtol=config.rtol, verify=False)
    step()
    other = solve(wrong, rtol=config.rtol, verify=False)
    step()
    x, weights = problem.initial_law.quadrature(40)
    near = np.abs(x[:, 0]) < _NEAR
    x, weights = x[near], weights[near]
    limit = _after_flow(x, 0.0)
    away = [np.sqrt(weights @ (of.value(0.0, x) - limit) ** 2 / (weights @ limit**2)) for of in (own, other)]
    space = _space(problem, config.classes[0], 3.0)
    return ("flow", eta, *_judged(config, problem, space, own, None, kept, step), *map(float, away))


def _kinetic(config: Config, eps: float, kept: float | None, step: Callable[[], None]) -> tuple[Any, ...]:
    problem, limit = _kinetic_problem(eps), _Degenerate(1.0)
    own = cast(ValueFunction, problem.exact)
    away = []
    x, weights = problem.initial_law.quadrature(24)
    for wrong in (limit, _Degenerate(0.0)):
        truth = wrong.value(0.0, x)
        away.append(float(np.sqrt(weights @ (own.value(0.0, x) - truth) ** 2 / (weights @ truth**2))))
        step()
    space, cut = (_space(problem, config.classes[1], half) for half in (4.8, 2.6))
    form = assemble(problem, law_measure(problem, cut), cut, estimator="weak", delta=_FIRST_DELTA)
    found = list(_judged(config, problem, space, own, limit, kept, step))
    found[_COLUMNS.index("mu, control") - 2] = diagnose(reduce_system(form).inequality).coercivity
    return ("kinetic", eps, *found, *away)


def _space(problem: ControlProblem, size: tuple[int, int], half: float) -> Space:
    box = Box([-half] * problem.dim, [half] * problem.dim)
    return Space(problem, cells=size[0], time_cells=size[1], element="B3", time_degree=3, time_smooth=True, box=box)


def _judged(
    config: Config,
    problem: ControlProblem,
    space: Space,
    own: ValueFunction,
    limit: ValueFunction | None,
    kept: float | None,
    step: Callable[[], None],
) -> tuple[float, ...]:
    """The columns from delta to "f, limit".  kept : the best delta of the first level, None if this is it."""
    law = law_measure(problem, space)
    measure = yardstick(problem, law, space, exact=own, norm="mass")
    far = measure if limit is None else yardstick(problem, law, space, exact=limit, norm="mass")
    step()
    found: dict[float, Diagnostics] = {}
    forms: dict[float, VariationalInequality] = {}
    for k in range(config.deltas):
        delta = _FIRST_DELTA * 2.0**-k
        system = assemble(problem, law, space, estimator="weak", delta=delta)
        forms[delta] = reduce_system(system).inequality
        found[delta] = diagnose(forms[delta])
        step()
    best = min(found, key=lambda delta: found[delta].contraction)
    solved = solve_system(assemble(problem, law, space, estimator="generator"), smoothing=0.0, figures=False)
    c = solved.coefficients
    step()
    learned = []
    for seed in range(config.seeds):
        paths = sample_paths(problem, n=config.n, steps=config.steps, rng=config.seed + seed)
        system = assemble(problem, paths, space, estimator="weak", outside="drop")
        learned.append(np.asarray(solve_system(system, figures=False).coefficients).ravel())
        step()
    square = sum(measure.norm(one) ** 2 for one in learned - np.mean(learned, axis=0)) / (config.seeds - 1)
    figures, same, size = found[best], found[best if kept is None else kept], measure.size
    return (
        *(best, figures.coercivity, figures.norm, _steps_at(figures.contraction), *_run(forms[best], figures.gamma)),
        *(same.coercivity, same.stability, figures.condition, measure.approximation / size),
        *(
            measure.distance(c) / size,
            _policy_error(solved, own),
            float(np.sqrt(square)) / size,
            far.distance(c) / far.size,
        ),
    )


def _steps_at(factor: float) -> float:
    """How many it takes at this factor per step."""
    return float(np.log(_STEPS_TO) / np.log(factor)) if factor < 1.0 else np.inf


def _run(of: VariationalInequality, gamma: float) -> tuple[float, float, float, float]:
    """Steps of the iteration, accelerated, by the spectral radius, and with steps that are too long; inf: no end."""
    T = solve_dense(of.energy.toarray(), of.form.toarray(), assume_a="pos")
    spectral = _steps_at(float(abs(1.0 - gamma * eigvals(T)).max()))
    most = int(_PATIENCE * spectral) if spectral < np.inf else 1

    def taken(length: float, accelerate: bool) -> float:
        found = projected(of, gamma=length, tol=_STEPS_TO, maxiter=most, accelerate=accelerate)
        return float(found.iterations) if found.converged else np.inf

    return taken(gamma, False), taken(gamma, True), spectral, taken(_TOO_LONG * gamma, False)


def _policy_error(solved: Solution, own: ValueFunction) -> float:
    """Relative, in L2(p_t) where |x_i| < _REACH, the largest over _TIMES; inf if f <= 0 there."""
    squares = []
    for t in _TIMES:
        x, weights = cast(MarginalLaw, solved.problem.marginal)(t).quadrature(32)
        near = (np.abs(x) < _REACH).all(axis=-1)
        x, weights, Lambda = x[near], weights[near], solved.problem.Lambda(t, x[near])
        true = own.gradient(t, x)
        wrong = solved.gradient(t, x, nonpositive="nan") - true
        squares.append([weights @ np.einsum("ni,nij,nj->n", g, Lambda, g) for g in (wrong, true)])
    wrong, true = np.array(squares).T
    return float(np.nan_to_num(np.sqrt(wrong.max() / true.max()), nan=np.inf))


def _claims(config: Config, rows: list[tuple[Any, ...]]) -> Iterator[Claim]:
    for series, levels, order in (("flow", config.etas, 2), ("kinetic", config.epsilons, 1)):
        here = [row[1:] for row in rows if row[0] == series]
        table = dict(zip(_COLUMNS[1:], np.array(here, dtype=np.float64).T, strict=True))
        small = np.array(levels) < _SMALL

        def exponent(name: str, table: Any = table, small: Any = small) -> float:
            return fitted_slope(table["level"][small], table[name][small]).value

        for name, text in (("bias", ""), ("control", ", wrong limit" if series == "kinetic" else ", drift of eta = 1")):
            text = f"{series}: exponent of |v - v_0| in the level{text}"
            control = name == "control"
            yield Claim(text=text, value=exponent(name), low=order - _BAND, high=order + _BAND, control=control)
        broken = "delta of the first level" if series == "flow" else "a box of 3.7 deviations"
        for name in ("mu", "mu, control"):
            text = f"{series}, last level: mu{'' if name == 'mu' else f' with {broken}'} is positive"
            yield Claim(text=text, value=float(table[name][-1]), low=1e-9, high=1.0, control=name != "mu")
        yield from _step_claims(series, table)
        for name, low, high, text in (
            ("steps", 10.0 if series == "flow" else 2.0, np.inf, "steps predicted, last level over first"),
            ("steps, run", 10.0 if series == "flow" else 1.2, np.inf, "steps run, last level over first"),
            ("sigma, first delta", 0.5, 2.0, "sigma with delta of the first level, last level over first"),
            ("f", 0.2, 2.0, "error of f over that of the class, last level over first"),
        ):
            values = table[name] / (table["approximation"] if name == "f" else 1.0)
            yield Claim(text=f"{series}: {text}", value=float(values[-1] / values[0]), low=low, high=high)


def _step_claims(series: str, table: dict[str, FloatArray]) -> Iterator[Claim]:
    """The iteration as it was run against what is predicted of it."""
    run, bound, spectral = (table[name] for name in ("steps, run", "steps", "steps, spectral"))
    text = f"{series}: steps of the iteration over those predicted, largest"
    yield Claim(text=text, value=float((run / bound).max()), low=0.0, high=1.0)
    broken = float((table["steps, too long"] / bound).max())
    yield Claim(text=f"{text}, steps ten times as long", value=broken, low=0.0, high=1.0, control=True)
    for of, least, wrong in ((spectral, 0.4, False), (bound, 0.4, True)):
        text = f"{series}: steps over those {'predicted' if wrong else 'by the spectral radius'}, least"
        yield Claim(text=text, value=float((run / of).min()), low=least, high=1.2, control=wrong)
    text = f"{series}: steps over those by the spectral radius, largest"
    yield Claim(text=text, value=float((run / spectral).max()), low=0.4, high=1.2)
    text = f"{series}: accelerated over plain steps, largest"
    yield Claim(text=text, value=float((table["steps, accelerated"] / run).max()), low=0.0, high=1.0)


def figure(trial: Trial) -> Figure:
    """mu, sigma and steps; errors; and the distance from the limit, against the level of noise, for both series."""
    made = Figure(figsize=(11.0, 6.0), layout="constrained")
    panels = made.subplots(2, 3)
    for row, (series, name) in zip(panels, (("flow", r"$\eta$"), ("kinetic", r"$\epsilon$")), strict=True):
        level = trial.column("level", series=series)
        shown = (("mu", "sigma, first delta", "L"), ("f", "approximation", "policy", "weak"), ("bias", "control"))
        for panel, columns in zip(row, shown, strict=True):
            for style, column in zip(STYLES, columns, strict=False):
                panel.loglog(level, trial.column(column, series=series), **style, label=column)
            panel.set_xlabel(f"{series}: {name}")
        steps = row[0].twinx()
        for column, line in (("steps", "-"), ("steps, run", "--"), ("steps, accelerated", ":")):
            steps.loglog(level, trial.column(column, series=series), color="0.6", marker="x", linestyle=line)
        steps.set(ylabel="steps to 1e-3 (grey):\npredicted, run (- -), accelerated (..)", xlabel=f"{series}: {name}")
        if series == "kinetic":
            row[1].loglog(
                level, trial.column("f, limit", series=series), **STYLES[4], label=r"f against $\epsilon = 0$"
            )
        for panel, text in zip(
            row, ("figures of the form", "relative error", "distance of v from its limit"), strict=True
        ):
            panel.set_ylabel(text)
            panel.legend(fontsize="x-small")
    return made
