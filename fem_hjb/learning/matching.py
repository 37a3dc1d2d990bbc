r"""Doob matching: regression with a gradient penalty, whose weight is chosen by cross-validation over trajectories.

Over the functions f of a class, with the Feynman-Kac labels of `estimators.regression`,

    min  int E[(f - label)^2] dt + E[(f_T - e^{y/alpha})^2] + lambda int E[grad f' Lambda grad f] dt:

a quadratic program. With the Gram matrices M of values and K of slopes under the samples, (M + lambda K) c = l; over a
convex set, the inequality with that form. Write K q = kappa M q for its modes. A mode of the projection f_reg (lambda =
0) is multiplied by 1/(1 + lambda kappa), hence

    bias^2 = sum (lambda kappa / (1 + lambda kappa))^2 <f*, q>^2,    noise^2 = sum (1 + lambda kappa)^{-2} var_q / n.

What it can: noise of steep modes, which is most of the noise of grad f and of the policy, is damped; the class may be
larger than regression can bear. What it cannot: flat modes (kappa < 1/lambda) keep their noise, of order n^{-1/2}
whatever the class, where that of "generator" vanishes at f*; and lambda costs a bias of first order in it, however
smooth f* is, so that smoothness beyond two derivatives is not made use of (saturation: Engl, Hanke and Neubauer,
Regularization of Inverse Problems, Kluwer 1996, section 4.2 and 5.1). It needs Lambda and the class, not the drift.

Source: Chang, Duan, Jiao, Xu and Yang, Inference-time alignment for diffusion models via Doob's matching, arXiv
2601.06514: gradient-penalised regression for h = f and grad log h, there for networks.
"""

from dataclasses import replace

import numpy as np
import scipy.sparse as sp

from fem_hjb.learning.estimators import Estimator, doob
from fem_hjb.learning.folds import FOLDS, average, fold_sources
from fem_hjb.learning.measures import Measure, check_space
from fem_hjb.learning.smoothing import default_smoothing
from fem_hjb.learning.solve_system import check_how, reduce_system
from fem_hjb.learning.system import Data, System, all_of_them, assemble_until
from fem_hjb.paths.simulate import Paths
from fem_hjb.paths.sources import PathSource
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import MeasureError
from fem_hjb.support.progress import Progress, unheard

WEIGHTS = (0.0, *np.logspace(-4.0, 0.0, 9).tolist())
"""The lambda that are tried, in units of the horizon: kappa is a rate."""


def choose_penalty(
    problem: ControlProblem,
    data: Data,
    space: Space,
    *,
    smoothing: float | None = None,
    ridge: float = 0.0,
    terminal: str = "penalty",
    outside: str = "error",
) -> Estimator:
    """`doob` with the lambda among `WEIGHTS` times T whose fits have the least squared error of held-out labels.

    Trajectories are dealt out to five folds, or as many as there are chunks: samples of one path, which share their
    label, are never in two of them. Under a law there is no noise, and lambda is 0. Arguments as those of `fit`, which
    does this for estimator="doob".

    Raises MeasureError for a `Measure` of samples, whose trajectories are not known, and for fewer than two of them.
    """
    return penalty_for(problem, data, space, smoothing, ridge, terminal, outside, unheard)


def penalty_for(
    problem: ControlProblem,
    data: Data,
    space: Space,
    smoothing: float | None,
    ridge: float,
    terminal: str,
    outside: str,
    tell: Progress,
) -> Estimator:
    """`choose_penalty`, of which `tell` hears, and which it may end."""
    if isinstance(data, Measure):
        if data.kind == "law":
            return doob(0.0)
        raise MeasureError(
            "the gradient penalty of 'doob' is chosen by cross-validation over trajectories, and a Measure of samples"
            " does not tell them apart: give Paths or a PathSource, or a penalty, estimator=fem_hjb.learning.doob(0.01)"
        )
    check_space(problem, space, "choose_penalty")
    check_how(terminal, 0.0 if smoothing is None else smoothing, ridge)
    if not isinstance(data, Paths | PathSource):
        raise MeasureError(f"expected Paths, a PathSource or a Measure, got {type(data).__name__}")
    parts = fold_sources(data, min(FOLDS, data.n if isinstance(data, Paths) else data.chunk_count))

    def alive(done: int, count: int) -> bool:
        tell(0.0)
        return all_of_them(done, count)

    systems = [assemble_until(problem, part, space, doob(1.0), 0.0, outside, None, None, alive) for part in parts]
    tell(0.5)
    return best_penalty(systems, np.array([float(part.n) for part in parts]), smoothing, ridge, terminal, tell)


def best_penalty(
    systems: list[System], sizes: FloatArray, smoothing: float | None, ridge: float, terminal: str, tell: Progress
) -> Estimator:
    """Of systems of the estimator doob(1), one for each fold of so many paths."""
    space, horizon = systems[0].space, systems[0].problem.horizon
    if smoothing is None:
        smoothing = default_smoothing("doob", space)
    risks = np.zeros(len(WEIGHTS))
    for k, held_out in enumerate(systems):
        rest = [j for j in range(len(systems)) if j != k]
        training = average([systems[j] for j in rest], sizes[rest] / sizes[rest].sum())
        plain = reduce_system(with_penalty(training, 0.0), terminal=terminal, smoothing=smoothing, ridge=ridge)
        slopes, scale = training.form - training.mass, sp.diags(1.0 / plain.root)
        pull = scale @ (slopes @ plain.coefficients)[plain.free]  # of the coefficients that are known
        slopes = (scale @ slopes[plain.free][:, plain.free] @ scale).tocsc()
        form, load = plain.inequality.form, plain.inequality.load
        for number, weight in enumerate(horizon * np.array(WEIGHTS)):
            tell(0.5 + 0.5 * (k + number / len(WEIGHTS)) / len(systems))
            penalised = replace(plain.inequality, form=form + weight * slopes)
            c = plain.whole(penalised.form_factors.solve(load - weight * pull))
            risks[number] += sizes[k] * float(c @ (held_out.mass @ c) - 2.0 * held_out.load @ c)
    return doob(WEIGHTS[int(np.argmin(risks))] * horizon)


def with_penalty(system: System, weight: float) -> System:
    """A system of the estimator doob(1) as that of doob(weight): the form is that of values and of slopes."""
    return replace(system, form=system.mass + weight * (system.form - system.mass), estimator=doob(weight))
