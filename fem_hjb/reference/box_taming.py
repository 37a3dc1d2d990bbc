r"""The value form kept from running away where the law does not go: flatter rewards, and elements damped there.

Rewards of hundreds of temperatures in the corners of a box push a policy so hard that values run away there, unless
steps and cells follow what nobody will ever see. What comes of paths that end there is exp(-hundreds) of f elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import final

import numpy as np

from fem_hjb.spaces.axes import AxisMatrix, apply_all, in_blocks
from fem_hjb.spaces.spectral import SpectralLine
from fem_hjb.support.checks import FloatArray

_DAMPED = 0.5  # of what the highest degree of a cell adds, in every step
_NOWHERE = 100.0  # times the floor under the law in grids: below, elements are damped


def flattened(values: FloatArray, low: float, high: float) -> FloatArray:
    """Values in [low, high] as they are, beyond by an area sine of the width of that interval, twice differentiable.

    Slopes beyond fall like the inverse distance to it.
    """
    width = high - low
    beyond = np.minimum(values - low, 0.0) + np.maximum(values - high, 0.0)
    return np.asarray(np.clip(values, low, high) + width * np.arcsinh(beyond / width))


@final
@dataclass(frozen=True, eq=False)
class Damping:
    """Values (*shape) with this share (*shape) of what `less` makes of them."""

    less: list[AxisMatrix]
    share: FloatArray

    def __call__(self, u: FloatArray) -> FloatArray:
        return np.asarray(u + self.share * (apply_all(self.less, u) - u))


def damping(lines: Sequence[SpectralLine], masses: Sequence[FloatArray], floor: float) -> Damping:
    """What a step ends with: values (*shape), half of what degree p adds to degree p - 1 taken out where no mass is.

    Continuous, as ends of cells are kept (P. Fischer and J. Mullen, C. R. Acad. Sci. Paris 332 (2001) 265-270).

    masses : (n_k,) of the law along each axis, at the nodes.
    floor : of the peak of the law, the density that grids resolve.
    """
    poorer = [SpectralLine(line.grid, line.degree - 1) for line in lines]
    less = [
        in_blocks(
            (1.0 - _DAMPED) * np.eye(line.n) + _DAMPED * less.rows(line.nodes) @ line.rows(less.nodes), len(lines)
        )
        for line, less in zip(lines, poorer, strict=True)
    ]
    densities = [mass / line.weights for mass, line in zip(masses, lines, strict=True)]
    density = reduce(np.multiply.outer, [each / each.max() for each in densities])
    return Damping(less, 1.0 / (1.0 + (density / (_NOWHERE * floor)) ** 2))
