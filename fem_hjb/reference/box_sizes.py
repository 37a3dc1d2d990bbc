"""What a value and its gradient are likely to reach at least, before anything is solved."""

import numpy as np

from fem_hjb.reference.box_faces import exit_rewards
from fem_hjb.reference.box_panel import Equation

NOTHING = 1e-12  # temperatures: a value below is none
FAINTEST = 1e-7  # temperatures, over the width of the box: the same of a gradient in the linear form
_FLAT = 1e-3  # of u, over the width of the box: a gradient of what has any sign below is none
_POINTS = 128  # at which rewards are looked at


def least_sizes(equation: Equation, guess: float, width: float, rng: np.random.Generator) -> tuple[float, float]:
    """Of the value and of its gradient in the metric: rewards differ that much in the box.

    Too large a guess is seen by the judge, and run again without it; a small one wastes work on what is nothing.

    guess : the part of the spread of rewards, over the width of the box, that a gradient is expected to reach.
    """
    problem, T = equation.problem, equation.problem.horizon
    low, high = equation.box.bounds
    if equation.payoff is not None:
        return np.finfo(float).tiny, max(guess, _FLAT) / width
    x = rng.uniform(low, high, (_POINTS, problem.dim))
    rewards = equation.left(x) + equation.gauge.guess(T, x)
    if problem.running_reward is not None:
        rewards = rewards + T * np.mean([problem.r(f * T, x) for f in (0.1, 0.5, 0.9)], axis=0)
    rewards = np.concatenate([rewards, *exit_rewards(equation, x)])
    spread = max(guess * float(np.ptp(rewards)), NOTHING * problem.temperature)
    if equation.linear:  # whose gradient has the rounding of u
        return np.finfo(float).tiny, max(-np.expm1(-spread / problem.temperature), FAINTEST) / width
    return NOTHING * problem.temperature, spread / width
