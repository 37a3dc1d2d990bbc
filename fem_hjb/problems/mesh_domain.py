"""The mesh a process lives in, is reflected or stopped in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, final

import numpy as np
import skfem
from numpy.typing import ArrayLike
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fem_hjb.problems.arcs import Arcs
from fem_hjb.problems.box import FACES, BoolArray, ExitReward
from fem_hjb.problems.cells import DIMENSION, closures, is_curved, locator_of, mesh_kind, sound_mesh
from fem_hjb.problems.facets import Facets
from fem_hjb.problems.locate import CellLocator
from fem_hjb.problems.patches import Patches
from fem_hjb.support.checks import FloatArray, IntArray, as_points, one_of
from fem_hjb.support.errors import ConvergenceError, DomainError
from fem_hjb.support.objects import Plain, read_only, short_repr

REFLECTING, ABSORBING, NATURAL = (FACES.index(word) for word in ("reflecting", "absorbing", "natural"))
_ON = 1e-9  # of the mesh's diameter: points this near to a facet lie on it
_FLAT = 1e-9  # likewise, for the corners of a quadrilateral facet to lie in a plane
_BOUNCES = 100  # at most in one step
_FARTHEST = 100.0  # diameters, that a step goes at most
_REACH = 5.0  # standard deviations of a step, and
_UNLIKELY = 10.0  # variances over the distance of its start: beyond, it meets no facet between two states


@final
@dataclass(frozen=True, eq=False, repr=False)
class MeshDomain(Plain):
    """The domain that the cells of a mesh cover, and what happens to a process at its boundary.

    As `ControlProblem.domain` it says where the process itself lives, like a `Box`, and `solve_on_mesh` solves on its
    mesh. The mesh is a scikit-fem mesh such as `load_mesh` makes, of cells with straight edges, or of triangles or
    tetrahedra of second order, at whose curved edges or faces the process is reflected or stopped; `boundary` is one
    word for all of its boundary, or a mapping of names in `mesh.boundaries` to words, in which None stands for all that
    has no name in the mapping:

    - "reflecting": normal reflection;
    - "absorbing": the process is stopped there, and collects `exit_reward` g(t, x), a callable (t, x) -> (...) like a
      running reward; None means 0;
    - "natural": no boundary, the process goes on beyond it, and only the mesh ends. Such a part must be all of a
      connected piece of the boundary (a rim, the surface of a hole): what bounds the process beyond it is not known
      otherwise.

    What a reward or coefficient depends on must be known in all of the domain. Paths in it are of weak order 1 in the
    step, see `sample_paths`. What is solved, and sampled, is what edges or faces enclose: a polygon or polyhedron, or
    what parabolas or quadratic patches do, whose distance from a smooth boundary falls with the cube of their length;
    that of parabolas with its fourth power if nodes are halfway.

    Raises `DomainError` for a mesh that is none or not sound (see `solve_on_mesh`), names and words that are not known,
    boundary facets with no word or with two, hexahedra with bent boundary faces, and an exit reward that is not
    callable or that no absorbing facet could pay.

    >>> square = skfem.MeshTri().with_boundaries({"left": lambda x: x[0] == 0.0})
    >>> domain = MeshDomain(square, {"left": "absorbing", None: "reflecting"})
    >>> domain.contains([[0.5, 0.5], [2.0, 0.5]]).tolist(), domain.exited([[0.0, 0.5], [1.0, 0.5]]).tolist()
    ([True, False], [True, False])
    """

    mesh: skfem.Mesh
    boundary: str | Mapping[str | None, str] = "reflecting"
    exit_reward: ExitReward | None = None
    dim: int = field(init=False)
    words: IntArray = field(init=False, repr=False)
    facets: IntArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        kind = mesh_kind(self.mesh, curved=True)
        sound_mesh(self.mesh, "the mesh of a MeshDomain")
        put = object.__setattr__
        mesh = replace(self.mesh, doflocs=self.mesh.p.copy(), t=self.mesh.t.copy())
        for array in (mesh.doflocs, mesh.t):
            array.setflags(write=False)
        put(self, "mesh", mesh)
        put(self, "dim", DIMENSION[kind])
        put(self, "facets", np.sort(np.asarray(mesh.boundary_facets(), dtype=np.int64)))
        if not isinstance(self.boundary, str):
            if not isinstance(self.boundary, Mapping):
                raise DomainError(
                    "MeshDomain: boundary must be one word, or a mapping of names in mesh.boundaries to words, got"
                    f" {type(self.boundary).__name__}"
                )
            put(self, "boundary", read_only(dict(self.boundary)))
        put(self, "words", _words(mesh, self.facets, self.boundary))
        for array in (self.facets, self.words):
            array.setflags(write=False)
        if self.exit_reward is not None and not callable(self.exit_reward):
            raise DomainError(
                f"MeshDomain: exit_reward must be a callable or None, got {type(self.exit_reward).__name__}"
            )
        if self.exit_reward is not None and not self.absorbing:
            raise DomainError(f"MeshDomain: exit_reward needs an absorbing facet, got boundary={self.boundary!r}")
        _check_natural(mesh.facets[:, self.facets], self.words)
        _ = self._pieces  # which refuses bent faces

    def __repr__(self) -> str:
        words = self.boundary if isinstance(self.boundary, str) else dict(self.boundary)
        return short_repr(self, {"mesh": self.place, "boundary": repr(words)})

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be made again."""
        made = {name for name, part in vars(type(self)).items() if isinstance(part, cached_property)}
        return {name: value for name, value in self.__dict__.items() if name not in made}

    @cached_property
    def bounds(self) -> tuple[FloatArray, FloatArray]:
        """Lower and upper corner, each (d,), of the box around the mesh."""
        p = self.mesh.p
        if self.curved:
            p = np.concatenate([p.T, self._shape(*self._pieces[:2], 0.0).extremes()]).T
        return p.min(axis=1), p.max(axis=1)

    @property
    def curved(self) -> bool:
        """Whether its edges may be curved."""
        return is_curved(self.mesh)

    @property
    def place(self) -> str:
        """Where it is, in words."""
        lower, upper = self.bounds
        cells = f"{self.mesh.t.shape[1]} {'curved ' if self.curved else ''}{mesh_kind(self.mesh, curved=True)} cells"
        return f"a mesh of {cells} within {lower.tolist()} to {upper.tolist()}"

    @property
    def absorbing(self) -> bool:
        """Whether any facet absorbs."""
        return self.has("absorbing")

    def has(self, word: str) -> bool:
        """Whether any facet is of this kind."""
        return bool((self.words == FACES.index(one_of(word, "MeshDomain: word", FACES, DomainError))).any())

    def contains(self, x: ArrayLike) -> BoolArray:
        """Whether the process may be at each point (..., d), shape (...): in the mesh, or beyond natural facets."""
        points = as_points(x, self.dim)
        flat = points.reshape(-1, self.dim)
        inside = self._locator(flat)[0] >= 0
        if self.has("natural") and not inside.all():
            _, _, facet = self._all.nearest(flat[~inside])
            inside[~inside] = self._piece_words[facet] == NATURAL
        return np.asarray(inside.reshape(points.shape[:-1]))

    def covers(self, x: ArrayLike) -> BoolArray:
        """Whether each point (..., d) lies in the mesh, shape (...)."""
        points = as_points(x, self.dim)
        inside = self._locator(points.reshape(-1, self.dim))[0] >= 0
        return np.asarray(inside.reshape(points.shape[:-1]))

    def exited(self, x: ArrayLike) -> BoolArray:
        """Whether each point (..., d) lies on or behind an absorbing facet, shape (...)."""
        points = as_points(x, self.dim)
        flat = points.reshape(-1, self.dim)
        gone = self.on("absorbing", flat)
        if self.absorbing:
            out = np.flatnonzero(~gone & (self._locator(flat)[0] < 0))
            if out.size:
                _, _, facet = self._all.nearest(flat[out])
                gone[out] = self._piece_words[facet] == ABSORBING
        return np.asarray(gone.reshape(points.shape[:-1]))

    def on(self, word: str, x: FloatArray) -> BoolArray:
        """Whether points (n, d) lie on facets of this kind, to rounding."""
        if not self.has(word):
            return np.zeros(len(x), dtype=np.bool_)
        return np.asarray(np.isfinite(self._of(word).nearest(x, _ON * self.diameter)[0]))

    def distance(self, word: str, x: FloatArray, within: ArrayLike = np.inf) -> FloatArray:
        """From points (n, d) to the nearest facet of this kind; inf if that is farther than `within`."""
        return self._of(word).nearest(x, within)[0] if self.has(word) else np.full(len(x), np.inf)

    def inside(self, x: ArrayLike) -> FloatArray:
        """Points (..., d), those outside moved: mirrored at the nearest facet, or onto it if it absorbs."""
        points = as_points(x, self.dim)
        flat = points.reshape(-1, self.dim)
        out = np.flatnonzero(~self.contains(flat))
        if not out.size:
            return points
        result = flat.copy()
        _, nearest, facet = self._all.nearest(flat[out])
        mirrored = 2.0 * nearest - flat[out]
        back = (self._piece_words[facet] == REFLECTING) & (self._locator(mirrored)[0] >= 0)
        result[out] = np.where(back[:, None], mirrored, nearest)
        return np.asarray(result.reshape(points.shape))

    def on_absorbing(self, x: FloatArray) -> list[FloatArray]:
        """The points of absorbing facets nearest to points (n, d), if there are such facets."""
        return [self._of("absorbing").nearest(x)[1]] if self.absorbing else []

    def moved(
        self, before: FloatArray, after: FloatArray, covariance: FloatArray | None, rng: np.random.Generator
    ) -> FloatArray:
        """Where steps (n, d) from `before`, inside, to `after` end: reflected, or stopped, at the facets they meet.

        covariance : of the steps (n, d, d): a step that has met no absorbing facet may have done so in between, and
            did with the chance of a Brownian bridge, exp(-2 p q / s^2) with p and q the distances of its ends from the
            nearest absorbing facet it sees, and s^2 the variance across it. None: there is no such facet.

        Steps whose start is on an absorbing facet end there. Raises ConvergenceError for steps that are much longer
        than the domain is wide.
        """
        new, start = after.copy(), before.copy()
        gone = self.on("absorbing", before)
        new[gone] = before[gone]
        active = np.flatnonzero(~gone)
        walls, words = self._walls
        stopped, bounced = gone.copy(), np.zeros(len(new), dtype=np.bool_)
        if (np.linalg.norm(new - start, axis=1) > _FARTHEST * self.diameter).any():
            raise ConvergenceError(f"steps are longer than {_FARTHEST:g} times the domain is wide; take more steps")
        for _ in range(_BOUNCES):
            if not active.size or not len(walls):
                break
            share, facet = walls.crossed(start[active], new[active])
            hit = facet >= 0
            active, facet = active[hit], facet[hit]
            at = start[active] + share[hit, None] * (new[active] - start[active])
            at, normal = walls.touched(at, facet)
            stops = words[facet] == ABSORBING
            new[active[stops]] = at[stops]
            stopped[active[stops]] = True
            active, at, normal = active[~stops], at[~stops], normal[~stops]
            new[active] -= 2.0 * ((new[active] - at) * normal).sum(axis=1, keepdims=True) * normal
            start[active] = at
            bounced[active] = True
        if active.size and len(walls):
            raise ConvergenceError(f"{active.size} steps are reflected more than {_BOUNCES} times; take more steps")
        lost = np.flatnonzero(bounced & ~stopped)
        if lost.size:
            lost = lost[~self.contains(new[lost])]  # by rounding, next to a corner
            new[lost] = start[lost]
        if covariance is not None and self.absorbing:
            self._stop_between(before, new, covariance, ~stopped, rng)
        return new

    def _stop_between(
        self, before: FloatArray, new: FloatArray, covariance: FloatArray, alive: BoolArray, rng: np.random.Generator
    ) -> None:
        """Move those of the states `new` whose step has left and come back to where it did."""
        absorbing = self._of("absorbing")
        widest = np.abs(covariance).sum(axis=2).max(axis=1)  # variance in any direction, at most
        p, start, _ = absorbing.nearest(before, _REACH * np.sqrt(widest))
        near = np.flatnonzero(alive & (p < np.inf) & (p > 0))
        q, end, _ = absorbing.nearest(new[near], _UNLIKELY * widest[near] / p[near])
        seen = q < np.inf
        near, q, end = near[seen], q[seen], end[seen]
        p, start = p[near], start[near]
        walls, words = self._walls
        _, first = walls.crossed(before[near], start)
        seen = (first < 0) | (words[first] == ABSORBING)  # others are behind a wall
        near, p, q, start, end = near[seen], p[seen], q[seen], start[seen], end[seen]
        normal = (start - before[near]) / p[:, None]
        variance = np.einsum("ni,nij,nj->n", normal, covariance[near], normal)
        met = rng.random(near.size) < np.exp(-2.0 * p * q / variance)
        if met.any():
            between = (q[met, None] * start[met] + p[met, None] * end[met]) / (p + q)[met, None]
            new[near[met]] = absorbing.nearest(between)[1]

    @property
    def diameter(self) -> float:
        """Of the box around it."""
        lower, upper = self.bounds
        return float(np.linalg.norm(upper - lower))

    @property
    def measures(self) -> FloatArray:
        """By which it is told from others: for each word, the size of these facets, and their centre; (3, 1 + d)."""
        size, moment = self._all.moments()
        rows = []
        for word in range(len(FACES)):
            held = self._piece_words == word
            total = size[held].sum()
            rows.append(np.concatenate([[total], moment[held].sum(axis=0) / max(total, 1e-300)]))
        return np.array(rows)

    def normals(self, word: str) -> tuple[FloatArray, FloatArray]:
        """Points on the facets of this kind, one on each flat piece, and outward unit normals there, each (m, d)."""
        return self._of(word).spots()

    @cached_property
    def _locator(self) -> CellLocator:
        return locator_of(self.mesh)

    @cached_property
    def _pieces(self) -> tuple[FloatArray, FloatArray, IntArray]:
        """Corners (m, d, d), outward normals (m, d) and words (m,) of flat pieces of the boundary; of curved ones the
        nodes (m, 3, 2) or (m, 6, 3), and on which side the domain is (m,)."""
        mesh = self.mesh
        if self.curved:
            return *_curved(mesh, self.facets), self.words
        vertices, words = mesh.facets[:, self.facets].T, self.words
        owner = mesh.f2t[0, self.facets]
        if vertices.shape[1] == 4:
            vertices = _halved(mesh.p, vertices, _FLAT * self.diameter)
            owner, words = np.tile(owner, 2), np.tile(words, 2)
        corners = np.ascontiguousarray(mesh.p.T[vertices])
        edges = corners[:, 1:] - corners[:, :1]
        if self.dim == 1:
            normals = np.ones((len(corners), 1))
        elif self.dim == 2:
            normals = edges[:, 0, ::-1] * [1.0, -1.0]
        else:
            normals = np.cross(edges[:, 0], edges[:, 1])
        normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)
        middle = mesh.p[:, mesh.t[:, owner]].mean(axis=1).T
        inward = ((corners[:, 0] - middle) * normals).sum(axis=1) < 0
        return corners, np.where(inward[:, None], -normals, normals), words

    @property
    def _piece_words(self) -> IntArray:
        return self._pieces[2]

    @property
    def _shape(self) -> type[Arcs | Patches]:
        """What curved pieces of the boundary are."""
        return Arcs if self.dim == 2 else Patches

    def _where(self, held: BoolArray) -> Facets:
        corners, normals, _ = self._pieces
        return (self._shape if self.curved else Facets)(corners[held], normals[held], 1e-12 * self.diameter)

    @cached_property
    def _all(self) -> Facets:
        return self._where(np.ones(len(self._piece_words), dtype=np.bool_))

    @cached_property
    def _walls(self) -> tuple[Facets, IntArray]:
        """All that the process does not pass, and the words."""
        held = self._piece_words != NATURAL
        return self._where(held), self._piece_words[held]

    @cached_property
    def _by_word(self) -> dict[str, Facets]:
        return {word: self._where(self._piece_words == k) for k, word in enumerate(FACES)}

    def _of(self, word: str) -> Facets:
        return self._by_word[word]


