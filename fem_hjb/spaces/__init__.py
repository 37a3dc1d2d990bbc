"""Classes of functions: elements on meshes, splines and spectral elements on boxes, dictionaries of features.

`Space` is a class in space and time; the others are what it is made of.
"""

from fem_hjb.spaces.basis import ELEMENTS, Element, SpatialBasis
from fem_hjb.spaces.dictionary import Dictionary, Envelope, Union
from fem_hjb.spaces.features import GaussianQuadratic, HermiteCross, RandomFourier
from fem_hjb.spaces.line import LineBasis
from fem_hjb.spaces.mesh import MeshBasis
from fem_hjb.spaces.mesh_files import load_mesh
from fem_hjb.spaces.meshes import box_mesh
from fem_hjb.spaces.space import Space, spatial_basis
from fem_hjb.spaces.spectral import SpectralBasis, SpectralLine
from fem_hjb.spaces.tensor import HermiteBasis, SplineBasis

__all__ = [
    "ELEMENTS",
    "Dictionary",
    "Element",
    "Envelope",
    "GaussianQuadratic",
    "HermiteBasis",
    "HermiteCross",
    "LineBasis",
    "MeshBasis",
    "RandomFourier",
    "Space",
    "SpatialBasis",
    "SpectralBasis",
    "SpectralLine",
    "SplineBasis",
    "Union",
    "box_mesh",
    "load_mesh",
    "spatial_basis",
]
