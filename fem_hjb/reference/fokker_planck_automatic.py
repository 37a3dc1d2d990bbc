"""Boxes and grids that resolve a density: solved, looked at, and solved again on better ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np

from fem_hjb.paths.extent import checked_box, truncation_box
from fem_hjb.problems.box import BoolArray, Box
from fem_hjb.problems.laws import Law
from fem_hjb.problems.problem import ControlProblem, LinearDrift
from fem_hjb.reference.faces import check_faces, endless, face_values
from fem_hjb.reference.fokker_planck_box import on_box
from fem_hjb.reference.fokker_planck_start import Begin, March, begin_of
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine
from fem_hjb.support.checks import FloatArray

_DEGREE, _CELLS, _MOST_NODES = {1: 16, 2: 12, 3: 10}, {1: 6, 2: 5, 3: 4}, {1: 769, 2: 193, 3: 81}
_GRADED = 0.3  # of the half-width of a box: where cells begin to grow towards truncated faces
_FACE = 1e-14  # of the maximum: what the density may be at a face that is a truncation
_ROUGH = 10.0  # rtol: what the highest coefficients may be; errors in time are seen in them, too
_PASSES = 8


@final
@dataclass(eq=False)
class _Grids:
    """A box to be cut into spectral elements, equal ones along axes with faces that are none of truncation.

    Others are of one size within about `width` of the point, or of the middle, and grow with the distance beyond.
    """

    lower: FloatArray
    upper: FloatArray
    cells: FloatArray  # per axis
    degree: int
    truncated: BoolArray  # faces (2, d)
    point: FloatArray | None  # where the process starts, if at one
    width: FloatArray | None  # and then, of its first density

    def basis(self) -> SpectralBasis:
        lines = []
        for k, m in enumerate(self.cells.astype(np.int64)):
            low, high = self.lower[k], self.upper[k]
            grid = np.linspace(low, high, m + 1)
            if self.point is not None or self.truncated[:, k].all():
                centre = (low + high) / 2 if self.point is None else self.point[k]
                finest = _GRADED * (high - low) / 2 if self.width is None else self.width[k]
                ends = np.arcsinh(np.array([low - centre, high - centre]) / finest)
                grid[1:-1] = centre + finest * np.sinh(np.linspace(ends[0], ends[1], m + 1)[1:-1])
            lines.append(SpectralLine(grid, self.degree))
        return SpectralBasis(lines)

    def refine(self, factors: FloatArray) -> bool:
        """More cells by these factors, as far as allowed; whether there are more now."""
        most = (_MOST_NODES[self.cells.size] - 1) // self.degree
        before = self.cells
        self.cells = np.where(factors > 1, np.minimum(np.ceil(before * factors), most), before)
        return bool((self.cells > before).any())

    def widen(self, faces: FloatArray, out: BoolArray) -> bool:
        """Move out the faces (2, d) marked, at which the density is that of `faces`; whether there are such."""
        far = np.clip(np.sqrt(np.log(_FACE) / np.log(np.clip(faces, _FACE, 0.1))), 1.05, 1.5)  # as for a Gaussian
        moves = np.where(out, (far - 1.0) * (self.upper - self.lower) / 2, 0.0)
        if self.point is None:
            self.cells = np.ceil(self.cells * (1.0 + moves.sum(axis=0) / (self.upper - self.lower)) - 1e-9)
        self.lower, self.upper = self.lower - moves[0], self.upper + moves[1]
        return bool(out.any())


def on_automatic_box(
    problem: ControlProblem, box: Box | None, rtol: float, tell: Callable[[float], None]
) -> tuple[Begin, March, list[str]]:
    """Solve, look at faces and highest coefficients, and again on a better grid; and what is still amiss.

    What neither a wider box nor smaller cells make smaller is the error in time, or rounding, and is left.
    """
    begin, d = begin_of(problem, None), problem.dim
    lower, upper = (corner.copy() for corner in _box(problem, box).bounds)
    cells = np.full(d, float(_CELLS[d]))
    point = width = None
    if begin.early is not None:
        point, width = problem.initial_law.expectation, np.sqrt(np.diag(begin.law.covariance))
        cells = np.ceil(sum(np.arcsinh(np.abs(corner - point) / width) for corner in (lower, upper)))
    truncated = endless(problem)
    grids = _Grids(lower, upper, cells, _DEGREE[d], truncated, point, width)
    movable = truncated & (box is None)
    faces_before, tails_before = np.full((2, d), np.inf), np.full(d, np.inf)
    for _ in range(_PASSES):
        basis = _resolving(begin.law, grids, movable, rtol)
        march = on_box(problem, basis, begin, rtol, tell)
        ends = march.rows[:: march.line.degree]  # of the cells in time: free of interpolation
        faces, tails = face_values(basis, ends), tails_of(basis, ends)
        out = movable & (faces > _FACE) & (faces < 0.5 * faces_before)
        factors = np.where(tails < 0.5 * tails_before, _factors(tails, _ROUGH * rtol, grids.degree), 1.0)
        if not grids.widen(faces, out) | grids.refine(factors):
            break
        faces_before, tails_before = faces, np.where(factors > 1, tails, tails_before)
    if tails.max() <= _ROUGH * rtol:
        return begin, march, []
    return begin, march, [f"the density is resolved to {tails.max():.1e} of its maximum only, not {rtol:.1e}"]


def _resolving(law: Law, grids: _Grids, movable: BoolArray, rtol: float) -> SpectralBasis:
    """A basis that resolves the initial law, which is cheap to look at, if possible."""
    for _ in range(_PASSES):
        basis = grids.basis()
        p = np.exp(law.logpdf(basis.nodes))[None]
        if not p.any():
            if not grids.refine(np.full(basis.dim, 2.0)):
                return basis
            continue
        faces = face_values(basis, p)
        if grids.widen(faces, movable & (faces > _FACE)):
            continue
        if not grids.refine(_factors(tails_of(basis, p), rtol, grids.degree)):
            return basis
    return basis


def _box(problem: ControlProblem, box: Box | None) -> Box:
    if box is None:
        gaussian = isinstance(problem.drift, LinearDrift)  # tails: start with 8 standard deviations
        return truncation_box(problem, margin=0.6 if gaussian else 0.3).box
    check_faces(problem, checked_box(problem, box), ~endless(problem))
    return box


def tails_of(basis: SpectralBasis, rows: FloatArray) -> FloatArray:
    """The largest of the highest Legendre coefficients along each axis (d,), relative to the maximum of its time."""
    values = (rows / np.abs(rows).max(axis=1, keepdims=True)).reshape(-1, *basis.shape)
    return np.array([line.modal_tail(values, k + 1).max() for k, line in enumerate(basis.lines)])


def _factors(tails: FloatArray, rtol: float, degree: int) -> FloatArray:
    """By how much more cells are needed."""
    return np.where(tails > rtol, np.clip(1.1 * (tails / rtol) ** (1 / degree), 1.2, 2.0), 1.0)
