"""One entry of the atlas: a setting solved, verified, certified, and written as grids and one record.

A record is what JSON holds. What fails is in it: a part that could not be done has an "error" instead of figures, and
the whole entry has one if there is no reference.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import numpy as np
import scipy

from fem_hjb.atlas.settings import Setting
from fem_hjb.evaluation import certify, objectives
from fem_hjb.evaluation.certificate import Certificate, Interval
from fem_hjb.interop import export
from fem_hjb.problems import zoo
from fem_hjb.problems.fingerprint import fingerprint
from fem_hjb.problems.laws import PointMass
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.reference import solve
from fem_hjb.solutions import ProductSolution, Solution, ToleranceWarning
from fem_hjb.solutions.norms import largest_norms, law_points
from fem_hjb.support.checks import FloatArray
from fem_hjb.support.errors import ConvergenceError, DomainError, FemHjbError
from fem_hjb.support.progress import Progress, part_of

Record = dict[str, Any]
AnySolution = Solution | ProductSolution

_GRIDS = 3  # the most axes of a grid, and of a quadrature rule
_ORDER, _DRAWS = 24, 65536  # points per coordinate that stand for the law of the start; draws, in more dimensions
_PARTS = 0.6, 0.8, 0.98  # of progress: solved, certified, objectives
_LAWS, _LAW_RTOL = 100.0, 1e-4  # the most seconds that laws under policies may take, and their tolerance
_LAYER = 1e-6  # of the horizon: a layer before T in which the law would see what the policy is not right in
_DIGITS = 6  # of what is hashed: networks aside, problems say the same to more digits on every machine
_NORMAL = 1.959963984540054  # half the width of a 95 % interval, in standard errors
_STATS = ("form", "route", "why", "dofs", "solves", "layer")


def make(setting: Setting, folder: Path, tell: Progress, seconds: float | None = None) -> Record:
    """Solve, verify, certify and write a setting; never raises what a part of it raises, but records it.

    seconds : the most each part may take, instead of `setting.seconds`.
    """
    limit = setting.seconds if seconds is None else min(seconds, setting.seconds)
    try:
        problem = setting.make()
        record: Record = described(setting, problem)
    except Exception as cause:  # whatever it is, the other entries are to be made
        return described(setting, None) | {"error": told_of(cause), "status": "no problem"}
    try:
        reference, taken = timed(lambda: _reference(setting, problem, limit, part_of(tell, 0.0, _PARTS[0])))
    except Exception as cause:  # whatever it is, the other entries are to be made
        return record | {"error": told_of(cause), "status": "no solution"}
    record["seconds"] = {"reference": taken}
    record |= _of_reference(setting, reference)
    certified = _Paths(setting, problem, reference, limit)
    for name, work in (
        ("certificate", lambda: certified.certificate(part_of(tell, *_PARTS[:2]))),
        ("objectives", lambda: certified.objectives(part_of(tell, *_PARTS[1:]))),
        ("files", lambda: _files(setting, reference, folder)),
    ):
        try:
            record[name], record["seconds"][name] = timed(work)
        except Exception as cause:  # the parts that are done are kept
            record[name] = {"error": told_of(cause)}
    record |= _value(setting, problem, reference, record)
    tell(1.0)
    return record


def described(setting: Setting, problem: ControlProblem | None) -> Record:
    """What is known of a setting before it is solved; problem : None if it cannot be built."""
    defaults = zoo.parameters(setting.problem)
    return {
        "name": setting.name,
        "problem": setting.problem,
        "dim": setting.dim if problem is None else problem.dim,
        "what": zoo.describe(setting.problem),
        "source": zoo.source(setting.problem),
        "parameters": plain({**defaults, **setting.parameters}),
        "note": setting.note,
        "asked": asked(setting),
        "fingerprint": None if problem is None else digest(problem),
        "versions": versions(),
        "status": "ok",
        "error": None,
    }


def asked(setting: Setting) -> Record:
    """What an entry must have been made with, not to be made again."""
    kept = ("rtol", "seconds", "box", "paths", "steps", "fine")
    found = {name: getattr(setting, name) for name in kept} | {"given": dict(setting.parameters)}
    found |= {"forever": True} if setting.forever else {}
    found |= {"annulus": setting.annulus} if setting.annulus is not None else {}
    return dict(plain(found))


def versions() -> dict[str, str]:
    """Of the package and of what it computes with."""
    own = {"fem_hjb": version("fem_hjb"), "numpy": np.__version__, "scipy": scipy.__version__}
    return {**own, "python": platform.python_version()}


def digest(problem: ControlProblem) -> str:
    """A hash of what a problem says at a few points, to six digits; grid files have these numbers in full."""
    found = {
        name: np.char.mod(f"%.{_DIGITS - 1}e", array + 0.0).tolist() for name, array in fingerprint(problem).items()
    }
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def plain(given: Any) -> Any:
    """Only what JSON has; numbers that are not finite are None, other things as Python writes them."""
    if isinstance(given, np.generic | np.ndarray):
        given = given.tolist()
    if isinstance(given, Mapping):
        return {str(key): plain(value) for key, value in given.items()}
    if isinstance(given, list | tuple):
        return [plain(entry) for entry in given]
    if isinstance(given, float):
        return given if math.isfinite(given) else None
    return given if given is None or isinstance(given, str | int) else repr(given)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What comes out, and the CPU seconds of this process."""
    started = time.process_time()
    found = work()
    return found, round(time.process_time() - started, 2)


