"""export: a layer of a site as Cloud-Optimized GeoTIFFs, for every GIS that reads no zarr."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg import __version__
from rsseg.classes import IGNORE, Classes
from rsseg.errors import InputError
from rsseg.grid import Grid, Window
from rsseg.io.layers import LABELS, Layer
from rsseg.io.mapfile import Kind, check_map, strips, write_map
from rsseg.io.masks import MASKS, OBJECTS, SceneObjects
from rsseg.io.opinions import OPINIONS
from rsseg.io.remote import as_path
from rsseg.io.site import Scene, Site
from rsseg.ops.objects import bands_of
from rsseg.progress import SILENT, Progress

OBJECT_BANDS = 4
"""Bands of an export of masks: objects that may lie over each other there."""

Read = Callable[[Window], NDArray[Any]]
"""Gives (bands, h, w) of a window in cells of the layer's grid."""


def export(
    site: str | Path,
    layer: str,
    out: str | Path,
    *,
    scene: str | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> list[Path]:
    """Write a layer of a site as Cloud-Optimized GeoTIFFs on the layer's own grid.

    Labels have side files with the style and the names of the classes, as maps have.

    Args:
        site: the site.
        layer: ``image``, ``valid``, ``tags`` or a layer that a step made (``cam``, ``crf``,
            ``masks``, ``labels``, ``opinions``); ``cam:building`` is one class of ``cam``, ``crf``,
            ``opinions`` or ``tags``.
            ``masks`` becomes four bands of object numbers, unique in the scene, 0 = none; objects
            that lie over more than that many others at once are left out there.
        out: the file to write; of several scenes, ``out_SCENE.tif`` for each.
        scene: the one scene to write.
        overwrite: replace existing files.
        progress: is shown the pixels of large rasters being written, and told of objects left out.

    Returns:
        The files written.

    Raises:
        InputError: there is no such layer, class or scene, or a file cannot be written.
    """
    opened = Site(site)
    name, _, class_name = layer.partition(":")
    targets = export_paths(opened, name, out, scene=scene, overwrite=overwrite)
    pictures = {
        target: _picture(opened, opened.scenes[scene_name], name, class_name or None, progress)
        for scene_name, target in targets.items()
    }
    for (scene_name, path), picture in zip(targets.items(), pictures.values(), strict=True):
        write_map(
            path,
            picture.grid,
            picture.blocks(),
            tags=_provenance(opened, opened.scenes[scene_name], layer),
            overwrite=overwrite,
            progress=progress,
            **picture.profile,
        )
    return list(pictures)


def export_paths(
    site: Site, layer: str, out: str | Path, *, scene: str | None = None, overwrite: bool = False
) -> dict[str, Path]:
    """Return which file each scene is exported to, after checking that it can be written.

    Args:
        site: the site.
        layer: name of the layer.
        out: see ``export``.
        scene: the one scene to write; None for all.
        overwrite: whether existing files may be replaced.

    Raises:
        InputError: no such scene, or a file cannot be written.
    """
    out = as_path(out)
    if out.suffix.lower() not in (".tif", ".tiff"):
        raise InputError(f"{out}: a layer becomes a GeoTIFF; give a name that ends in .tif")
    if scene is not None and scene not in site.scenes:
        raise InputError(f"{site.path} has no scene {scene!r}; it has {', '.join(site.scenes)}")
    chosen = list(site.scenes) if scene is None else [scene]
    single = scene is not None or len(chosen) == 1
    paths = {
        name: out if single else out.with_name(f"{out.stem}_{name}{out.suffix}") for name in chosen
    }
    classes = site.classes if layer == LABELS.name else None
    for name, path in paths.items():
        sources = [site.scenes[name].source]
        check_map(path, classes, overwrite, inputs=sources, sources=sources)
    return paths


def _provenance(site: Site, scene: Scene, layer: str) -> dict[str, str]:
    """Return the metadata of a file; no time and no folder, so that equal runs give equal bytes."""
    command = ["rsseg", "export", site.path.name, layer, f"--scene={scene.name}"]
    tags = {
        "RSSEG_VERSION": __version__,
        "RSSEG_SOURCE": scene.source.name,
        "RSSEG_COMMAND": shlex.join(command),
    }
    made_by = site.layers.get(layer.partition(":")[0])
    return tags if made_by is None else {**tags, "RSSEG_LAYER": made_by}


@dataclass(frozen=True)
class _Picture:
    """What becomes one file.

    Args:
        grid: where the layer's cells lie.
        read: gives the cells.
        profile: further arguments of ``write_map``.
    """

    grid: Grid
    read: Read
    profile: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        grid: Grid,
        read: Read,
        names: Sequence[str],
        dtype: str,
        *,
        kind: Kind = "number",
        nodata: float | None = None,
        classes: Classes | None = None,
    ) -> _Picture:
        """Complete the profile; ``names`` describe the bands."""
        profile = {
            "kind": kind,
            "count": len(names),
            "dtype": dtype,
            "nodata": nodata,
            "classes": classes,
            "descriptions": names,
        }
        return cls(grid, read, profile)

    def blocks(self) -> Iterator[tuple[Window, NDArray[Any]]]:
        """Yield the cells strip by strip."""
        for window in strips(self.grid.shape):
            yield window, self.read(window)


