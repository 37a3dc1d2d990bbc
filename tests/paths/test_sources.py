"""Sources of trajectories: the same states however they come in, nothing held that need not be, damage seen."""

import dataclasses
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, final

import cloudpickle
import numpy as np
import pytest
import zarr

from fem_hjb.paths import stored
from fem_hjb.paths.simulate import Paths, sample_paths
from fem_hjb.paths.sources import PathSource, array_source, simulated_source
from fem_hjb.paths.stored import file_source, write_paths
from fem_hjb.paths.tree_sum import tree_sum
from fem_hjb.problems import zoo
from fem_hjb.solutions.files import load_paths, save_paths
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError, MeasureError, OutputError, ProblemError

SUFFIXES = (".npz", ".zarr")


def make_paths(n: int = 23, steps: int = 4, dim: int = 2) -> Paths:
    return sample_paths(zoo.get("lq", dim=dim), n=n, steps=steps, rng=7)


def simulated(**changed: Any) -> PathSource:
    return simulated_source(zoo.get("lq", dim=2), **{"n": 23, "steps": 4, "rng": 3, "chunk": 5, **changed})


def source_of(kind: str, folder: Path) -> PathSource:
    """23 paths in chunks of 5, from wherever they may come."""
    if kind == "simulated":
        return simulated()
    if kind == "array":
        return array_source(make_paths(), chunk=5)
    write_paths(folder / f"a{kind}", array_source(make_paths(), chunk=4))
    return file_source(folder / f"a{kind}", chunk=5)


def everything(source: PathSource) -> FloatArray:
    return np.concatenate([source.chunk(i).x for i in range(source.chunk_count)])


@final
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Constant(PathSource):
    """A user's own source: every state of path j is j, or what `spoil` makes of it."""

    spoil: Callable[[FloatArray], FloatArray] = np.asarray

    def chunk(self, i: int) -> Paths:
        rows = self.rows(i)
        x = np.arange(rows.start, rows.stop, dtype=np.float64)[:, None, None]
        return Paths(t=self.t, x=self.spoil(np.broadcast_to(x, (len(x), self.t.size, self.dim))))


# What every source promises


@pytest.mark.parametrize("kind", ["array", "simulated", *SUFFIXES])
def test_the_chunks_are_the_paths_in_any_order_and_on_any_worker(kind: str, tmp_path: Path) -> None:
    source = source_of(kind, tmp_path)
    assert (source.n, source.dim, source.chunk_size, source.chunk_count) == (23, 2, 5, 5)
    np.testing.assert_array_equal(source.t, make_paths().t)
    whole = everything(source)
    assert whole.shape == (23, 5, 2)
    elsewhere = pickle.loads(cloudpickle.dumps(source))
    for i in (4, 0, 2, 2, 1, 3):
        chunk = elsewhere.chunk(i)
        assert isinstance(chunk, Paths)
        assert chunk.scheme == source.scheme == "exact"
        np.testing.assert_array_equal(chunk.x, whole[source.rows(i)])
        np.testing.assert_array_equal(chunk.t, source.t)
    if kind != "simulated":
        np.testing.assert_array_equal(whole, make_paths().x)


@pytest.mark.parametrize("kind", ["array", "simulated", *SUFFIXES])
def test_chunks_cannot_be_written_into(kind: str, tmp_path: Path) -> None:
    chunk = source_of(kind, tmp_path).chunk(1)
    assert chunk.x.dtype == np.float64
    for array in (chunk.x, chunk.t):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0.0


@pytest.mark.parametrize("kind", ["array", "simulated", *SUFFIXES])
def test_there_is_no_chunk_beyond_the_last(kind: str, tmp_path: Path) -> None:
    source = source_of(kind, tmp_path)
    for i in (5, -1):
        with pytest.raises(MeasureError, match=f"there is no chunk {i}: the 23 paths make chunks 0 to 4"):
            source.chunk(i)


