"""Sums over samples against sparse products of explicit design matrices."""

import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp
import skfem

from fem_hjb.learning import samples, scatter
from fem_hjb.learning.forms import RATE_OF_CHANGE, VALUE, Integrands, Operator, residual
from fem_hjb.learning.gram import cell_sums, gram_sums, instant_sums, pair_sums
from fem_hjb.learning.moments import legendre_table, tensor_axes, tensor_sums
from fem_hjb.learning.samples import Located, operator_rows
from fem_hjb.learning.scatter import Scatter
from fem_hjb.learning.simplices import on_simplices, simplex_sums
from fem_hjb.problems.box import Box
from fem_hjb.problems.laws import Gaussian
from fem_hjb.spaces.features import HermiteCross, RandomFourier
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.meshes import box_mesh
from fem_hjb.spaces.space import Space, spatial_basis
from fem_hjb.spaces.tensor import HermiteBasis, SplineBasis
from fem_hjb.support.errors import MeasureError, SpaceError

TOLERANCE = 1e-12


def graded(cells, start=0.0, end=1.0):
    """A grid whose cells grow by half from one to the next."""
    grid = np.concatenate([[0.0], np.cumsum(1.5 ** np.arange(cells))])
    return start + (end - start) * grid / grid[-1]


def tensor_space(time, element, dim, cells=3, flat=False):
    grids = [graded(cells + k, -1.0 - k, 2.0) for k in range(dim)]
    basis = HermiteBasis(grids) if element == "hermite" else SplineBasis(grids, element, flat=flat)
    return Space.product(LineBasis(graded(3), time), basis)


def mesh_space(kind, element, cells, time="P2"):
    dim = {"line": 1, "tri": 2, "quad": 2, "tet": 3, "hex": 3}[kind]
    mesh = box_mesh(Box([-1.0] * dim, [2.0] * dim), (cells,) * dim, kind)
    return Space.product(LineBasis(graded(3), time), spatial_basis(mesh, element))


def bent_space(time):
    """Triangles whose edges are curved, but at the faces of the square."""
    mesh = skfem.MeshTri2.from_mesh(box_mesh(Box([-1.0, -1.0], [2.0, 2.0]), 3, "tri"))
    inner = np.setdiff1d(np.arange(mesh.p.shape[1]), mesh.dofs.get_facet_dofs(mesh.boundary_facets()).flatten())
    mesh.doflocs[:, inner] += np.random.default_rng(3).uniform(-0.08, 0.08, (2, inner.size))
    return Space.product(LineBasis(graded(3), time), spatial_basis(mesh, "P2"))


def dictionary_space(make):
    return Space.product(LineBasis(graded(3), "B2"), make(Gaussian([0.2, -0.1], 0.6)))


TENSOR = {
    "hermite x P2, 1-D": lambda: tensor_space("P2", "hermite", 1),
    "hermite x P4, 1-D": lambda: tensor_space("P4", "hermite", 1),
    "hermite x B3, 1-D": lambda: tensor_space("B3", "hermite", 1),
    "B2 x P3, 1-D": lambda: tensor_space("P3", "B2", 1),
    "B3 x B2, 1-D": lambda: tensor_space("B2", "B3", 1),
    "B4 x B4, 1-D": lambda: tensor_space("B4", "B4", 1, cells=5),
    "flat B3 x P2, 1-D": lambda: tensor_space("P2", "B3", 1, cells=4, flat=True),
    "hermite x P2, 2-D": lambda: tensor_space("P2", "hermite", 2),
    "B3 x B3, 2-D": lambda: tensor_space("B3", "B3", 2),
    "flat B2 x P1, 2-D": lambda: tensor_space("P1", "B2", 2, flat=True),
    "hermite x P1, 3-D": lambda: tensor_space("P1", "hermite", 3, cells=1),
    "B2 x B2, 3-D": lambda: tensor_space("B2", "B2", 3, cells=2),
}
MESHES = {
    "P2 on intervals": lambda: mesh_space("line", "P2", 4),
    "P3 on triangles": lambda: mesh_space("tri", "P3", 3),
    "Q2 on squares": lambda: mesh_space("quad", "Q2", 3, "P3"),
    "P1 on tetrahedra": lambda: mesh_space("tet", "P1", 2),
    "P2 on tetrahedra": lambda: mesh_space("tet", "P2", 1),
    "P2 on curved triangles": lambda: bent_space("P2"),
}
DICTIONARIES = {
    "waves, 2-D": lambda: dictionary_space(lambda law: RandomFourier(law, 9, scale=1.0, rng=0)),
    "polynomials, 2-D": lambda: dictionary_space(lambda law: HermiteCross(law, 3)),
}
SIMPLICES = [name for name in MESHES if name not in ("Q2 on squares", "P2 on curved triangles")]
ENGINE = {**dict.fromkeys(TENSOR, tensor_sums), **dict.fromkeys(SIMPLICES, simplex_sums)}
SPACES = TENSOR | MESHES | DICTIONARIES
SMALL = ["hermite x P2, 1-D", "flat B3 x P2, 1-D", "B3 x B3, 2-D", "P3 on triangles"]


