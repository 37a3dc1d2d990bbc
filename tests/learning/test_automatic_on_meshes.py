"""A class that is chosen on the mesh that the process is reflected in."""

import numpy as np
import pytest
import skfem

import fem_hjb as fh
from fem_hjb.learning.selection import automatic_candidates
from fem_hjb.problems.zoo.meshed import ring_mesh
from fem_hjb.spaces.meshes import box_mesh
from fem_hjb.support.errors import DomainError, SpaceError

RING = ring_mesh(2.0, 2)


def swirl(mesh, boundary="reflecting"):
    """Brownian motion that is carried round."""
    domain = fh.MeshDomain(mesh, boundary)
    return fh.ControlProblem(
        dim=2,
        horizon=0.3,
        temperature=0.5,
        drift=lambda t, x: np.stack([-x[..., 1], x[..., 0]], axis=-1),
        diffusion=0.5,
        terminal_reward=lambda x: 0.7 * np.cos(2 * x[..., 0]) * np.sin(1.5 * x[..., 1]) + 0.4 * x[..., 1],
        initial_law=fh.Gaussian([0.0, 0.0], 0.05) if domain.curved else fh.Uniform(domain),
        domain=domain,
    )


def test_the_policy_is_as_good_as_those_of_classes_made_by_hand():
    problem = swirl(RING)
    paths = fh.sample_paths(problem, n=1000, steps=12, rng=1)
    reference = fh.solve_on_mesh(problem, RING.refined(2), element="P2", rtol_time=1e-3)
    x = fh.Uniform(problem.domain).sample(1000, np.random.default_rng(0))  # the law of X_t at all times

    def off(found):
        pairs = [(found.policy(t, x), reference.policy(t, x)) for t in (0.05, 0.15, 0.25)]
        return np.sqrt(sum(((a - b) ** 2).sum() for a, b in pairs) / sum((b**2).sum() for _, b in pairs))

    by_hand = {}
    for element, fine in (("P1", 0), ("P1", 1), ("P2", 0)):
        space = fh.Space(problem, mesh=RING.refined(fine) if fine else None, element=element, time_cells=2)
        by_hand[element, space.spatial.n_cells] = off(
            fh.fit(problem, paths, space, estimator="corrected", verify=False)
        )
    found = fh.fit(problem, paths, "auto", accept=0.5)
    tried = found.stats["tried"]
    assert found.stats["estimator"] == "corrected"
    assert {(row["element"], row["cells"]) for row in tried} == by_hand.keys()
    (best,) = [row for row in tried if row["chosen"]]
    assert best["policy"] == min(row["policy"] for row in tried)
    assert off(found) <= 1.01 * min(by_hand.values())
    assert max(by_hand.values()) > 3 * off(found)  # so that it matters which one is taken
    assert abs(np.log(best["policy"] / off(found))) < np.log(1.5)


LADDER = [(1, 1, 2), (1, 1, 4), (1, 4, 2), (2, 1, 2), (1, 4, 4), (1, 16, 4), (2, 4, 4), (2, 16, 6)]
"""Degree, cells of a cell, and cells in time."""


@pytest.mark.parametrize("kind", ["tri", "quad"])
def test_the_classes_are_on_the_mesh_and_on_it_refined(kind):
    problem = swirl(box_mesh(fh.Box([0.0, 0.0], [1.0, 1.0]), 3, kind))
    cells = {"tri": 18, "quad": 9}[kind]
    found = automatic_candidates(problem, 10_000)
    family = {"tri": "P", "quad": "Q"}[kind]
    assert [(one.space.spatial.element, one.space.spatial.n_cells, one.space.time.n_cells) for one in found] == [
        (f"{family}{degree}", more * cells, times) for degree, more, times in LADDER
    ]
    assert found[0].space.n_dofs == 16 * 5
    few = automatic_candidates(problem, 150)
    assert [one.space.n_dofs for one in few] == [80, 144]
    (one,) = automatic_candidates(problem, 3)
    assert one.space.n_dofs == 80


@pytest.mark.parametrize("cells", [skfem.MeshTri1, skfem.MeshTri2])
def test_without_a_simulation_held_out_trajectories_choose(cells):
    """On curved cells, too, whose refined ones have smaller boxes around them."""
    problem = swirl(cells.init_circle(1))
    paths = fh.sample_paths(problem, n=250, steps=4, rng=0)
    tried = fh.fit(problem, paths, "auto", verify=False).stats["tried"]
    assert len(tried) == 4
    assert all("labels excess" in row for row in tried)
    assert sum(row["chosen"] for row in tried) == 1


def test_what_is_refused():
    problem = swirl(RING)
    paths = fh.sample_paths(problem, n=50, steps=4, rng=0)
    with pytest.raises(SpaceError, match="classes that are only continuous, and estimator 'generator' needs C1 ones"):
        fh.fit(problem, paths, "auto", estimator="generator")
    with pytest.raises(SpaceError, match="estimator 'generator' needs a C1 class, and element 'P2' is only continuous"):
        fh.fit(problem, paths, fh.Space(problem, element="P2", time_cells=2))
    for boundary, word in (({"outer": "absorbing", None: "reflecting"}, 1), ("natural", 2)):
        other = swirl(RING, boundary)
        with pytest.raises(DomainError, match=r"fit is for processes on R.d or reflected at all faces"):
            fh.fit(other, fh.sample_paths(other, n=50, steps=4, rng=word), "auto")
