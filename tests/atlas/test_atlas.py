"""The atlas: what an entry records, that nothing that fails is hidden, and that what is done is kept."""

import json
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import fem_hjb as fh
from fem_hjb import atlas
from fem_hjb.atlas import collection, entries, forever, tables
from fem_hjb.atlas.settings import Published, Setting
from fem_hjb.problems import zoo
from fem_hjb.problems.blocks import independent_blocks
from fem_hjb.problems.zoo import registry
from fem_hjb.support.errors import OutputError, TrialError
from fem_hjb.support.progress import unheard

SMALL = {"paths": 512, "steps": 16, "fine": 32}
LQ = Setting(
    name="lq", problem="lq", rtol=1e-3, published=Published(figure=0.5, sign=-1.0, source="A", remark="b"), **SMALL
)
LINEAR = Setting(name="linear", problem="soc-ou-linear", dim=4, rtol=None, **SMALL)
WELLS = Setting(name="wells", problem="soc-double-well", dim=5, rtol=1e-2, paths=512, steps=100, fine=100)
WELL = Setting(name="well", problem="double-well", dim=1, rtol=1e-3, paths=1024, steps=100, fine=200)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entries, "_LAWS", 1.0)  # the policy of a loose solution has kinks
        return folder, atlas.collect([LQ, LINEAR, WELLS], folder)


@pytest.fixture(scope="module")
def well(tmp_path_factory):
    return entries.make(WELL, tmp_path_factory.mktemp("well"), unheard)


