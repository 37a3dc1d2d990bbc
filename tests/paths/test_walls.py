"""Paths in domains that are meshes: against boxes, closed forms and elements on the same mesh; their order."""

from pathlib import Path

import numpy as np
import pytest
import skfem
from scipy.special import j0, j1, jn_zeros

import fem_hjb as fh
from fem_hjb.problems.box import Box
from fem_hjb.problems.mesh_domain import MeshDomain
from fem_hjb.spaces.meshes import box_mesh
from fem_hjb.support.errors import ConvergenceError, ProblemError

MESHES = Path(__file__).parents[2] / "meshes"


def disc(n=64):
    """The unit disc as a polygon of n corners: rings of triangles."""
    angle = 2 * np.pi * np.arange(n) / n
    ring = np.stack([np.cos(angle), np.sin(angle)])
    p = np.hstack([np.zeros((2, 1)), *[radius * ring for radius in (0.4, 0.7, 1.0)]])
    i, j = np.arange(n), (np.arange(n) + 1) % n
    t = [np.stack([np.zeros(n, dtype=int), 1 + i, 1 + j])]
    for inner, outer in ((1, 1 + n), (1 + n, 1 + 2 * n)):
        t += [np.stack([inner + i, outer + i, outer + j]), np.stack([inner + i, outer + j, inner + j])]
    return skfem.MeshTri(p, np.hstack(t))


def problem(domain, start, **changes):
    given = {
        "dim": domain.dim,
        "horizon": 1.0,
        "temperature": 1.0,
        "drift": lambda t, x: 0.0 * x,
        "diffusion": 1.0,
        "terminal_reward": lambda x: 0.0 * x[..., 0],
        "initial_law": fh.PointMass(start),
        "domain": domain,
    }
    return fh.ControlProblem(**(given | changes))


def slope(steps, errors):
    return -np.polyfit(np.log(steps), np.log(np.abs(errors)), 1)[0]


@pytest.mark.parametrize("scheme", ["euler", "weak2"])
@pytest.mark.parametrize("kind", ["tri", "quad"])
def test_a_mesh_of_a_box_reflects_as_the_box_does(scheme, kind):
    """Path by path: the noise is the same, and so are the steps."""
    box = Box([0.0, -1.0], [1.0, 1.0])
    more = {
        "drift": lambda t, x: np.stack([3.0 - x[..., 0], np.sin(3 * x[..., 0])], axis=-1),
        "diffusion": lambda t, x: (1.0 + 0.5 * x[..., 0] ** 2)[..., None, None] * np.eye(2),
    }
    one, two = (
        fh.sample_paths(problem(domain, [0.5, 0.0], **more), n=500, steps=20, rng=3, scheme=scheme).x
        for domain in (box, MeshDomain(box_mesh(box, 5, kind)))
    )
    np.testing.assert_allclose(one, two, atol=1e-8)
    assert (one < 0.1).any()


def test_reflection_has_weak_order_one_and_one_half_where_paths_are_put_back_onto_the_wall(monkeypatch):
    """E X_T with a drift into a curved wall, against f = exp(log(2 + x)) by elements on the same polygon."""
    domain = MeshDomain(disc())
    drift = {"drift": lambda t, x: np.stack([4.0 + 0 * x[..., 0], 0 * x[..., 0]], axis=-1), "horizon": 0.5}
    told = problem(domain, [0.0, 0.0], terminal_reward=lambda x: np.log(2.0 + x[..., 0]), **drift)
    exact = np.exp(fh.solve_on_mesh(told, element="P2").value(0.0, [[0.0, 0.0]]))[0]

    def errors(steps):
        n = 10_000
        return [2.0 + fh.sample_paths(told, n=n, steps=k, rng=1).x[:, -1, 0].mean() - exact for k in steps]

    steps = [2, 4, 8, 16]
    assert abs(slope(steps, errors(steps)) - 1.0) < 0.15

    def clipped(self, before, after, covariance, rng):
        _, nearest, _ = self._all.nearest(after)
        return np.where(self.contains(after)[:, None], after, nearest)

    monkeypatch.setattr(MeshDomain, "moved", clipped)
    assert abs(slope([8, 16, 32], errors([8, 16, 32])) - 0.5) < 0.15


