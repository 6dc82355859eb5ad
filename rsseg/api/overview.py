"""info: what a site holds and how far it is."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rsseg.classes import Classes
from rsseg.io.remote import RemotePath
from rsseg.io.site import Scene, Site
from rsseg.io.tags import is_tagged, shares

_LAYER = re.compile(r"(.+)-([0-9a-f]{12})")


@dataclass(frozen=True)
class SceneInfo:
    """One raster of a site.

    Args:
        name: its name within the site.
        source: the raster it was made from.
        shape: (height, width) in pixels.
        crs: name of the CRS, or None.
        ground_sample_distance: metres per pixel, or None without a CRS.
        tiles: number of tiles.
        valid_tiles: number of tiles with a valid pixel.
        linked: whether the pixels stay in the raster.
    """

    name: str
    source: str
    shape: tuple[int, int]
    crs: str | None
    ground_sample_distance: float | None
    tiles: int
    valid_tiles: int
    linked: bool


@dataclass(frozen=True)
class TagInfo:
    """What the tags say of one class.

    Args:
        name: the class.
        present: number of tiles tagged with it.
        known: number of tiles of which it is known whether they have it.
    """

    name: str
    present: int
    known: int


@dataclass(frozen=True)
class LayerInfo:
    """One layer of a site.

    Args:
        name: ``cam``, ``crf``, ``masks``, ``objects``, ``labels``.
        fingerprint: of the configuration that made it.
        tiles: number of tiles written. Steps leave out tiles that have nothing to do.
        current: whether it is the finished layer that the next steps and ``export`` take.
    """

    name: str
    fingerprint: str
    tiles: int
    current: bool


@dataclass(frozen=True)
class SiteInfo:
    """What ``info`` found.

    Args:
        path: the site.
        classes: the classes.
        bands: GDAL band numbers that the networks see.
        dtype: of the pixels.
        tile_size: side of a tile, overlap included, in pixels.
        overlap: pixels by which neighbouring tiles overlap.
        scenes: the rasters.
        tags: what is known of each class; empty before ``rsseg tag``.
        reviewed_tiles: number of tiles with tags.
        layers: what the steps have made so far.
        models: file names of the classifiers.
        disk_bytes: bytes of all files of the site.
    """

    path: str
    classes: Classes
    bands: tuple[int, ...]
    dtype: str
    tile_size: int
    overlap: int
    scenes: tuple[SceneInfo, ...]
    tags: tuple[TagInfo, ...]
    reviewed_tiles: int
    layers: tuple[LayerInfo, ...]
    models: tuple[str, ...]
    disk_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready description."""
        return {**asdict(self), **self.classes.to_dict()}


def info(site: str | Path) -> SiteInfo:
    """Return what a site holds; nothing is changed.

    Args:
        site: the site.

    Raises:
        InputError: there is no site.
    """
    opened = Site(site)
    tags, reviewed = _tags(opened)
    return SiteInfo(
        path=str(opened.path),
        classes=opened.classes,
        bands=opened.bands.indices,
        dtype=opened.bands.dtype,
        tile_size=opened.core + 2 * opened.halo,
        overlap=2 * opened.halo,
        scenes=tuple(_scene(scene) for scene in opened.scenes.values()),
        tags=tags,
        reviewed_tiles=reviewed,
        layers=_layers(opened),
        models=tuple(sorted(path.name for path in opened.models.glob("*.safetensors"))),
        disk_bytes=_bytes_below(opened.path),
    )


def _bytes_below(folder: Path) -> int:
    if isinstance(folder, RemotePath):
        return folder.bytes_below()
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _scene(scene: Scene) -> SceneInfo:
    return SceneInfo(
        name=scene.name,
        source=str(scene.source),
        shape=scene.grid.shape,
        crs=_crs_name(scene.grid.crs),
        ground_sample_distance=scene.grid.ground_sample_distance,
        tiles=len(scene.tiling),
        valid_tiles=int(scene.tile_valid.sum()),
        linked=scene.linked,
    )


def _crs_name(wkt: str | None) -> str | None:
    if wkt is None:
        return None
    from pyproj import CRS

    crs = CRS.from_wkt(wkt)
    authority = crs.to_authority()
    return str(crs.name) if authority is None else f"{':'.join(authority)} {crs.name}"


def _tags(site: Site) -> tuple[tuple[TagInfo, ...], int]:
    tables = {name: scene.tags for name, scene in site.scenes.items()}
    table = {name: tags for name, tags in tables.items() if tags is not None}
    if not table:
        return (), 0
    counted = zip(site.classes.names, shares(table, site.classes), strict=True)
    rows = tuple(TagInfo(name, present, known) for name, (present, known) in counted)
    return rows, sum(int(np.sum(is_tagged(tags))) for tags in table.values())


def _layers(site: Site) -> tuple[LayerInfo, ...]:
    counts: dict[tuple[str, str], int] = {}
    for scene in site.scenes.values():
        for key, tiles in _written(scene).items():
            counts[key] = counts.get(key, 0) + tiles
    return tuple(
        LayerInfo(name, key, tiles, site.layers.get(name) == key)
        for (name, key), tiles in sorted(counts.items())
    )


def _written(scene: Scene) -> dict[tuple[str, str], int]:
    """Return how many tiles of a scene each layer has, by name and fingerprint."""
    found = {}
    for path, group in scene.group.groups():
        match = _LAYER.fullmatch(path)
        if match is None or match[1] not in group:
            continue
        layer = scene.find_layer(match[1], match[2])
        assert layer is not None
        found[match[1], match[2]] = sum(layer.has(tile.core) for tile in scene.tiling)
    return found
