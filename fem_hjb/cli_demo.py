"""fem-hjb demo: one small problem solved, learned from paths and certified, with a picture, in seconds."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import numpy as np
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fem_hjb import cli_output as output
from fem_hjb.cli_input import Debug, Json, Quiet
from fem_hjb.evaluation.certificate import Certificate, Interval
from fem_hjb.evaluation.certify import certify
from fem_hjb.evaluation.controlled_law import policy_of
from fem_hjb.learning.fit import fit
from fem_hjb.paths.extent import truncation_box
from fem_hjb.paths.simulate import sample_paths
from fem_hjb.plotting.pictures import STYLES
from fem_hjb.problems import zoo
from fem_hjb.problems.laws import MarginalLaw
from fem_hjb.problems.problem import ControlProblem, ValueFunction
from fem_hjb.reference.solve import solve
from fem_hjb.solutions.compare import compare
from fem_hjb.solutions.estimate import ErrorEstimate
from fem_hjb.solutions.solution import Solution
from fem_hjb.spaces.space import Space
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.files import atomic_folder

_RTOL = 1e-4
_PATHS, _STEPS, _SUBSTEPS = 2000, 128, 2  # to learn from, and between two observations
_CELLS = (16, 8)  # of the class, in space and in time
_CERTIFIED = (4096, 128)  # paths and steps of a certificate
_START = 0.0  # of certified paths
_FOLLOWED = (4000, 128)  # paths and steps of the ends that are drawn
_SHOWN = 2.2  # half of the window of the picture
NEXT = (
    ("fem-hjb compare double-well --quick", "another problem, learned and compared; `fem-hjb zoo` lists all"),
    ("fem-hjb certify lq zero --dim 10 --quick", "bounds for a policy in ten dimensions, without a reference"),
    ("docs/tutorials/index.md", "notebooks, mathematics first; README.md has a problem in ten lines"),
)


class _Found(NamedTuple):
    problem: ControlProblem
    solved: Solution
    learned: Solution
    errors: dict[str, Any]  # overall, of "solved" and "learned", against the closed form
    value: float  # v_0 at _START, exactly
    certified: dict[str, Certificate]  # of "no control" and of "learned"
    ends: dict[str, FloatArray]


def demo_command(
    out: Annotated[Path, typer.Option(help="Folder for the picture, demo.png.")] = Path("results", "demo"),
    seed: Annotated[int, typer.Option(help="Seed of all trajectories.", min=0)] = 0,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Solve one small problem, learn it from paths, certify what was learned, and draw it, in a few seconds.

    A diffusion model makes samples of two Gaussians on a line, and a reward prefers one of them. The optimal value is
    known in closed form, so that every number that is printed can be judged. Writes demo.png.
    """
    report = output.Report(quiet)
    with atomic_folder(out) as part:
        found = _run(report, seed)
        with report.stage("picture"):
            _picture(found).savefig(part / "demo.png", dpi=110)
    if json:
        _print_record(found, out / "demo.png")
        return
    for line in _lines(found):
        print(line)
    print(f"\n{out / 'demo.png'}\n\nNext:")
    for what, why in NEXT:
        print(f"  {what:42s} {why}")


def _run(report: output.Report, seed: int) -> _Found:
    problem = _problem()
    with report.stage("solved") as stage:
        solved = cast(Solution, solve(problem, rtol=_RTOL, rng=seed, progress=stage.progress))
        stage.note(output.describe_reference(solved))
    report.warn("solved", solved)
    with report.stage("learned") as stage:
        paths = sample_paths(problem, n=_PATHS, steps=_STEPS, rng=seed, substeps=_SUBSTEPS)
        box = truncation_box(problem, quantile=1e-3, margin=0.0).box
        space = Space(problem, cells=_CELLS[0], time_cells=_CELLS[1], box=box)
        learned = fit(problem, paths, space, terminal="interpolated", outside="drop", rng=seed, progress=stage.progress)
        stage.note(output.describe_fit(learned))
    report.warn("learned", learned)
    certified, ends = {}, {}
    with report.stage("certified") as stage:
        for name, policy in (("no control", None), ("learned", learned)):
            n, steps = _CERTIFIED
            certified[name] = certify(problem, policy, x0=[_START], n=n, steps=steps, rng=seed)
            n, steps = _FOLLOWED
            follow = None if policy is None else policy_of(problem, policy)
            ends[name] = sample_paths(problem, n=n, steps=steps, rng=seed, policy=follow).x[:, -1]
        stage.note(certified["learned"].status)
    exact = cast(ValueFunction, problem.exact)
    comparison = compare({"solved": solved, "learned": learned}, exact, problem=problem)
    value = float(exact.value(0.0, np.array([_START])))
    return _Found(problem, solved, learned, output.overall(comparison), value, certified, ends)


def _problem() -> ControlProblem:
    """Two Gaussians on a line, a reward that prefers the right one: not linear-quadratic, but known in closed form."""
    two: dict[str, Any] = {"weights": (0.6, 0.4), "means": [[-1.0], [1.0]], "covariances": [[[0.2]], [[0.2]]]}
    return zoo.get("mixture-diffusion", dim=1, temperature=1.0, beta=2.0, target=1.0, **two)


