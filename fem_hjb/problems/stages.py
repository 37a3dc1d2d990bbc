"""Rewards at times on the way, between 0 and T: t_i -> y_i, callables x (..., d) -> (...)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fem_hjb.problems.problem import ControlProblem, TerminalReward, checked_call
from fem_hjb.support.checks import FloatArray, finite_number, require
from fem_hjb.support.errors import ProblemError

Rewards = Mapping[float, TerminalReward]

_CLOSE = 1e-6  # of the horizon: times between which there is no stage
_WALL = (
    "; a constraint, -infinity outside of a set, is made finite: max(y, -c alpha) with c from 10 to 20 where other"
    " rewards are about 0: optimal paths are as good as those under it up to exp(-c)/f_0 in relative entropy"
    " (docs/theory.md, Walls)"
)


def checked_rewards(problem: ControlProblem, rewards: Any, asker: str) -> dict[float, TerminalReward]:
    """Rewards on the way in increasing time; ProblemError, which says who asked, if they are none."""
    require(rewards, Mapping, f"{asker}: rewards=", ProblemError, "; it maps times to callables of x")
    T = problem.horizon
    found: dict[float, TerminalReward] = {}
    for key, reward in rewards.items():
        t = finite_number(key, f"{asker}: a time of rewards", ProblemError)
        if not _CLOSE * T <= t <= T * (1.0 - _CLOSE):
            raise ProblemError(
                f"{asker}: times of rewards must lie between 0 and T={T:g}, got {t!r}; at T there is terminal_reward"
            )
        if not callable(reward):
            raise ProblemError(f"{asker}: the reward at t={t:g} must be a callable, got {type(reward).__name__}")
        found[t] = reward
    times = sorted(found)
    if len(times) < len(rewards) or (np.diff(times) < _CLOSE * T).any():
        raise ProblemError(
            f"{asker}: times of rewards must be more than {_CLOSE:g} T apart, got {times}; add up rewards of one time"
        )
    return {t: found[t] for t in times}


def paid(rewards: Rewards, t: float, x: FloatArray) -> FloatArray:
    """The reward at the time t, one of theirs, at points x (..., d): finite, shape (...)."""
    return checked_call(f"the reward at t={t:g}", rewards[t], (x,), (), walled=_WALL)
