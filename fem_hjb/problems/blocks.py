"""Problems that fall apart into independent ones: which coordinates go together, and the problem of each group.

If the drift of a group depends on the group alone, the diffusion is block diagonal in the same way, and the rewards are
sums over the groups, then so is the value: v_t(x) = sum_B v^B_t(x_B). What depends on what is seen by probing the
callables at random points.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from fem_hjb.problems.box import BoolArray, Box
from fem_hjb.problems.kernels import KernelDensity
from fem_hjb.problems.laws import Gaussian, GaussianMixture, Law, MarginalLaw, PointMass, Uniform
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.problems.probing import instants, scattered
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ProblemError
from fem_hjb.support.objects import Plain

Reward = Callable[[FloatArray], ArrayLike]

_SPLITTABLE = (Gaussian, GaussianMixture, KernelDensity, PointMass, Uniform)
_PROBES = 256
_RELATIVE = 1e-11  # change that counts as rounding


def _splits(law: Law) -> bool:
    """Whether the law of some of the coordinates is known."""
    return isinstance(law, _SPLITTABLE) and not (isinstance(law, Uniform) and isinstance(law.box, MeshDomain))


def independent_blocks(problem: ControlProblem) -> list[tuple[int, ...]]:
    """The groups of coordinates, in order; one group of all of them if nothing falls apart."""
    d = problem.dim
    if d == 1 or isinstance(problem.domain, MeshDomain) or (problem.domain is not None and problem.domain.absorbing):
        return [tuple(range(d))]
    if not _splits(problem.initial_law):
        return [tuple(range(d))]
    x, y = scattered(problem, _PROBES, 0), scattered(problem, _PROBES, 1)
    linked = np.zeros((d, d), dtype=np.bool_)
    for t in instants(problem.horizon):
        base = problem.b(t, x), problem.Lambda(t, x)
        noise = np.sqrt(np.diagonal(base[1], axis1=1, axis2=2).max(axis=0))  # each coordinate in a unit of its own
        pairs = noise[:, None] * noise
        speed = np.maximum(np.abs(base[0]).max(axis=0), noise / np.sqrt(problem.horizon))
        linked |= (np.abs(base[1]) > _RELATIVE * pairs).any(axis=0)
        for j in range(d):
            moved = _replace(x, y, [j])
            drift = np.abs(problem.b(t, moved) - base[0]) > _RELATIVE * speed
            linked[:, j] |= drift.any(axis=0)
            diffusion = np.abs(problem.Lambda(t, moved) - base[1]) > _RELATIVE * pairs
            linked[:, j] |= diffusion.any(axis=(0, 2))
    groups = _components(linked)
    for function in (problem.y, *(_at(problem, t) for t in instants(problem.horizon))):
        linked |= _coupling(function, x, y, groups, d)
    return _components(linked)


def restrict(problem: ControlProblem, block: Sequence[int], count: int) -> ControlProblem:
    """The problem of one of `count` groups. What of the rewards is constant is shared equally."""
    index = list(block)
    group = _Group(problem=problem, index=index, share=1.0 - 1.0 / count)
    constant = problem.constant_diffusion
    marginal = problem.marginal
    known = marginal if marginal is not None and _splits(marginal(0.5 * problem.horizon)) else None
    domain = problem.box
    return ControlProblem(
        dim=len(index),
        horizon=problem.horizon,
        temperature=problem.temperature,
        drift=group.drift,
        diffusion=group.diffusion if constant is None else constant[np.ix_(index, index)],
        terminal_reward=group.terminal_reward,
        running_reward=None if problem.running_reward is None else group.running_reward,
        initial_law=coordinates(problem.initial_law, index),
        domain=None if domain is None else domain.along(index),
        marginal=None if known is None else partial(_marginal, known, index),
        name=problem.name if len(index) == problem.dim else f"{problem.name}{index}",
    )


@final
@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class _Group(Plain):
    """The coefficients of some coordinates, the others held at the mean of the initial law."""

    problem: ControlProblem
    index: list[int]
    share: float  # of the constant part of the rewards, left to the other groups

    def drift(self, t: ArrayLike, x: FloatArray) -> FloatArray:
        return self.problem.b(t, self._embed(x))[..., self.index]

    def diffusion(self, t: ArrayLike, x: FloatArray) -> FloatArray:
        return self.problem.Lambda(t, self._embed(x))[..., self.index, :][..., self.index]

    def terminal_reward(self, x: FloatArray) -> FloatArray:
        return self.problem.y(self._embed(x)) - self.share * self.problem.y(self._still(x))

    def running_reward(self, t: ArrayLike, x: FloatArray) -> FloatArray:
        return self.problem.r(t, self._embed(x)) - self.share * self.problem.r(t, self._still(x))

    def _still(self, x: FloatArray) -> FloatArray:
        return np.broadcast_to(self.problem.initial_law.expectation, (*x.shape[:-1], self.problem.dim)).copy()

    def _embed(self, x: FloatArray) -> FloatArray:
        full = self._still(x)
        full[..., self.index] = x
        return full


def _marginal(whole: MarginalLaw, index: Sequence[int], t: float) -> Law:
    return coordinates(whole(t), index)


def coordinates(law: Law, index: Sequence[int]) -> Law:
    """The law of some of the coordinates."""
    i = list(index)
    if isinstance(law, Gaussian):
        return Gaussian(law.expectation[i], law.covariance[np.ix_(i, i)])
    if isinstance(law, GaussianMixture):
        weights, means, covs = law.components
        return GaussianMixture(weights, means[:, i], covs[:, i][:, :, i])
    if isinstance(law, KernelDensity):
        weights, points = law.components
        return KernelDensity(points[:, i], law.bandwidth, weights)
    if isinstance(law, PointMass):
        return PointMass(law.expectation[i])
    if isinstance(law, Uniform) and isinstance(law.box, Box):
        return Uniform(law.box.along(i))
    raise ProblemError(f"the law of some coordinates of a {type(law).__name__} is not known in closed form")


def alike(one: ControlProblem, other: ControlProblem) -> bool:
    """Whether two groups have the same problem: the same coefficients and rewards at random points, to rounding."""
    if one.dim != other.dim:
        return False
    boxes = [np.zeros(0) if p.box is None else np.stack(p.box.bounds) for p in (one, other)]
    if not np.array_equal(boxes[0], boxes[1]):
        return False
    x = scattered(one, _PROBES, 0)
    if not np.array_equal(x, scattered(other, _PROBES, 0)):
        return False
    pairs = [(one.y(x), other.y(x))]
    for t in instants(one.horizon):
        pairs += [(getattr(one, name)(t, x), getattr(other, name)(t, x)) for name in ("b", "Lambda", "r")]
    return all(bool((np.abs(a - b) <= 1e-13 * np.abs(a).max()).all()) for a, b in pairs)


def _replace(x: FloatArray, y: FloatArray, index: Sequence[int]) -> FloatArray:
    moved = x.copy()
    moved[:, list(index)] = y[:, list(index)]
    return moved


def _at(problem: ControlProblem, t: float) -> Reward:
    return lambda x: problem.r(t, x)


def _coupling(function: Reward, x: FloatArray, y: FloatArray, groups: list[tuple[int, ...]], d: int) -> BoolArray:
    """Which groups a reward couples: its mixed differences between two groups do not vanish."""
    base = np.asarray(function(x))
    single = [np.asarray(function(_replace(x, y, group))) for group in groups]
    linked = np.zeros((d, d), dtype=np.bool_)
    for a in range(len(groups)):
        for b in range(a):
            both = np.asarray(function(_replace(x, y, [*groups[a], *groups[b]])))
            size = max(float(np.abs(part).max()) for part in (base, both, single[a], single[b]))
            if (np.abs(both - single[a] - single[b] + base) > 10 * _RELATIVE * size).any():
                linked[groups[a][0], groups[b][0]] = True
    return linked


def _components(linked: BoolArray) -> list[tuple[int, ...]]:
    _, label = connected_components(csr_array(linked), directed=False)
    groups: dict[int, list[int]] = {}
    for i, group in enumerate(label.tolist()):
        groups.setdefault(group, []).append(i)
    return [tuple(group) for group in groups.values()]
