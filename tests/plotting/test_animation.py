"""Moving pictures: frames are those of the solution, files are whole, and what is refused."""

import itertools
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.animation import FFMpegWriter
from PIL import Image

import fem_hjb as fh
from fem_hjb.plotting import animate, animation
from fem_hjb.problems import Box, zoo
from fem_hjb.support.errors import ComparisonError, DomainError, MissingPackageError, OutputError, ProblemError

mpl.use("Agg")

LQ = zoo.get("lq", 1)
PLANE = zoo.get("mixture-diffusion", 2)
EXACT: Any = LQ.exact


@pytest.mark.parametrize(("problem", "quantity"), [(LQ, "policy"), (PLANE, "value")], ids=["line", "plane"])
def test_a_gif_has_the_frames_asked_for_and_they_differ(problem: Any, quantity: str, tmp_path: Path) -> None:
    seen: list[float] = []
    path = tmp_path / "a.gif"
    animate(problem.exact, path, quantity=quantity, frames=3, fps=5, problem=problem, progress=seen.append)
    np.testing.assert_allclose(seen, [1 / 3, 2 / 3, 1.0])
    assert [file.name for file in tmp_path.iterdir()] == ["a.gif"]
    with Image.open(path) as image:
        assert (image.format, image.n_frames, image.info["duration"]) == ("GIF", 3, 200)  # type: ignore[attr-defined]
        assert image.size == (640, 480)
        frames = []
        for k in range(3):
            image.seek(k)
            frames.append(np.asarray(image.convert("RGB"), dtype=float))
    assert all(np.abs(a - b).max() > 50 for a, b in itertools.pairwise(frames))
    assert frames[0].std() > 5


def test_all_frames_have_the_limits_of_the_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(animation, "solution", lambda of, t, **given: shown.append((t, given["limits"])))
    box = Box([-2.0], [2.0])
    animate(EXACT, tmp_path / "a.gif", frames=3, problem=LQ, box=box)
    np.testing.assert_allclose([t for t, _ in shown], np.linspace(0.0, LQ.horizon, 3))
    values = [EXACT.value(t, np.linspace(-2, 2, 201)[:, None]) for t, _ in shown]
    (limits,) = {given for _, given in shown}
    room = 0.03 * np.ptp(values)
    np.testing.assert_allclose(limits, (np.min(values) - room, np.max(values) + room))
    animate(EXACT, tmp_path / "a.gif", frames=1, problem=LQ, limits=(-1, 2))
    assert shown[-1][1] == (-1.0, 2.0)


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    path.write_bytes(b"old")

    def stop(fraction: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        animate(EXACT, path, frames=2, problem=LQ, progress=stop)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_mp4_needs_ffmpeg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(FFMpegWriter, "isAvailable", classmethod(lambda cls: False))
    with pytest.raises(MissingPackageError, match=r"an \.mp4 is written by ffmpeg, .* or write a \.gif"):
        animate(EXACT, tmp_path / "a.mp4", problem=LQ)


def test_an_mp4_is_what_ffmpeg_makes_of_the_frames(tmp_path: Path) -> None:
    """Here of one that writes down how it was called, and what it got."""
    stand_in = tmp_path / "ffmpeg"
    stand_in.write_text('#!/bin/sh\nfor last; do :; done\necho "$@" > "$last"\nwc -c >> "$last"\n', encoding="utf-8")
    stand_in.chmod(0o755)
    with mpl.rc_context({"animation.ffmpeg_path": str(stand_in)}):
        animate(EXACT, tmp_path / "a.mp4", frames=2, fps=7, problem=LQ)
    call, received = (tmp_path / "a.mp4").read_text(encoding="utf-8").splitlines()
    assert "-s 640x480 -pix_fmt rgba -framerate 7 " in call
    assert call.endswith("frames.mp4")
    assert int(received) == 2 * 640 * 480 * 4


def nothing(t: Any, x: Any) -> Any:
    return np.full(x.shape[:-1], np.nan)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "of": ({"of": 3}, ComparisonError, "what is drawn must have value"),
    "problem": ({"problem": None}, ProblemError, "does not carry its problem"),
    "suffix": ({"path": "a.png"}, OutputError, r"end in \.gif or \.mp4, got 'a\.png'"),
    "no-suffix": ({"path": "a"}, OutputError, r"end in \.gif or \.mp4, got 'a'"),
    "folder": ({"path": "none/a.gif"}, OutputError, "there is no folder none; create it first"),
    "path": ({"path": 3}, OutputError, "must be text or a Path, got 'int'"),
    "quantity": ({"quantity": "density"}, ProblemError, "quantity must be one of 'value', 'policy'"),
    "frames": ({"frames": 0}, ComparisonError, "frames must be a positive integer, got 0"),
    "frames-many": ({"frames": 10**6}, ComparisonError, "frames must be at most 1000"),
    "fps": ({"fps": 0}, ComparisonError, "fps must be a positive integer"),
    "fps-fast": ({"fps": 10**4}, ComparisonError, "fps must be at most 100"),
    "limits": ({"limits": (1.0,)}, ComparisonError, "limits must have shape"),
    "box": ({"box": Box([0.0, 0.0], [1.0, 1.0])}, DomainError, "dim"),
    "nothing": ({"of": fh.solutions.from_callables(nothing, lambda t, x: 0.0 * x)}, ComparisonError, "nothing to draw"),
}


@pytest.mark.parametrize(("wrong", "error", "message"), BAD.values(), ids=BAD)
def test_wrong_input_is_refused(
    wrong: dict[str, Any], error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    right: dict[str, Any] = {"of": EXACT, "path": "a.gif", "problem": LQ, "frames": 2}
    with pytest.raises(error, match=message):
        animate(**(right | wrong))
    assert list(tmp_path.iterdir()) == []
