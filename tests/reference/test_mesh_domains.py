"""Problems whose domain is a mesh: solved, refined, compared, certified and learned; and where they are refused."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import skfem

import fem_hjb as fh
from fem_hjb.problems import manufactured
from fem_hjb.problems.box import Box
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.reference import faces, mesh_backward, mesh_refine
from fem_hjb.solutions import norms
from fem_hjb.spaces.meshes import box_mesh
from fem_hjb.support.errors import DomainError, FemHjbError, ProblemError, SpaceError

CORNER = {"corner": "absorbing", None: "reflecting"}
INSIDE = np.random.default_rng(0).uniform(-1, 1, (3000, 2))
INSIDE = INSIDE[(INSIDE[:, 0] < 0) | (INSIDE[:, 1] > 0)]


def lshape(n, kind="tri"):
    """[-1, 1]^2 without the quadrant x > 0 > y, whose two sides are called "corner"."""
    whole = box_mesh(Box([-1.0, -1.0], [1.0, 1.0]), 2 * n, kind)
    middle = whole.p[:, whole.t].mean(axis=1)
    kept = whole.t[:, ~((middle[0] > 0) & (middle[1] < 0))]
    mesh = type(whole)(whole.p, kept).remove_unused_nodes()
    within = np.nextafter(1.0, 0.0)
    return mesh.with_boundaries({"corner": lambda x: (x[0] >= 0) & (x[1] <= 0) & (np.abs(x).max(axis=0) < within)})


class Wave:
    """v = e^{-t} (sin(k x + phase) + sin(k y + phase)) / 2 and its derivatives."""

    def __init__(self, k, phase):
        self.k, self.phase = k, phase

    def _part(self, t, x, order):
        shape = np.sin(self.k * x + self.phase + order * np.pi / 2) * self.k**order
        return 0.5 * np.exp(-np.asarray(t))[..., None] * shape

    def value(self, t, x):
        return self._part(t, x, 0).sum(axis=-1)

    def time_derivative(self, t, x):
        return -self.value(t, x)

    def gradient(self, t, x):
        return self._part(t, x, 1)

    def hessian(self, t, x):
        return self._part(t, x, 2)[..., None] * np.eye(2)


ACROSS = Wave(np.pi / 2, 0.0)  # without slope across the outer sides, not so across the two of the corner
FLAT = Wave(np.pi, np.pi / 2)  # without slope across any side


def known(mesh, words, wave=ACROSS, drift=lambda t, x: np.stack([0.5 + 0 * x[..., 0], -x[..., 1]], axis=-1)):
    """The process whose value is a wave."""
    return manufactured(
        value=wave.value,
        time_derivative=wave.time_derivative,
        gradient=wave.gradient,
        hessian=wave.hessian,
        drift=drift,
        diffusion=0.5,
        temperature=1.0,
        horizon=0.5,
        initial_law=fh.Gaussian([-0.5, 0.5], 0.01),
        domain=MeshDomain(mesh, words),
    )


def error(problem, element, mesh=None):
    """In L2 at time 0."""
    solution = fh.solve_on_mesh(problem, mesh, element=element, rtol_time=1e-6)
    gap = solution.value(0.0, INSIDE) - problem.exact.value(0.0, INSIDE)
    return float(np.sqrt((gap**2).mean()))


ORDERS = [("P1", "tri", 2), ("P2", "tri", 3), ("Q1", "quad", 2), ("Q2", "quad", 3)]


@pytest.mark.parametrize(("element", "kind", "order"), ORDERS)
def test_the_order_of_the_elements_with_words_on_names(element, kind, order, monkeypatch):
    """The L, two sides of which absorb; if nothing is prescribed on them, nothing converges."""
    sizes = [4, 8, 16] if order == 2 else [3, 6, 12]

    def rate(sizes):
        found = [error(known(lshape(n, kind), CORNER), element) for n in sizes]
        return -np.polyfit(np.log(sizes), np.log(found), 1)[0]

    assert abs(rate(sizes) - order) < 0.15
    monkeypatch.setattr(mesh_backward, "prescribed", lambda *_: (np.empty(0, dtype=np.int64), None))
    assert rate(sizes[:2]) < 0.3


def test_a_refinement_of_its_own_mesh():
    """The words stay where they were, also on a mesh of other cells."""
    problem = known(lshape(3), CORNER)
    coarse, fine, other = (error(problem, "P2", mesh) for mesh in (None, lshape(3).refined(1), lshape(6)))
    assert fine < coarse / 6
    assert abs(other - fine) < 0.3 * fine
    assert error(problem, "Q2", lshape(6, "quad")) < coarse / 6
    with pytest.raises(DomainError, match="the mesh must cover the same"):
        fh.solve_on_mesh(problem, box_mesh(Box([-1.0, -1.0], [1.0, 1.0]), 6, "tri"))


def test_errors_are_estimated_and_meshes_refined(monkeypatch):
    monkeypatch.setattr(norms, "_SIMULATED", 1024)  # fewer paths than usual stand for the law
    monkeypatch.setattr(mesh_refine, "_PATHS", 2000)
    problem = known(lshape(2), CORNER, FLAT)
    with pytest.warns(fh.ToleranceWarning, match="limited by space"):
        solution = fh.solve_on_mesh(problem, rtol=1e-2)
    estimate = solution.error_estimate
    assert estimate.truncation == 0.0
    true = fh.compare({"m": solution}, problem.exact, problem=problem).overall("m")
    assert 0.5 < estimate.value / true.value < 2.0
    assert 0.5 < estimate.policy / true.policy < 2.0
    refined = fh.refine_on_mesh(known(lshape(1), CORNER, FLAT), rtol=0.1)
    assert refined.status == "ok"
    assert refined.stats["cells"] > 6
    assert refined.error_estimate.met(0.1)


def test_certify_and_objectives_know_the_value():
    problem = known(lshape(4), CORNER)
    x0 = [-0.6, 0.4]
    exact = float(problem.exact.value(0.0, x0))
    policy = fh.solve_on_mesh(problem).policy
    found = fh.certify(problem, policy, x0=x0, n=2048, steps=64, rng=0)
    assert found.lower - 0.005 < exact < found.upper + 0.005
    assert found.gap.high < 0.01
    with pytest.raises(DomainError, match=r"x0 must lie inside the domain, a mesh of 96 tri .* got \[0.5, -0.5\]"):
        fh.certify(problem, policy, x0=[0.5, -0.5], n=4096, steps=64, rng=0)


def test_trajectories_are_learned_from(monkeypatch):
    monkeypatch.setattr(norms, "_SIMULATED", 1024)  # fewer paths than usual stand for the law
    problem = known(lshape(2), "reflecting", FLAT, lambda t, x: 0 * x)
    paths = fh.sample_paths(problem, n=4000, steps=32, rng=0)
    whole = fh.compare({"m": fh.solve_on_mesh(problem)}, problem.exact, problem=problem).overall("m")
    learned = fh.fit(problem, paths, fh.Space(problem, element="P2", time_cells=4), estimator="corrected", verify=False)
    assert fh.compare({"l": learned}, problem.exact, problem=problem).overall("l").value < 2 * whole.value
    absorbing = known(lshape(2), CORNER)
    with pytest.raises(DomainError, match=r"fit is for processes on R.d or reflected at all .*solve_on_mesh"):
        fh.fit(absorbing, paths, fh.Space(absorbing, element="P2"), estimator="increment")


def test_densities_stay_in_the_domain():
    start = {"initial_law": fh.Gaussian([-0.5, 0.5], 0.02), "domain": MeshDomain(lshape(8))}
    problem = fh.ControlProblem(
        dim=2,
        horizon=4.0,
        temperature=1.0,
        drift=lambda t, x: 0 * x,
        diffusion=1.0,
        terminal_reward=lambda x: 0 * x[..., 0],
        **start,
    )
    density = fh.fokker_planck.solve(problem)
    np.testing.assert_allclose(density.marginal(4.0).density(INSIDE), 1 / 3, rtol=0.01)  # uniform on an area of 3
    assert density.stats["mass"]["drift"] < 1e-8
    with pytest.raises(DomainError, match="is a mesh, on which densities are; leave out box="):
        fh.fokker_planck.solve(problem, box=Box([-1.0, -1.0], [1.0, 1.0]))


def test_natural_parts_are_truncation_of_unknown_size_unless_all_are():
    line = box_mesh(Box([-3.0], [3.0]), 48, "line").with_boundaries({"right": lambda x: x[0] > 0})
    given = {
        "dim": 1,
        "horizon": 0.2,
        "temperature": 1.0,
        "drift": lambda t, x: 0 * x,
        "diffusion": 0.5,
        "terminal_reward": lambda x: np.cos(x[..., 0]),
        "initial_law": fh.PointMass([0.0]),
    }
    some = fh.ControlProblem(domain=MeshDomain(line, {"right": "reflecting", None: "natural"}), **given)
    with pytest.warns(fh.ToleranceWarning, match="truncation inf"):
        assert fh.solve_on_mesh(some, rtol=0.1).error_estimate.truncation == np.inf
    every = fh.ControlProblem(domain=MeshDomain(line, "natural"), **given)
    assert fh.solve_on_mesh(every, rtol=0.1).error_estimate.truncation < 0.1
    paths = fh.sample_paths(every, n=2000, steps=4, rng=0).x
    free = fh.sample_paths(fh.ControlProblem(**given), n=2000, steps=4, rng=0, scheme="weak2").x
    np.testing.assert_array_equal(paths, free)


def test_reflection_needs_noise_that_is_parallel_to_the_normals():
    domain = MeshDomain(skfem.MeshTri.init_circle(3))
    given = {
        "dim": 2,
        "horizon": 1.0,
        "temperature": 1.0,
        "drift": lambda t, x: 0 * x,
        "terminal_reward": lambda x: x[..., 0],
        "initial_law": fh.PointMass([0.0, 0.0]),
    }
    fh.solve_on_mesh(fh.ControlProblem(diffusion=2.0, domain=domain, **given), steps=2)
    with pytest.raises(DomainError, match="reflection along the normal n of a facet needs Lambda n parallel to n"):
        fh.solve_on_mesh(fh.ControlProblem(diffusion=[1.0, 2.0], domain=domain, **given), steps=2)
    stopped = fh.ControlProblem(diffusion=[1.0, 2.0], domain=MeshDomain(domain.mesh, "absorbing"), **given)
    fh.solve_on_mesh(stopped, steps=2)


def test_a_value_with_a_slope_across_a_wall_is_no_manufactured_one():
    with pytest.raises(ProblemError, match=r"no slope across a reflecting facet, but it is .* along its normal"):
        known(skfem.MeshTri.init_circle(3).translated((-0.5, 0.5)).scaled(0.9), "reflecting")


REFUSED = {
    "solve": lambda p: fh.solve(p, rtol=1e-2),
    "feynman_kac": lambda p: fh.feynman_kac(p, lambda x: 1 + 0 * x[..., 0]),
    "evaluate_policy": lambda p: fh.evaluate_policy(p, p.exact.gradient),
    "truncation_box": lambda p: fh.paths.truncation_box(p),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_for_boxes_says_what_to_call_instead(name):
    with pytest.raises(ProblemError, match=f"{name} is for boxes, .* is a mesh of 24 tri cells .*; solve_on_mesh"):
        REFUSED[name](known(lshape(2), CORNER))


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda p: fh.Space(p, cells=4), SpaceError, "which a MeshDomain has already"),
        (lambda p: fh.Space(p), SpaceError, "element 'hermite' is smooth on boxes only"),
        (lambda p: fh.solve_on_mesh(p, cells=4), DomainError, r"got mesh \(that of the domain\) and cells"),
        (lambda p: fh.solve_on_mesh(p, box=Box([0.0], [1.0])), DomainError, r"mesh \(that of the domain\) and box"),
        (lambda p: fh.refine_on_mesh(p, rtol=0.1, cells=4), DomainError, "give mesh, or cells and box, not both"),
        (lambda p: fh.solve_on_mesh(p, boundary=lambda t, x: x[..., 0]), DomainError, "says what holds there"),
        (lambda p: fh.solve_on_mesh(p, element="hermite"), FemHjbError, "hermite"),
    ],
)
def test_other_calls_that_make_no_sense(call, kind, message):
    with pytest.raises(kind, match=message):
        call(known(lshape(2), CORNER))


def test_solutions_are_stored_and_read(tmp_path):
    problem = known(lshape(2), CORNER)
    solution = fh.solve_on_mesh(problem, steps=4)
    fh.save_solution(tmp_path / "a.npz", solution)
    again = fh.load_solution(tmp_path / "a.npz", known(lshape(3), CORNER))  # the domain is the same
    np.testing.assert_array_equal(again.value(0.1, INSIDE), solution.value(0.1, INSIDE))
    with pytest.raises(FemHjbError, match="has another domain"):
        fh.load_solution(tmp_path / "a.npz", known(lshape(2), "reflecting", FLAT))


def test_nodes_of_absorbing_facets():
    problem = known(lshape(2), CORNER)
    basis = fh.spaces.MeshBasis(problem.domain.mesh, "P2")
    x = basis.nodes[faces.absorbed_nodes(problem, basis)]
    assert ((np.abs(x[:, 0]) < 1e-12) | (np.abs(x[:, 1]) < 1e-12)).all()
    assert len(x) == 9


def test_pictures_ask_nothing_outside_of_the_domain():
    """A closed form that is infinite in a hole, and nothing at all beyond the rim."""
    problem = fh.zoo.get("annulus", cells=3)
    solution = fh.solve_on_mesh(problem, steps=4)
    fh.plot.report(problem, solution, problem.exact)
    ax = plt.figure().gca()
    drawn = fh.plot.solution(problem.exact, 0.0, problem=problem, ax=ax)[0].get_array()
    assert 0.3 < np.ma.getmaskarray(drawn).mean() < 0.5  # of the square, what is no annulus: 1 - 3 pi / 16 = 0.41
    plt.close("all")
