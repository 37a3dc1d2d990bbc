r"""The estimators of the variational equation: what is summed over samples of the process, one function for each.

Under the law itself every estimator has a limit, which `law_measure` gives through the same function: for "increment"
and "corrected" that is the weak form, for "regression" the L2 projection. With f* the solution and n paths:

generator    residual at the samples times g. Second derivatives; at f* it vanishes at every sample, so that the noise
             of the learned f scales with the distance of the class from f* ("self-mitigating").
weak         first derivatives only, with the score of p_t; unbiased, and the noise does not vanish at f*.
increment    increments of f along the paths: needs neither drift, diffusion nor derivatives (model-free). Its noise
             at f* is the martingale int g grad f' dM.
corrected    increments less grad f' dM: the noise at f* is O(sqrt(dt)). Needs the drift; first derivatives.
regression   least squares of the labels exp((y + int_t^T r)/alpha) on the class: the noise never vanishes.
doob         the same with a gradient penalty, which damps the noise of steep functions at the cost of a bias: see the
             module `matching`, which chooses its weight.
residual     least squares of the residual itself, and of the terminal condition: noise-free at f*, symmetric, stable.

Source: arXiv 2509.02528 (the variational inequality); the first-order forms by Ito's formula, see `forms`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import final

import numpy as np

from fem_hjb.learning import forms
from fem_hjb.learning.forms import VALUE, Load, Operator, Pairing
from fem_hjb.learning.measures import Measure
from fem_hjb.paths.simulate import noise_factor
from fem_hjb.problems.box import Box
from fem_hjb.problems.divergence import row_divergence
from fem_hjb.problems.gauge import Gauge
from fem_hjb.problems.laws import PointMass
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray, non_negative_number, one_of
from fem_hjb.support.errors import MeasureError, SpaceError

_WALL = 5.0  # standard deviations of a step from a reflecting face within which increments are not corrected
_DIFFERENCE = 6e-6  # cube root of the machine precision, relative to the extent of the nodes


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Terms:
    """What an estimator integrates over int_0^T E[...] dt: products at the samples, products of a test at a sample
    with a trial at its successor, and tests times given numbers."""

    here: Sequence[Pairing]
    ahead: Sequence[Pairing] = ()
    load: Sequence[Load] = ()


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Setting:
    """What the terms of an estimator are made from, beside the samples. delta : tests are g - delta d_t g."""

    problem: ControlProblem
    space: Space
    gauge: Gauge
    delta: float

    def rate(self, t: FloatArray, x: FloatArray) -> FloatArray | float:
        """rho = (r - c_r)/alpha, (m,), or a number."""
        if self.problem.running_reward is None:
            return -self.gauge.running / self.gauge.temperature
        return self.gauge.rate(t, x, self.problem.r(t, x))

    def diffusion(self, t: FloatArray, x: FloatArray) -> FloatArray:
        """Lambda, (d, d) if it is constant, else (m, d, d)."""
        constant = self.problem.constant_diffusion
        return self.problem.Lambda(t, x) if constant is None else constant

    def factor(self, t: FloatArray, x: FloatArray) -> FloatArray:
        """The Cholesky factor of Lambda, (d, d) if it is constant, else (m, d, d)."""
        constant = self.problem.constant_diffusion
        return noise_factor(self.problem, t, x) if constant is None else np.asarray(np.linalg.cholesky(constant))

    @property
    def spacing(self) -> float:
        """Of central differences of coefficients; it depends on the class alone, not on the chunk of the samples."""
        return _DIFFERENCE * float(np.ptp(self.space.spatial.nodes, axis=0).max())

    @property
    def test(self) -> Operator:
        """g - delta d_t g."""
        return forms.tested(self.delta) if self.delta else VALUE


def generator(of: Setting, at: Measure) -> Terms:
    """-(d_t f + <b, grad f> + 1/2 Tr(Lambda Hess f) + rho f) g."""
    return Terms(here=[(of.test, _residual(of, at))])


def residual(of: Setting, at: Measure) -> Terms:
    """(d_t f + G f + rho f)(d_t g + G g + rho g): the normal equations of least squares."""
    operator = _residual(of, at)
    return Terms(here=[(operator, operator)])


def _residual(of: Setting, at: Measure) -> Operator:
    return forms.residual(of.problem.b(at.t, at.x), of.diffusion(at.t, at.x), of.rate(at.t, at.x))


def weak(of: Setting, at: Measure) -> Terms:
    """-(d_t f + <u, grad f> + rho f) g + 1/2 grad g' Lambda grad f, u the current velocity."""
    problem = of.problem
    divergence: FloatArray | float = 0.0
    if problem.constant_diffusion is None:
        bounds = problem.domain.bounds if isinstance(problem.domain, Box) else None  # of a mesh: as `solve_on_mesh`
        divergence = row_divergence(lambda x: problem.Lambda(at.t, x), at.x, of.spacing, bounds)
    current = forms.current_velocity(problem.b(at.t, at.x), of.diffusion(at.t, at.x), divergence, _scores(of, at))
    transport = forms.transport(current, of.rate(at.t, at.x))
    return Terms(here=[(of.test, transport), *forms.flux(of.factor(at.t, at.x), of.delta)])


