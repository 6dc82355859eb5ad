"""Layers: arrays of one scene on its grid, written tile core by tile core."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import FsspecStore

from rsseg.classes import IGNORE
from rsseg.grid import Grid, Window
from rsseg.io.raster import mirror
from rsseg.io.remote import RemotePath, as_path


@dataclass(frozen=True)
class LayerSpec:
    """What a layer holds.

    Args:
        name: ``cam``, ``labels`` …
        dtype: numpy dtype name.
        channels: number of channels, or None for a (H, W) layer.
        cell: pixels of the raster per cell of the layer.
        fill: value of cells that were never written.
    """

    name: str
    dtype: str
    channels: int | None = None
    cell: int = 1
    fill: int = 0


class Layer:
    """One array of one scene, written core by core.

    Args:
        array: the zarr array, (H, W) or (channels, H, W) in cells.
        cell: pixels of the raster per cell.
        hold: read the whole array at once, at the first read, and keep it in memory.
    """

    def __init__(self, array: zarr.Array[Any], cell: int, *, hold: bool = False) -> None:
        self.array = array.with_config({"write_empty_chunks": True})
        self.cell = cell
        self._hold = hold
        chunks = array.chunks[-2:]
        self._chunk_pixels = (chunks[0] * cell, chunks[1] * cell)

    @cached_property
    def _source(self) -> Any:
        """The array to read from: on disk, or in memory."""
        return np.asarray(self.array[:]) if self._hold else self.array

    def has(self, core: Window) -> bool:
        """Whether every chunk of a block of tile cores (pixels) was written."""
        height, width = self._chunk_pixels
        rows = range(core.row // height, -(-(core.row + core.height) // height))
        cols = range(core.col // width, -(-(core.col + core.width) // width))
        lead = (0,) * (self.array.ndim - 2)
        return all(self._chunk_path((*lead, row, col)).exists() for row in rows for col in cols)

    def _chunk_path(self, index: tuple[int, ...]) -> Path:
        key = self.array.metadata.encode_chunk_key(index)
        return self._root / self.array.path / key

    @cached_property
    def _root(self) -> Path:
        store: Any = self.array.store
        if isinstance(store, FsspecStore):
            return as_path(store.fs.unstrip_protocol(store.path))
        return Path(store.root)

    def write(self, core: Window, values: NDArray[np.generic]) -> None:
        """Write a block of tile cores: (h, w) or (channels, h, w) in cells of the layer."""
        window = core.scaled(self.cell)
        assert values.shape[-2:] == (window.height, window.width), (values.shape, window)
        self.array[(..., *window.slices)] = values

    def read(self, window: Window) -> NDArray[Any]:
        """Read a window given in pixels; mirrored where it reaches beyond the raster.

        Returns:
            (h, w) or (channels, h, w) in cells; the window's edges must lie on cell edges.
        """
        return self.read_cells(window.scaled(self.cell))[0]

    def read_cells(self, cells: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read a window given in cells; also return (h, w) which of them lie in the raster."""
        within, rows, cols, inside = mirror(cells, self.array.shape[-2:])
        values = np.asarray(self._source[(..., *within.slices)])
        return values[..., rows[:, None], cols], inside


def store_at(path: Path) -> Path | FsspecStore:
    """Return what zarr opens for a folder, or for a prefix of objects."""
    if isinstance(path, RemotePath):
        return FsspecStore.from_url(str(path), storage_options=path.store_options)
    return path


def sweep(folder: Path) -> None:
    """Remove what zarr was writing when its process was killed; nobody may be writing there now.

    Objects are there whole or not at all.

    Args:
        folder: of a group, with all that is in it.
    """
    if isinstance(folder, RemotePath):
        return
    for path in folder.rglob("*.partial"):
        if path.is_file():  # a classifier that is being fitted has a folder of that ending
            path.unlink(missing_ok=True)


LABELS = LayerSpec("labels", "uint8", fill=IGNORE)


def geo_attributes(grid: Grid) -> dict[str, Any]:
    """Return a group's georeference by the GeoZarr ``proj:`` and ``spatial:`` conventions."""
    attributes: dict[str, Any] = {
        "spatial:dimensions": ["y", "x"],
        "spatial:transform": list(grid.transform)[:6],
        "spatial:shape": list(grid.shape),
    }
    return attributes if grid.crs is None else {**attributes, "proj:wkt2": grid.crs}


def write_spatial_ref(group: zarr.Group, grid: Grid) -> None:
    """Write the CF grid mapping variable that xarray and rioxarray look for."""
    if "spatial_ref" in group:
        return
    gdal = " ".join(repr(value) for value in grid.transform.to_gdal())
    attributes: dict[str, Any] = {"GeoTransform": gdal}
    if grid.crs:
        attributes["crs_wkt"] = grid.crs
    group.create_array(
        "spatial_ref", shape=(), dtype="int32", dimension_names=(), attributes=attributes
    )