@pytest.mark.parametrize("size", [1, 7, 23, 100])
@pytest.mark.parametrize("kind", ["array", *SUFFIXES])
def test_the_chunk_size_does_not_change_what_is_stored(kind: str, size: int, tmp_path: Path) -> None:
    source = source_of(kind, tmp_path)
    again = (
        file_source(tmp_path / f"a{kind}", chunk=size) if kind != "array" else array_source(make_paths(), chunk=size)
    )
    assert again.chunk_count == -(-23 // size)
    np.testing.assert_array_equal(everything(again), everything(source))


@pytest.mark.parametrize("size", [0, -3, 2.0, True])
def test_a_bad_chunk_size_is_refused_at_once(size: Any, tmp_path: Path) -> None:
    write_paths(tmp_path / "a.npz", array_source(make_paths()))
    for make in (
        lambda: array_source(make_paths(), chunk=size),
        lambda: simulated(chunk=size),
        lambda: file_source(tmp_path / "a.npz", chunk=size),
    ):
        with pytest.raises(MeasureError, match="chunk must be a positive integer"):
            make()


def test_a_source_of_another_dimension_or_horizon_does_not_fit_the_problem() -> None:
    problem = zoo.get("lq", dim=2)
    source = simulated()
    source.check(problem)
    with pytest.raises(MeasureError, match="the paths are of dimension 2, the problem has dim=1"):
        source.check(zoo.get("lq", dim=1))
    with pytest.raises(MeasureError, match="the paths end at t=1, but the problem's horizon is 2"):
        source.check(dataclasses.replace(problem, horizon=2.0))


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.1, 0.5, 1.0], r"increase strictly from 0, got 3 of them from \[0.1\]"),
        ([0.0, 0.7, 0.5], r"t\[2\]=0.5 after 0.7"),
        ([0.0, 0.5, 0.5], r"t\[2\]=0.5 after 0.5"),
        ([0.0], "at least two"),
        ([0.0, np.nan, 1.0], "must be finite"),
        ([[0.0, 1.0]], "must have shape"),
    ],
)
def test_bad_times_are_refused_at_once(times: Any, message: str) -> None:
    with pytest.raises(MeasureError, match=message):
        Constant(n=3, dim=1, t=np.array(times))


@pytest.mark.parametrize("name", ["n", "dim"])
def test_bad_sizes_are_refused_at_once(name: str) -> None:
    with pytest.raises(MeasureError, match=f"{name} must be a positive integer, got 0"):
        Constant(**{"n": 3, "dim": 1, "t": np.array([0.0, 1.0]), name: 0})


# In memory


def test_chunks_of_arrays_are_views() -> None:
    paths = make_paths()
    chunk = array_source(paths, chunk=5).chunk(2)
    assert np.shares_memory(chunk.x, paths.x)
    assert chunk.t is paths.t or np.array_equal(chunk.t, paths.t)


def test_only_paths_are_taken() -> None:
    with pytest.raises(MeasureError, match="expected Paths, as sample_paths returns them, got ndarray"):
        array_source(np.zeros((3, 2, 1)))  # type: ignore[arg-type]


# Simulated


def test_the_same_seed_gives_the_same_bits_and_another_one_others() -> None:
    seeds: list[Any] = [3, np.random.SeedSequence(3)]
    for seed in seeds:
        np.testing.assert_array_equal(everything(simulated(rng=seed)), everything(simulated()))
    assert not np.array_equal(everything(simulated(rng=4)), everything(simulated()))
    children = np.random.SeedSequence(3).spawn(2)
    assert not np.array_equal(everything(simulated(rng=children[0])), everything(simulated(rng=children[1])))


def test_the_seed_given_is_neither_advanced_nor_kept() -> None:
    seed = np.random.SeedSequence(3)
    source = simulated(rng=seed)
    before = source.chunk(1).x
    seed.spawn(4)
    np.testing.assert_array_equal(source.chunk(1).x, before)
    assert seed.n_children_spawned == 4


def test_a_chunk_is_what_the_child_of_its_number_gives() -> None:
    child = np.random.SeedSequence(3).spawn(3)[2]
    expected = sample_paths(zoo.get("lq", dim=2), n=5, steps=4, rng=child)
    np.testing.assert_array_equal(simulated().chunk(2).x, expected.x)