@pytest.mark.parametrize("name", ["lshape", "plate", "disc_quads", "interval"])
def test_the_uniform_law_is_kept_by_reflection_however_long_the_steps(name):
    """Steps of a sixth of the domain, several walls in one; put back onto the wall, states gather there."""
    domain, n = MeshDomain(fh.load_mesh(MESHES / f"{name}.msh")), 5000
    rng, (lower, upper) = np.random.default_rng(0), domain.bounds
    x = lower + (upper - lower) * rng.random((4 * n, domain.dim))
    start = x[domain.contains(x)][:n]
    size = (upper - lower).max() / 6

    def near(x):
        return (domain.distance("reflecting", x) < 0.3 * size).mean()

    x = start
    for _ in range(6):
        x = domain.moved(x, x + size * rng.standard_normal(x.shape), None, rng)
    error = 0.5 / np.sqrt(n)
    assert domain.contains(x).all()
    assert abs(near(x) - near(start)) < 4 * np.sqrt(2) * error
    assert (np.abs((x > 0).mean(axis=0) - (start > 0).mean(axis=0)) < 4 * np.sqrt(2) * error).all()
    end = start + size * rng.standard_normal(start.shape)
    back = np.where(domain.contains(end)[:, None], end, domain._all.nearest(end)[1])
    assert near(back) - near(start) > 8 * error


def test_the_uniform_law_is_kept_within_curved_edges():
    """Straight flights between mirrors keep volumes, here to the rim that the polygon of the corners does not have."""
    domain, n, rng = MeshDomain(skfem.MeshTri2.init_circle(1)), 4000, np.random.default_rng(0)
    x = rng.uniform(-1, 1, (2 * n, 2))
    start = x = x[domain.contains(x)][:n]
    for _ in range(6):
        x = domain.moved(x, x + 0.3 * rng.standard_normal(x.shape), None, rng)
    assert domain.contains(x).all()
    radius = [np.linalg.norm(y, axis=1) for y in (start, x)]
    beyond = [(r > np.cos(np.pi / 8)).mean() for r in radius]  # of the octagon
    assert beyond[0] > 0.1
    assert abs(beyond[0] - beyond[1]) < 4 * np.sqrt(2 * beyond[0] / n)
    assert abs((radius[0] ** 2).mean() - (radius[1] ** 2).mean()) < 4 * np.sqrt(2 / 12 / n)


def test_the_uniform_law_is_kept_within_curved_faces():
    """The same in a ball, to what the polyhedron of the corners does not have."""
    mesh = skfem.MeshTet2.init_ball(1)
    domain, n, rng = MeshDomain(mesh), 1000, np.random.default_rng(0)
    polyhedron = MeshDomain(skfem.MeshTet1(mesh.p[:, : mesh.nvertices], mesh.t))
    x = rng.uniform(-1, 1, (3 * n, 3))
    start = x = x[domain.contains(x)][:n]
    assert len(start) == n
    for _ in range(3):
        x = domain.moved(x, x + 0.4 * rng.standard_normal(x.shape), None, rng)
    assert domain.contains(x).all()
    assert np.linalg.norm(x - start, axis=1).mean() > 0.5
    beyond = [1.0 - polyhedron.covers(y).mean() for y in (start, x)]
    assert beyond[0] > 0.2
    assert abs(beyond[0] - beyond[1]) < 4 * np.sqrt(2 * beyond[0] / n)
    square = [(y**2).sum(axis=1) for y in (start, x)]
    assert abs(square[0].mean() - square[1].mean()) < 4 * np.sqrt(2 / n) * square[0].std()


def test_exits_from_a_ball_with_curved_faces():
    """Times and places against (1 - |x|^2) / 3, by elements and by paths; a polyhedron is left sooner."""
    mesh, x0 = skfem.MeshTet2.init_ball(2), np.array([0.3, 0.4, 0.0])
    found = {}
    for shape, one in (("curved", mesh), ("straight", skfem.MeshTet1(mesh.p[:, : mesh.nvertices], mesh.t))):
        leaving = fh.ExitProblem(
            dim=3, temperature=1.0, drift=np.zeros_like, diffusion=1.0, domain=MeshDomain(one, "absorbing")
        )
        paths = fh.stationary.sample_exit(leaving, x0, n=150, step=0.04, rng=1)
        assert leaving.domain.exited(paths.exit).all()
        solved = fh.stationary.exit_expectation_on_mesh(leaving, source=lambda x: np.ones(x.shape[:-1]), estimate=False)
        time, square = float(solved.value(x0)), (paths.exit**2).sum(axis=1)
        off = paths.time - (square - x0 @ x0) / 3  # whose mean is 0 but for the steps, by Dynkin's formula
        assert abs(off.mean()) < 4 * off.std() / np.sqrt(len(off))
        assert abs(paths.time.mean() - time) < 4 * paths.time.std() / np.sqrt(len(off))
        found[shape] = (time - 0.25, (square.mean() - 1.0) / 3)
    assert np.abs(found["curved"]).max() < 1.5e-3
    assert np.max(found["straight"]) < -0.015


