"""Regular grids as files of arrays: NumPy's .npz, and HDF5 that is netCDF-4, too."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from fem_hjb.interop.grids import Grids
from fem_hjb.support.errors import OutputError


def write_npz(part: Path, grids: Grids) -> None:
    """Coordinates, fields and `meta`, a text of JSON: np.load reads it without pickle."""
    members: dict[str, Any] = {**grids.coordinates, **grids.fields, "meta": np.array(json.dumps(grids.meta))}
    with part.open("wb") as stream:
        np.savez_compressed(stream, **members)


def hdf5() -> Any:
    """h5py, or an OutputError that says how to get it."""
    try:
        import h5py
    except ImportError as cause:
        raise OutputError(
            "files *.h5 and *.nc need the package h5py: pip install 'fem_hjb[h5]', or use *.npz"
        ) from cause
    return h5py


def write_hdf5(part: Path, grids: Grids) -> None:
    """One dataset for each array, with long_name and units; coordinates are dimension scales, as netCDF-4 has them.

    What is said of the solution is the attribute `meta` of the file, a text of JSON. Axes keep the order in which they
    were made (`track_order`), which netCDF-4 asks for.
    """
    told = grids.meta["arrays"]
    scales = dict(grids.coordinates)
    if "control" in grids.fields:
        scales["component"] = np.arange(1.0, grids.fields["control"].shape[-1] + 1.0)
    with hdf5().File(part, "w", track_order=True) as file:
        file.attrs["title"] = f"solution of {grids.meta['problem']!r} by {grids.meta['method']}"
        file.attrs["source"] = grids.meta["created_by"]
        file.attrs["meta"] = json.dumps(grids.meta)
        for name, axis in scales.items():
            scale = file.create_dataset(name, data=axis)
            scale.make_scale(name)
            _describe(scale, told.get(name, {"description": "component of control", "unit": "1"}))
        for name, array in grids.fields.items():
            field = file.create_dataset(name, data=array, compression="gzip", shuffle=True, fillvalue=np.nan)
            _describe(field, told[name])
            for k, along in enumerate(list(scales)[: array.ndim]):
                field.dims[k].attach_scale(file[along])


def _describe(dataset: Any, told: dict[str, str]) -> None:
    dataset.attrs["long_name"] = told["description"]
    dataset.attrs["units"] = told["unit"]
