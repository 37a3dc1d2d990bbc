"""Which settings of the literature the atlas has, to which tolerance each is solved, and what was published of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

from fem_hjb.problems import zoo
from fem_hjb.problems.box import Box
from fem_hjb.problems.problem import ControlProblem
from fem_hjb.support.errors import TrialError

_QUICK_MESH = 8, 24
_QUICK_RTOL, _QUICK_SECONDS, _QUICK_PATHS, _QUICK_STEPS = 1e-2, 5.0, 1024, 32


@final
@dataclass(frozen=True, kw_only=True)
class Published:
    """A figure of the literature.  sign : 1 if it is a value, -1 if a cost, that is, -v.  remark : why it differs."""

    figure: float
    sign: float
    source: str
    remark: str


@final
@dataclass(frozen=True, kw_only=True)
class Setting:
    """One entry of the atlas.

    problem, dim, parameters : of the zoo.
    rtol : of `solve`; None where the closed form is the reference, as more than three coordinates hang together.
    seconds : the most that each of its parts may take: solve, objectives, certify.
    annulus : radii, and triangles across and around: the law lives on the mesh between these circles, by P4.
    box : the corners of the box it is solved on; None: chosen by `solve`.
    paths, steps : of the Euler chain, whose J the literature gives.  fine : the steps of the certificate.
    forever : whether it is what the problem tends to as its horizon grows, by `ground_state`; horizon and terminal
        reward then play no role, but for what a closed form says of long horizons.
    known : the value at the start where that is known without a closed form.
    note : what a reader must know of how it was done.
    """

    name: str
    problem: str
    rtol: float | None
    dim: int | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 300.0
    box: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    annulus: tuple[float, float, int, int] | None = None
    paths: int = 8192
    steps: int = 200
    fine: int = 400
    forever: bool = False
    known: float | None = None
    published: Published | None = None
    note: str = ""

    def make(self) -> ControlProblem:
        """The problem."""
        return zoo.get(self.problem, self.dim, **self.parameters)

    def solve_options(self) -> dict[str, Any]:
        """What `solve` is told."""
        return {} if self.box is None else {"box": Box(*self.box, boundary="natural")}

    def quick(self) -> Setting:
        """The same with a loose tolerance and few paths."""
        loose = None if self.rtol is None else max(self.rtol, _QUICK_RTOL)
        mesh = None if self.annulus is None else (*self.annulus[:2], *_QUICK_MESH)
        few: dict[str, Any] = {"paths": _QUICK_PATHS, "steps": _QUICK_STEPS, "fine": 2 * _QUICK_STEPS}
        return replace(self, rtol=loose, seconds=min(self.seconds, _QUICK_SECONDS), annulus=mesh, **few)


DRAWN = ((-0.5853, 0.0), (0.0, -1.4356)), ((5.2384, 0.4181), (0.4181, 7.2859))  # A, and Q = 2 P
_CALM: dict[str, Any] = {"Lambda": 1.0, "Q": 2.0, "horizon": 40.0}
_DEEP = ((5.0,) * 3 + (1.0,) * 7, (5.0,) * 3 + (3.0,) * 7)  # of ten wells three are deep

DEEP_BSDE = Published(
    figure=4.5901,
    sign=-1.0,
    source="Han, Jentzen and E, PNAS 115 (2018) 8505-8510",
    remark="their reference by Monte Carlo; agrees in all digits that are given",
)

WIDE = "its box is given: on boxes that `solve` chooses 2e-2 was not reached in 200 s"
SLITS = "its box is given: in that of `solve` some paths under the policy leave it"
STEEP = "its box is given, and 1e-1 asked: on larger boxes 3e-2 was not reached in 100 s"

SETTINGS: tuple[Setting, ...] = (
    Setting(name="soc-ou-quadratic-easy", problem="soc-ou-quadratic", rtol=1e-4, paths=4096, fine=200),
    Setting(
        name="soc-ou-quadratic-hard",
        problem="soc-ou-quadratic",
        parameters={"setting": "hard"},
        rtol=1e-4,
        paths=4096,
        fine=200,
    ),
    Setting(name="soc-ou-linear", problem="soc-ou-linear", rtol=None, fine=2000),
    Setting(name="soc-double-well", problem="soc-double-well", rtol=1e-5, paths=4096, fine=1000),
    Setting(name="soc-molecular-dynamics", problem="soc-molecular-dynamics", rtol=1e-5),
    Setting(name="double-well", problem="double-well", dim=2, rtol=1e-4, paths=4096, fine=1000),
    Setting(name="double-well-2d-coupled", problem="double-well-2d-coupled", rtol=1e-4),
    Setting(name="ring", problem="ring", rtol=1e-3),
    Setting(name="double-slit", problem="double-slit", rtol=1e-2, box=((-11.0,), (11.0,)), fine=2000, note=SLITS),
    Setting(name="hitting-time", problem="hitting-time", dim=1, rtol=1e-4, paths=4096, steps=2000, fine=4000),
    Setting(
        name="hitting-time-2d",
        problem="hitting-time",
        dim=2,
        parameters={"kappa": 2.0, "horizon": 10.0},
        rtol=1e-2,
        paths=4096,
        steps=1000,
        fine=2000,
    ),
    Setting(
        name="mueller-brown",
        problem="mueller-brown",
        rtol=1e-1,
        seconds=900.0,
        box=((-1.75, -0.75), (1.35, 2.2)),
        fine=3000,
        note=STEEP,
    ),
    Setting(name="maier-stein", problem="maier-stein", rtol=1e-4),
    Setting(name="foellmer-mixture", problem="foellmer-mixture", rtol=1e-3, fine=1000),
    Setting(
        name="foellmer-funnel",
        problem="foellmer-funnel",
        rtol=1e-2,
        box=((-5.5, -20.0), (5.0, 20.0)),
        fine=800,
        known=0.0,
        note=WIDE,
    ),
    Setting(name="eight-gaussians", problem="eight-gaussians", rtol=1e-3),
    Setting(name="two-moons", problem="two-moons", rtol=1e-3),
    Setting(name="checkerboard", problem="checkerboard", rtol=1e-3),
    Setting(name="hjb-log-1d", problem="hjb-log", dim=1, rtol=1e-6),
    Setting(name="hjb-log-2d", problem="hjb-log", dim=2, rtol=1e-5),
    Setting(name="hjb-log-3d", problem="hjb-log", dim=3, rtol=1e-3),
    Setting(name="hjb-log-100d", problem="hjb-log", dim=100, rtol=None, published=DEEP_BSDE),
    Setting(name="forever-isotropic", problem="lq", dim=20, parameters={**_CALM, "A": -1.0}, rtol=1e-5, forever=True),
    Setting(
        name="forever-repulsive",
        problem="lq",
        dim=20,
        parameters={**_CALM, "A": 1.0, "cov": 1.0},
        rtol=1e-5,
        forever=True,
    ),
    Setting(
        name="forever-anisotropic",
        problem="lq",
        dim=2,
        parameters={**_CALM, "A": DRAWN[0], "Q": DRAWN[1]},
        rtol=1e-4,
        forever=True,
        note="drawn here: the paper's numbers come from torch's generator",
    ),
    Setting(
        name="forever-double-well",
        problem="double-well",
        dim=10,
        parameters={"kappa": _DEEP[0], "mu": _DEEP[1], "nu": 0.0},
        rtol=1e-5,
        forever=True,
    ),
    Setting(
        name="forever-ring",
        problem="ring",
        dim=2,
        rtol=1e-3,
        annulus=(1.2, 5.4, 22, 64),
        forever=True,
        note="on triangles around its circle, by P4, with error bars by refining them; the factor of E is chosen here",
    ),
    Setting(name="digital-option", problem="digital-option", rtol=1e-4),
    Setting(name="down-and-out-call", problem="down-and-out-call", rtol=1e-4),
)
QUICK = ("soc-ou-linear", "hjb-log-1d", "down-and-out-call")


def names() -> list[str]:
    """The entries there are."""
    return [setting.name for setting in SETTINGS]


def chosen(wanted: Iterable[str] = (), *, quick: bool = False) -> list[Setting]:
    """The settings of these names, in the order of the atlas; without names all of them, or with quick= a few.

    TrialError for a name that is none of them.
    """
    asked = list(wanted)
    for name in asked:
        if name not in names():
            close = difflib.get_close_matches(str(name), names(), n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"there are {', '.join(names())}"
            raise TrialError(f"the atlas has no entry {name!r}; {hint}")
    keep = set(asked or (QUICK if quick else names()))
    found = [setting for setting in SETTINGS if setting.name in keep]
    return [setting.quick() for setting in found] if quick else found