@pytest.fixture
def broken(monkeypatch):
    """A problem whose drift fails on its way."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @zoo.register()
    def broken_on_its_way(dim):
        """A drift that fails on its way. Source: none."""

        def drift(t, x):
            if np.any((np.asarray(t) > 0.05) & (np.asarray(t) < 0.2)):
                raise ZeroDivisionError("on its way")
            return -x

        return replace(zoo.get("lq", dim), drift=drift, exact=None, marginal=None, name="broken-on-its-way")

    return Setting(name="broken", problem="broken-on-its-way", rtol=1e-2, **SMALL)


def test_every_setting_is_a_problem_with_a_source_and_a_name_of_its_own():
    names = atlas.names()
    assert len(set(names)) == len(names) >= 20
    assert set(atlas.QUICK) < set(names)
    for setting in atlas.SETTINGS:
        problem = setting.make()
        assert problem.name == setting.problem
        assert len(zoo.source(setting.problem)) > 20
        assert setting.steps % 2 == 0
        assert setting.rtol is not None or problem.exact is not None
        assert problem.dim <= 3 or setting.rtol is None or setting.problem.startswith("soc-") or setting.forever


def test_entries_are_chosen_by_their_names_in_the_order_of_the_atlas():
    assert [s.name for s in atlas.chosen(["ring", "double-well"])] == ["double-well", "ring"]
    assert [s.name for s in atlas.chosen()] == atlas.names()
    quick = atlas.chosen(quick=True)
    assert {s.name for s in quick} == set(atlas.QUICK)
    assert all((s.rtol or 1.0) >= 1e-2 and s.paths == 1024 for s in quick)
    assert [s.name for s in atlas.chosen(["ring"], quick=True)] == ["ring"]
    with pytest.raises(TrialError, match="the atlas has no entry 'rings'; did you mean 'ring'"):
        atlas.chosen(["rings"])
    with pytest.raises(TrialError, match="no entry 'zzz'; there are soc-ou-quadratic-easy,"):
        atlas.chosen(["zzz"])


def test_a_record_has_the_value_with_its_error_bar(made):
    record = made[1][0]
    problem = LQ.make()
    law = problem.initial_law.quadrature(8)
    right = float(law[1] @ problem.exact.value(0.0, law[0]))
    assert record["status"] == "ok"
    assert abs(record["value"] - right) <= 3 * record["value_error"] + record["value_sampling_error"] + 1e-9
    assert 0 < record["value_error"] < 1e-3
    assert record["true_error"] <= 3 * record["value_error"] + record["value_sampling_error"] + 1e-9
    assert record["published"]["ours"] == -record["value"]
    assert record["checks"]
    assert all(check["passed"] for check in record["checks"])
    assert record["versions"]["numpy"] == np.__version__
    assert set(record["seconds"]) == {"reference", "objectives", "certificate", "files"}


def test_the_value_is_the_mean_over_the_law_of_the_start(well):
    """Of a law that is not known at later times; nothing is drawn."""
    record = well
    solution = fh.solve(WELL.make(), rtol=1e-5, verify=False)
    x = np.linspace(-3, 3, 4001)
    density = np.exp(-2 * x**2)
    right = (density * solution.value(0.0, x[:, None])).sum() / density.sum()
    assert record["value"] == pytest.approx(right, abs=3 * record["value_error"])
    assert 0 < record["value_error"] < 1e-3


def test_the_triple_and_the_certificate_agree_with_the_value(made):
    for record in made[1]:
        found, value = record["objectives"], record["value"]
        assert found["exact"]["value"] == pytest.approx(
            value, abs=0.02 * abs(value) + 5 * found["exact"]["standard_error"]
        )
        assert found["euler"]["low"] < found["euler"]["value"] < found["euler"]["high"]
        assert found["uncontrolled"]["value"] < value - 0.01
        assert record["certificate"]["lower"] <= value + 0.1
        assert record["certificate"]["paths"] == 512
        json.dumps(record, allow_nan=False)


def test_grids_are_written_whole_or_factor_by_factor(made):
    folder, (lq, linear, wells) = made
    assert lq["files"] == ["lq.npz"]
    assert linear["files"] == []
    assert wells["files"] == ["wells-x1.npz", "wells-x4.npz"]  # three deep wells, two shallow ones
    with np.load(folder / "lq.npz") as grids:
        assert {"t", "x1", "value", "control"} <= set(grids.files)
        middle = np.interp(0.3, grids["x1"], grids["value"][0])
    assert middle == pytest.approx(float(LQ.make().exact.value(0.0, [0.3])), abs=2e-3)


def test_records_are_lines_of_json(made):
    folder, records = made
    lines = (folder / "atlas.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["lq", "linear", "wells"]
    assert atlas.read(folder) == records
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["atlas.jsonl", *(name for record in records for name in record["files"])]
    )


def test_what_is_done_is_not_made_again(made, monkeypatch):
    folder, records = made
    seen = []

    def counted(setting, *rest):
        seen.append(setting.name)
        return records[0] | {"name": setting.name, "asked": entries.asked(setting)}

    monkeypatch.setattr(collection, "make", counted)
    assert atlas.collect([LQ, LINEAR], folder) == records[:2]
    assert seen == []
    copy = folder / "copy"
    copy.mkdir()
    for name in ("atlas.jsonl", "wells-x1.npz"):
        (copy / name).write_bytes((folder / name).read_bytes())
    atlas.collect([replace(LINEAR, fine=34), WELLS], copy)  # another setting, and one whose files are gone
    assert seen == ["linear", "wells"]
    atlas.collect([LQ], copy, again=True)
    assert seen[2:] == ["lq"]


def test_an_entry_that_fails_is_recorded_and_the_others_are_made(broken, tmp_path):
    records = atlas.collect([broken, LINEAR], tmp_path)
    assert records[0]["status"] == "no solution"
    assert "on its way" in records[0]["error"]
    assert records[0]["error"].startswith("ProblemError: ")
    assert records[1]["error"] is None
    assert [r["name"] for r in atlas.read(tmp_path)] == ["broken", "linear"]
    assert not collection.is_made(tmp_path, broken, atlas.read(tmp_path))  # it is tried again
    page = atlas.page(records)
    assert "| `broken`* | 1 | not solved |" in page
    assert "- `broken`: ProblemError: " in page


CALM = {"A": -1.0, "Lambda": 1.0, "Q": 2.0, "horizon": 40.0}


def test_for_ever_average_rewards_of_coordinates_add_up(tmp_path):
    """dX = -X dt + dB at the cost x^2, four times: the average reward is 2 (1 - sqrt(3)), the gap sqrt(3)."""
    setting = Setting(name="calm", problem="lq", dim=4, parameters=CALM, rtol=1e-3, forever=True)
    (record,) = atlas.collect([setting], tmp_path)
    assert record["error"] is None
    assert record["stats"]["parts"] == 1
    assert record["value"] == pytest.approx(2 - 2 * np.sqrt(3), abs=1e-4)
    assert record["true_error"] <= 3 * record["value_error"] + 1e-9
    assert record["gap"] == pytest.approx(np.sqrt(3), abs=1e-4)
    assert record["files"] == ["calm-x1.npz"]  # the other coordinates are like the first
    with np.load(tmp_path / "calm-x1.npz") as grid:
        inner = np.abs(grid["x1"]) < 1.0
        slope = grid["control"][inner, 0] + (np.sqrt(3) - 1) * grid["x1"][inner]
        assert np.abs(slope).max() < 1e-3
        density = np.exp(-np.sqrt(3) * grid["x1"] ** 2) * np.sqrt(np.sqrt(3) / np.pi)
        assert np.abs(grid["p_optimal"] - density).max() < 1e-3
    assert atlas.collect([setting], tmp_path) == [record]
    assert not collection.is_made(tmp_path, replace(setting, forever=False), atlas.read(tmp_path))
    page = atlas.page([record])
    table = page[page.index("## For ever") : page.index("## What is not")]
    assert "| `calm` | 4 | -1.46410" in table
    assert "| `calm`" not in page[: page.index("## For ever")]
    assert "| `calm` | closed form |" in page
    assert "](images/atlas-forever.png)" in page
    axes = atlas.sheet(tmp_path, [record]).axes
    assert axes[0].get_title() == "calm"
    x, red = axes[-1].lines[0].get_data()
    assert np.abs(red + (np.sqrt(3) - 1) * x).max() < 1e-2
    assert np.abs(x).max() < 2.5  # where the law is, not the whole grid


def test_for_ever_in_a_plane_arrows_are_drawn_where_the_law_is(tmp_path):
    tied = {"A": [[-1.0, 0.5], [0.5, -1.0]], "Q": [[2.0, 0.5], [0.5, 2.0]], "Lambda": 1.0, "horizon": 40.0}
    setting = Setting(name="tied", problem="lq", dim=2, parameters=tied, rtol=1e-1, forever=True)
    (record,) = atlas.collect([setting], tmp_path)
    assert record["files"] == ["tied.npz"]
    figure = atlas.sheet(tmp_path, [record])
    arrows = figure.axes[0].collections[1]
    assert np.isfinite(arrows.U).all()
    with np.load(tmp_path / "tied.npz") as grid:
        assert np.abs(arrows.X).max() < 0.9 * np.abs(grid["x1"]).max()


RING = next(setting for setting in atlas.SETTINGS if setting.name == "forever-ring")


def test_for_ever_on_a_ring_of_triangles(tmp_path):
    """Coarse triangles: the average reward of fine ones, a grid that ends at the circles, and a picture."""
    setting = replace(RING.quick(), annulus=(1.2, 5.4, 6, 18), seconds=60.0)
    (record,) = atlas.collect([setting], tmp_path)
    assert record["error"] is None
    assert record["value"] == pytest.approx(6.748682258, abs=1e-3)
    assert [check["name"] for check in record["checks"]] == ["temperature", "law in the annulus"]
    assert record["checks"][1]["passed"]
    with np.load(tmp_path / "forever-ring.npz") as grid:
        assert np.isnan(grid["p_optimal"][48, 48])
        mass = np.nansum(grid["p_optimal"]) * np.diff(grid["x1"])[0] * np.diff(grid["x2"])[0]
        assert mass == pytest.approx(1.0, abs=0.02)
    assert atlas.collect([setting], tmp_path) == [record]
    arrows = atlas.sheet(tmp_path, [record]).axes[0].collections[1]
    assert np.isfinite(np.ma.filled(arrows.U, np.nan)).any()


def test_a_law_that_does_not_fit_between_the_circles_is_told(tmp_path):
    (record,) = atlas.collect([replace(RING.quick(), annulus=(3.0, 4.0, 2, 16), seconds=60.0)], tmp_path)
    assert "law in the annulus" in record["status"]


def tied_far_away(t, x):
    """Towards 4, where the second coordinate begins to feel the first."""
    return np.stack([4.0 - x[..., 0], -x[..., 1] + np.maximum(x[..., 0] - 3.8, 0.0)], axis=-1)


def test_what_hangs_together_where_the_law_is_only_is_seen_there():
    problem = fh.ControlProblem(
        dim=2,
        horizon=1.0,
        temperature=1.0,
        drift=tied_far_away,
        diffusion=0.2,
        terminal_reward=lambda x: 0.0 * x[..., 0],
        initial_law=fh.Gaussian([0.0, 0.0], 1e-4),
    )
    assert independent_blocks(problem) == [(0,), (1,)]
    setting = Setting(name="tied", problem="lq", rtol=1e-1, forever=True)
    (part,) = forever._parts(setting, problem, 60.0, unheard)
    assert part.axes == (0, 1)


def test_a_file_that_cannot_be_written_leaves_what_was_found(tmp_path, monkeypatch):
    def fails(*given):
        raise OutputError("no room")

    monkeypatch.setattr("fem_hjb.atlas.forever.export", fails)
    setting = Setting(name="calm", problem="lq", dim=1, parameters=CALM, rtol=1e-2, forever=True)
    (record,) = atlas.collect([setting], tmp_path)
    assert record["value"] == pytest.approx(0.5 * (1 - np.sqrt(3)), abs=1e-2)
    assert "files: OutputError: no room" in tables.notes_of(record)


def test_what_fails_for_ever_is_told(tmp_path):
    moving = Setting(name="moving", problem="mixture-diffusion", rtol=1e-2, forever=True)
    nothing = Setting(name="nothing", problem="lq", dim=1, rtol=None, forever=True)
    wrong = Setting(name="wrong", problem="lq", dim=1, parameters={"cov": -1.0}, rtol=1e-2, forever=True)
    records = atlas.collect([moving, nothing, wrong], tmp_path)
    assert "depends on time" in records[0]["error"]
    assert "nothing has no tolerance" in records[1]["error"]
    assert records[2]["status"] == "no problem"
    page = atlas.page(records)
    assert "| `moving`* | 1 | not solved | – | – | – |" in page
    assert "- `wrong`: " in page


def test_a_part_that_fails_leaves_the_others(tmp_path):
    record = entries.make(replace(LQ, fine=17), tmp_path, unheard)
    assert "steps must be even" in record["certificate"]["error"]
    assert record["error"] is None
    assert record["objectives"]["exact"]["value"] == pytest.approx(record["value"], abs=1e-2)
    assert any("steps must be even" in note for note in tables.notes_of(record))
    assert tables.row(record)[7] == "–"


def test_objectives_come_from_paths_where_laws_take_too_long(well, tmp_path, monkeypatch):
    whole = well["objectives"]
    monkeypatch.setattr(entries, "_LAWS", 1e-3)
    short = entries.make(WELL, tmp_path, unheard)["objectives"]
    assert "without_laws" not in whole
    assert short["without_laws"].startswith("ConvergenceError: objectives('double-well'): ")
    for name in ("exact", "euler", "uncontrolled"):
        spread = np.hypot(whole[name]["standard_error"], short[name]["standard_error"])
        assert short[name]["value"] == pytest.approx(whole[name]["value"], abs=5 * spread + 0.01)
        assert 0 < short[name]["standard_error"] < 0.02
    assert whole["exact"]["standard_error"] < 1e-6


def test_what_is_no_error_of_ours_says_where_it_was_raised():
    with pytest.raises(KeyError) as raised:
        _ = {}["missing"]
    assert entries.told_of(raised.value).startswith("KeyError: 'missing' (test_atlas.py, line ")


def test_a_tolerance_that_is_not_met_is_in_the_status_and_in_the_notes(tmp_path):
    setting = Setting(name="short", problem="double-well-2d-coupled", rtol=1e-9, seconds=0.8, **SMALL)
    record = entries.make(setting, tmp_path, unheard)
    assert record["status"] != "ok"
    assert tables.notes_of(record)
    assert tables.row(record)[0] == "`short`*"


def test_what_is_done_is_kept_when_the_work_is_interrupted(tmp_path):
    @contextmanager
    def stage(setting):
        if setting.name == "lq":
            raise KeyboardInterrupt
        yield SimpleNamespace(progress=unheard, note=lambda text: None)

    with pytest.raises(KeyboardInterrupt):
        atlas.collect([LINEAR, LQ], tmp_path, stage=stage)
    assert [r["name"] for r in atlas.read(tmp_path)] == ["linear"]


def test_progress_goes_to_the_end(tmp_path):
    seen = []
    entries.make(LINEAR, tmp_path, seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


@pytest.mark.parametrize("line", ["{", "[]", '{"name": "lq"}', "", '"text"'])
def test_files_that_are_no_atlas_are_refused(line, tmp_path):
    (tmp_path / "atlas.jsonl").write_text(f"{line}\n")
    with pytest.raises(OutputError, match=r"line 1 of .*atlas\.jsonl is no record of the atlas"):
        atlas.read(tmp_path)
    assert (tmp_path / "atlas.jsonl").read_text() == f"{line}\n"


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot make the folder .*file"):
        atlas.collect([LQ], tmp_path / "file")
    assert atlas.read(tmp_path / "nowhere") == []


def test_problems_are_told_apart_by_their_hash():
    one, same, other = (entries.digest(zoo.get("lq", s=s)) for s in (0.0, 0.0, 0.1))
    assert one == same != other
    assert len(one) == 16


def test_the_page_shows_values_with_as_many_digits_as_their_error_bars_leave(made):
    assert tables.in_digits(1.23456789, 3e-4) == "1.23457"
    assert tables.in_digits(1.23456789, 0.5) == "1.235"
    assert tables.in_digits(1.23456789, None) == "1.234568"
    assert tables.in_digits(-1e-9, 1e-3) == "0.0000"
    assert tables.in_digits(None, None) == "–"
    page = atlas.page(made[1], "pictures/a.png")
    assert "](pictures/a.png)" in page
    head = "| " + " | ".join(atlas.HEAD) + " |"
    assert head in page
    assert page.count("\n| `lq`") == 4  # values, twice known otherwise, sources
    assert "| `lq` | published, -v = 0.5: A; b |" in page
    assert "`lq`, d = 1" in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)


def test_an_upper_bound_that_is_not_there_is_infinite(made):
    record = made[1][0]
    gone = record["certificate"] | {"upper": None, "status": "the weights have degenerated"}
    assert tables.row(record | {"certificate": gone})[7].endswith("∞]")
    assert "certificate: the weights have degenerated" in tables.notes_of(record | {"certificate": gone})


def test_a_picture_of_every_entry_with_grids(made, tmp_path):
    folder, records = made
    figure = atlas.sheet(folder, records)
    assert [ax.get_title() for ax in figure.axes if ax.get_title()] == ["lq", "wells"]
    assert all(ax.collections for ax in figure.axes if ax.get_title())
    figure.savefig(tmp_path / "a.png")
    with pytest.raises(OutputError, match="there is nothing to draw"):
        atlas.sheet(folder, records[1:2])
    with pytest.raises(OutputError, match=r"there is no file .*gone\.npz, which atlas.jsonl names"):
        atlas.sheet(folder, [records[0] | {"files": ["gone.npz"]}])


@pytest.mark.parametrize("dim", [2, 3])
def test_planes_and_slices_are_drawn_with_arrows(dim, tmp_path, monkeypatch):
    monkeypatch.setattr(entries, "_LAWS", 0.1)
    setting = Setting(name="plane", problem="hjb-log", dim=dim, rtol=3e-2, **SMALL)
    figure = atlas.sheet(tmp_path, [entries.make(setting, tmp_path, unheard)])
    arrows = figure.axes[0].collections[1]
    inward = arrows.X * arrows.U + arrows.Y * arrows.V
    assert (inward < 1e-9).mean() > 0.95  # the reward asks for the middle
