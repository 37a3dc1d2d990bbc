"""Plans of runs followed again, panel by panel: with other steps, elements of other degrees, another box."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial, reduce

import numpy as np

from fem_hjb.problems.box import BoolArray
from fem_hjb.reference.box_coefficients import Coefficients, Table, inside
from fem_hjb.reference.box_faces import begun
from fem_hjb.reference.box_grading import make_grid, rows_at
from fem_hjb.reference.box_panel import Grid, Operators
from fem_hjb.reference.box_run import PanelRun, Run, panel_run, settled
from fem_hjb.reference.box_running import method_of, sources_of, table_on
from fem_hjb.reference.box_single import in_single
from fem_hjb.reference.box_steps import Plans, Steps, gathered, itself, made, told
from fem_hjb.spaces.axes import apply_axis, copy_to
from fem_hjb.stepping.adaptive import Panel, is_looked_at, replay
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.progress import Progress

WIDER = 0.06  # of the width, by which a box is enlarged on each side

Widening = Callable[[Sequence[FloatArray], BoolArray, float], list[FloatArray]]


def plans(
    run: Run,
    coefficients: Coefficients,
    lengths: Steps,
    *,
    less: int = 0,
    wider: Widening | None = None,
    tell: Progress = lambda _: None,
    anew: bool = False,
    single: bool = False,
    looked: FloatArray | None = None,
) -> Plans:
    """The plan of a run again, with other steps, and perhaps elements of fewer degrees or a wider box.

    One panel after the other, as all of them may be too much to hold; the last one is not finite if it is not stable.
    Of each the work, which threads may do beside that of other plans; how it ended is to be sent back.

    lengths : what becomes of the steps (k,) of a panel.
    wider : `widened`, `stretched` or `narrowed`.
    anew : whether the coefficients are others than those of the run.
    single : whether steps are taken in single precision.
    looked : increasing times to go at which panels are looked at besides their ends, None for all.
    """
    equation = run.equation
    if less and equation.averaged:  # or what averages are wrong by would be the same in all runs
        equation = replace(equation, deeper=-1 if less > 0 else 1)
    before: tuple[Grid, FloatArray] | None = None
    layer, ended = run.layer if run.smoothed is not None else 0.0, None
    if run.smoothed is not None:
        inside_layer = run.smoothed.run, run.smoothed.coefficients, lengths
        for inner in made(plans(*inside_layer, less=less, wider=wider, tell=tell, looked=np.empty(0))):
            if not inner.finite:
                yield partial(itself, inner)
                return
            ended = inner.grid, inner.last
    for own in run.panels:
        if own.ends[-1] <= layer * (1 + 1e-12):
            continue
        s0, s1 = float(own.ends[0]), float(own.ends[-1])
        operators, panel, grid = own.operators, own.stepped, own.grid
        if less or wider is not None:
            edges = own.edges if wider is None else wider(own.edges, equation.truncated, WIDER)
            grid = make_grid(edges, own.grid.lines[0].degree - less, equation, s0, s1)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not stable is seen by its end
            if ended is not None:
                u, ended = settled(equation, grid, *ended), None
            elif before is None and grid is own.grid:
                u = own.states[0]
            else:
                u = begun(equation, grid, s0, before)
            if anew or grid is not own.grid:
                operators = Operators.of(equation, grid, _table(own, grid, coefficients, anew or less != 0), u)
                panel = None
            if panel is None:
                panel = method_of(equation, operators, operators.root_mean_square)
            plan = lengths(own.plan)
            if single:
                operators, panel, u = in_single(operators, panel, u)
        last, finite = yield partial(_made, operators, panel, u, s0, s1, plan, tell, looked)
        before = grid, last
        del operators, panel, u  # before there is another one
        if not finite:
            return


def _made(
    operators: Operators,
    panel: Panel,
    u: FloatArray,
    s0: float,
    s1: float,
    plan: list[float],
    tell: Progress,
    looked: FloatArray | None,
) -> PanelRun:
    with np.errstate(over="ignore", invalid="ignore"):
        steps = told(replay(panel, u, s0, plan, looked), tell)
        if looked is not None:
            lengths = np.array(plan)
            steps = gathered(steps, is_looked_at(s0 + np.cumsum(lengths) - lengths, lengths, looked))
        return panel_run(operators, panel, steps, s1, np.array(plan))


def followed(
    run: Run, coefficients: Coefficients, lengths: Steps, *, less: int = 0, wider: Widening | None = None
) -> Iterator[PanelRun]:
    """`plans`, one after the other."""
    return made(plans(run, coefficients, lengths, less=less, wider=wider))


def _table(own: PanelRun, grid: Grid, coefficients: Coefficients, anew: bool) -> Table:
    """The coefficients of a panel on another grid: interpolated, and evaluated only where that reaches further.

    anew : whether they are evaluated everywhere, as where elements have other degrees: what they miss of steep
        coefficients would be the same in all runs, and in no difference.
    """
    old = own.operators.table
    if anew:
        rough = old.sources is not None
        return table_on(coefficients, grid, old.s0, old.s1, len(old.nodes), rough=rough, single=old.single)
    bounds = [line.bounds for line in own.grid.lines]
    inner = [(line.nodes >= low) & (line.nodes <= high) for line, (low, high) in zip(grid.lines, bounds, strict=True)]
    known = tuple(slice(int(part.argmax()), int(part.argmax() + part.sum())) for part in inner)
    lines = zip(own.grid.lines, grid.lines, known, strict=True)
    rows = [rows_at(line, new.nodes[part], grid.dim) for line, new, part in lines]
    beyond = np.flatnonzero(~reduce(np.logical_and.outer, inner))
    further = grid.nodes[beyond]
    kind = np.float32 if old.single else np.float64  # at once: two tables of a large grid need not exist
    values = [np.empty((len(old.nodes), *grid.shape), kind) for _ in coefficients.names]
    times = (coefficients.problem.horizon - inside(old.s0, old.s1, old.nodes)).tolist()
    sources = None if old.sources is None else sources_of(coefficients, grid, times)
    for k, t in enumerate(times):
        fields = own.operators.coefficients(k)
        if old.sources is not None:
            fields[grid.dim] -= old.sources[k]
        for axis, matrix in enumerate(rows):
            fields = fields if matrix is None else apply_axis(matrix, fields, axis + 1)
        outside = coefficients.at(t, further) if len(further) else np.empty((len(fields), 0))
        for field, within, beyond_it in zip(values, fields, outside, strict=True):
            copy_to(field[k][known], within)
            field[k].reshape(-1)[beyond] = beyond_it
        if sources is not None:
            values[grid.dim][k].reshape(-1)[beyond] -= coefficients.reward_at(t, further)
            values[grid.dim][k] += sources[k]
    return Table(old.s0, old.s1, values, single=old.single, sources=sources)
