"""`export`: a solution as a file that other programs read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from numpy.typing import ArrayLike

from fem_hjb.interop.arrays import hdf5, write_hdf5, write_npz
from fem_hjb.interop.grids import (
    AnyDensity,
    AnySolution,
    Sampler,
    as_marginal,
    checked_axes,
    checked_solution,
    checked_times,
    sampled,
)
from fem_hjb.interop.steady import SteadyResult, export_steady
from fem_hjb.interop.vtk import write_pvd, write_vtu
from fem_hjb.support.archives import FilePath
from fem_hjb.support.errors import OutputError
from fem_hjb.support.files import as_path, atomic_file

SUFFIXES = (".npz", ".h5", ".nc", ".vtu", ".pvd")


def check_path(path: FilePath) -> Path:
    """The path, if its suffix is one of those that are written, its folder exists, and h5py, if that is needed."""
    target = as_path(path)
    if target.suffix not in SUFFIXES:
        raise OutputError(
            f"export writes files that end in {', '.join(SUFFIXES)}, got {target.name!r}; its suffix says which format"
            " is meant"
        )
    if not target.parent.is_dir():
        raise OutputError(f"cannot write {target}: there is no folder {target.parent}; create it first")
    if target.suffix in (".h5", ".nc"):
        hdf5()
    return target


def export(
    solution: AnySolution | SteadyResult,
    path: FilePath,
    *,
    axes: Sequence[ArrayLike] | None = None,
    times: ArrayLike | None = None,
    density: AnyDensity | None = None,
    optimal_density: AnyDensity | None = None,
) -> None:
    """Write value, f, control and, where they are known, densities as a file that other programs read.

    The suffix of `path` says which: regular grids as `.npz`, as `.h5` or `.nc` (HDF5 that is netCDF-4, too; needs
    h5py); or the solution's own mesh as `.vtu` for one time, or `.pvd` with a folder of the same name that has a .vtu
    for each time. Arrays are t (k,), x1 (n1,), ..., and value, f (log_f where f is no double precision number), p,
    p_optimal (k, n1, ..., nd), control (k, n1, ..., nd, d); nan outside the domain of the solution. `meta` is a text of
    JSON: the problem and its fingerprint, error estimate, checks, status, versions, description and unit of each array,
    which densities are left out and why. `docs/files.md` says how other programs open it. Written whole or not at all.
    Of an `ExitSolution`, `ExitExpectation` or `GroundState` the same without t: value, f and control; value; or value,
    control and the stationary density p_optimal.

    Parameters
    ----------
    axes : increasing coordinates, one array for each axis, within the box of the solution. By default 65, 49 or 25
        points per axis in 1, 2, 3 dimensions, over its box, or for learned solutions where the uncontrolled process
        goes; in .vtu and .pvd the solution's own mesh.
    times : a number or increasing times in [0, T]; by default 17, denser towards T.
    density : of the uncontrolled process: t -> law of X_t, what `fokker_planck.solve` returns, or, for one time, a law;
        by default `problem.marginal`, if there is one.
    optimal_density : the same under the optimal control. By default it is known from `density` if the process starts at
        a point and there is no running reward: p*_t = p_t exp((v_t - v_0(x_0)) / alpha).

    Raises
    ------
    OutputError : not a solution, or one of more than three dimensions; an unknown suffix, no such folder, h5py missing,
        a grid too large for memory, several times for one .vtu.
    DomainError : axes or times that do not fit the solution.
    ProblemError : a density of another dimension, or one that fails.
    """
    target = check_path(path)
    if isinstance(solution, SteadyResult):
        given = {"times": times, "density": density, "optimal_density": optimal_density}
        timed = [name for name, value in given.items() if value is not None]
        if timed:
            raise OutputError(f"a {type(solution).__name__} does not depend on time; leave out {timed[0]}=")
        export_steady(solution, target, axes)
        return
    of = checked_solution(solution)
    when = checked_times(times, of.problem.horizon)
    marginal = as_marginal(of.problem.marginal if density is None else density, "density", of.problem, when)
    sampler = Sampler(
        of=of, marginal=marginal, optimal=as_marginal(optimal_density, "optimal_density", of.problem, when)
    )
    with atomic_file(target) as part:
        if target.suffix == ".vtu":
            write_vtu(part, sampler, when, axes)
        elif target.suffix == ".pvd":
            write_pvd(part, sampler, when, axes, target)
        else:
            grids = sampled(sampler, when, checked_axes(axes, of))
            (write_npz if target.suffix == ".npz" else write_hdf5)(part, grids)
