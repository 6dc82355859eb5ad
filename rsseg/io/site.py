"""Site: one zarr store that holds every layer of every step on the rasters' own grids.

Layout (zarr format 3; see docs/formats.md)::

    site.zarr/                    attributes: rsseg = {classes, bands, core, halo, scenes, layers …}
    ├── scenes/NAME/              one raster; attributes: proj:wkt2, spatial:*, rsseg = {source}
    │   ├── image  (band, y, x)   the pixels, unless the raster is linked
    │   ├── valid  (y, x)         whether a pixel was measured, unless the raster is linked
    │   ├── tile_valid, tags, validation   one value (per class) per tile
    │   ├── spatial_ref           CF grid mapping
    │   └── LAYER-FINGERPRINT/LAYER   what a stage made; chunk = tile core
    └── models/                   checkpoints of classifiers

A chunk is written whole and atomically, so a chunk that exists is a tile that is done. Workers
write chunks only; attributes and metadata are the main process's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from rsseg.classes import IGNORE, Classes
from rsseg.errors import InputError
from rsseg.grid import Grid, Tile, Tiling, Window
from rsseg.io.raster import Raster, mirror
from rsseg.io.tag_table import UNKNOWN, SceneTiles, TagTable, is_tagged, plain_name

FORMAT = 1
HOLD_BYTES = 2**30
"""Copied pixels of a site up to this size are kept in memory once they were read."""
LINK_FROM_BYTES = 2 * 10**9
"""Rasters with more bytes of pixels than this are linked rather than copied, unless told."""

COMPLETE = "rsseg:complete"
"""Attribute of scenes that were written to the end."""
MODEL_BYTES = 10**8
"""Room for a classifier and for what resumes its training."""


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
        store: Any = self.array.store
        return Path(store.root) / self.array.path / self.array.metadata.encode_chunk_key(index)

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
        return Path(self._facts["source"]["path"])

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
        if path not in self.group:
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
        self.path = Path(path)
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
    try:
        root = zarr.open_group(path, mode="r+", zarr_format=3)
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


# --- making a site ---------------------------------------------------------------------------


@dataclass(frozen=True)
class SitePlan:
    """What ``create`` is about to make.

    Args:
        rasters: the open rasters by scene name.
        classes: the classes.
        core: side of the tile cores, pixels.
        halo: padding of the tiles, pixels.
        rgb: GDAL band numbers (from 1) of red, green and blue; None for the first raster's own.
        link: True links, False copies, None decides by size.
    """

    rasters: Mapping[str, Raster]
    classes: Classes
    core: int
    halo: int
    rgb: tuple[int, int, int] | None = None
    link: bool | None = None

    def pixel_bytes(self) -> int:
        """Uncompressed bytes of all pixels in use."""
        return sum(
            raster.grid.window.area * len(raster.bands) * np.dtype(raster.dtype).itemsize
            for raster in self.rasters.values()
        )

    @property
    def links(self) -> bool:
        """Whether the rasters will be linked."""
        return self.pixel_bytes() > LINK_FROM_BYTES if self.link is None else self.link

    def tile_count(self) -> int:
        """Tiles of all scenes."""
        return sum(
            len(Tiling(raster.grid.shape, self.core, self.halo)) for raster in self.rasters.values()
        )

    def estimate(self) -> tuple[int, int]:
        """Return (bytes, files) the whole way will need at most.

        Image and mask (unless linked), then CAM, CRF, masks and labels per tile, and the
        classifier; class layers compress well, so one byte per pixel and layer is an upper
        estimate.
        """
        pixels = sum(raster.grid.window.area for raster in self.rasters.values())
        copied = 0 if self.links else self.pixel_bytes() + pixels
        layers = 4
        files = self.tile_count() * (layers + (0 if self.links else 2)) + 40 * len(self.rasters)
        return copied + layers * pixels + MODEL_BYTES, files

    def describe(self) -> dict[str, Any]:
        """Return what decides the site's content, JSON-ready."""
        return {
            "sources": {name: describe_source(r.path) for name, r in self.rasters.items()},
            "bands": next(iter(self.rasters.values())).bands,
            "classes": self.classes.to_dict(),
            "core": self.core,
            "halo": self.halo,
            "rgb": self.rgb,
            "link": self.links,
        }