def _scores(of: Setting, at: Measure) -> FloatArray:
    """grad log p_t at the samples: the measure's own, or that of the problem's law at the times of the samples."""
    if at.score is not None:
        return at.score
    marginal = of.problem.marginal
    missing = (
        "the score grad log p_t of the law at all sampled times is needed here (estimator 'weak', or 'increment' and"
        " 'corrected' under a law); "
    )
    if at.kind == "law":
        raise MeasureError(
            missing + "the initial point mass has none: use 'generator', or a law_measure without times="
        )
    if marginal is None:
        raise MeasureError(
            missing + f"{of.problem.name!r} knows no marginal law and the samples carry none: give Measure(score=...), "
            "put a law into the problem (marginal=fokker_planck.solve(problem).marginal), or use another estimator"
        )
    times, index = np.unique(at.t, return_inverse=True)
    order = np.argsort(index, kind="stable")
    scores = np.empty(at.x.shape)
    for t, rows in zip(times, np.split(order, np.cumsum(np.bincount(index))[:-1]), strict=True):
        law = marginal(float(t))
        if isinstance(law, PointMass):
            raise MeasureError(missing + f"at t={t:g} the law is a point mass, which has none: use another estimator")
        scores[rows] = law.score(at.x[rows])
    return scores


def increment(of: Setting, at: Measure) -> Terms:
    """-(f_{k+1} - f_k + dt/2 (rho_k f_k + rho_{k+1} f_{k+1})) g_k / dt."""
    if at.kind == "law":
        return weak(of, at)
    dt, _, _ = _steps(at)
    return _increments(of, at, None, dt)


def corrected(of: Setting, at: Measure) -> Terms:
    """-(f_{k+1} - f_k - grad f_k' M_k + dt/2 (rho_k f_k + rho_{k+1} f_{k+1})) g_k / dt.

    M_k = X_{k+1} - X_k - dt/2 (b_k + b_{k+1}). Within 5 standard deviations of a step from a reflecting face, whose
    push is no martingale, M_k = 0; whether to correct may depend on the present state only.
    """
    if at.kind == "law":
        return weak(of, at)
    problem = of.problem
    dt, t, x = _steps(at)
    martingale = forms.martingale_increment(x - at.x, problem.b(at.t, at.x), problem.b(t, x), dt)
    if problem.domain is not None:
        spread = np.sqrt(dt[:, None] * np.diagonal(problem.Lambda(at.t, at.x), axis1=1, axis2=2))
        if isinstance(problem.domain, Box):
            lower, upper = problem.domain.bounds
            martingale[np.minimum(at.x - lower, upper - at.x) < _WALL * spread] = 0.0
        else:
            reach = _WALL * np.linalg.norm(spread, axis=1)
            martingale[problem.domain.distance("reflecting", at.x, float(reach.max())) < reach] = 0.0
    return _increments(of, at, martingale, dt)


def _steps(at: Measure) -> tuple[FloatArray, FloatArray, FloatArray]:
    """dt, times and states of the successors."""
    if at.next_t is None or at.next_x is None:
        raise MeasureError(
            "increments need each sample's successor in time (Measure.next_t, next_x): make the measure from Paths, or "
            "use another estimator"
        )
    return at.next_t - at.t, at.next_t, at.next_x


def _increments(of: Setting, at: Measure, martingale: FloatArray | None, dt: FloatArray) -> Terms:
    _, t, x = _steps(at)
    step: FloatArray | float = float(dt[0]) if np.ptp(dt) <= 1e-12 * dt[0] else dt
    here = forms.increment(of.rate(at.t, at.x), step, martingale)
    return Terms(here=[(of.test, here)], ahead=[(of.test, forms.successor(of.rate(t, x), step))])


def regression(of: Setting, at: Measure) -> Terms:
    """(f - exp((y(X_T) - c_y + int_t^T (r - c_r) ds)/alpha)) g; under a law the label is f* itself."""
    return Terms(here=[(VALUE, VALUE)], load=[(VALUE, _labels(of, at))])


def _matching(penalty: float, of: Setting, at: Measure) -> Terms:
    """Those of regression, and lambda grad f' Lambda grad g."""
    labelled = regression(of, at)
    slopes = forms.slopes(math.sqrt(penalty) * of.factor(at.t, at.x)) if penalty else []
    return replace(labelled, here=[*labelled.here, *[(op, op) for op in slopes]])


