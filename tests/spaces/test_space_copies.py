"""Classes of functions, pickled and deep-copied: the same bits, arrays still read-only, short to print."""

import copy
import pickle

import numpy as np
import pytest
import skfem

from fem_hjb.problems.box import Box
from fem_hjb.problems.cells import DIMENSION
from fem_hjb.problems.laws import Gaussian
from fem_hjb.spaces import (
    ELEMENTS,
    Envelope,
    GaussianQuadratic,
    HermiteCross,
    LineBasis,
    RandomFourier,
    Space,
    SpectralBasis,
    SpectralLine,
    SplineBasis,
    Union,
    box_mesh,
    spatial_basis,
)

DIMS = (1, 2, 3)


def box(dim):
    return Box([-1.0] * dim, [1.0] * dim)


def bases():
    """A small basis of every element on every kind of cell, and of every other kind there is."""
    for name, element in ELEMENTS.items():
        for kind in element.kinds:
            dim = DIMENSION[kind]
            yield f"{name}-{kind}", spatial_basis(box_mesh(box(dim), (3, 2, 2)[:dim], kind), name)
    yield "P2-disc", spatial_basis(skfem.MeshTri.init_circle(2), "P2")
    square = skfem.MeshQuad().refined(2)
    yield "Q2-bent", spatial_basis(skfem.MeshQuad(square.p * (1.0 + 0.1 * square.p[::-1]), square.t), "Q2")
    for dim in DIMS:
        law = Gaussian(0.1 * np.arange(dim), 0.5 * np.eye(dim))
        grid, eye = np.linspace(-1.0, 1.0, 4), np.eye(dim)
        cross, fourier = HermiteCross(law, 3), RandomFourier(law, 5, scale=2.0, rng=0)
        bumps = GaussianQuadratic(law.sample(4, np.random.default_rng(1)), eye, law=law)
        yield f"flat-{dim}", SplineBasis([grid] * dim, "B3", flat=True)
        yield f"spectral-{dim}", SpectralBasis([SpectralLine(grid, degree) for degree in (3, 2, 4)[:dim]])
        yield f"cross-{dim}", cross
        yield f"fourier-{dim}", fourier
        yield f"bumps-{dim}", bumps
        yield f"envelope of a union-{dim}", Envelope(Union(cross, fourier), 0.2 * eye, 0.1 * np.ones(dim))


def unpickled(thing):
    return pickle.loads(pickle.dumps(thing))


BASES = dict(bases())
each = pytest.mark.parametrize("basis", BASES.values(), ids=BASES)
either = pytest.mark.parametrize("again", [unpickled, copy.deepcopy], ids=["pickle", "deepcopy"])


def space_of(basis):
    smooth = basis.smoothness and basis.element in ("B2", "B3", "B4")
    return Space.product(LineBasis.uniform(1.0, 3, "B3" if smooth else "P2"), basis)


def everything(space):
    """What a space answers at a few points, by name."""
    rng = np.random.default_rng(0)
    basis = space.spatial
    coefficients = rng.standard_normal(space.shape)
    t, x = rng.random(9), rng.uniform(0.0, 0.5, (9, space.dim))
    which = ("value", "time", "gradient", *(["hessian"] if space.smoothness else []))
    found = {name: space.evaluate(coefficients, t, x, name) for name in which}
    cells, xi = basis.locate(x)
    found |= {"cells": cells, "xi": xi, "rows": basis.operator_rows(cells, xi, 1.0, np.ones(space.dim), None)}
    found |= {"interpolated": basis.interpolate(rng.standard_normal(len(basis.nodes)))}
    found |= {"at nodes": basis.at_nodes(coefficients)}
    if basis.kind != "unbounded":
        found |= {"projected": basis.project(lambda x: np.cos(x).sum(axis=-1)), "faces": basis.boundary_dofs()}
    return found


def held(thing, seen):
    """Every array that an object of this package holds, directly, in a tuple or in a part, by its path."""
    if isinstance(thing, np.ndarray):
        yield "", thing
    elif isinstance(thing, tuple | list):
        for i, part in enumerate(thing):
            yield from ((f"[{i}]{path}", array) for path, array in held(part, seen))
    elif type(thing).__module__.startswith("fem_hjb") and id(thing) not in seen:
        seen.add(id(thing))
        for name, part in vars(thing).items():
            yield from ((f".{name}{path}", array) for path, array in held(part, seen))


@either
@each
def test_a_copy_of_a_space_answers_with_the_same_bits(basis, again):
    space = space_of(basis)
    before = again(space)
    expected = everything(space)  # which leaves factors and search trees in the space
    for other in (before, again(space)):
        found = everything(other)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert (other.shape, other.horizon, other.smoothness) == (space.shape, space.horizon, space.smoothness)


@either
@each
def test_a_copy_of_a_space_shares_nothing_and_can_no_more_be_written_to(basis, again):
    space = space_of(basis)
    arrays = dict(held(space, set()))
    copies = dict(held(again(space), set()))
    assert copies.keys() == arrays.keys()
    frozen = [name for name, array in arrays.items() if not array.flags.writeable]
    assert {".spatial.nodes", ".spatial.cell_dofs", ".time.grid", ".time.cell_dofs"} <= set(frozen)
    for name in frozen:
        assert not copies[name].flags.writeable, name
        assert not np.shares_memory(copies[name], arrays[name]), name
        np.testing.assert_array_equal(copies[name], arrays[name])
    with pytest.raises(ValueError, match="read-only"):
        again(space).spatial.nodes[0] = 0.0


@each
def test_spaces_and_bases_are_short_to_print(basis):
    space = space_of(basis)
    lines = getattr(basis, "axes", ()) or getattr(basis, "lines", ())
    for thing in (space, basis, space.time, *lines):
        text = repr(thing)
        assert text.startswith(f"{type(thing).__name__}(")
        assert len(text.splitlines()) <= 5
        assert max(map(len, text.splitlines())) <= 120
    assert basis.element in repr(basis)
    assert str(space.n_dofs) in repr(space)