def _curved(mesh: skfem.Mesh, facets: IntArray) -> tuple[FloatArray, FloatArray]:
    """Nodes (m, 3, 2) or (m, 6, 3) of curved pieces of the boundary, and 1 where the domain is to the left of the edge,
    or the normal of the face points out of it, else -1 (m,): by where the other corner of their cell is, as curved
    cells are not turned inside out."""
    corners, cell = mesh.facets[:, facets], mesh.t[:, mesh.f2t[0, facets]]
    nodes = closures(mesh, corners).transpose(2, 1, 0)
    other = mesh.p.T[cell.sum(axis=0) - corners.sum(axis=0)] - nodes[:, 0]
    along = nodes[:, 1] - nodes[:, 0]
    if mesh.dim() == 2:
        side = along[:, 0] * other[:, 1] - along[:, 1] * other[:, 0]
    else:
        side = -(np.cross(along, nodes[:, 2] - nodes[:, 0]) * other).sum(axis=1)
    return np.ascontiguousarray(nodes), np.sign(side)


def _words(mesh: skfem.Mesh, facets: IntArray, boundary: str | Mapping[str | None, str]) -> IntArray:
    """The word of each boundary facet, as its place in FACES."""
    if isinstance(boundary, str):
        return np.full(facets.size, FACES.index(one_of(boundary, "MeshDomain: boundary", FACES, DomainError)))
    named = mesh.boundaries or {}
    known = ", ".join(map(repr, named)) or "none: give the boundary names with mesh.with_boundaries"
    found = np.full(facets.size, -1, dtype=np.int64)
    for name, word in boundary.items():
        code = FACES.index(one_of(word, f"MeshDomain: boundary[{name!r}]", FACES, DomainError))
        if name is None:
            continue
        if name not in named:
            raise DomainError(f"MeshDomain: the mesh has no boundary called {name!r}; its names are {known}")
        own = np.unique(np.asarray(named[name], dtype=np.int64))
        if not own.size:
            raise DomainError(f"MeshDomain: the boundary called {name!r} has no facets; leave it out, or look for them")
        within = np.setdiff1d(own, facets)
        if within.size:
            raise DomainError(
                f"MeshDomain: {within.size} of the {own.size} facets called {name!r} lie inside the mesh, the first is"
                f" number {within[0]}; only parts of the boundary can reflect or absorb"
            )
        at = np.searchsorted(facets, own)
        other = (found[at] >= 0) & (found[at] != code)
        if other.any():
            raise DomainError(
                f"MeshDomain: {int(other.sum())} facets called {name!r} are {FACES[found[at[other]][0]]!r} by another"
                f" name and {word!r} by this one; let names that share facets say the same"
            )
        found[at] = code
    if None in boundary:
        found[found < 0] = FACES.index(boundary[None])
    if (found < 0).any():
        lost = facets[found < 0]
        middle = mesh.p[:, mesh.facets[:, lost[0]]].mean(axis=1)
        raise DomainError(
            f"MeshDomain: boundary says nothing of {lost.size} of the {facets.size} boundary facets, the first is"
            f" number {lost[0]} around {middle.tolist()}; name them, or say what holds on all others with the key None"
            f" (the names of the mesh are {known})"
        )
    return found


