"""Site: one zarr store that holds every layer of every step on the rasters' own grids.

Layout (zarr format 3; see docs/formats.md)::

    site.zarr/                    attributes: rsseg = {classes, bands, core, halo, scenes, layers …}
    ├── scenes/NAME/              one raster; attributes: proj:wkt2, spatial:*, rsseg = {source}
    │   ├── image  (band, y, x)   the pixels, unless the raster is linked
    │   ├── valid  (y, x)         whether a pixel was measured, unless the raster is linked
    │   ├── tile_valid, tags, validation   one value (per class) per tile
    │   ├── spatial_ref           CF grid mapping
    │   └── LAYER-FINGERPRINT/LAYER   what a stage made; chunk = tile core, or a window of masks
    └── models/                   checkpoints of classifiers

A chunk is written whole and atomically, so a chunk that exists is a tile that is done. Workers
write chunks only; attributes and metadata are the main process's. In a store (``s3://…``), where
nothing can be renamed, the attribute ``rsseg`` is what makes a site: it is written last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from affine import Affine
from numpy.typing import NDArray

from rsseg import __version__
from rsseg.bands import Bands
from rsseg.classes import Classes
from rsseg.errors import InputError
from rsseg.grid import Grid, Tiling, Window
from rsseg.io.layers import Layer, LayerSpec, geo_attributes, store_at, sweep, write_spatial_ref
from rsseg.io.raster import Raster
from rsseg.io.remote import RemotePath, as_path, describe_source
from rsseg.io.tag_table import UNKNOWN, SceneTiles, TagTable, is_tagged

FORMAT = 1
MAKING = "rsseg:making"
"""Attribute of the root in place of ``rsseg``, where a site in a store is not complete."""
HOLD_BYTES = 2**30
"""Copied pixels of a site up to this size are kept in memory once they were read."""


class Scene:
    """One raster of a site.

    Args:
        group: the scene's zarr group.
        name: its name within the site.
        bands: which bands its pixels have.
        core: side of the tile cores, pixels.
        halo: padding of the tiles, pixels.
        hold: keep pixels in memory once they were read; for sites that are small.
    """

    def __init__(
        self, group: zarr.Group, name: str, bands: Bands, core: int, halo: int, *, hold: bool
    ) -> None:
        self.group = group
        self.name = name
        self.hold = hold
        self._bands = bands
        self._facts: dict[str, Any] = dict(group.attrs["rsseg"])  # type: ignore[arg-type]
        self.tiling = Tiling(self.grid.shape, core, halo)

    @cached_property
    def grid(self) -> Grid:
        """Where the pixels lie."""
        attrs: Any = self.group.attrs
        rows, cols = attrs["spatial:shape"]
        wkt = attrs.get("proj:wkt2")
        return Grid((rows, cols), Affine(*attrs["spatial:transform"]), wkt)

    @property
    def source(self) -> Path:
        """The raster this scene was made from."""
        return as_path(self._facts["source"]["path"])

    @property
    def linked(self) -> bool:
        """Whether the pixels stay in the source raster."""
        return bool(self._facts["linked"])

    @cached_property
    def _raster(self) -> Raster:
        check_source(self._facts["source"])
        return Raster(self.source, self._bands.indices)

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read pixels; the window may reach beyond the raster (reflected there, and not valid).

        Returns:
            image (C, h, w) in the source's dtype and valid (h, w).

        Raises:
            InputError: the linked raster is gone or was changed.
        """
        if self.linked:
            return self._raster.read(window)
        image, inside = self._layers["image"].read_cells(window)
        valid, _ = self._layers["valid"].read_cells(window)
        return image, valid & inside

    @cached_property
    def _layers(self) -> dict[str, Layer]:
        return {name: Layer(self._array(name), 1, hold=self.hold) for name in ("image", "valid")}

    def _array(self, name: str) -> zarr.Array[Any]:
        array = self.group[name]
        assert isinstance(array, zarr.Array)
        return array

    @cached_property
    def tile_valid(self) -> NDArray[np.bool_]:
        """(rows, cols) whether a tile has a valid pixel."""
        return np.asarray(self._array("tile_valid")[:])

    @property
    def tiles(self) -> SceneTiles:
        """What tagging needs to know of this scene."""
        return SceneTiles(self.name, self.grid, self.tiling, self.tile_valid)

    @property
    def tags(self) -> NDArray[np.int8] | None:
        """(rows, cols, K): 1 present, 0 absent, -1 unknown; None before ``rsseg tag``."""
        return np.asarray(self._array("tags")[:]) if "tags" in self.group else None

    @property
    def validation(self) -> NDArray[np.bool_]:
        """(rows, cols) whether a tile is held back for validation."""
        return np.asarray(self._array("validation")[:])

    def set_tags(self, tags: NDArray[np.int8], validation: NDArray[np.bool_]) -> None:
        """Store tags and the train/validation split."""
        # A scene with tags has its split; tags that never got their values are all unknown.
        for name in ("tags", "validation"):
            if name in self.group:
                del self.group[name]
        for name, values, fill in (("validation", validation, False), ("tags", tags, UNKNOWN)):
            dims = ("tile_row", "tile_col", "class")[: values.ndim]
            array = self.group.create_array(
                name,
                shape=values.shape,
                chunks=values.shape,
                dtype=values.dtype,
                fill_value=fill,
                dimension_names=dims,
            )
            array[...] = values

    def layer(self, spec: LayerSpec, fingerprint: str) -> Layer:
        """Return a layer, created where it does not exist yet (by the main process)."""
        path = f"{spec.name}-{fingerprint}"
        if path not in self.group or spec.name not in self._subgroup(path):
            self._create_layer(path, spec)
        array = self._subgroup(path)[spec.name]
        assert isinstance(array, zarr.Array)
        return Layer(array, spec.cell)

    def _subgroup(self, path: str) -> zarr.Group:
        group = self.group[path]
        assert isinstance(group, zarr.Group)
        return group

    def _create_layer(self, path: str, spec: LayerSpec) -> None:
        cells = self.grid.coarsened(spec.cell)
        group = self.group.require_group(path)
        group.attrs.update({**geo_attributes(cells), "rsseg": {"cell": spec.cell}})
        write_spatial_ref(group, cells)
        lead = () if spec.channels is None else (spec.channels,)
        side = -(-self.tiling.core // spec.cell)
        group.create_array(
            spec.name,
            shape=(*lead, *cells.shape),
            chunks=(*lead, side, side),
            dtype=spec.dtype,
            fill_value=spec.fill,
            dimension_names=("band", "y", "x")[-2 - len(lead) :],
            attributes={"grid_mapping": "spatial_ref"},
        )

    def find_layer(self, name: str, fingerprint: str, *, hold: bool = False) -> Layer | None:
        """Return an existing layer, or None; ``hold`` keeps a finished one in memory."""
        path = f"{name}-{fingerprint}"
        if path not in self.group or name not in self._subgroup(path):
            return None
        group = self._subgroup(path)
        array = group[name]
        assert isinstance(array, zarr.Array)
        facts: Any = group.attrs["rsseg"]
        return Layer(array, int(facts["cell"]), hold=hold)


class Site:
    """An open site.

    Args:
        path: the folder ``site.zarr``.

    Raises:
        InputError: there is no site, or it was made by a newer rsseg.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = as_path(path)
        self._root = _open_root(self.path)
        facts = self._facts
        self.classes = Classes.from_dict(facts["classes"], str(self.path))
        self.bands = Bands.from_dict(facts["bands"])
        self.core = int(facts["core"])
        self.halo = int(facts["halo"])

    @property
    def _facts(self) -> dict[str, Any]:
        return dict(self._root.attrs["rsseg"])  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[type[Site], tuple[Path]]:
        return Site, (self.path,)

    @property
    def plan(self) -> object:
        """What decided the site's content: ``SitePlan.describe`` of what made it."""
        return self._root.attrs.get("plan")

    @property
    def models(self) -> Path:
        """Folder of the classifiers fitted on this site."""
        return self.path / "models"

    @cached_property
    def scenes(self) -> dict[str, Scene]:
        """The scenes by name, in the order they were given."""
        return {name: self._scene(name) for name in self._facts["scenes"]}

    def _scene(self, name: str) -> Scene:
        group = self._root[f"scenes/{name}"]
        assert isinstance(group, zarr.Group)
        # Not in worker processes, of which each would hold its own.
        hold = self._facts["pixel_bytes"] <= HOLD_BYTES and parent_process() is None
        return Scene(group, name, self.bands, self.core, self.halo, hold=hold)

    @property
    def ground_sample_distance(self) -> float | None:
        """Median ground metres per pixel of the scenes; None where none has a CRS."""
        known = [s.grid.ground_sample_distance for s in self.scenes.values()]
        values = [value for value in known if value is not None]
        return float(np.median(values)) if values else None

    @property
    def tags(self) -> TagTable:
        """Tags of all scenes.

        Raises:
            InputError: the site has no tags yet.
        """
        table = {name: scene.tags for name, scene in self.scenes.items()}
        tagged = {name: tags for name, tags in table.items() if tags is not None}
        if len(tagged) < len(table) or not any(is_tagged(tags).any() for tags in tagged.values()):
            raise InputError(
                f"{self.path} has no tags: tick {sheet_path(self.path).name} in QGIS, then run "
                f"rsseg tag {self.path.name} --from {sheet_path(self.path).name}"
            )
        return tagged

    @property
    def layers(self) -> dict[str, str]:
        """Name → fingerprint of each finished layer (the one made last)."""
        return dict(self._facts.get("layers", {}))

    def set_layer(self, name: str, fingerprint: str) -> None:
        """Make a finished layer the current one of its name."""
        layers = {**self.layers, name: fingerprint}
        self._root.attrs["rsseg"] = {**self._facts, "layers": layers}

    def tidy(self) -> None:
        """Remove what a killed run was writing; no other run may be at work on the site."""
        sweep(self.path)

    def forget_layers(self, names: Iterable[str]) -> None:
        """Make layers no longer current, because what they were made from changed."""
        layers = {k: v for k, v in self.layers.items() if k not in set(names)}
        self._root.attrs["rsseg"] = {**self._facts, "layers": layers}


def sheet_path(site: Path) -> Path:
    """Return where the tag sheet of a site lies: ``site.zarr`` has ``site_tags.gpkg`` beside it."""
    return site.with_name(f"{site.name.removesuffix('.zarr')}_tags.gpkg")


def _open_root(path: Path) -> zarr.Group:
    if not path.exists():
        partial = partial_path(path)
        hint = "rsseg tile was interrupted: run it again" if partial.exists() else "run rsseg tile"
        raise InputError(f"{path}: no such site; {hint}")
    if is_unfinished(path):
        raise InputError(f"{path}: no such site; rsseg tile was interrupted: run it again")
    try:
        root = zarr.open_group(store_at(path), mode="r+", zarr_format=3)
        facts: Any = root.attrs["rsseg"]
        made_by = facts["format"]
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(f"{path}: not an rsseg site; make one with rsseg tile") from error
    if made_by != FORMAT:
        raise InputError(
            f"{path}: site format {made_by}, this rsseg ({__version__}) reads format {FORMAT}; "
            "run rsseg tile again"
        )
    return root


def check_source(described: Mapping[str, Any]) -> None:
    """Raise unless the raster is still the one described.

    Raises:
        InputError: it is gone, or its size or time differ.
    """
    path = as_path(described["path"])
    if not path.exists():
        raise InputError(f"{path}: the raster this site links to is gone; run rsseg tile again")
    if describe_source(path) != dict(described):
        raise InputError(
            f"{path}: changed since this site was made from it; run rsseg tile --overwrite"
        )


def is_unfinished(path: Path) -> bool:
    """Return whether a site in a store was begun and not completed."""
    if not isinstance(path, RemotePath):
        return False
    try:
        return MAKING in zarr.open_group(store_at(path), mode="r", zarr_format=3).attrs
    except (KeyError, TypeError, ValueError, OSError):
        return False


def partial_path(path: Path) -> Path:
    """Return where an unfinished site lies; in a store, where nothing can be renamed, there."""
    if isinstance(path, RemotePath):
        return path
    return path.with_name(path.name + ".partial")