def test_a_policy_until_a_ball_with_curved_faces_is_left():
    """v = log E e^{-tau} = log(sinh(sqrt(2) s) / (s sinh sqrt(2))), by elements, and by weights along their policy."""
    leaving = fh.ExitProblem(
        dim=3,
        temperature=1.0,
        drift=np.zeros_like,
        diffusion=1.0,
        running_reward=lambda x: -np.ones(x.shape[:-1]),
        domain=MeshDomain(skfem.MeshTet2.init_ball(2), "absorbing"),
    )
    solution, x0, rate = (
        fh.stationary.solve_exit_on_mesh(leaving, estimate=False),
        np.array([0.3, 0.4, 0.0]),
        np.sqrt(2),
    )
    exact = np.log(np.sinh(rate / 2) / (0.5 * np.sinh(rate)))
    assert float(solution.value(x0)) == pytest.approx(exact, abs=1e-3)
    paths = fh.stationary.sample_exit(leaving, x0, n=64, step=0.04, rng=2, policy=solution.policy)
    weights = paths.log_weights(leaving)
    assert abs(weights.mean() - exact) < 4 * weights.std() / 8 < 0.06
    assert weights.std() < 0.8 * paths.time.std()  # what the weights are without a policy


def test_exits_from_a_disc_are_of_order_four_at_curved_edges_and_two_at_straight_ones():
    """E|X_tau|^2 = |x|^2 + 2 E tau, by Dynkin's formula: the mean exit time from the unit disc is (1 - |x|^2) / 2."""
    found, x0 = {"curved": [], "straight": []}, np.array([0.05, 0.1])
    for n in (0, 1, 2):
        mesh = skfem.MeshTri2.init_circle(n)
        for shape, one in (("curved", mesh), ("straight", skfem.MeshTri(mesh.p[:, : mesh.nvertices], mesh.t))):
            leaving = fh.ExitProblem(
                dim=2, temperature=1.0, drift=np.zeros_like, diffusion=1.0, domain=MeshDomain(one, "absorbing")
            )
            paths = fh.stationary.sample_exit(leaving, x0, n=1000, step=0.05, rng=1)
            off = (paths.exit**2).sum(axis=1) - 1.0
            found[shape].append((off.mean() / 2, off.std() / 2 / np.sqrt(len(off))))
            true = {("curved", 0): -0.0060, ("straight", 0): -0.2053, ("straight", 1): -0.0538}.get((shape, n))
            by_time = paths.time - (1 - x0 @ x0) / 2
            if true is not None:  # by elements on the same shape, refined
                assert abs(off.mean() / 2 - true) < 4 * found[shape][-1][1]
                assert abs(by_time.mean() - true) < 4 * by_time.std() / np.sqrt(len(off))
    for shape, order in (("curved", 4), ("straight", 2)):
        errors, chance = np.abs(np.array(found[shape])).T
        assert (chance < 0.1 * errors).all()
        assert slope([1, 2, 4], errors) == pytest.approx(order, abs=0.15)


def bessel(radius, t):
    """The probability that Brownian motion from this radius is inside the unit disc up to t."""
    zeros = jn_zeros(0, 40)
    return (2 * j0(zeros * radius) / (zeros * j1(zeros)) * np.exp(-(zeros**2) * t / 2)).sum()


def without_bridge(monkeypatch):
    """The broken method: only the ends of the steps are looked at."""
    monkeypatch.setattr(MeshDomain, "_stop_between", lambda *_: None)


def test_the_exit_from_a_disc(monkeypatch):
    """By a series of Bessel functions; the bridge leaves what is below the noise, without it the order is 1/2."""
    domain, n = MeshDomain(disc(), "absorbing"), 20_000
    at, exact = problem(domain, [0.3, 0.4], horizon=0.3), bessel(0.5, 0.3)

    def missed(k):
        return 1.0 - domain.exited(fh.sample_paths(at, n=n, steps=k, rng=1).x[:, -1]).mean() - exact

    error = np.sqrt(exact * (1 - exact) / n)
    assert abs(missed(4)) < 3 * error
    without_bridge(monkeypatch)
    steps = [4, 8, 16, 32]
    broken = [missed(k) for k in steps]
    assert min(broken) > 15 * error
    assert abs(slope(steps, broken) - 0.5) < 0.1