def _picture(
    site: Site, scene: Scene, layer: str, class_name: str | None, progress: Progress
) -> _Picture:
    of_classes = {"cam": site.classes.foreground, "crf": range(len(site.classes))}
    of_classes["tags"] = of_classes[OPINIONS] = of_classes["crf"]
    if class_name is not None and layer not in of_classes:
        raise InputError(
            f"layer {layer!r} is not one per class, so {layer}:{class_name} means nothing; "
            f"give {layer}"
        )
    if layer in ("image", "valid"):
        return _image(scene, site.bands.indices) if layer == "image" else _valid(scene)
    if layer == "tags" and scene.tags is not None:
        return _tags(site, scene, _chosen(site.classes, of_classes["tags"], layer, class_name))
    found = scene.find_layer(layer, site.layers[layer]) if layer in _made(site) else None
    if found is None:
        raise InputError(f"{site.path} has no layer {layer!r}; it has {', '.join(_there(site))}")
    if layer == "labels":
        return _labels(scene, found, site.classes)
    if layer == MASKS:
        objects = SceneObjects(scene, site.layers[MASKS], site.layers[OBJECTS])
        return _objects(scene, objects, progress)
    planes = _chosen(site.classes, of_classes[layer], layer, class_name)
    return _planes(scene, found, planes)


def _there(site: Site) -> list[str]:
    tagged = all(scene.tags is not None for scene in site.scenes.values())
    return ["image", "valid", *(["tags"] if tagged else []), *sorted(_made(site))]


def _made(site: Site) -> set[str]:
    """Return the layers of steps; masks can be shown once they are numbered, as ``masks``."""
    return set(site.layers) - ({OBJECTS} if OBJECTS in site.layers else {MASKS})


def _chosen(
    classes: Classes, indices: Sequence[int], layer: str, class_name: str | None
) -> dict[str, int]:
    """Return class name → plane of a layer that has one plane per class of ``indices``."""
    planes = {classes.names[index]: plane for plane, index in enumerate(indices)}
    if class_name is None:
        return planes
    name = classes.names[classes.index(class_name)]
    if name not in planes:
        raise InputError(
            f"layer {layer!r} has nothing of {name!r}, the background; it has {', '.join(planes)}"
        )
    return {name: planes[name]}


def _image(scene: Scene, bands: Sequence[int]) -> _Picture:
    """Return the pixels; what was not measured is NaN, or else 0 and declared as nodata."""
    dtype = scene.read(Window(0, 0, 1, 1))[0].dtype
    nodata: float | None = np.nan
    if dtype.kind != "f":
        windows = strips(scene.grid.shape)
        nodata = None if all(scene.read(window)[1].all() for window in windows) else 0

    def read(window: Window) -> NDArray[Any]:
        image, valid = scene.read(window)
        return image if nodata is None else np.where(valid, image, dtype.type(nodata))

    names = [f"band {band}" for band in bands]
    return _Picture.of(scene.grid, read, names, dtype.name, kind="image", nodata=nodata)


def _valid(scene: Scene) -> _Picture:
    def read(window: Window) -> NDArray[Any]:
        return scene.read(window)[1].astype(np.uint8)

    return _Picture.of(scene.grid, read, ["valid"], "uint8")


def _labels(scene: Scene, layer: Layer, classes: Classes) -> _Picture:
    def read(window: Window) -> NDArray[Any]:
        return classes.to_ids(layer.read_cells(window)[0])

    return _Picture.of(scene.grid, read, ["labels"], "uint8", nodata=IGNORE, classes=classes)


def _planes(scene: Scene, layer: Layer, planes: Mapping[str, int]) -> _Picture:
    chosen = list(planes.values())

    def read(window: Window) -> NDArray[Any]:
        values: NDArray[Any] = layer.read_cells(window)[0][chosen]
        return values

    grid = scene.grid.coarsened(layer.cell)
    dtype = layer.array.dtype.name
    return _Picture.of(grid, read, list(planes), dtype, kind="share")


def _objects(scene: Scene, objects: SceneObjects, progress: Progress) -> _Picture:
    """Return each object's number, in the first band where it meets no other object."""
    overlaps = [np.zeros((0, 2), np.uint32)]
    highest = 0
    for _, found in objects.blocks():
        overlaps.append(found.overlaps())
        highest = max(highest, int(found.number.max(initial=0)))
    band = bands_of(highest, np.concatenate(overlaps), OBJECT_BANDS)
    if (band < 0).any():
        progress.note(
            f"{scene.name}: {np.sum(band < 0)} of {highest} objects have no band, for others lie "
            f"there in all {OBJECT_BANDS}"
        )

    def read(window: Window) -> NDArray[Any]:
        values = np.zeros((OBJECT_BANDS, window.height, window.width), np.uint32)
        for block, found in objects.blocks(window):
            found.paint(values[(slice(None), *block.relative_to(window).slices)], band)
        return values

    names = [f"objects {band + 1}" for band in range(OBJECT_BANDS)]
    return _Picture.of(scene.grid, read, names, "uint32", nodata=0)


def _tags(site: Site, scene: Scene, planes: Mapping[str, int]) -> _Picture:
    """Return a pixel per tile core: 1 present, 0 absent, 255 unknown."""
    assert scene.tags is not None
    values = np.moveaxis(scene.tags, -1, 0)[list(planes.values())]
    known = np.where(values < 0, IGNORE, values).astype(np.uint8)

    def read(window: Window) -> NDArray[Any]:
        return known[(slice(None), *window.slices)]

    return _Picture.of(scene.grid.coarsened(site.core), read, list(planes), "uint8", nodata=IGNORE)