def describe_source(path: Path) -> dict[str, Any]:
    """Return a raster's path, size in bytes and time of change, to recognise it later."""
    stat = path.stat()
    return {"path": str(path.resolve()), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def check_source(described: Mapping[str, Any]) -> None:
    """Raise unless the raster is still the one described.

    Raises:
        InputError: it is gone, or its size or time differ.
    """
    path = Path(described["path"])
    if not path.exists():
        raise InputError(f"{path}: the raster this site links to is gone; run rsseg tile again")
    if describe_source(path) != dict(described):
        raise InputError(
            f"{path}: changed since this site was made from it; run rsseg tile --overwrite"
        )


def is_made(path: Path, plan: SitePlan) -> bool:
    """Return whether there is a site that was made by the same plan from the same rasters."""
    if not path.exists():
        return False
    return bool(Site(path).plan == json.loads(json.dumps(plan.describe())))


def partial_path(path: Path) -> Path:
    """Return where an unfinished site lies."""
    return path.with_name(path.name + ".partial")


def create(
    path: Path,
    plan: SitePlan,
    measure: Callable[[], Bands],
    advance: Callable[[int], None],
    overwrite: bool = False,
) -> Site:
    """Make a site, or go on with making it; the folder gets its name when it is complete.

    Args:
        path: the final folder.
        plan: what to make.
        measure: computes the statistics; called only where no earlier run has.
        advance: told the number of pixels done.
        overwrite: replace the site that is there, once the new one is complete.
    """
    partial = partial_path(path)
    root = _partial_root(partial, plan, measure)
    for name, raster in plan.rasters.items():
        group = root.require_group(f"scenes/{name}")
        if COMPLETE not in group.attrs:
            _fill_scene(group, raster, plan, advance)
        else:
            advance(raster.grid.window.area)
    # Out of the way before it is removed: half a site must never stand under the name.
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if overwrite and path.exists():
        path.rename(old)
    partial.rename(path)
    shutil.rmtree(old, ignore_errors=True)
    return Site(path)


def _partial_root(partial: Path, plan: SitePlan, measure: Callable[[], Bands]) -> zarr.Group:
    described = json.loads(json.dumps(plan.describe()))
    try:
        root = zarr.open_group(partial, mode="r+", zarr_format=3)
        if root.attrs.get("plan") == described and "rsseg" in root.attrs:
            return root
    except (FileNotFoundError, KeyError, ValueError):
        pass
    if partial.exists():
        if not all(child.name.startswith(("zarr.", "scenes")) for child in partial.iterdir()):
            raise InputError(f"{partial}: is in the way and not ours; move it elsewhere")
        shutil.rmtree(partial)
    bands = measure()
    facts = {
        "format": FORMAT,
        "version": __version__,
        "classes": plan.classes.to_dict(),
        "bands": bands.to_dict(),
        "core": plan.core,
        "halo": plan.halo,
        "scenes": list(plan.rasters),
        "pixel_bytes": plan.pixel_bytes(),
        "layers": {},
    }
    attributes: dict[str, Any] = {"rsseg": facts, "plan": described}
    return zarr.create_group(partial, attributes=attributes, zarr_format=3)


def _fill_scene(
    group: zarr.Group, raster: Raster, plan: SitePlan, advance: Callable[[int], None]
) -> None:
    facts: Any = {"source": describe_source(raster.path), "linked": plan.links}
    group.attrs.update({**geo_attributes(raster.grid), "rsseg": facts})
    write_spatial_ref(group, raster.grid)
    tiling = Tiling(raster.grid.shape, plan.core, plan.halo)
    image, valid = (None, None) if plan.links else _image_arrays(group, raster, plan.core)
    tile_valid = np.zeros(tiling.counts, np.bool_)
    for row in range(tiling.counts[0]):
        strip = _strip(tiling, row)
        if image is None or valid is None:
            mask = raster.valid(strip)
        elif image.has(strip) and valid.has(strip):
            mask = valid.read(strip)
        else:
            pixels, mask = raster.read(strip)
            image.write(strip, pixels)
            valid.write(strip, mask)
        starts = np.arange(0, strip.width, plan.core)
        tile_valid[row] = np.logical_or.reduceat(mask.any(axis=0), starts)
        advance(strip.area)
    dims = ("tile_row", "tile_col")
    group.create_array("tile_valid", data=tile_valid, dimension_names=dims, overwrite=True)
    group.attrs[COMPLETE] = True


def _strip(tiling: Tiling, row: int) -> Window:
    first = tiling[row, 0].core
    return Window(first.row, 0, first.height, tiling.shape[1])


def _image_arrays(group: zarr.Group, raster: Raster, core: int) -> tuple[Layer, Layer]:
    shape = raster.grid.shape
    count = len(raster.bands)
    wanted = {
        "image": ((count, *shape), (count, core, core), raster.dtype, ("band", "y", "x")),
        "valid": (shape, (core, core), "bool", ("y", "x")),
    }
    for name, (full, chunks, dtype, dims) in wanted.items():
        if name not in group:
            group.create_array(
                name,
                shape=full,
                chunks=tuple(min(c, s) for c, s in zip(chunks, full, strict=True)),
                dtype=dtype,
                dimension_names=dims,
                attributes={"grid_mapping": "spatial_ref"},
            )
    arrays = [group["image"], group["valid"]]
    image, valid = (Layer(array, 1) for array in arrays if isinstance(array, zarr.Array))
    return image, valid


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


def scene_names(paths: Sequence[Path]) -> list[str]:
    """Return one unique name per raster, made from its file name."""
    names: list[str] = []
    for path in paths:
        stem = plain_name(path.name)
        taken = (f"{stem}_{count}" for count in range(2, len(paths) + 2))
        names.append(stem if stem not in names else next(n for n in taken if n not in names))
    return names


def active_windows(scene: Scene, tiling: Tiling) -> Iterator[Tile]:
    """Yield the windows of a (merged) tiling that have a valid pixel in their core."""
    for tile in tiling:
        if any(scene.tile_valid[index] for index in scene.tiling.members(tile.core)):
            yield tile


LABELS = LayerSpec("labels", "uint8", fill=IGNORE)
