"""Spectral functions on a line between its nodes, as a matrix."""

import numpy as np

from fem_hjb.spaces.spectral import SpectralLine
from fem_hjb.support.checks import FloatArray


def interpolation(line: SpectralLine, x: FloatArray) -> FloatArray:
    """The matrix (k, n) from values at the nodes to values at points x (k,)."""
    cells, xi = line.locate(x)
    table = np.zeros((len(x), line.n))
    np.put_along_axis(table, line.cell_dofs[cells], line.reference(xi), axis=1)
    return table