def _check_natural(vertices: IntArray, words: IntArray) -> None:
    """DomainError if natural facets, of vertices (k, m), share a connected piece of the boundary with others."""
    k, m = vertices.shape
    links = coo_array(
        (np.ones(k * m), (np.tile(np.arange(m), k), vertices.ravel())), shape=(m, int(vertices.max()) + 1)
    )
    _, piece = connected_components(links @ links.T, directed=False)
    natural = np.bincount(piece, words == NATURAL)
    mixed = (natural > 0) & (natural < np.bincount(piece))
    if mixed.any():
        raise DomainError(
            f"MeshDomain: on {int(mixed.sum())} connected pieces of the boundary some facets are natural and others are"
            " not, so that nobody knows what bounds the process beyond the natural ones; extend the mesh to where the"
            " process does not go and let it reflect there, or make all of the piece natural"
        )


def _halved(p: FloatArray, quads: IntArray, slack: float) -> IntArray:
    """Two triangles of each of the flat convex quadrilaterals (m, 4), whose vertices are in any order: (2 m, 3)."""
    a, *others = np.moveaxis(p.T[quads], 1, 0)
    b, c, d = (x - a for x in others)
    normal = np.cross(b, c)
    height = np.abs((d * normal).sum(axis=1)) / np.linalg.norm(normal, axis=1)
    if (height > slack).any():
        raise DomainError(
            f"MeshDomain: {int((height > slack).sum())} boundary faces of the hexahedra are bent, by up to"
            f" {height.max():.3g}, so that paths cannot be reflected or stopped at them; use flat ones, or tetrahedra"
        )
    rows = np.arange(len(quads))
    sides = [(np.cross(v, u) * np.cross(v, w)).sum(axis=1) for v, u, w in ((b, c, d), (c, b, d), (d, b, c))]
    opposite = np.argmin(sides, axis=0) + 1  # the one that has the other two on its either side
    rest = np.array([[0, 0], [2, 3], [1, 3], [1, 2]])[opposite]
    ends = [np.stack([quads[:, 0], quads[rows, opposite], quads[rows, rest[:, i]]], axis=1) for i in (0, 1)]
    return np.concatenate(ends)