def _labels(of: Setting, at: Measure) -> FloatArray:
    """What Feynman-Kac averages, at every sample; the integral by trapezoids over the steps of the path."""
    if at.kind == "law":
        if of.problem.exact is None:
            raise MeasureError(
                "under a law 'regression' is the projection of the solution itself, and this problem has exact=None: "
                "give one, dataclasses.replace(problem, exact=solve(problem))"
            )
        return of.gauge.u(at.t, at.x, of.problem.exact.value(at.t, at.x))
    dt, t, x = _steps(at)
    paths = len(at.terminal_x)
    steps = at.t.size // paths
    if steps * paths != at.t.size or abs(t.reshape(paths, -1)[:, -1] - of.problem.horizon).max() > 1e-9 * t.max():
        raise MeasureError(
            f"'regression' needs whole paths, sample after sample to the horizon, got {at.t.size} samples and {paths} "
            "terminal states: make the measure from Paths"
        )
    mean_rate = 0.5 * dt * (of.rate(at.t, at.x) + np.asarray(of.rate(t, x)))
    to_come = np.cumsum(mean_rate.reshape(paths, steps)[:, ::-1], axis=1)[:, ::-1]
    terminal = of.gauge.terminal_u(of.problem, at.terminal_x)
    return np.asarray((terminal[:, None] * np.exp(to_come)).ravel())


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Estimator:
    """What is summed over the samples, and for which classes. `fit` takes your own, or its name once it is registered.

    terms : (setting, measure) -> `Terms`, at every point of the measure, which may be any part of the data.
    smoothness : of the elements it allows, 1 for second derivatives.
    weighted : whether the tests g - delta d_t g make sense; not for least squares.
    exact : whether the noise vanishes at f*.
    gradient_penalty : lambda, where the terms have one; None: still to be chosen, which `fit` does from its data.
    """

    name: str
    terms: Callable[[Setting, Measure], Terms]
    smoothness: int
    weighted: bool
    exact: bool
    gradient_penalty: float | None = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or not callable(self.terms):
            raise MeasureError(
                f"an Estimator needs a name and a function terms, got name={self.name!r} and terms={self.terms!r}"
            )
        if not isinstance(self.smoothness, int) or self.smoothness not in (0, 1):
            raise MeasureError(f"estimator {self.name!r}: smoothness must be 0 or 1, got {self.smoothness!r}")

    def check(self, space: Space, delta: float) -> None:
        """SpaceError if the class is not smooth enough, MeasureError for tests the estimator has not."""
        if space.smoothness < self.smoothness:
            raise SpaceError(
                f"estimator {self.name!r} needs a C1 class, and element {space.spatial.element!r} is only continuous: "
                "samples never fall on the faces, where the jumps of grad f carry the second derivatives, so they see "
                "another equation; use element='hermite' or 'B3', or estimator='corrected', which needs first "
                "derivatives only"
            )
        if delta and not self.weighted:
            raise MeasureError(f"estimator {self.name!r} is a least-squares problem without test functions: delta=0")


def doob(gradient_penalty: float | None = None) -> Estimator:
    """The estimator "doob" with a weight lambda of its gradient penalty, a time >= 0; None: `fit` chooses it.

    Raises MeasureError for a negative weight.
    """
    weight = gradient_penalty
    if weight is not None:
        weight = non_negative_number(weight, "gradient_penalty", MeasureError)
    terms = partial(_matching, weight or 0.0)
    return Estimator(name="doob", terms=terms, smoothness=0, weighted=False, exact=False, gradient_penalty=weight)


_REGISTERED = {
    row.name: row
    for row in (
        Estimator(name="generator", terms=generator, smoothness=1, weighted=True, exact=True),
        Estimator(name="weak", terms=weak, smoothness=0, weighted=True, exact=False),
        Estimator(name="increment", terms=increment, smoothness=0, weighted=True, exact=False),
        Estimator(name="corrected", terms=corrected, smoothness=0, weighted=True, exact=False),
        Estimator(name="regression", terms=regression, smoothness=0, weighted=False, exact=False),
        doob(),
        Estimator(name="residual", terms=residual, smoothness=1, weighted=False, exact=True),
    )
}
ESTIMATORS: Mapping[str, Estimator] = MappingProxyType(_REGISTERED)
"""All that are known by name; `register_estimator` adds to them."""


def register_estimator(estimator: Estimator) -> Estimator:
    """Make an estimator known by its name, and return it. Raises MeasureError if it is none, or its name is taken."""
    if not isinstance(estimator, Estimator):
        raise MeasureError(f"expected an Estimator, got {type(estimator).__name__}")
    if estimator.name in _REGISTERED:
        raise MeasureError(f"there is an estimator {estimator.name!r} already; give yours another name")
    _REGISTERED[estimator.name] = estimator
    return estimator


def find_estimator(given: str | Estimator) -> Estimator:
    """The estimator itself, or the one of this name. Raises MeasureError if there is none."""
    if isinstance(given, Estimator):
        return given
    return ESTIMATORS[one_of(given, "estimator", tuple(ESTIMATORS), MeasureError)]
