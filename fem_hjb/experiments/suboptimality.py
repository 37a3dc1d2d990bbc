r"""What a policy loses is of second order in its error, and three ways to find it out agree.

Brownian motion with the logarithm of a Gaussian mixture as reward, v* in closed form, and the policies
pi = pi* + eps g with g = sin(2x + 1) (1 - t/2) for several eps. For each, J(pi*) - J(pi) is

    1. the gap of a certificate (`certify`), from paths of pi, which knows neither v* nor pi*;
    2. (alpha/2) E^pi int |pi - pi*|^2_{Lambda^-1} dt under the law of pi, by the Fokker-Planck equation
       (`control_error`);
    3. E v*_0(X_0) - E J^pi_0(X_0), with J^pi from the linear backward equation of pi (`evaluate_policy`).

The controls: the same integral under the law of the optimal policy is another number where eps is large, and against a
wrong reference the loss is not of second order.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast, final

import numpy as np
from matplotlib.figure import Figure

from fem_hjb.evaluation.certify import certify
from fem_hjb.evaluation.control_error import control_error
from fem_hjb.evaluation.policy_value import evaluate_policy
from fem_hjb.experiments.trial import Claim, Trial, conclude, fitted_slope
from fem_hjb.plotting.pictures import STYLES
from fem_hjb.problems import zoo
from fem_hjb.problems.closed_form import LinearQuadratic
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.progress import Progress, part_of


@final
@dataclass(frozen=True, kw_only=True)
class Config:
    """errors : eps.  paths, steps : of the certificates.  rtol : of densities and of J^pi.  order : of Gauss rules.

    wrong : the factor of pi* in the reference of the control.  seed : of the first certificate; the others follow.
    """

    errors: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8)
    paths: int = 100_000
    steps: int = 128
    rtol: float = 1e-7
    order: int = 48
    wrong: float = 0.8
    seed: int = 0


QUICK = Config(errors=(0.2, 0.8), paths=4000, steps=32, rtol=1e-5)

_NEGLIGIBLE = 1e-11  # weight of a Gauss point, which may lie outside the box

_COLUMNS = ("eps", "certificate", "low", "high", "integral", "backward", "integral under P*", "wrong reference")


def run(config: Config, tell: Progress) -> Trial:
    """One row per policy."""
    started = time.perf_counter()
    ends = np.linspace(0.0, 1.0, len(config.errors) + 1).tolist()
    rows = [
        _row(config, eps, config.seed + k, part_of(tell, ends[k], ends[k + 1])) for k, eps in enumerate(config.errors)
    ]
    return conclude(config, _COLUMNS, rows, _claims(rows), started)


def _row(config: Config, eps: float, seed: int, tell: Progress) -> tuple[Any, ...]:
    problem = zoo.get("brownian-mixture", dim=1)
    exact = cast(LinearQuadratic, problem.exact)

    def policy(t: Any, x: FloatArray) -> FloatArray:
        return np.asarray(exact.policy(t, x) + eps * np.sin(2 * x + 1.0) * (1.0 - t / 2))

    found = certify(problem, policy, n=config.paths, steps=config.steps, rng=seed)
    tell(0.2)
    half = problem.horizon / 2  # the average is over time, and |.|^2 has a factor alpha

    def integral(reference: Any, under: str, done: float) -> float:
        loss = half * control_error(problem, policy, reference, under=under, rtol=config.rtol).value
        tell(done)
        return loss

    x, weights = problem.initial_law.quadrature(config.order)
    x, weights = x[weights > _NEGLIGIBLE], weights[weights > _NEGLIGIBLE]
    earned = evaluate_policy(problem, policy, rtol=config.rtol, progress=part_of(tell, 0.2, 0.4)).value(0.0, x)
    backward = float(weights @ (exact.value(0.0, x) - earned))
    wrong = _Scaled(exact, config.wrong)
    return (
        *(eps, found.gap.estimate, found.gap.low, found.gap.high, integral(exact, "policy", 0.6), backward),
        *(integral(exact, "optimal", 0.8), integral(wrong, "policy", 1.0)),
    )


@final
@dataclass(frozen=True)
class _Scaled:
    """A reference whose policy is a multiple of the optimal one."""

    of: LinearQuadratic
    factor: float

    def value(self, t: Any, x: Any) -> FloatArray:
        return self.factor * self.of.value(t, x)

    def gradient(self, t: Any, x: Any) -> FloatArray:
        return self.factor * self.of.gradient(t, x)


def _claims(rows: list[tuple[Any, ...]]) -> Iterator[Claim]:
    table = {name: np.array(column) for name, column in zip(_COLUMNS, zip(*rows, strict=True), strict=True)}
    eps, ways = table["eps"], ("certificate", "integral", "backward")
    for way in (*ways, "wrong reference"):
        slope = fitted_slope(eps, table[way]).value
        yield Claim(
            text=f"exponent of the loss, {way}", value=slope, low=1.85, high=2.15, control=way == "wrong reference"
        )
    apart = np.abs(table["backward"] / table["integral"] - 1.0)
    yield Claim(text="integral against backward equation, relative", value=float(apart.max()), low=0.0, high=1e-5)
    spread = np.abs(table["certificate"] - table["integral"]) / ((table["high"] - table["low"]) / 2)
    text = "certificate against the integral, in half-widths of its interval"
    yield Claim(text=text, value=float(spread.max()), low=0.0, high=1.6)
    off = abs(float(table["integral under P*"][-1] / table["integral"][-1]) - 1.0)
    text = "the largest error under the law of pi* instead, relative"
    yield Claim(text=text, value=off, low=0.0, high=1e-5, control=True)


def figure(trial: Trial) -> Figure:
    """The three losses against eps, and how far they are from each other."""
    made = Figure(figsize=(8.0, 3.0), layout="constrained")
    losses, apart = made.subplots(1, 2)
    eps, integral = trial.column("eps"), trial.column("integral")
    for style, way in zip(STYLES, ("certificate", "integral", "backward"), strict=False):
        losses.loglog(eps, trial.column(way), **style, label=way)
        if way != "integral":
            apart.loglog(eps, np.maximum(np.abs(trial.column(way) / integral - 1.0), 1e-12), **style, label=way)
    for panel, label in ((losses, r"$J(\pi^*) - J(\pi)$"), (apart, "relative distance to the integral")):
        panel.set_xlabel(r"error $\varepsilon$ of the policy")
        panel.set_ylabel(label)
        panel.legend()
    return made
