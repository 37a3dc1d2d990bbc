"""Curved edges of a boundary: which is nearest to a point, and which one a step leaves through first."""

import numpy as np
import pytest

from fem_hjb.problems.arcs import Arcs
from fem_hjb.problems.facets import Facets

U = np.linspace(0.0, 1.0, 1001)


def arcs(bent, count=30):
    """Random arcs, and points (count, many, 2) along them."""
    rng = np.random.default_rng(0)
    ends = rng.uniform(-1, 1, (count, 1, 2)) + 0.4 * rng.uniform(-1, 1, (count, 2, 2))
    middle = ends.mean(axis=1, keepdims=True) + bent * 0.2 * rng.uniform(-1, 1, (count, 1, 2))
    nodes = np.concatenate([ends, middle], axis=1)
    side = np.where(rng.random(count) < 0.5, -1.0, 1.0)
    u = U[:, None, None]
    x = (1 - u) * (1 - 2 * u) * nodes[:, 0] + u * (2 * u - 1) * nodes[:, 1] + 4 * u * (1 - u) * nodes[:, 2]
    return Arcs(nodes, side, 1e-12), nodes, side, x.swapaxes(0, 1), rng


@pytest.mark.parametrize("bent", [0.3, 3.0])
def test_the_nearest_arc_is_no_farther_than_any_point_of_any(bent):
    """However bent: there may be three places where the distance does not change."""
    found, _, _, along, rng = arcs(bent)
    x = rng.uniform(-1.5, 1.5, (60, 2))
    distance, point, facet = found.nearest(x)
    every = np.linalg.norm(along[:, None] - x[None, :, None], axis=3).min(axis=2)
    np.testing.assert_allclose(distance, every.min(axis=0), atol=1e-4)
    assert (distance <= every.min(axis=0) + 1e-14).all()
    np.testing.assert_array_equal(facet, every.argmin(axis=0))
    np.testing.assert_allclose(np.linalg.norm(point - x, axis=1), distance, atol=1e-15)
    on, normal = found.touched(point, facet)
    np.testing.assert_allclose(on, point, atol=1e-13)
    inner = np.abs(np.linalg.norm(point[:, None] - along[facet][:, [0, -1]], axis=2)).min(axis=1) > 1e-9
    aside = (normal * (x - point)).sum(axis=1) / distance
    np.testing.assert_allclose(np.abs(aside[inner]), 1.0, atol=1e-9)


@pytest.mark.parametrize("bent", [0.3, 3.0])
def test_the_first_arc_that_a_step_leaves_through(bent):
    """Against its intersections with polygons of a thousand sides; none where it enters."""
    found, _, side, along, rng = arcs(bent)
    start, end = rng.uniform(-1.5, 1.5, (2, 60, 2))
    share, facet = found.crossed(start, end)
    step = end - start
    across = step[:, ::-1] * [1.0, -1.0]
    off = np.einsum("mkd,nd->nmk", along, across) - (start * across).sum(axis=1)[:, None, None]
    low, high = off[..., :-1], off[..., 1:]
    at = along[None, :, :-1] + (low / (low - high))[..., None] * np.diff(along, axis=1)[None]
    s = np.einsum("nmkd,nd->nmk", at - start[:, None, None], step) / (step**2).sum(axis=1)[:, None, None]
    tangent = np.diff(along, axis=1)[:, :, ::-1] * [1.0, -1.0] * side[:, None, None]
    out = np.einsum("mkd,nd->nmk", tangent, step) > 0
    s = np.where((low * high < 0) & out & (s >= 0) & (s <= 1), s, np.inf).min(axis=2)
    np.testing.assert_allclose(share, s.min(axis=1), atol=1e-6)
    met = np.isfinite(share)
    assert 15 < met.sum() < 60
    np.testing.assert_array_equal(facet[met], s[met].argmin(axis=1))
    touched, normal = found.touched(start[met] + share[met, None] * step[met], facet[met])
    np.testing.assert_allclose(touched, start[met] + share[met, None] * step[met], atol=1e-12)
    assert ((normal * step[met]).sum(axis=1) > 0).all()


def test_straight_arcs_are_flat_pieces():
    _, nodes, side, _, rng = arcs(0.0)
    straight = np.concatenate([nodes[:, :2], nodes[:, :2].mean(axis=1, keepdims=True)], axis=1)
    found = Arcs(straight, side, 1e-12)
    flat = Facets(np.ascontiguousarray(straight[:, :2]), found.normals, 1e-12)
    start, end = rng.uniform(-1.5, 1.5, (2, 200, 2))
    for one, two in (
        (found.crossed(start, end), flat.crossed(start, end)),
        (found.nearest(start), flat.nearest(start)),
    ):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12)
    for a, b in zip(found.moments(), flat.moments(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13)


def test_lengths_and_what_is_farthest():
    found, _, _, along, _ = arcs(0.5)
    size, moment = found.moments()
    steps = np.linalg.norm(np.diff(along, axis=1), axis=2)
    np.testing.assert_allclose(size, steps.sum(axis=1), rtol=1e-5)
    middles = 0.5 * (along[:, 1:] + along[:, :-1])
    np.testing.assert_allclose(moment, np.einsum("mk,mkd->md", steps, middles), atol=1e-5)
    extremes = found.extremes()
    np.testing.assert_allclose(extremes.max(axis=0), along.max(axis=(0, 1)), atol=1e-6)
    np.testing.assert_allclose(extremes.min(axis=0), along.min(axis=(0, 1)), atol=1e-6)