def bounds(space):
    """Of the points: of the space's box, where it has one."""
    lower, upper = space.spatial.box.bounds
    return (lower, upper) if np.isfinite(lower).all() else (np.full(space.dim, -2.0), np.full(space.dim, 2.0))


def points(space, m, rng):
    """Times and points, crowded in one corner, some of them on the grid."""
    lower, upper = bounds(space)
    t = space.horizon * rng.uniform(0, 1, m) ** 2
    x = lower + (upper - lower) * rng.beta(1.2, 2.5, (m, space.dim))
    if np.isfinite(space.spatial.box.bounds).all():
        x[:5] = rng.choice(space.spatial.nodes, 5)
    t[5:10] = rng.choice(space.time.nodes, 5)
    return t, x


def random_operator(space, m, rng):
    """With all the coefficients the class allows, each of them absent, constant or one per point."""
    d = space.dim

    def draw(*shape, absent=None):
        kind = rng.choice(["absent", "constant", "varying"], p=[0.2, 0.3, 0.5])
        if kind == "absent":
            return absent
        return rng.standard_normal(shape if kind == "constant" else (m, *shape))

    value, rate = (draw(absent=0.0) for _ in range(2))
    hessian = draw(d, d) if space.smoothness else None
    if hessian is not None:
        hessian = hessian + np.swapaxes(hessian, -1, -2)
    numbers = [float(part) if np.ndim(part) == 0 else part for part in (value, rate)]
    return Operator(value=numbers[0], time=numbers[1], gradient=draw(d), mixed=draw(d), hessian=hessian)


def full_operator(space, m, rng):
    """All five coefficients, one per point."""
    hessian = rng.standard_normal((m, space.dim, space.dim))
    return Operator(
        value=rng.standard_normal(m),
        time=rng.standard_normal(m),
        gradient=rng.standard_normal((m, space.dim)),
        mixed=rng.standard_normal((m, space.dim)),
        hessian=hessian + hessian.swapaxes(1, 2) if space.smoothness else None,
    )


def design(space, t, x, operator):
    """The sparse matrix (m, n_dofs) of an operator applied to all basis functions, from their tables."""
    table = space.tabulate(t, x, 2 if space.smoothness else 1)
    m, d = x.shape
    phi, dphi = table.space[:2]

    def at_points(given, *shape):
        return np.zeros((m, *shape)) if given is None else np.broadcast_to(given, (m, *shape))

    now = at_points(operator.value)[:, None] * phi + np.einsum("mld,md->ml", dphi, at_points(operator.gradient, d))
    if operator.hessian is not None:
        now = now + np.einsum("mlij,mij->ml", table.space[2], at_points(operator.hessian, d, d))
    changing = at_points(operator.time)[:, None] * phi + np.einsum("mld,md->ml", dphi, at_points(operator.mixed, d))
    rows = np.einsum("ma,ml->mal", table.time[:, 0], now) + np.einsum("ma,ml->mal", table.time[:, 1], changing)
    entries = (rows.ravel(), (np.repeat(np.arange(m), space.local_size), space.cell_dofs(table.cells).ravel()))
    return sp.coo_matrix(entries, shape=(m, space.n_dofs)).tocsr()


