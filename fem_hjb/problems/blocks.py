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
from fem_hjb.support.checks import FloatArray, IntArray
from fem_hjb.support.errors import ProblemError
from fem_hjb.support.objects import Plain

Reward = Callable[[FloatArray], ArrayLike]
Block = tuple[int, ...]

_SPLITTABLE = (Gaussian, GaussianMixture, KernelDensity, PointMass, Uniform)
_PROBES = 256
_ENTRIES = 1 << 18  # of matrices in memory at once
_RELATIVE = 1e-11  # change that counts as rounding


def _splits(law: Law) -> bool:
    """Whether the law of some of the coordinates is known."""
    return isinstance(law, _SPLITTABLE) and not (isinstance(law, Uniform) and isinstance(law.box, MeshDomain))


def independent_blocks(problem: ControlProblem) -> list[Block]:
    """The groups of coordinates, in order; one group of all of them if nothing falls apart."""
    d = problem.dim
    if d == 1 or isinstance(problem.domain, MeshDomain) or (problem.domain is not None and problem.domain.absorbing):
        return [tuple(range(d))]
    if not _splits(problem.initial_law):
        return [tuple(range(d))]
    x, y = scattered(problem, _PROBES, 0), scattered(problem, _PROBES, 1)
    return _linked(problem, [(t, x, y) for t in instants(problem.horizon)], np.zeros((d, d), dtype=np.bool_))


def joined(problem: ControlProblem, blocks: Sequence[Block], t: FloatArray, x: FloatArray) -> list[Block]:
    """The groups again, those together that hang together where the process goes: at draws x (k, n, d), times t (k, n).

    Some groups of a draw, chosen by lot, are those of another draw next to it. Drift and diffusion of each group are
    then what they are at the draw that it is from, and rewards at what was chosen and at the rest add up as before.
    """
    if len(blocks) < 2:
        return list(blocks)
    d = problem.dim
    t, one, other = t.ravel(), x.reshape(-1, d), np.roll(x, 1, axis=1).reshape(-1, d)
    group = np.empty(d, dtype=np.int64)
    for k, block in enumerate(blocks):
        group[list(block)] = k
    moved = np.random.default_rng(0).random((len(t), len(blocks))) < 0.5  # the same draws, the same groups
    wrong = np.zeros(len(t), dtype=np.bool_)
    for first in range(0, len(t), max(1, _ENTRIES // d**2)):
        part = slice(first, first + max(1, _ENTRIES // d**2))
        wrong[part] = _mixed(problem, group, moved[part], t[part], one[part], other[part])
    places = np.flatnonzero(wrong)
    if places.size == 0:
        return list(blocks)
    places = places[:: -(-places.size // _PROBES)]
    known = np.asarray(group[:, None] == group)
    found = _linked(problem, [(t[places], one[places], other[places])], known)
    return found if len(found) < len(blocks) else [tuple(range(d))]  # whatever it is, they are not independent


def _mixed(
    problem: ControlProblem,
    group: IntArray,
    moved: BoolArray,
    t: FloatArray,
    x: FloatArray,
    y: FloatArray,
) -> BoolArray:
    """At which of n places the groups of two draws x, y (n, d) feel each other; moved (n, k): which are exchanged."""
    swapped = moved[:, group]
    some, rest = np.where(swapped, y, x), np.where(swapped, x, y)
    noise = np.sqrt(np.diagonal(problem.Lambda(t, x), axis1=1, axis2=2).max(axis=0))
    b, speed = [problem.b(t, z) for z in (x, y, some)], noise / np.sqrt(problem.horizon)
    speed = np.maximum(speed, np.abs(b[0]).max(axis=0))
    wrong = (np.abs(b[2] - np.where(swapped, b[1], b[0])) > _RELATIVE * speed).any(axis=1)
    pairs, apart = noise[:, None] * noise, group[:, None] != group
    if problem.constant_diffusion is None:
        Lambda = [problem.Lambda(t, z) for z in (x, y, some)]
        own = np.where(apart, 0.0, np.where(swapped[:, :, None], Lambda[1], Lambda[0]))
        wrong |= (np.abs(Lambda[2] - own) > _RELATIVE * pairs).any(axis=(1, 2))
    for function in (problem.y, lambda z: problem.r(t, z)):
        values = np.stack([np.asarray(function(z)) for z in (x, y, some, rest)])
        wrong |= np.abs(values[0] + values[1] - values[2] - values[3]) > 10 * _RELATIVE * np.abs(values).max()
    return np.asarray(wrong)


def _linked(
    problem: ControlProblem, places: Sequence[tuple[ArrayLike, FloatArray, FloatArray]], linked: BoolArray
) -> list[Block]:
    """The groups that hang together by what is known (d, d), and at places: a time, or times (n,), and x, y (n, d)."""
    d = problem.dim
    linked = linked.copy()
    for t, x, y in places:
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
    for t, x, y in places:
        for function in (problem.y, partial(problem.r, t)):
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


def alike(one: ControlProblem, other: ControlProblem, *draws: tuple[FloatArray, FloatArray]) -> bool:
    """Whether two groups have the same problem: the same coefficients and rewards at random points, to rounding.

    draws : times (k, n) and points (k, n, d) of the process, to look at, too.
    """
    if one.dim != other.dim:
        return False
    boxes = [np.zeros(0) if p.box is None else np.stack(p.box.bounds) for p in (one, other)]
    if not np.array_equal(boxes[0], boxes[1]):
        return False
    x = scattered(one, _PROBES, 0)
    if not np.array_equal(x, scattered(other, _PROBES, 0)):
        return False
    pairs = []
    for t, points in (*((t, x) for t in instants(one.horizon)), *draws):
        pairs += [(getattr(one, name)(t, points), getattr(other, name)(t, points)) for name in ("b", "Lambda", "r")]
        pairs.append((one.y(points), other.y(points)))
    return all(bool((np.abs(a - b) <= 1e-13 * np.abs(a).max()).all()) for a, b in pairs)


def _replace(x: FloatArray, y: FloatArray, index: Sequence[int]) -> FloatArray:
    moved = x.copy()
    moved[:, list(index)] = y[:, list(index)]
    return moved


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