def test_chunks_are_independent_and_of_the_right_law() -> None:
    problem = zoo.get("lq", dim=1)
    source = simulated_source(problem, n=40_000, steps=2, rng=11, chunk=1000)
    means = np.array([source.chunk(i).x[:, -1, 0].mean() for i in range(source.chunk_count)])
    whole = sample_paths(problem, n=200_000, steps=2, rng=5).x[:, -1, 0]
    deviation = whole.std() / np.sqrt(1000)
    assert abs(means.mean() - whole.mean()) < 4 * deviation / np.sqrt(len(means))
    assert 0.6 < means.std(ddof=1) / deviation < 1.4  # 0 if they were copies of each other


def test_workers_simulate_the_same_bits() -> None:
    problem = zoo.get("double-well", dim=2)
    source = simulated_source(problem, n=1000, steps=8, rng=2, chunk=64)

    def moments(i: int) -> FloatArray:
        return np.asarray(np.square(source.chunk(i).x).sum(axis=0))

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        total = tree_sum(moments, source.chunk_count, lambda a, b: a + b, executor=pool, group=4)
    np.testing.assert_array_equal(total, tree_sum(moments, source.chunk_count, lambda a, b: a + b))
    np.testing.assert_allclose(total, np.square(everything(source)).sum(axis=0), rtol=1e-12)


def test_a_billion_paths_take_no_more_than_one_chunk() -> None:
    source = simulated(n=10**9, chunk=10)
    assert source.chunk_count == 10**8
    assert source.chunk(10**8 - 1).x.shape == (10, 5, 2)
    assert len(cloudpickle.dumps(source)) < 100_000


def test_scheme_policy_and_substeps_are_those_of_sample_paths() -> None:
    problem = zoo.get("lq", dim=2)
    options: dict[str, Any] = {"scheme": "euler", "policy": lambda t, x: -x, "substeps": 3}
    chunk = simulated(**options).chunk(1)
    expected = sample_paths(problem, n=5, steps=4, rng=np.random.SeedSequence(3).spawn(2)[1], **options)
    np.testing.assert_array_equal(chunk.x, expected.x)
    assert chunk.scheme == "euler, 3 substeps"


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"rng": np.random.default_rng(0)}, MeasureError, "a Generator cannot make the same chunk twice"),
        ({"rng": -1}, MeasureError, "rng must be a non-negative int"),
        ({"rng": None}, MeasureError, "rng must be a non-negative int"),
        ({"n": 0}, MeasureError, "n must be a positive integer"),
        ({"steps": 0}, MeasureError, "steps must be a positive integer"),
        ({"substeps": 0}, MeasureError, "substeps must be a positive integer"),
        ({"scheme": "leapfrog"}, MeasureError, "scheme must be one of"),
        ({"scheme": "exact", "policy": lambda t, x: x}, ProblemError, "scheme 'exact' needs"),
        ({"policy": lambda t, x: x[:, :1]}, ProblemError, "policy.* returned shape"),
    ],
)
def test_what_cannot_be_simulated_is_refused_at_once(
    changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        simulated(**changed)


def test_paths_that_explode_are_an_error_of_their_chunk() -> None:
    problem = dataclasses.replace(zoo.get("lq", dim=1), drift=lambda t, x: np.where(x > 2.0, x**9, -x))
    source = simulated_source(problem, n=4000, steps=2, rng=0, chunk=1000, scheme="euler", substeps=8)
    with pytest.raises(ConvergenceError, match="left the range of numbers"):
        everything(source)


# Files


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_writing_streams_any_source_and_reading_gives_it_back(suffix: str, tmp_path: Path) -> None:
    source = simulated(n=1003, chunk=100)
    write_paths(tmp_path / f"a{suffix}", source)
    again = file_source(tmp_path / f"a{suffix}", chunk=77)
    np.testing.assert_array_equal(everything(again), everything(source))
    assert again.scheme == "exact"
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def test_the_npz_is_one_that_everybody_reads(tmp_path: Path) -> None:
    source = simulated()
    write_paths(tmp_path / "a.npz", source)
    again = load_paths(tmp_path / "a.npz")
    np.testing.assert_array_equal(again.x, everything(source))
    assert again.scheme == "exact"
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["x"], everything(source))
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert archive.testzip() is None


