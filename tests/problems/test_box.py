"""Boxes: which points are in, out, stopped and folded back, and what is refused."""

import dataclasses

import numpy as np
import pytest

from fem_hjb.problems.box import Box
from fem_hjb.support.errors import DomainError


def test_box_contains_and_mirrors():
    box = Box([0.1, -1.0], [0.3, 2.0])
    rng = np.random.default_rng(4)
    inside = rng.uniform(*box.bounds, size=(100, 2))
    np.testing.assert_allclose(box.mirror(inside), inside, atol=1e-15)
    lower, upper = box.bounds
    np.testing.assert_allclose(box.mirror(2 * upper - inside), inside, atol=1e-14)  # one reflection at the upper faces
    np.testing.assert_allclose(box.mirror(2 * lower - inside), inside, atol=1e-14)
    np.testing.assert_allclose(box.mirror(inside + 6 * (upper - lower)), inside, atol=1e-13)
    assert box.contains(box.mirror(rng.uniform(-20, 20, (10_000, 2)))).all()
    assert box.contains([lower, upper]).all()
    assert not box.contains([[0.2, 2.0001]]).any()


def test_the_faces_of_a_box_in_words():
    assert Box([0.0, 0.0], [1.0, 1.0]).faces == (("reflecting", "reflecting"),) * 2
    pairs = [["natural", "absorbing"], ("reflecting", "natural")]
    box = Box([-np.inf, 0.0], [0.0, np.inf], boundary=pairs, exit_reward=lambda t, x: 0 * x[..., 0])
    assert box.faces == (("natural", "absorbing"), ("reflecting", "natural"))
    assert dataclasses.replace(box).faces == box.faces
    assert (box.absorbing, box.bounded) == (True, False)
    assert (Box([0.0], [1.0]).absorbing, Box([0.0], [1.0]).bounded) == (False, True)
    assert box.where("absorbing").tolist() == [[False, False], [True, False]]
    assert box.where("reflecting").tolist() == [[False, True], [False, False]]
    assert Box([0.0], [1.0], "absorbing").where("absorbing").all()
    assert box.contains([[-1e9, 1e9], [0.0, 0.0], [0.1, 1.0], [-1.0, -0.1]]).tolist() == [True, True, False, False]


def test_absorbing_faces_stop_and_reflecting_ones_fold_and_natural_ones_let_pass():
    """One axis of every kind of faces, lower and upper."""
    words = ["reflecting", "absorbing", "natural"]
    pairs = [(low, high) for low in words for high in words]
    box = Box(np.zeros(9), np.ones(9), boundary=pairs)
    below, above, inside = (np.full(9, value) for value in (-0.25, 1.125, 0.75))
    np.testing.assert_array_equal(box.mirror(below), np.where([p[0] == words[0] for p in pairs], 0.25, -0.25))
    np.testing.assert_array_equal(box.mirror(above), np.where([p[1] == words[0] for p in pairs], 0.875, 1.125))
    np.testing.assert_array_equal(box.absorb(below), np.where([p[0] == words[1] for p in pairs], 0.0, -0.25))
    np.testing.assert_array_equal(box.absorb(above), np.where([p[1] == words[1] for p in pairs], 1.0, 1.125))
    for move in (box.mirror, box.absorb):
        np.testing.assert_array_equal(move(inside), inside)
    points = np.where(np.eye(9, dtype=bool), below, inside)
    assert box.exited(points).tolist() == [p[0] == words[1] for p in pairs]
    assert box.exited(np.where(np.eye(9, dtype=bool), 1.0, inside)).tolist() == [p[1] == words[1] for p in pairs]
    assert box.exited(box.absorb(points)).tolist() == box.exited(points).tolist()


def test_a_point_on_an_absorbing_face_is_not_moved_off_it_by_the_mirror_opposite():
    low, high = np.random.default_rng(6).uniform(size=(2, 200))
    box = Box(low, 1 + high, [("reflecting", "absorbing")] * 100 + [("absorbing", "reflecting")] * 100)
    on = np.concatenate([1 + high[:100], low[100:]])
    np.testing.assert_array_equal(box.mirror(on), on)


def test_infinite_faces_let_every_point_pass():
    box = Box(
        [-np.inf, 0.0, -np.inf],
        [np.inf, np.inf, 1.0],
        [("natural", "natural"), ("reflecting", "natural"), ("natural", "absorbing")],
    )
    x = np.array([[-1e300, -2.0, 3.0], [1e300, 7.0, -1e300]])
    np.testing.assert_array_equal(box.mirror(x), [[-1e300, 2.0, 3.0], [1e300, 7.0, -1e300]])
    np.testing.assert_array_equal(box.absorb(x), [[-1e300, -2.0, 1.0], [1e300, 7.0, -1e300]])
    assert box.exited(x).tolist() == [True, False]


BAD = {
    "box-order": (lambda: Box([0.0, 1.0], [1.0, 1.0]), "lower must be below upper on every axis"),
    "box-shapes": (lambda: Box([0.0], [1.0, 1.0]), r"lower has shape \(1,\) but upper has shape \(2,\)"),
    "box-infinite": (lambda: Box([0.0], [np.inf]), "upper must be finite at reflecting faces, got inf on axis 0"),
    "box-infinite-absorbing": (
        lambda: Box([0.0, -np.inf], [1.0, 1.0], [("natural", "natural"), ("absorbing", "natural")]),
        "lower must be finite at absorbing faces, got -inf on axis 1; only a 'natural' face",
    ),
    "box-infinite-wrong-way": (lambda: Box([np.inf], [1.0], "natural"), "lower must be finite, or -inf at a natural"),
    "box-nan": (lambda: Box([0.0], [np.nan], "natural"), r"upper must be finite, or inf at a natural face, got \[nan"),
    "box-matrix": (lambda: Box(np.zeros((2, 2)), [1.0]), r"lower must have shape \(d,\) with d >= 1"),
    "box-one-pair-of-two": (
        lambda: Box([0.0, 0.0], [1.0, 1.0], [("natural", "natural")]),
        r"a pair \(lower face, upper face\) of words for each of the 2 axes, got \[\('natural'",
    ),
    "box-words": (lambda: Box([0.0, 0.0], [1.0, 1.0], ["natural", "natural"]), "boundary must be one word, or a pair"),
    "box-word-in-a-pair": (lambda: Box([0.0], [1.0], [("natural", "open")]), "got 'open'"),
    "box-boundary-number": (lambda: Box([0.0], [1.0], 3), "boundary must be one word, or a pair .* got 3"),
    "exit-reward-number": (
        lambda: Box([0.0], [1.0], "absorbing", 2.0),
        "exit_reward must be a callable or None, got float",
    ),
    "exit-reward-without-exit": (
        lambda: Box([0.0], [1.0], exit_reward=lambda t, x: x[..., 0]),
        "exit_reward needs an absorbing face, got boundary='reflecting'",
    ),
    "box-face-word": (lambda: Box([0.0], [1.0]).where("open"), "face must be one of"),
    "box-boundary": (
        lambda: Box([0.0], [1.0], boundary="sticky"),
        "one of 'reflecting', 'absorbing', 'natural', got 'sticky'",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_ill_formed_boxes_are_refused(make, message):
    with pytest.raises(DomainError, match=message):
        make()
