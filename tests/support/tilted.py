"""What the tests of closed forms share: tilted mixture diffusions, each with its exact solution."""

import numpy as np

from fem_hjb.problems.laws import GaussianMixture
from fem_hjb.problems.mixtures import MixtureDiffusion, TiltedMixture
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.problems.rewards import LogSumExpReward

DATA = GaussianMixture([0.35, 0.65], [[-1.0, 0.2], [0.8, -0.5]], [[[0.3, 0.1], [0.1, 0.4]], [[0.5, -0.2], [-0.2, 0.3]]])
INDEFINITE = np.array([[0.8, 0.5], [-0.1, -0.3]])  # not symmetric either
COVS = np.array([[[0.4, 0.1], [0.1, 0.3]], [[0.6, -0.2], [-0.2, 0.5]], [[0.3, 0.0], [0.0, 0.8]]])
MEANS = np.array([[-1.0, 0.5], [0.8, 0.8], [0.3, -1.0]])
TARGETS = LogSumExpReward.log_mixture([0.5, 1.5, 0.7], MEANS, COVS, temperature=0.6)


def tilted_problem(reward, beta=(0.5, 3.0)):
    process = MixtureDiffusion(DATA, horizon=0.9, beta=beta)
    constant = process.constant_diffusion
    return ControlProblem(
        dim=2,
        horizon=0.9,
        temperature=reward.temperature,
        drift=process.drift,
        diffusion=process.diffusion_matrix if constant is None else constant,
        terminal_reward=reward,
        initial_law=process.marginal(0.0),
        exact=TiltedMixture(process, reward),
        marginal=process.marginal,
    )


TILTED = {
    "tilt-linear": tilted_problem(LogSumExpReward.linear([0.4, -0.6], s0=0.1, temperature=0.7)),
    "tilt-quadratic": tilted_problem(LogSumExpReward.quadratic(INDEFINITE, [0.4, 0.1], temperature=0.7), beta=1.7),
    "tilt-mixture": tilted_problem(TARGETS, beta=(3.0, 0.8)),
}