def test_the_zarr_is_one_that_everybody_reads(tmp_path: Path) -> None:
    write_paths(tmp_path / "a.zarr", simulated())
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    np.testing.assert_array_equal(group["x"][...], everything(simulated()))
    assert group["x"].chunks == (5, 5, 2)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_files_of_plain_arrays_are_read(dtype: type, tmp_path: Path) -> None:
    paths = make_paths()
    np.savez(tmp_path / "a.npz", t=paths.t, x=paths.x.astype(dtype), text="of the user's own")
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("t", data=np.asarray(paths.t))
    group.create_array("x", data=paths.x.astype(dtype), chunks=(6, 5, 2))
    for suffix in SUFFIXES:
        source = file_source(tmp_path / f"a{suffix}", chunk=10)
        np.testing.assert_array_equal(everything(source), paths.x.astype(dtype))
        assert source.chunk(0).x.dtype == np.float64
        assert source.scheme == "given"


def test_the_file_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_paths("a.npz", simulated())
    source = file_source("a.npz", chunk=5)
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(everything(source), everything(simulated()))


def test_chunks_of_an_npz_are_the_mapped_file_itself(tmp_path: Path) -> None:
    source = source_of(".npz", tmp_path)
    chunk = source.chunk(1)
    assert isinstance(chunk.x.base, np.memmap)
    assert chunk.x.flags.aligned
    with (tmp_path / "a.npz").open("r+b") as stream:  # 23 x 5 x 2 doubles; the file's first data are at byte 192
        content = stream.read()
        place = content.index(make_paths().x.tobytes())
        assert place % 64 == 0
        stream.seek(place + 5 * 5 * 2 * 8)
        stream.write(np.array([42.0]).tobytes())
    assert chunk.x[0, 0, 0] == 42.0


_SCRIPT = """
import dataclasses, sys
import numpy as np, psutil
from fem_hjb.paths.sources import PathSource
from fem_hjb.paths.stored import file_source, write_paths
from fem_hjb.paths.simulate import Paths


def held():
    return psutil.Process().memory_info().rss / 1e6


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Ones(PathSource):
    def chunk(self, i):
        rows = self.rows(i)
        paths = Paths(t=self.t, x=np.ones((rows.stop - rows.start, self.t.size, self.dim)))
        used.append(held() - before)
        return paths


path, used, total = sys.argv[1], [], 0.0
before = held()
write_paths(path, Ones(n=300_000, dim=5, t=np.linspace(0.0, 1.0, 25), chunk_size=10_000))  # 10 MB a chunk
print(max(used))
for keep in (False, True):
    source, used, kept, before = file_source(path, chunk=10_000), [], [], held()
    for i in range(source.chunk_count):
        chunk = source.chunk(i)
        total += chunk.x.sum()
        used.append(held() - before)
        if keep:
            kept.append(chunk)
    print(max(used))
print(total)
"""


def test_a_file_of_300_megabytes_passes_through_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    result = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(path)], capture_output=True, text=True, check=True, timeout=60
    )
    written, read, kept, total = (float(word) for word in result.stdout.split())
    assert path.stat().st_size > 300_000_000
    path.unlink()  # pytest keeps its folders
    assert total == 75_000_000.0
    assert max(written, read) < 60
    assert kept > 250  # so the measurement does see what is mapped and held


# Files that are not what they should be


