"""Making a site from rasters: what it will hold, and filling it so that it can be resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from rsseg import __version__
from rsseg.bands import Bands
from rsseg.classes import Classes
from rsseg.errors import InputError
from rsseg.grid import Tiling, Window
from rsseg.io.layers import Layer, geo_attributes, store_at, sweep, write_spatial_ref
from rsseg.io.raster import Raster
from rsseg.io.remote import RemotePath, describe_source
from rsseg.io.site import FORMAT, MAKING, Site, is_unfinished, partial_path
from rsseg.io.tag_table import plain_name

LINK_FROM_BYTES = 2 * 10**9
"""Rasters with more bytes of pixels than this are linked rather than copied, unless told."""
COMPLETE = "rsseg:complete"
"""Attribute of scenes that were written to the end."""
MODEL_BYTES = 10**8
"""Room for a classifier and for what resumes its training."""


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

        Image and mask (unless linked), then CAM, CRF, masks, objects and labels per tile, and the
        classifier; all of them compress well, so one byte per pixel and layer is an upper
        estimate.
        """
        pixels = sum(raster.grid.window.area for raster in self.rasters.values())
        copied = 0 if self.links else self.pixel_bytes() + pixels
        layers = 5
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


def is_made(path: Path, plan: SitePlan) -> bool:
    """Return whether there is a site that was made by the same plan from the same rasters."""
    if not path.exists() or is_unfinished(path):
        return False
    return bool(Site(path).plan == json.loads(json.dumps(plan.describe())))


def create(
    path: Path,
    plan: SitePlan,
    measure: Callable[[], Bands],
    advance: Callable[[int], None],
    overwrite: bool = False,
) -> Site:
    """Make a site, or go on with making it; the folder gets its name when it is complete.

    In a store, where nothing can be renamed, the site is made in its place and opens when it is
    complete.

    Args:
        path: the final folder.
        plan: what to make.
        measure: computes the statistics; called only where no earlier run has.
        advance: told the number of pixels done.
        overwrite: replace the site that is there, once the new one is complete; in a store,
            before it is begun.
    """
    partial = partial_path(path)
    if isinstance(path, RemotePath):
        root = _root_in_store(path, plan, measure)
    else:
        root = _partial_root(partial, plan, measure)
    for name, raster in plan.rasters.items():
        group = root.require_group(f"scenes/{name}")
        if COMPLETE not in group.attrs:
            _fill_scene(group, raster, plan, advance)
        else:
            advance(raster.grid.window.area)
    sweep(partial)
    if isinstance(path, RemotePath):
        described = root.attrs.asdict()
        root.attrs.put({"rsseg": described.pop(MAKING), **described})
    else:
        _rename(partial, path, overwrite)
    return Site(path)


def _rename(partial: Path, path: Path, overwrite: bool) -> None:
    # Out of the way before it is removed: half a site must never stand under the name.
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if overwrite and path.exists():
        path.rename(old)
    partial.rename(path)
    shutil.rmtree(old, ignore_errors=True)


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
    attributes: dict[str, Any] = {"rsseg": _facts(plan, measure()), "plan": described}
    return zarr.create_group(partial, attributes=attributes, zarr_format=3)


def _root_in_store(path: RemotePath, plan: SitePlan, measure: Callable[[], Bands]) -> zarr.Group:
    """Return the root of a site that lacks only the attribute ``rsseg``.

    A site that is to be replaced is none any more before its first object goes.
    """
    described = json.loads(json.dumps(plan.describe()))
    root = zarr.open_group(store_at(path), mode="a", zarr_format=3)
    if root.attrs.get("plan") == described and MAKING in root.attrs:
        return root
    root.attrs.put({MAKING: None})
    for child in path.iterdir():
        if child.is_dir():
            child.remove_tree()
    root.attrs.put({MAKING: _facts(plan, measure()), "plan": described})
    return root


def _facts(plan: SitePlan, bands: Bands) -> dict[str, Any]:
    return {
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


def scene_names(paths: Sequence[Path]) -> list[str]:
    """Return one unique name per raster, made from its file name."""
    names: list[str] = []
    for path in paths:
        stem = plain_name(path.name)
        taken = (f"{stem}_{count}" for count in range(2, len(paths) + 2))
        names.append(stem if stem not in names else next(n for n in taken if n not in names))
    return names
