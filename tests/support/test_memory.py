"""What does not fit into memory is refused before it is made, with the size that is too large."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fem_hjb as fh
from fem_hjb.support import memory
from fem_hjb.support.archives import write_archive
from fem_hjb.support.errors import FemHjbError, SpaceError
from fem_hjb.support.memory import require_room

LQ, LQ2 = fh.zoo.get("lq", dim=1), fh.zoo.get("lq", dim=2)
SQUARE, LINE = fh.Box([-4.0, -4.0], [4.0, 4.0]), fh.Box([-4.0], [4.0])
RNG = np.random.default_rng(0)
FITS = 1 << 20  # bytes
LARGE: dict[str, tuple[Callable[[int], Any], int]] = {
    "paths": (lambda n: fh.sample_paths(LQ2, n=n, steps=9, rng=0), 10 * 2 * 8),
    "steps of paths": (lambda n: fh.sample_paths(LQ, n=10, steps=n, rng=0), 10 * 8),
    "draws": (lambda n: LQ2.initial_law.sample(n, RNG), 2 * 8),
    "draws of a mixture": (lambda n: fh.GaussianMixture([1.0], [[0.0]], [[[1.0]]]).sample(n, RNG), 8),
    "draws of a point": (lambda n: fh.PointMass([0.0]).sample(n, RNG), 8),
    "a mesh": (lambda n: fh.spaces.box_mesh(SQUARE, (n, 9), "quad"), 10 * 6 * 8),
    "cubics": (lambda n: fh.spaces.HermiteBasis([np.linspace(0.0, 1.0, n), np.linspace(0.0, 1.0, 11)]), 10 * 16 * 8),
    "Fourier features": (lambda n: fh.spaces.RandomFourier(fh.Gaussian([0.0], 1.0), n, scale=1.0, rng=0), 8),
    "steps on a mesh": (lambda n: fh.solve_on_mesh(LQ, cells=9, box=LINE, element="P1", steps=n), 10 * 8),
}


@pytest.mark.parametrize("what", LARGE)
def test_sizes_are_estimated_before_anything_is_made(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A little too large is refused with the size; a third of that is made."""
    make, width = LARGE[what]
    monkeypatch.setattr(memory, "available_memory", lambda: FITS)
    with pytest.raises(FemHjbError, match=r"takes 1\.\d+ MB, but this machine has 1\.05 MB of memory"):
        make(int(1.2 * FITS / width))
    make(int(FITS / width / 3))


@pytest.mark.parametrize("total", [True, False])
def test_features_are_counted_before_they_are_made(total: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    law = fh.Gaussian([0.0] * 12, 1.0)
    monkeypatch.setattr(memory, "available_memory", lambda: FITS)
    with pytest.raises(SpaceError, match=r"the features: an array .* takes \d.* MB, but this machine has 1\.05 MB"):
        fh.spaces.HermiteCross(law, 60, total=total)
    fh.spaces.HermiteCross(law, 3, total=total)


def test_a_system_is_estimated_before_it_is_summed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    space = fh.Space(LQ2, cells=40, time_cells=4, box=SQUARE)
    paths = fh.sample_paths(LQ2, n=10, steps=4, rng=0)
    monkeypatch.setattr(memory, "available_memory", lambda: FITS)
    with pytest.raises(FemHjbError, match=r"the system: an array of shape \(6400, 2304\) takes 118 MB"):
        fh.fit(LQ2, paths, space)


def test_arrays_in_files_are_looked_at_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path / "a.npz", "fem_hjb paths 1", {"scheme": "given"}, {"x": np.zeros(200_000)})
    monkeypatch.setattr(memory, "available_memory", lambda: FITS)
    with pytest.raises(fh.errors.OutputError, match=r"a\.npz holds arrays of 1\.6 MB, but this machine has 1\.05 MB"):
        fh.solutions.load_paths(tmp_path / "a.npz")


def test_a_machine_that_does_not_say_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sysconf")
    assert memory.available_memory() is None
    require_room((10**30,), "x:", SpaceError)