def truncated(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def without_x(path: Path) -> None:
    np.savez(path, t=np.array([0.0, 1.0]))


def of_other_keys(path: Path) -> None:
    np.savez(path, times=np.array([0.0, 1.0]), states=np.zeros((3, 2, 1)))


def flat(path: Path) -> None:
    np.savez(path, t=np.array([0.0, 1.0]), x=np.zeros((3, 2)))


def of_other_times(path: Path) -> None:
    np.savez(path, t=np.array([0.0, 0.5, 1.0]), x=np.zeros((3, 2, 1)))


def empty(path: Path) -> None:
    np.savez(path, t=np.array([0.0, 1.0]), x=np.zeros((0, 2, 1)))


def of_integers(path: Path) -> None:
    np.savez(path, t=np.array([0.0, 1.0]), x=np.zeros((3, 2, 1), dtype=np.int64))


def of_objects(path: Path) -> None:
    np.savez(path, t=np.array([0.0, None], dtype=object), x=np.zeros((3, 2, 1)))


def columns_first(path: Path) -> None:
    np.savez(path, t=np.array([0.0, 1.0]), x=np.asfortranarray(np.zeros((3, 2, 4))))


def unsorted(path: Path) -> None:
    np.savez(path, t=np.array([0.0, 0.5, 0.25]), x=np.zeros((3, 3, 1)))


def late(path: Path) -> None:
    np.savez(path, t=np.array([0.25, 0.5]), x=np.zeros((3, 2, 1)))


def short(path: Path) -> None:
    """A member whose header promises more than there is, in an otherwise sound zip file."""
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("t.npy", "w") as stream:
            np.lib.format.write_array(stream, np.array([0.0, 1.0]))
        with archive.open("x.npy", "w") as stream:
            header = {"descr": "<f8", "fortran_order": False, "shape": (30, 2, 1)}
            np.lib.format.write_array_header_1_0(stream, header)
            stream.write(bytes(29 * 2 * 8))


def compressed(path: Path) -> None:
    save_paths(path, make_paths())


def text(path: Path) -> None:
    path.write_text("t,x\n0,1\n", encoding="utf-8")


def missing(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "cannot be read as a whole file of paths .*write it again"),
        (text, "cannot be read as a whole file of paths"),
        (missing, "there is no file"),
        (without_x, r"must hold arrays t and x, it holds t.npy"),
        (of_other_keys, r"must hold arrays t and x, it holds states.npy, times.npy"),
        (flat, r"x must have shape \(n, K\+1, d\) and t shape \(K\+1,\), got \(3, 2\)"),
        (of_other_times, r"got \(3, 2, 1\) and \(3,\)"),
        (empty, r"got \(0, 2, 1\)"),
        (of_integers, "must be of type float64 or float32, got int64"),
        (of_objects, "cannot be read as a whole file of paths .*Object arrays"),
        (columns_first, "columns first"),
        (unsorted, r"t\[2\]=0.25 after 0.5"),
        (late, r"increase strictly from 0, got 2 of them from \[0.25\]"),
        (short, r"x has 464 bytes where its shape \(30, 2, 1\) needs 480"),
        (compressed, r"is compressed.* write_paths\(new, array_source\(load_paths\(old\)\)\)"),
    ],
)
def test_a_wrong_npz_is_refused_at_once(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_paths(path, array_source(make_paths()))
    damage(path)
    with pytest.raises(MeasureError, match=message) as raised:
        file_source(path)
    assert str(raised.value).count(str(path)) <= 1 + ("cannot be read" in message)  # no message inside a message


def test_the_advice_for_a_compressed_file_is_good(tmp_path: Path) -> None:
    save_paths(tmp_path / "old.npz", make_paths())
    write_paths(tmp_path / "new.npz", array_source(load_paths(tmp_path / "old.npz")))
    np.testing.assert_array_equal(everything(file_source(tmp_path / "new.npz")), make_paths().x)


def test_a_file_cut_off_after_it_was_opened_is_noticed(tmp_path: Path) -> None:
    source = source_of(".npz", tmp_path)
    truncated(tmp_path / "a.npz")
    for i in (0, 4):
        with pytest.raises(MeasureError, match="cannot be read as a whole file of paths"):
            source.chunk(i)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_states_that_are_not_finite_are_found_when_read(suffix: str, bad: float, tmp_path: Path) -> None:
    x = np.array(make_paths().x)
    x[13, 3, 1] = x[14, 0] = bad
    np.savez(tmp_path / "a.npz", t=make_paths().t, x=x)
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("t", data=np.asarray(make_paths().t))
    group.create_array("x", data=x, chunks=(6, 5, 2))
    source = file_source(tmp_path / f"a{suffix}", chunk=5)
    assert np.isfinite(source.chunk(1).x).all()
    expected = rf"a{suffix}: the state of path 13 is not finite at t=0.75 \(k=3\), one of 2 in chunk 2"
    with pytest.raises(MeasureError, match=expected):
        source.chunk(2)


def zarr_without_a_chunk(path: Path) -> None:
    (path / "x" / "c" / "1" / "0" / "0").unlink()


def zarr_without_x(path: Path) -> None:
    zarr.open_group(path, mode="w").create_array("t", data=np.array([0.0, 1.0]))


def zarr_of_other_times(path: Path) -> None:
    zarr.open_group(path, mode="r+").create_array("t", data=np.array([0.0, 1.0]), overwrite=True)


def zarr_array(path: Path) -> None:
    zarr.save_array(path, np.zeros(3), mode="w")


def zarr_of_garbage(path: Path) -> None:
    (path / "x" / "zarr.json").write_text("{", encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (zarr_without_a_chunk, "1 of the 5 stored chunks of x are missing"),
        (zarr_without_x, "must hold arrays t and x, it holds t"),
        (zarr_of_other_times, r"got \(23, 5, 2\) and \(2,\)"),
        (zarr_array, "cannot be read as a whole file of paths"),
        (zarr_of_garbage, "cannot be read as a whole file of paths"),
    ],
)
def test_a_wrong_zarr_is_refused_at_once(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    write_paths(path, simulated())
    damage(path)
    with pytest.raises(MeasureError, match=message) as raised:
        file_source(path)
    assert str(raised.value).count(str(path)) <= 1 + ("cannot be read" in message)  # no message inside a message


def test_a_chunk_of_a_zarr_that_is_cut_off_or_lost_later_is_noticed(tmp_path: Path) -> None:
    write_paths(tmp_path / "a.zarr", simulated())
    source = file_source(tmp_path / "a.zarr", chunk=5)
    truncated(tmp_path / "a.zarr" / "x" / "c" / "1" / "0" / "0")
    with pytest.raises(MeasureError, match="cannot be read as a whole file of paths"):
        source.chunk(1)
    (tmp_path / "a.zarr" / "x" / "c" / "2" / "0" / "0").unlink()
    with pytest.raises(MeasureError, match="the state of path 10 is not finite"):
        source.chunk(2)


def test_without_zarr_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_paths(tmp_path / "a.zarr", simulated())
    monkeypatch.setitem(sys.modules, "zarr", None)
    for attempt in (
        lambda: file_source(tmp_path / "a.zarr"),
        lambda: write_paths(tmp_path / "b.zarr", simulated()),
    ):
        with pytest.raises(MeasureError, match=r"pip install 'fem_hjb\[zarr\]'"):
            attempt()


def test_other_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match=r"named \*.npz or \*.zarr, got 'a.csv'"):
        file_source(tmp_path / "a.csv")
    with pytest.raises(OutputError, match=r"ends in .npz or .zarr"):
        write_paths(tmp_path / "a.csv", simulated())


