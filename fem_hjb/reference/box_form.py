"""Where and in which form a problem is solved on boxes: a given box, what is taken out, linear or value form."""

import numpy as np

from fem_hjb.paths.extent import checked_box
from fem_hjb.problems.box import Box
from fem_hjb.problems.gauge import UNDERFLOW, Gauge, QuadraticGauge, constant_gauge
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference.box_background import fields_at, quadratic_gauge, ranges
from fem_hjb.reference.faces import check_faces, moved_to_faces, truncated
from fem_hjb.spaces.axes import tensor_points
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError, DomainError

_SHALLOW = 3.0  # |log u| up to which the linear form is used on a bounded domain, where it is all separable
_FAINT = 1e-5  # temperatures: where rewards differ by less from place to place, grad u is lost in the rounding of u
_HELD = 30.0  # temperatures: what log u may range over where the linear form is to be used for rough rewards and faces
_FITTING = 1e-6  # temperatures: what exit rewards may differ by from the terminal reward on faces in the value form
_HIGHEST = 25.0  # temperatures, by which u on faces may exceed u inside, or rounding is all that is left there
_UNCOVERED = 0.01  # the fraction of the initial law that a box may leave out


def given_box(problem: ControlProblem, box: Box) -> Box:
    """The user's box, with the faces of problem.domain where it has some."""
    checked_box(problem, box)
    check_faces(problem, box, ~truncated(problem))
    domain = problem.box
    samples = problem.initial_law.sample(4096, np.random.default_rng(0))
    outside = 1.0 - float(box.contains(samples).mean())
    if outside > _UNCOVERED:
        raise DomainError(
            f"the box leaves out {outside:.1%} of the initial law of {problem.name!r}, at most {_UNCOVERED:.0%} is"
            f" allowed: it is {box.bounds[0].tolist()} to {box.bounds[1].tolist()}, samples of the law lie in"
            f" {samples.min(axis=0).tolist()} to {samples.max(axis=0).tolist()}; take a larger box"
        )
    if domain is None:
        return Box(*box.bounds, boundary="natural")
    return Box(*box.bounds, boundary=domain.boundary, exit_reward=domain.exit_reward)


def choose_form(
    problem: ControlProblem, box: Box, form: str | None, rough: bool = False
) -> tuple[Gauge | QuadraticGauge, bool, str]:
    """The background, whether the linear form is used, and why.

    rough : whether the running reward jumps in space: on a line exponentials of the linear form hold it exactly.
    """
    lower, upper = box.bounds
    lines = [np.linspace(a, b, 9 if problem.dim == 3 else 33) for a, b in zip(lower, upper, strict=True)]
    x = tensor_points(lines)
    times = np.linspace(0.0, problem.horizon, 9)
    constants = constant_gauge(problem, x, times)
    kinds = np.asarray(box.faces)
    ends_early = bool((kinds == "natural").any())
    # At a reflecting face d v/dn = 0, which d u/dn = 0 is only if nothing with a slope has been taken out.
    reflecting = bool((kinds == "reflecting").any())
    quadratic = quadratic_gauge(problem, box, constants) if ends_early and not reflecting else None
    candidates: list[Gauge | QuadraticGauge] = [constants] if quadratic is None else [quadratic, constants]
    fields = fields_at(problem, x, times)
    spreads = [ranges(problem, each, x, fields) for each in candidates]
    absorbing = problem.domain is not None and problem.domain.absorbing
    # Where u is large elsewhere, rounding is large against u where it is small.
    weight = 3.0 if absorbing or form == "linear" else 1.0
    paid = [_bonus(problem, each, x, times) for each in candidates]
    best = min(range(len(candidates)), key=lambda k: weight * (spreads[k][0] + paid[k]) + spreads[k][1])
    if quadratic is not None and leaves(problem, box, times):
        best = 0  # values are taken to be flat at such faces, which what a quadratic leaves of them nearly is
    above, below = spreads[best]
    fits = not ends_early and max(below, above) <= _SHALLOW and _steering(problem, x, times) > _FAINT
    name = "a quadratic" if isinstance(candidates[best], QuadraticGauge) else "constants"
    why = f"with {name} taken out, log f ranges over {below + above:.3g} temperatures at most"
    if absorbing:
        fitting = _misfit(problem, x) <= _FITTING
        return candidates[best], _linear_at_faces(form, above + below, below, paid[-1], fitting, why), why
    fits |= rough and problem.dim == 1 and above + below <= _HELD
    linear = form == "linear" or (form is None and fits)
    return candidates[best], linear, why


def _linear_at_faces(form: str | None, spread: float, below: float, paid: float, fitting: bool, why: str) -> bool:
    """Whether the linear form is used where faces absorb: unless rewards are far apart, and fit each other.

    spread, below : what log f ranges over, and by how much it may fall below 0.  paid : by how much exit rewards exceed
    all others. In temperatures.  fitting : whether exit rewards fit the terminal reward.
    """
    if form == "value" and not fitting:
        raise ConvergenceError(
            "the value form needs exit rewards that are finite and fit the terminal reward on absorbing faces; leave"
            " out form=, or use form='linear'"
        )
    impossible = ""
    if below > UNDERFLOW:
        impossible = f"{why}: too many for the linear form"
    elif paid > _HIGHEST:
        impossible = (
            f"the exit reward exceeds all other rewards by {paid:.3g} temperatures, the linear form holds {_HIGHEST:g}"
        )
    if impossible and (form == "linear" or not fitting):
        raise ConvergenceError(
            f"{impossible}, and the value form needs exit rewards that fit the terminal reward on absorbing faces;"
            f" {'leave out form=, or ' if fitting else ''}raise the temperature"
        )
    return form == "linear" or not (form == "value" or impossible or (fitting and spread > _HELD))


def _misfit(problem: ControlProblem, x: FloatArray) -> float:
    """The most by which exit and terminal rewards differ on absorbing faces, in temperatures; inf if some are inf."""
    gaps = [problem.exit_reward(problem.horizon, face) - problem.y(face) for face in moved_to_faces(problem, x)]
    every = np.abs(np.concatenate(gaps)) / problem.temperature
    return float(every.max()) if np.isfinite(every).all() else np.inf


def _steering(problem: ControlProblem, x: FloatArray, times: FloatArray) -> float:
    """By how many temperatures rewards differ from place to place."""
    rates = [float(np.ptp(problem.r(t, x))) for t in times.tolist()]
    return (float(np.ptp(problem.y(x))) + problem.horizon * max(rates)) / problem.temperature


def _bonus(problem: ControlProblem, background: Gauge | QuadraticGauge, x: FloatArray, times: FloatArray) -> float:
    """max (g - v0) / alpha on the absorbing faces, or 0."""
    above = [0.0] + [
        float((problem.exit_reward(t, face) - background.guess(t, face)).max())
        for face in moved_to_faces(problem, x)
        for t in times.tolist()
    ]
    return max(above) / problem.temperature


def leaves(problem: ControlProblem, box: Box, times: FloatArray) -> bool:
    """Whether the drift points out of the box somewhere on faces at which the process does not end."""
    cut = truncated(problem)
    lines = [np.linspace(low, high, 5) for low, high in zip(*box.bounds, strict=True)]
    for side, axis in np.argwhere(cut).tolist():
        face = [*lines[:axis], box.bounds[side][axis : axis + 1], *lines[axis + 1 :]]
        x = tensor_points(face)
        outwards = 1.0 if side else -1.0
        if any((outwards * problem.b(float(t), x)[:, axis] > 0).any() for t in times[::4]):
            return True
    return False