def told_of(cause: Exception) -> str:
    """One line; what is no error of ours says where it was raised."""
    text = " ".join(str(cause).split())
    if isinstance(cause, FemHjbError):
        return f"{type(cause).__name__}: {text}"
    last = traceback.extract_tb(cause.__traceback__)[-1]
    return f"{type(cause).__name__}: {text} ({Path(last.filename).name}, line {last.lineno})"


@contextmanager
def quiet() -> Iterator[None]:
    """Tolerances that are not met are told by the status, not by warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ToleranceWarning)
        yield


def _reference(setting: Setting, problem: ControlProblem, seconds: float, tell: Progress) -> Any:
    if setting.rtol is None:
        if problem.exact is None:
            raise FemHjbError(f"{setting.name} has neither a tolerance nor a closed form")
        return problem.exact
    with quiet():
        return solve(problem, rtol=setting.rtol, max_seconds=seconds, progress=tell, **setting.solve_options())


def _of_reference(setting: Setting, reference: Any) -> Record:
    """Estimate, checks and status."""
    if setting.rtol is None:
        return {"how": "closed form", "estimate": None, "checks": [], "stats": {}}
    estimate = reference.error_estimate
    return {
        "how": "solve",
        "status": reference.status,
        "estimate": None if estimate is None else plain(estimate.as_dict()),
        "checks": [{**plain(asdict(check)), "passed": check.passed} for check in reference.checks],
        "stats": plain({name: reference.stats[name] for name in _STATS if name in reference.stats}),
    }


@final
@dataclass(frozen=True, eq=False)
class _Paths:
    """What paths under the policy of the reference say."""

    setting: Setting
    problem: ControlProblem
    reference: Any
    seconds: float

    def certificate(self, tell: Progress) -> Record:
        """Of the optimal value."""
        found = self._certify(self.reference, self.setting.fine, tell)
        kept = ("lower", "value", "upper", "upper_by", "ess", "tail", "paths", "starts", "steps", "level", "status")
        record = {name: getattr(found, name) for name in kept}
        bounds = found.diffusion
        record |= {"reward": asdict(bounds.reward), "optimal": asdict(bounds.optimal), "gap": asdict(found.gap)}
        return dict(plain(record))

    def objectives(self, tell: Progress) -> Record:
        """J of the policy in continuous time and by the Euler scheme, with its 95 % interval, and without control.

        From the laws of the process, on the box of the reference or, if some points lie beyond it, on boxes of their
        own. If that takes too long, or rewards jump, from paths, as certificates extrapolate them.
        """
        if self.setting.rtol is not None and self.reference.stats["layer"] > _LAYER * self.problem.horizon:
            told = f"the policy is right up to {self.reference.stats['layer']:.1e} before T only, as rewards jump there"
            return self._from_paths(tell) | {"without_laws": told}
        try:
            try:
                return self._from_laws(self.reference, part_of(tell, 0.0, 0.4))
            except DomainError:
                return self._from_laws(None, part_of(tell, 0.4, 0.8))
        except (DomainError, ConvergenceError) as cause:
            return self._from_paths(part_of(tell, 0.8, 1.0)) | {"without_laws": told_of(cause)}

    def _from_laws(self, reference: Any, tell: Progress) -> Record:
        policy = self.reference if self.setting.rtol is not None else self.reference.policy
        how: dict[str, Any] = {"n": self.setting.paths, "steps": self.setting.steps, "rng": 0, "progress": tell}
        with quiet():
            found = objectives(
                self.problem, policy, reference, max_seconds=min(self.seconds, _LAWS), rtol=_LAW_RTOL, **how
            )
        euler, free = found.euler, found.uncontrolled
        margin = _NORMAL * euler.standard_error
        return {
            "exact": plain(asdict(found.exact)),
            "euler": plain({**asdict(euler), "low": euler.value - margin, "high": euler.value + margin}),
            "uncontrolled": plain(asdict(free)),
            "optimal": None if found.optimal is None else plain(asdict(found.optimal)),
            "steps": self.setting.steps,
        }

    def _from_paths(self, tell: Progress) -> Record:
        own = self._certify(self.reference, self.setting.steps, part_of(tell, 0.0, 0.5))
        fine = self._certify(self.reference, self.setting.fine, part_of(tell, 0.5, 0.8))
        free = self._certify(None, self.setting.fine, part_of(tell, 0.8, 1.0))
        if own.chain is None:
            raise ConvergenceError("a certificate without a chain")
        chain = own.chain.reward
        return {
            "exact": _estimate(fine.diffusion.reward, f"{fine.paths} paths, {fine.steps} steps and half of them"),
            "euler": _estimate(chain, f"{own.paths} paths, {own.steps} steps") | {"low": chain.low, "high": chain.high},
            "uncontrolled": _estimate(
                free.diffusion.reward, f"{free.paths} paths, {free.steps} steps and half of them"
            ),
            "optimal": None,
            "steps": self.setting.steps,
        }

    def _certify(self, policy: Any, steps: int, tell: Progress) -> Certificate:
        how: dict[str, Any] = {
            "n": self.setting.paths,
            "steps": steps,
            "rng": 0,
            "max_seconds": self.seconds,
            "progress": tell,
        }
        return certify(self.problem, policy, **how)


def _estimate(interval: Interval, how: str) -> Record:
    """A mean over paths, as `objectives` writes one."""
    return {"value": interval.estimate, "standard_error": interval.half_width / _NORMAL, "how": how}


def _files(setting: Setting, reference: Any, folder: Path) -> list[str]:
    """Grids of the reference: whole, or where it has more than three dimensions, those of its distinct factors."""
    if setting.rtol is None:
        return []
    if reference.problem.dim <= _GRIDS:
        export(reference, folder / f"{setting.name}.npz")
        return [f"{setting.name}.npz"]
    written, seen = [], set[int]()
    for axes, part in reference.parts:
        if id(part) not in seen:
            seen.add(id(part))
            name = f"{setting.name}-x{axes[0] + 1}.npz"
            export(part, folder / name)
            written.append(name)
    return written


def _value(setting: Setting, problem: ControlProblem, reference: Any, record: Record) -> Record:
    """The optimal value at the start, its error bar, and what is known of it otherwise."""
    optimal = record["objectives"].get("optimal") or _at_the_start(problem, reference)
    value, spread, where = optimal["value"], optimal["standard_error"], optimal["how"]
    found: Record = {"value": value, "value_error": None, "value_sampling_error": spread, "value_where": where}
    if record.get("estimate") is not None and record["estimate"]["value"] is not None:
        found["value_error"] = record["estimate"]["value"] * _size(reference, problem) + spread
    if setting.rtol is None:
        found["value_error"] = spread
    if problem.exact is not None and setting.rtol is not None:
        found["true_error"] = _true_error(problem, reference)
    if setting.known is not None:
        found["known"] = setting.known
        found["true_error"] = abs(value - setting.known)
    if setting.published is not None:
        found["published"] = {**asdict(setting.published), "ours": setting.published.sign * value}
    return dict(plain(found))


def _start(problem: ControlProblem) -> tuple[FloatArray, FloatArray, str, bool]:
    """Points and weights that stand for the law of the start, in words, and whether they were drawn."""
    law = problem.initial_law
    if isinstance(law, PointMass):
        return law.expectation[None], np.ones(1), "the value at the start", False
    if problem.dim <= _GRIDS:
        x, weights = law.quadrature(_ORDER)
        return x, weights, f"Gauss quadrature of the law of the start, {_ORDER} points per coordinate", False
    x = law.sample(_DRAWS, np.random.default_rng(0))
    return x, np.full(_DRAWS, 1.0 / _DRAWS), f"{_DRAWS} draws of the start", True


def _at_the_start(problem: ControlProblem, reference: Any) -> Record:
    """E v_0(X_0); points beyond a box count as a sampling error."""
    x, weights, how, drawn = _start(problem)
    solved = isinstance(reference, Solution | ProductSolution)
    v = reference.value(0.0, x, outside="nan") if solved else reference.value(0.0, x)
    seen = np.isfinite(v)
    inside = float(weights[seen].sum())
    value = float(weights[seen] @ v[seen]) / inside
    error = (1.0 - inside) * float(np.ptp(v[seen]))
    error += float(v[seen].std() / np.sqrt(_DRAWS)) if drawn else 0.0
    return {"value": value, "standard_error": error, "how": how}


def _size(reference: AnySolution, problem: ControlProblem) -> float:
    """The max over t of the L2 norm of v, of which the estimate of `solve` is a part."""
    points = law_points(problem, rng=0)
    how = {"outside": "nan", "nonpositive": "nan"}
    fields = [(reference.value(t, x, **how), reference.gradient(t, x, **how)) for t, x, _ in points]
    return largest_norms(problem, points, fields)[0]


def _true_error(problem: ControlProblem, reference: AnySolution) -> float:
    """The root mean square of v - v* at the start, against the closed form."""
    x, weights, *_ = _start(problem)
    off = reference.value(0.0, x, outside="nan") - problem.exact.value(0.0, x)  # type: ignore[union-attr]
    seen = np.isfinite(off)
    return float(np.sqrt((weights[seen] * off[seen] ** 2).sum() / weights[seen].sum()))