# Writing


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_source_that_fails_midway_leaves_nothing_behind(suffix: str, tmp_path: Path) -> None:
    def spoil(x: FloatArray) -> FloatArray:
        return x[:, :, :1] if x[0, 0, 0] == 4 else x

    source = Constant(n=10, dim=2, t=np.array([0.0, 1.0]), chunk_size=4, spoil=spoil)
    with pytest.raises(MeasureError, match=r"chunk 1 of the source must have shape \(4, 2, 2\), got \(4, 2, 1\)"):
        write_paths(tmp_path / f"a{suffix}", source)
    assert list(tmp_path.iterdir()) == []


def test_an_old_npz_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_paths(path, simulated())
    source = file_source(path, chunk=5)
    write_paths(path, array_source(make_paths(n=5)))
    assert file_source(path).n == 5
    with pytest.raises(MeasureError):
        source.chunk(4)
    before = path.read_bytes()
    broken = Constant(n=10, dim=2, t=np.array([0.0, 1.0]), spoil=lambda x: x[:1])
    with pytest.raises(MeasureError, match="chunk 0 of the source"):
        write_paths(path, broken)
    assert path.read_bytes() == before


def test_an_old_zarr_is_not_overwritten(tmp_path: Path) -> None:
    write_paths(tmp_path / "a.zarr", simulated())
    with pytest.raises(OutputError, match=r"a\.zarr: it exists; remove it"):
        write_paths(tmp_path / "a.zarr", simulated())


def test_a_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no folder"):
        write_paths(tmp_path / "none" / "a.npz", simulated())


# Files that change