def _lines(found: _Found) -> list[str]:
    """What was found, with its error bars and, next to them, the truth."""
    problem, bar = found.problem, cast(ErrorEstimate, found.solved.error_estimate)
    free, steered = found.certified["no control"], found.certified["learned"]
    reward = {name: float(np.mean(problem.y(x))) for name, x in found.ends.items()}
    true = {name: f"value {row['value']:.1e}, policy {row['policy']:.1e}" for name, row in found.errors.items()}
    return [
        "A diffusion model of two Gaussians, tilted by y = -(x - 1)^2 / 2 at the temperature 1 (mixture-diffusion).",
        "",
        f"solved     relative error: value {bar.value:.1e}, policy {bar.policy:.1e} (estimated; asked for {_RTOL:g});",
        f"           {true['solved']} (true, against the closed form)",
        f"learned    from {_PATHS} paths: {true['learned']} (true); of itself it says",
        f"           {found.learned.error_estimate}",
        f"certified  by paths from x = {_START:g}, without any reference, at 95 %, where v_0(x) = {found.value:.5f}:",
        f"           no control earns    {free.diffusion.reward}",
        f"           the learned policy  {steered.diffusion.reward}",
        f"           and loses           {steered.gap}",
        f"           the optimum is      {steered.diffusion.optimal}",
        f"mean reward of samples {reward['no control']:.3f} without control, {reward['learned']:.3f} with the learned"
        " policy",
    ]


def _print_record(found: _Found, file: Path) -> None:
    output.print_json(
        {
            "problem": found.problem.name,
            "solved": output.outline(found.solved),
            "learned": output.outline(found.learned),
            "errors": found.errors,
            "value": found.value,
            "certified": {name: asdict(one) for name, one in found.certified.items()},
            "mean_reward": {name: float(np.mean(found.problem.y(x))) for name, x in found.ends.items()},
            "file": file,
            "next": [what for what, _ in NEXT],
        }
    )


def _picture(found: _Found) -> Figure:
    """Where paths end, the value, the policy, and what is certified."""
    figure = Figure(figsize=(10.0, 6.6), layout="constrained")
    ends, value, policy, bounds = figure.subplots(2, 2).ravel()
    _ends(ends, found)
    x = np.linspace(-_SHOWN, _SHOWN, 221)[:, None]
    for ax, name, title in ((value, "value", "value $v_t(x)$"), (policy, "policy", r"optimal policy $\pi_t(x)$")):
        for t, colour in ((0.0, "#0072B2"), (0.5, "#D55E00")):
            ax.plot(
                x,
                getattr(found.solved, name)(t, x),
                color=colour,
                alpha=0.35,
                linewidth=5.0,
                label=f"solved, t = {t:g}",
            )
            known = getattr(found.learned, name)(t, x, outside="nan", nonpositive="nan")
            ax.plot(x, known, color=colour, linestyle="--", label=f"learned, t = {t:g}")
        ax.set(xlabel="$x$", title=title)
    value.legend(fontsize=8)
    _bounds(bounds, found)
    return figure


def _ends(ax: Axes, found: _Found) -> None:
    problem, cells = found.problem, np.linspace(-_SHOWN, _SHOWN, 45).tolist()
    x = np.linspace(-_SHOWN, _SHOWN, 401)
    data = np.exp(cast(MarginalLaw, problem.marginal)(problem.horizon).logpdf(x[:, None]))
    for name, style in (("no control", STYLES[1]), ("learned", STYLES[2])):
        label = "samples" if name == "no control" else "with the learned policy"
        ax.hist(found.ends[name][:, 0], cells, density=True, color=style["color"], alpha=0.35, label=label)
    tilted = data * np.exp(problem.y(x[:, None]) / problem.temperature)
    ax.plot(x, data, color=STYLES[1]["color"], label="law of the data")
    ax.plot(x, tilted / (tilted.sum() * (x[1] - x[0])), color="0.3", linestyle="--", label="data, tilted by the reward")
    ax.set(xlabel="$x$", title="where paths end")
    ax.legend(fontsize=8)


def _bounds(ax: Axes, found: _Found) -> None:
    rows: list[tuple[str, Interval]] = []
    for name, one in found.certified.items():
        rows += [(f"{name}: J", one.diffusion.reward), (f"{name}: optimum", one.diffusion.optimal)]
    for k, (_, of) in enumerate(rows):
        style = STYLES[2 if k % 2 == 0 else 0]
        ax.errorbar(of.estimate, k, xerr=of.half_width, fmt=style["marker"], color=style["color"], capsize=3)
    ax.axvline(found.value, color="0.6", linewidth=1.0, zorder=0)
    ax.set_yticks(range(len(rows)), [name for name, _ in rows])
    ax.set(
        title="certified at 95 %",
        xlabel=f"from x = {_START:g}; the line is the closed form",
        ylim=(len(rows) - 0.5, -0.5),
    )