def explicit(space, t, x, weights, products):
    """sum_p (P_p)' W (Q_p)."""
    total = sp.csr_matrix((space.n_dofs,) * 2)
    for test, trial in products:
        total = total + design(space, t, x, test).T @ sp.diags(weights) @ design(space, t, x, trial)
    return total


def explicit_load(space, t, x, weights, loads):
    return sum((design(space, t, x, test).T @ (weights * target) for test, target in loads), np.zeros(space.n_dofs))


def close(ours, expected, tolerance=TOLERANCE):
    assert abs(ours - expected).max() <= tolerance * abs(expected).max()


def random_case(space, m, seed=0):
    """Points, weights, three forms of several products and two loads."""
    rng = np.random.default_rng(seed)
    t, x = points(space, m, rng)
    ops = [full_operator(space, m, rng), *(random_operator(space, m, rng) for _ in range(4))]
    products = [[(ops[0], ops[1]), (ops[2], ops[3])], [(VALUE, VALUE)], [(ops[0], ops[0]), (ops[4], ops[0])]]
    shared = rng.standard_normal(m)
    loads = [(ops[2], rng.standard_normal(m)), (ops[0], shared), (Operator(value=shared), shared)]
    return t, x, rng.uniform(0, 2, m), products, loads


def summed(engine, space, t, x, weights, products, loads=()):
    return engine(space, Located.of(space, t, x), weights, Integrands.of(products, loads))


@pytest.mark.parametrize("name", SPACES)
def test_sums_are_products_of_design_matrices(name):
    space = SPACES[name]()
    t, x, weights, products, loads = random_case(space, 300 if space.local_size < 50 else 60)
    engines = [ENGINE[name], cell_sums] if name in ENGINE else [cell_sums]
    chosen = summed(gram_sums, space, t, x, weights, products, loads)
    assert type(chosen) is type(summed(engines[0], space, t, x, weights, products, loads))
    for engine in engines:
        sums = summed(engine, space, t, x, weights, products, loads)
        for ours, form in zip(sums.matrices(Scatter(space)), products, strict=True):
            close(ours, explicit(space, t, x, weights, form))
            assert abs(ours).max() > 0
        close(sums.load(), explicit_load(space, t, x, weights, loads))


@pytest.mark.parametrize("name", DICTIONARIES)
@pytest.mark.parametrize("doubles", [16, 1 << 21])
def test_samples_of_dictionaries_that_share_their_times(name, doubles, monkeypatch):
    """Instant by instant as one by one, with cells that no sample is in, and times on both sides of a grid point."""
    monkeypatch.setattr(samples, "_CHUNK_DOUBLES", doubles)
    space = SPACES[name]()
    m, rng = 320, np.random.default_rng(3)
    _, x, weights, products, loads = random_case(space, m)
    edge = space.time.points[1]
    every = space.horizon * np.array([0.02, 0.05, 0.7, 1.0])
    t = rng.permutation(np.concatenate([np.repeat(every, 60), np.repeat([edge, np.nextafter(edge, 0)], 40)]))
    products.append([(Operator(), products[0][0][0])])
    one, other = (summed(engine, space, t, x, weights, products, loads) for engine in (gram_sums, cell_sums))
    by_instant = summed(instant_sums, space, t, x, weights, products, loads)
    np.testing.assert_array_equal(one.local, by_instant.local)  # chosen, as 16 samples and more share a time
    close(one.load(), other.load())
    for ours, expected in zip(one.local[:-1], other.local[:-1], strict=True):
        close(ours, expected)
    assert not one.local[-1].any()
    close((one + other).load(), 2 * other.load())
    few = summed(gram_sums, space, *random_case(space, 100))
    np.testing.assert_array_equal(few.local, summed(cell_sums, space, *random_case(space, 100)).local)


@pytest.mark.parametrize("name", SPACES)
def test_rows_of_an_operator_at_points(name):
    space = SPACES[name]()
    rng = np.random.default_rng(1)
    t, x = points(space, 60, rng)
    at = Located.of(space, t, x)
    for operator in (full_operator(space, 60, rng), random_operator(space, 60, rng), RATE_OF_CHANGE, Operator()):
        coefficients = rng.standard_normal(space.n_dofs)
        ours = (operator_rows(space, at, operator) * coefficients[space.cell_dofs(at.cells)]).sum(axis=1)
        expected = design(space, t, x, operator) @ coefficients
        assert np.abs(ours - expected).max() <= TOLERANCE * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("engine", [tensor_sums, simplex_sums, cell_sums])