@pytest.mark.parametrize("block", [1, 3, 4, 7, 23, 1000])
@pytest.mark.parametrize("chunk", [1, 4, 5, 23])
def test_blocks_with_checksums_need_not_be_chunks(
    block: int, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "_BLOCK_BYTES", block * 8 * 5 * 2)
    write_paths(tmp_path / "a.npz", array_source(make_paths(), chunk=4))
    source = file_source(tmp_path / "a.npz", chunk=chunk)
    np.testing.assert_array_equal(everything(source), make_paths().x)
    np.testing.assert_array_equal(load_paths(tmp_path / "a.npz").x, make_paths().x)


def changed(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("block", [1, 3, 23])
def test_a_changed_bit_of_a_state_is_noticed_in_the_chunks_that_read_it(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the last digits, where nothing else would tell; in other chunks the states are what they were."""
    monkeypatch.setattr(stored, "_BLOCK_BYTES", block * 8 * 5 * 2)
    write_paths(tmp_path / "a.npz", array_source(make_paths()))
    source = file_source(tmp_path / "a.npz", chunk=5)
    offset = source.offset  # type: ignore[attr-defined]
    whole = (tmp_path / "a.npz").read_bytes()
    for path in (0, 4, 5, 13, 22):
        (tmp_path / "a.npz").write_bytes(whole)
        changed(tmp_path / "a.npz", offset + path * 80 + 16)
        first, last = path // block * block, min((path // block + 1) * block, 23)
        for i in range(source.chunk_count):
            rows = source.rows(i)
            if rows.start < last and first < rows.stop:
                with pytest.raises(MeasureError, match=rf"the checksum of paths {first} to {last - 1} is an"):
                    source.chunk(i)
            else:
                np.testing.assert_array_equal(source.chunk(i).x, make_paths().x[rows])
        with pytest.raises(OutputError, match="is not a complete file"):
            load_paths(tmp_path / "a.npz")


def test_a_changed_bit_of_a_zarr_is_noticed(tmp_path: Path) -> None:
    write_paths(tmp_path / "a.zarr", array_source(make_paths(), chunk=5))
    source = file_source(tmp_path / "a.zarr", chunk=5)
    changed(tmp_path / "a.zarr" / "x" / "c" / "1" / "0" / "0", 16)
    np.testing.assert_array_equal(source.chunk(0).x, make_paths().x[:5])
    with pytest.raises(MeasureError, match=r"cannot be read as a whole file of paths .*checksum"):
        source.chunk(1)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("travelled", [True, False])
def test_a_file_that_was_replaced_is_not_read_as_the_old_one(
    suffix: str, alike: bool, travelled: bool, tmp_path: Path
) -> None:
    """By paths of the same shape or of another, here and where the source was sent to; the same file again is read."""
    path = tmp_path / f"a{suffix}"
    write_paths(path, simulated())
    source = file_source(path, chunk=5)
    source = pickle.loads(pickle.dumps(source)) if travelled else source
    old = everything(source)
    path.rename(tmp_path / "old")
    write_paths(path, simulated(rng=4) if alike else simulated(n=11, steps=2))
    for i in range(source.chunk_count):
        with pytest.raises(MeasureError, match=rf"a{suffix} has been replaced since file_source was called"):
            source.chunk(i)
    (shutil.rmtree if path.is_dir() else os.unlink)(path)
    (tmp_path / "old").rename(path)
    np.testing.assert_array_equal(everything(source), old)


def test_files_of_numpy_that_were_replaced_are_noticed_too(tmp_path: Path) -> None:
    x = make_paths().x
    np.savez(tmp_path / "a.npz", t=make_paths().t, x=x)
    source = file_source(tmp_path / "a.npz", chunk=5)
    np.testing.assert_array_equal(everything(source), x)
    np.savez(tmp_path / "a.npz", t=make_paths().t, x=-x)
    with pytest.raises(MeasureError, match="has been replaced"):
        source.chunk(0)


def test_checksums_that_do_not_fit_are_damage(tmp_path: Path) -> None:
    write_paths(tmp_path / "a.npz", array_source(make_paths()))
    with np.load(tmp_path / "a.npz") as archive:
        arrays = {name: archive[name] for name in archive.files} | {"x_sums": np.zeros(7, np.uint32)}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(MeasureError, match="7 checksums do not fit 23 paths"):
        file_source(tmp_path / "a.npz")
