"""Curved faces of a boundary in space: which is nearest to a point, and which one a step leaves through first."""

import numpy as np
import pytest

from fem_hjb.problems.facets import Facets
from fem_hjb.problems.patches import Patches

CELLS = 30


def grid():
    """Parameters (k, 2) in a triangle, and small triangles (m, 3) of them."""
    number = {}
    for i in range(CELLS + 1):
        for j in range(CELLS + 1 - i):
            number[i, j] = len(number)
    up = [(number[i, j], number[i + 1, j], number[i, j + 1]) for i, j in number if i + j < CELLS]
    down = [(number[i + 1, j], number[i + 1, j + 1], number[i, j + 1]) for i, j in number if i + j < CELLS - 1]
    return np.array(list(number)) / CELLS, np.array(up + down)


W, SMALL = grid()


def patches(bent, count=20):
    """Random patches, and points (count, k, 3) of them."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(-1, 1, (count, 1, 3)) + 0.4 * rng.uniform(-1, 1, (count, 3, 3))
    middles = 0.5 * (corners[:, [0, 0, 1]] + corners[:, [1, 2, 2]])
    nodes = np.concatenate([corners, middles + bent * 0.2 * rng.uniform(-1, 1, (count, 3, 3))], axis=1)
    side = np.where(rng.random(count) < 0.5, -1.0, 1.0)
    u, v = W.T[:, :, None, None]
    s = 1 - u - v
    shapes = s * (2 * s - 1), u * (2 * u - 1), v * (2 * v - 1), 4 * s * u, 4 * s * v, 4 * u * v
    along = sum(shape * node for shape, node in zip(shapes, nodes.swapaxes(0, 1), strict=True))
    return Patches(nodes, side, 1e-12), nodes, side, along.swapaxes(0, 1), rng


@pytest.mark.parametrize("bent", [0.3, 3.0])
def test_the_nearest_patch_is_no_farther_than_any_point_of_any(bent):
    """However bent: patches may fold, and there may be many places where the distance does not change."""
    found, _, _, along, rng = patches(bent)
    x = rng.uniform(-1.5, 1.5, (60, 3))
    distance, point, facet = found.nearest(x)
    every = np.array([np.linalg.norm(along - one, axis=2).min(axis=1) for one in x])
    np.testing.assert_allclose(distance, every.min(axis=1), atol=2e-3 * max(bent**2, 1.0))
    assert (distance <= every.min(axis=1) + 1e-14).all()
    assert (every[np.arange(60), facet] - every.min(axis=1) < 5e-3).all()
    np.testing.assert_allclose(np.linalg.norm(point - x, axis=1), distance, atol=1e-15)
    on, _ = found.touched(point, facet)
    np.testing.assert_allclose(on, point, atol=1e-13)
    near = found.nearest(x, 0.5)
    some = distance <= 0.5
    np.testing.assert_allclose(near[0], np.where(some, distance, np.inf), atol=1e-15)
    np.testing.assert_array_equal(near[2], np.where(some, facet, -1))


@pytest.mark.parametrize("bent", [0.3, 3.0])
def test_the_first_patch_that_a_step_leaves_through(bent):
    """Against its intersections with nine hundred triangles each; none where it enters."""
    found, _, side, along, rng = patches(bent)
    start, end = rng.uniform(-1.5, 1.5, (2, 40, 3))
    aim = along[np.arange(20), SMALL[100:120].T].mean(axis=0)
    end[:20] = start[:20] + 1.7 * (aim - start[:20])
    share, facet = found.crossed(start, end)
    step, best = end - start, np.full((40, 20), np.inf)
    a, b, c = np.moveaxis(along[:, SMALL], 2, 0)
    normal = np.cross(b - a, c - a)
    for k in range(40):
        speed = normal @ step[k]
        s = ((a - start[k]) * normal).sum(axis=2) / speed
        at = start[k] + s[..., None] * step[k]
        inside = [(np.cross(q - p, at - p) * normal).sum(axis=2) >= 0 for p, q in ((a, b), (b, c), (c, a))]
        out = np.all(inside, axis=0) & (speed * side[:, None] > 0) & (s >= 0) & (s <= 1)
        best[k] = np.where(out, s, np.inf).min(axis=1)
    np.testing.assert_allclose(share, best.min(axis=1), atol=3e-3)
    met = np.isfinite(share)
    assert 10 < met.sum() < 40
    np.testing.assert_array_equal(facet[met], best[met].argmin(axis=1))
    touched, normal = found.touched(start[met] + share[met, None] * step[met], facet[met])
    np.testing.assert_allclose(touched, start[met] + share[met, None] * step[met], atol=1e-12)
    assert ((normal * step[met]).sum(axis=1) > 0).all()


def test_straight_patches_are_flat_pieces():
    _, nodes, side, _, rng = patches(0.0)
    found = Patches(nodes, side, 1e-12)
    flat = Facets(np.ascontiguousarray(nodes[:, :3]), found.normals, 1e-12)
    start, end = rng.uniform(-1.5, 1.5, (2, 200, 3))
    for one, two in (
        (found.crossed(start, end), flat.crossed(start, end)),
        (found.nearest(start), flat.nearest(start)),
    ):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)
    for a, b in zip(found.moments(), flat.moments(), strict=True):
        np.testing.assert_allclose(2.0 * a, b, atol=1e-13)  # flat pieces count for the parallelograms of their edges


def test_areas_and_what_is_farthest():
    found, _, _, along, _ = patches(0.5)
    size, moment = found.moments()
    a, b, c = np.moveaxis(along[:, SMALL], 2, 0)
    areas = 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=2)
    np.testing.assert_allclose(size, areas.sum(axis=1), rtol=2e-3)
    np.testing.assert_allclose(moment, np.einsum("mk,mkd->md", areas, (a + b + c) / 3), atol=1e-3)
    extremes = found.extremes()
    np.testing.assert_allclose(extremes.max(axis=0), along.max(axis=(0, 1)), atol=1e-4)
    np.testing.assert_allclose(extremes.min(axis=0), along.min(axis=(0, 1)), atol=1e-4)