def test_each_coefficient_of_an_operator_matters_for_tests_and_for_trials(name, engine):
    """One at a time, against an operator with all of them; constant coefficients like equal ones at all points."""
    space = SPACES[name]()
    if engine not in (ENGINE[name], cell_sums):
        with pytest.raises(MeasureError, match=r"no tensor product of|no Lagrange elements on simplices"):
            engine(space, None, None, None)
        return
    m, rng = 80, np.random.default_rng(2)
    t, x = points(space, m, rng)
    weights, whole = rng.uniform(0, 1, m), full_operator(space, m, rng)
    for part in ("value", "time", "gradient", "mixed", "hessian"):
        given = getattr(whole, part)
        if given is None:
            continue
        constant = float(given[0]) if given.ndim == 1 else given[0]
        alone, same = Operator(**{part: given}), Operator(**{part: constant})
        repeated = Operator(**{part: np.repeat(given[:1], m, axis=0)})
        forms = [[(alone, whole)], [(whole, alone)], [(same, whole)], [(repeated, whole)]]
        found = summed(engine, space, t, x, weights, forms).matrices(Scatter(space))
        for ours, form in zip(found, forms, strict=True):
            close(ours, explicit(space, t, x, weights, form))
        close(found[2], found[3])


@pytest.mark.parametrize("name", SMALL)
def test_operators_with_nothing_in_them_sum_to_nothing(name):
    space = SPACES[name]()
    t, x, weights, products, _ = random_case(space, 40)
    nothing, one = Operator(gradient=np.zeros(space.dim), mixed=np.zeros((40, space.dim))), products[0][0][0]
    given = [[(Operator(), one)], [(one, nothing)], [], [(one, one), (nothing, one)]]
    found = summed(gram_sums, space, t, x, weights, given, [(nothing, weights)])
    matrices = found.matrices(Scatter(space))
    assert [matrix.nnz for matrix in matrices[:3]] == [0, 0, 0]
    close(matrices[3], explicit(space, t, x, weights, given[3]))
    assert not found.load().any()
    assert not summed(gram_sums, space, t, x, weights, given).load().any()


@pytest.mark.parametrize("name", SMALL)
def test_zeros_in_constant_coefficients_change_nothing(name):
    """As for a diagonal diffusion, where the mixed second derivatives drop out."""
    space = SPACES[name]()
    if not space.smoothness:
        return
    t, x, weights, _, _ = random_case(space, 70)
    drift = np.column_stack([x, x])[:, : space.dim]
    operator = residual(drift, np.diag(np.arange(1.0, space.dim + 1)), 0.0)
    matrices = summed(gram_sums, space, t, x, weights, [[(VALUE, operator)], [(operator, operator)]])
    for ours, pair in zip(matrices.matrices(Scatter(space)), [(VALUE, operator), (operator, operator)], strict=True):
        close(ours, explicit(space, t, x, weights, [pair]))


ENGINES = [
    *((name, engine) for name in SMALL for engine in (ENGINE[name], cell_sums)),
]


@pytest.mark.parametrize(("name", "engine"), ENGINES)
def test_sums_of_parts_add_up(name, engine):
    space = SPACES[name]()
    t, x, weights, products, loads = random_case(space, 200)
    whole = summed(engine, space, t, x, weights, products, loads)
    at, integrands, parts = Located.of(space, t, x), Integrands.of(products, loads), []
    for rows in (np.arange(50), np.arange(50, 51), np.arange(51, 200), np.arange(0)):
        parts.append(engine(space, at.take(rows), weights[rows], integrands.take(rows)))
    pattern = Scatter(space)
    for together in ((parts[0] + parts[1]) + parts[2], (parts[3] + parts[0] + parts[3]) + (parts[1] + parts[2])):
        for ours, expected in zip(together.matrices(pattern), whole.matrices(pattern), strict=True):
            close(ours, expected)
        close(together.load(), whole.load())
    assert abs(parts[0].matrices(pattern)[0] - whole.matrices(pattern)[0]).max() > 1e-3  # adding did not change it


