"""What a run on boxes is asked to resolve: tolerances of its steps, grids and tables, all parts of one tolerance."""

from dataclasses import dataclass
from typing import final

_SPACE = {1: 0.1, 2: 0.3, 3: 0.3}  # of the tolerance; on a line unknowns cost little, another round does not
_TIGHT, _FINER = 3e-6, 0.5  # tolerances on a line, for which cells that are hardly smaller save more than they cost
_TIME, _DENSE, _TABLE = 0.2, 0.2, 0.05  # of the tolerance
_GUESS = 0.03
LEAST = 1e-13


@final
@dataclass(frozen=True, eq=False)
class Tolerances:
    """time : of a step;  dense : between its ends;  space : of what is not resolved of the gradient; all relative.

    table : of coefficients in time, relative.  degree : of the elements.  most : unknowns.
    guess : the part of the spread of rewards in the box, over its width, that a gradient is expected to reach.
    """

    time: float
    dense: float
    space: float
    table: float
    degree: int
    most: int
    guess: float


def asked(dim: int, rtol: float, most: int) -> Tolerances:
    """What a run is to resolve, in the first place."""
    return Tolerances(
        time=max(_TIME * rtol, LEAST),
        dense=_DENSE * rtol,
        space=_SPACE[dim] * rtol * (_FINER if dim == 1 and rtol <= _TIGHT else 1.0),
        table=_TABLE * rtol,
        degree=_degree(dim, rtol),
        most=most,
        guess=_GUESS,
    )


def _degree(dim: int, rtol: float) -> int:
    if dim == 3:
        return 6 if rtol >= 3e-3 else 8 if rtol >= 3e-4 else 12
    if dim == 2:
        return 8 if rtol >= 3e-4 else 12 if rtol >= 1e-6 else 16
    return 12 if rtol >= 1e-3 else 16 if rtol >= 1e-6 else 20