def test_an_exit_reward_is_that_of_elements_on_the_same_mesh():
    """A plate with a hole that absorbs and pays by where it is left, one that reflects, and a rim that reflects."""
    words = {"left": "absorbing", "right": "reflecting", "rim": "reflecting"}
    domain = MeshDomain(fh.load_mesh(MESHES / "plate.msh"), words, lambda t, x: x[..., 1] - np.asarray(t) / 2)
    paid = problem(domain, [-0.3, 0.5], temperature=0.5, terminal_reward=lambda x: x[..., 0] / 2)
    v = fh.solve_on_mesh(paid, element="P2", rtol_time=1e-4).value(0.0, [[-0.3, 0.5]])[0]
    paths = fh.sample_paths(paid, n=6000, steps=64, rng=2)
    out = domain.exited(paths.x)
    assert domain.contains(paths.x).all()
    assert (np.diff(out.astype(int), axis=1) >= 0).all()
    assert (paths.x[:, 1:] == paths.x[:, :-1])[out[:, :-1]].all()
    last = paths.x[:, -1]
    when = paths.t[np.where(out[:, -1], out.argmax(axis=1), -1)]
    earned = np.where(out[:, -1], paid.exit_reward(when, last), paid.y(last))
    weight = np.exp(earned / 0.5)
    assert 0.3 < out[:, -1].mean() < 0.7
    assert abs(weight.mean() - np.exp(v / 0.5)) < 4 * weight.std() / np.sqrt(len(weight))


def test_absorbing_facets_behind_a_wall_are_not_met():
    """A step next to a thin wall that reflects on this side, and absorbs on the other: no bridge goes through it."""
    outer = box_mesh(Box([0.0, 0.0], [1.0, 1.0]), (20, 4), "quad")
    middle = outer.p[:, outer.t].mean(axis=1)
    slab = (np.abs(middle[0] - 0.475) < 0.03) & (middle[1] < 0.75)  # one cell thick
    mesh = skfem.MeshQuad(outer.p, outer.t[:, ~slab]).remove_unused_nodes()
    mesh = mesh.with_boundaries({"far": lambda x: (np.abs(x[0] - 0.5) < 1e-9) & (x[1] < 0.75)})
    domain = MeshDomain(mesh, {"far": "absorbing", None: "reflecting"})
    rng, n = np.random.default_rng(0), 2000
    start, end = np.full((n, 2), [0.44, 0.3]), np.full((n, 2), [0.44, 0.32])
    covariance = np.broadcast_to(0.01 * np.eye(2), (n, 2, 2))
    np.testing.assert_array_equal(domain.moved(start, end, covariance, rng), end)
    aside = np.array([0.1, 0.0])
    beyond = domain.moved(start + aside, end + aside, covariance, rng)
    assert abs(domain.exited(beyond).mean() - np.exp(-2 * 0.04**2 / 0.01)) < 0.04


def test_coefficients_are_called_inside_only():
    domain = MeshDomain(disc(), "absorbing")

    def drift(t, x):
        assert domain.contains(x).all()
        return np.sqrt(np.maximum(1.0 - (x**2).sum(axis=-1, keepdims=True), 0.0)) * [1.0, 0.0]

    for scheme in ("euler", "weak2"):
        diffusion = (lambda t, x: (1.0 + 0 * drift(t, x)[..., :1, None]) * np.eye(2)) if scheme == "weak2" else 1.0
        sampled = problem(domain, [0.0, 0.0], drift=drift, diffusion=diffusion)
        x = fh.sample_paths(sampled, n=300, steps=8, rng=0, scheme=scheme).x
        assert domain.contains(x).all()


def test_the_same_seed_gives_the_same_bits():
    at = problem(MeshDomain(disc(), "absorbing"), [0.0, 0.0])
    one, two, other = (fh.sample_paths(at, n=500, steps=4, rng=seed).x for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert (one[:, -1] != other[:, -1]).any(axis=1).all()


def test_what_is_refused():
    at = problem(MeshDomain(disc()), [0.0, 0.0], drift=fh.LinearDrift(np.zeros((2, 2)), np.zeros(2)))
    with pytest.raises(ProblemError, match=r"scheme 'exact' needs .* no MeshDomain"):
        fh.sample_paths(at, n=10, steps=2, rng=0, scheme="exact")
    stiff = problem(MeshDomain(disc()), [0.0, 0.5], drift=lambda t, x: 1e6 * x)
    with pytest.raises(ConvergenceError, match="take more steps"):
        fh.sample_paths(stiff, n=10, steps=2, rng=0, substeps=1)