@pytest.mark.parametrize(("name", "engine"), ENGINES)
@pytest.mark.parametrize(("block", "doubles", "local"), [(1, 16, 1), (4, 20_000, 5000)])
def test_sums_do_not_depend_on_how_they_are_streamed(name, engine, block, doubles, local, monkeypatch):
    space = SPACES[name]()
    case = random_case(space, 250)
    expected = summed(engine, space, *case)
    monkeypatch.setattr(samples, "_BLOCK", block)
    monkeypatch.setattr(samples, "_CHUNK_DOUBLES", doubles)
    monkeypatch.setattr(scatter, "_LOCAL_DOUBLES", local)
    found = summed(engine, space, *case)
    for ours, other in zip(found.matrices(Scatter(space)), expected.matrices(Scatter(space)), strict=True):
        close(ours, other)
    close(found.load(), expected.load())
    assert len(list(samples.chunks(np.arange(1000), 16))) == -(-1000 // max(block, doubles // 16))


@pytest.mark.parametrize(("name", "engine"), ENGINES)
def test_the_same_samples_give_the_same_bits(name, engine):
    space = SPACES[name]()
    case = random_case(space, 250)
    one, two = (summed(engine, space, *case) for _ in range(2))
    for ours, other in zip(one.matrices(Scatter(space)), two.matrices(Scatter(space)), strict=True):
        np.testing.assert_array_equal(ours.data, other.data)
        np.testing.assert_array_equal(ours.indices, other.indices)
    np.testing.assert_array_equal(one.load(), two.load())


@pytest.mark.parametrize("engine", [tensor_sums, cell_sums])
def test_samples_of_another_structure_are_refused(engine):
    space = SPACES["hermite x P2, 1-D"]()
    t, x, weights, products, loads = random_case(space, 20)
    sums, fewer = (summed(engine, space, t, x, weights, forms, loads) for forms in (products, products[:1]))
    with pytest.raises(MeasureError, match=r"only sums of the same forms .* operators are of other structure"):
        sums + fewer


def test_tensor_sums_refuse_another_constant_and_take_a_one_for_a_varying_coefficient():
    space = SPACES["hermite x P2, 1-D"]()
    t, x, weights, _, _ = random_case(space, 20)
    sums = {
        name: summed(tensor_sums, space, t, x, weights, [[(VALUE, Operator(value=value))]])
        for name, value in (("varying", weights), ("two", 2.0), ("one", 1.0))
    }
    with pytest.raises(MeasureError, match="operators are of other structure"):
        sums["two"] + sums["one"]
    with pytest.raises(MeasureError, match="only sums of the same forms"):
        sums["varying"] + sums["two"]
    (together,) = (sums["varying"] + sums["one"]).matrices(Scatter(space))
    close(together, explicit(space, t, x, weights**2 + weights, [(VALUE, VALUE)]))


def test_which_spaces_are_tensor_products():
    for name, make in SPACES.items():
        space = make()
        axes = tensor_axes(space)
        assert (axes is not None) == (name in TENSOR)
        if axes is not None:
            assert axes == (space.time, *space.spatial.axes)
        assert on_simplices(space) == (name in SIMPLICES)


def test_second_derivatives_of_lagrange_elements_are_refused():
    space = SPACES["P3 on triangles"]()
    t, x = points(space, 10, np.random.default_rng(0))
    curved = Operator(hessian=np.eye(2))
    with pytest.raises(SpaceError, match="only continuous: they have no second derivatives"):
        summed(gram_sums, space, t, x, np.ones(10), [[(VALUE, curved)]]).matrices(Scatter(space))


# ---------------------------------------------------------------------------------------------------------------------
# Pairs


def pair_case(space, m, seed=3):
    """Points and successors nearby, many of them in other cells."""
    rng = np.random.default_rng(seed)
    t, x = points(space, m, rng)
    lower, upper = bounds(space)
    then = np.clip(x + 0.3 * rng.standard_normal(x.shape), lower, upper)
    later = np.minimum(t + 0.2 * rng.uniform(0, 1, m), space.horizon)
    ops = [full_operator(space, m, rng), *(random_operator(space, m, rng) for _ in range(2)), VALUE]
    return (t, x), (later, then), rng.uniform(0, 2, m), [(ops[0], ops[3]), (ops[3], ops[1]), (ops[2], ops[0])]


def explicit_pairs(space, here, then, weights, products):
    total = sp.csr_matrix((space.n_dofs,) * 2)
    for test, trial in products:
        total = total + design(space, *here, test).T @ sp.diags(weights) @ design(space, *then, trial)
    return total


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("held", [1, 7, None])
def test_sums_over_pairs_are_products_of_design_matrices(name, held, monkeypatch):
    """held : how many pairs of cells fit into memory at once."""
    space = SPACES[name]()
    here, then, weights, products = pair_case(space, 150)
    if held:
        monkeypatch.setattr(scatter, "_LOCAL_DOUBLES", held * space.local_size**2)
        monkeypatch.setattr(samples, "_CHUNK_DOUBLES", 64 * 8 * space.local_size)
    expected = explicit_pairs(space, here, then, weights, products)
    for forms in ([products], [[product] for product in products]):
        found = pair_sums(space, Located.of(space, *here), Located.of(space, *then), weights, Integrands.of(forms))
        close(found, expected)
    none, integrands = np.arange(0), Integrands.of([products])
    nowhere = Located.of(space, *here).take(none)
    assert pair_sums(space, nowhere, nowhere, weights[none], integrands.take(none)).nnz == 0


# ---------------------------------------------------------------------------------------------------------------------
# Pieces


@pytest.mark.parametrize("name", SMALL)
def test_scatter_adds_local_matrices(name):
    space = SPACES[name]()
    rng, pattern = np.random.default_rng(4), Scatter(space)
    local = rng.standard_normal((space.n_cells, space.local_size, space.local_size))
    local[0] = 0.0
    expected, dofs = np.zeros((space.n_dofs,) * 2), space.cell_dofs()
    np.add.at(expected, (dofs[:, :, None], dofs[:, None, :]), local)
    half = space.n_cells // 2
    data = pattern.no_data()
    for cells in (slice(half, None), slice(0, half)):
        data += pattern.data(local[cells], cells)
    np.testing.assert_allclose(data, pattern.data(local), rtol=1e-13, atol=1e-13)
    matrix = pattern.matrix(data)
    np.testing.assert_allclose(matrix.toarray(), expected, atol=1e-13)
    assert matrix.has_sorted_indices
    assert (matrix.data != 0).all()
    assert matrix.nnz == np.count_nonzero(expected)  # what is in the first cell alone is not stored
    assert pattern.matrix(np.ones(data.size)).nnz == data.size  # nor does it disturb the pattern


@pytest.mark.parametrize(
    "counts",
    [[1], [1, 1, 1], [200], [1, 300, 2], [31, 32, 33], [64, 64]],
    ids=lambda counts: "-".join(map(str, counts)),
)
def test_run_products_sum_over_consecutive_rows(counts):
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((sum(counts), 2)), rng.standard_normal((sum(counts), 4))
    ends = np.cumsum(counts)
    expected = [left[e - n : e].T @ right[e - n : e] for n, e in zip(counts, ends, strict=True)]
    np.testing.assert_allclose(samples.run_products(np.array(counts), left, right), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", ["even", "uneven", "one cell", "many cells"])
@pytest.mark.parametrize(("block", "doubles"), [(1, 16), (4, 1000), (64, 1 << 21)])
def test_run_products_of_sorted_samples_are_the_blocks_of_a_sparse_product(kind, block, doubles, monkeypatch):
    monkeypatch.setattr(samples, "_BLOCK", block)
    monkeypatch.setattr(samples, "_CHUNK_DOUBLES", doubles)
    rng = np.random.default_rng(11)
    cells, n_cells = {
        "even": (rng.integers(0, 37, 4000), 37),
        "uneven": (  # one sample in most cells, thousands in a few, none in every third
            rng.permutation(np.concatenate([np.full(5000, 3), np.full(33, 600), rng.integers(0, 300, 150) * 3 + 1])),
            1000,
        ),
        "one cell": (np.full(777, 4), 9),
        "many cells": (rng.integers(0, 70_000, 3000), 70_000),  # more than 16 bits can number
    }[kind]
    left, right = rng.standard_normal((cells.size, 3)), rng.standard_normal((cells.size, 5))
    result, pieces = np.zeros((n_cells, 3, 5)), []
    for rows in samples.chunks(samples.sorted_order(cells, n_cells), 16):
        starts, counts = samples.runs(cells[rows])
        result[cells[rows][starts]] += samples.run_products(counts, left[rows], right[rows])
        pieces.append(rows)
    assert np.array_equal(np.sort(np.concatenate(pieces)), np.arange(cells.size))
    expected = np.zeros_like(result)
    np.add.at(expected, cells, left[:, :, None] * right[:, None, :])
    assert np.abs(result - expected).max() <= 1e-12 * np.abs(expected).max()
    assert not result[np.bincount(cells, minlength=n_cells) == 0].any()


@pytest.mark.parametrize("bound", [10, 1 << 16, (1 << 16) + 1, 1 << 40])
def test_sorted_order_keeps_equal_keys_in_order_up_to_the_largest_key(bound):
    keys = np.array([bound - 1, 3, 0, 3, bound - 1, 3, 0])
    assert samples.sorted_order(keys, bound).tolist() == [2, 6, 1, 3, 5, 0, 4]


def test_runs_of_equal_neighbours():
    starts, counts = samples.runs(np.array([4, 4, 7, 9, 9, 9]))
    assert starts.tolist() == [0, 2, 3]
    assert counts.tolist() == [2, 1, 3]


def test_legendre_tables_are_orthogonal_and_end_at_one():
    xi, weights = np.polynomial.legendre.leggauss(9)
    table = legendre_table((xi + 1) / 2, 9)
    np.testing.assert_allclose(table.T @ (table * weights[:, None]), np.diag(2 / (2 * np.arange(9) + 1)), atol=1e-14)
    np.testing.assert_allclose(legendre_table(np.ones(1), 9), 1.0, rtol=1e-14)
    assert legendre_table(np.full(3, 0.3), 1).tolist() == [[1.0]] * 3


def test_operators_at_some_of_the_points_stay_shared():
    rng = np.random.default_rng(5)
    one = Operator(value=rng.standard_normal(6), time=2.0, gradient=np.ones(2), hessian=rng.standard_normal((6, 2, 2)))
    rows, y = np.array([4, 0]), np.arange(6.0)
    integrands = Integrands.of([[(one, one), (one, VALUE)], []], [(VALUE, y), (one, y)])
    assert integrands.operators == (one, VALUE)
    assert (integrands.forms, [test for test, _ in integrands.loads]) == ((((0, 0), (0, 1)), ()), [1, 0])
    part = integrands.take(rows)
    assert part.forms == integrands.forms
    assert [(test, target.tolist()) for test, target in part.loads] == [(1, [4.0, 0.0]), (0, [4.0, 0.0])]
    first, second = part.operators
    assert second.value == 1.0
    np.testing.assert_array_equal(first.value, one.value[rows])
    np.testing.assert_array_equal(first.hessian, one.hessian[rows])
    assert (first.time, first.gradient.tolist(), first.mixed) == (2.0, [1.0, 1.0], None)


@pytest.mark.parametrize("name", ["hermite x P2, 1-D", "P3 on triangles"])
def test_memory_does_not_grow_with_the_number_of_samples(name, monkeypatch):
    """Of one call: what it holds beside its arguments is a permutation of the samples, not their rows."""
    monkeypatch.setattr(samples, "_CHUNK_DOUBLES", 1 << 15)
    space = SPACES[name]()
    rng, peaks = np.random.default_rng(6), []
    for m in (20_000, 80_000):
        t, x = points(space, m, rng)
        at, weights = Located.of(space, t, x), np.ones(m)
        integrands = Integrands.of([[(VALUE, Operator(gradient=x))]], [(VALUE, weights)])
        tracemalloc.start()
        gram_sums(space, at, weights, integrands)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    rows_of_all = 8 * 60_000 * space.local_size
    assert peaks[1] - peaks[0] < 0.4 * rows_of_all
    assert peaks[1] - peaks[0] < 8 * 60_000 * 3.5
