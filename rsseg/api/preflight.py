"""What is said, warned of and refused before work starts: blocks, memory, disk and time."""

from __future__ import annotations

import math
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rsseg.bands import Bands
from rsseg.errors import InputError
from rsseg.io.build import MODEL_BYTES, SitePlan
from rsseg.io.layout import Layout, read_header
from rsseg.io.machine import memory
from rsseg.io.opening import cache_bytes
from rsseg.io.remote import RemotePath, gdal_name
from rsseg.io.site import Scene, Site
from rsseg.ops.decoding import Sides, times_decoded
from rsseg.progress import Progress

if TYPE_CHECKING:  # brings a compiler along, which cutting a site into tiles does not need
    from rsseg.stages.planning import Plan

SMALL_PIXELS = 4_000_000
"""Rasters of fewer pixels are read within seconds, however they lie in their files."""

TILE: Sides = (512, 512)
"""The blocks that ``gdal_translate -of COG`` makes."""

TOLERATED = 3.0
"""Tiles are named as badly chosen if they are decoded this many times as often as usual ones."""

WHOLE_WIDTH = sys.maxsize
"""Width of a window that takes whole rows."""

GIGABYTE = 1e9

LEAST_DISK_SHARE = 0.05
"""Class maps deflate to this share of their pixels at the best; less disk never suffices."""

ACTIVATION_BYTES = 1000
"""Memory of the activations per pixel that goes through a network, about: DeepLabV3+, ResNet."""

PIXELS_AT_ONCE = 2**18
"""Pixels that go through a network together on a CPU."""

LOADED_BYTES = 2 * 10**8
"""What comes with a network: its weights, its library, compiled loops; and scattered memory."""

MEASURING_BYTES = 10**8
"""What the statistics of a raster take, about."""

VALUES_PER_SECOND = 3e7
"""Values of bands that are read and counted, or read and copied, on a usual machine, about."""

LABEL_LAYERS = 5
"""Layers of labelling: CAM, CRF, masks, objects, labels; each a byte per pixel at the most."""


@dataclass(frozen=True)
class Reading:
    """How windows go over a raster.

    Args:
        window: (height, width) in pixels of what is read at a time.
        stride: (height, width) in pixels from one window to the next.
        readers: threads that read.
    """

    window: Sides
    stride: Sides
    readers: int = 1

    @classmethod
    def squares(cls, side: int, overlap: float, readers: int) -> Reading:
        """Return how windows of ``side`` pixels that overlap by a share of it are read."""
        stride = side - round(side * overlap)
        return cls((side, side), (stride, stride), readers)


def look_at(paths: Sequence[Path], reading: Reading, progress: Progress) -> list[Layout]:
    """Say what the headers of rasters say, and name those that are badly laid out, with the fix.

    No pixel is read, so this comes before everything that decodes some.

    Args:
        paths: the rasters.
        reading: how they will be read.
        progress: is told and warned.

    Returns:
        How their pixels lie.

    Raises:
        InputError: a raster cannot be opened, or its blocks do not fit into the memory.
    """
    headers = [read_header(path) for path in paths]
    say = progress.note if len(paths) == 1 else progress.detail
    for header in headers:
        say(header.summary)
    layouts = [layout for header in headers for layout in header.layouts]
    for layout in layouts:
        _check_blocks(layout, reading)
    found = [complaint(layout, reading, cache_bytes()) for layout in layouts]
    complaints = [text for text in found if text is not None]
    if complaints:
        more = f" ({len(complaints) - 1} more rasters alike)" if len(complaints) > 1 else ""
        progress.warn(complaints[0] + more)
    return layouts


def complaint(layout: Layout, reading: Reading, cache: int) -> str | None:
    """Return what is wrong with a layout and what to do about it; None where all is well.

    Args:
        layout: of a raster.
        reading: how it will be read.
        cache: bytes of blocks that GDAL keeps.
    """
    if layout.pixels < SMALL_PIXELS:
        return None
    times, usual = (
        times_decoded(
            layout.shape,
            block,
            reading.window,
            reading.stride,
            cache=cache / layout.pixel_bytes,
            readers=reading.readers,
            sequential=sequential,
        )
        for block, sequential in ((layout.block, layout.sequential), (TILE, False))
    )
    if layout.is_tiled and times < TOLERATED * usual:
        return None
    cost = "windows are read faster from tiles"
    if times >= 1.5 * usual:
        cost = f"so each pixel is decoded about {times:.0f} times ({usual:.0f} in tiles)"
    return f"{layout.path}: {_described(layout)}, {cost}; run: {_retile(layout.path)}"


def _described(layout: Layout) -> str:
    height, width = layout.block
    if layout.sequential:
        return "can only be decoded from the top down"
    if layout.block == layout.shape:
        return "is one single block"
    kind = "tiles" if layout.is_tiled else "strips"
    return f"lies in {kind} of {width} x {height} px"


def _retile(path: Path) -> str:
    files = map(gdal_name, [path, path.with_name(f"{path.stem}_cog.tif")])
    return shlex.join(["gdal_translate", "-of", "COG", *files])


def _check_blocks(layout: Layout, reading: Reading) -> None:
    """Raise InputError where already opening a raster would need more memory than there is."""
    machine = memory()
    needed = machine.own + max(reading.readers, 1) * layout.block_bytes
    if needed > machine.total:
        raise InputError(
            f"{layout.path}: {_described(layout)}, each {layout.block_bytes / GIGABYTE:.1f} GB; "
            f"the machine has {machine.total / GIGABYTE:.1f} GB of memory; run: "
            f"{_retile(layout.path)}"
        )


def check_memory(what: str, least: int, extra: int, advice: str, progress: Progress) -> int:
    """Raise InputError where the memory is too small for certain; warn where it may be.

    Args:
        what: names the work in messages.
        least: bytes of arrays that will be there at one time, besides what is there now.
        extra: bytes on top of it, about: caches, activations.
        advice: what needs less.
        progress: is warned.

    Returns:
        About how much this process will use in all, bytes.
    """
    machine = memory()
    about = machine.own + least + extra
    has = f"the machine has {machine.total / GIGABYTE:.1f} GB"
    found = f"{what}: about {about / GIGABYTE:.1f} GB of memory are needed"
    if machine.own + least > machine.total:
        raise InputError(f"{found}, {has}; {advice}")
    if least + extra > machine.free:
        progress.warn(f"{found}, {machine.free / GIGABYTE:.1f} GB are free; {advice}")
    return about


def check_disk(needed: int, folder: Path, advice: str, progress: Progress) -> None:
    """Raise InputError where the disk is too small for certain; warn where it may be.

    Args:
        needed: bytes, at the most.
        folder: on the disk.
        advice: what to do, if it is refused.
        progress: is warned.
    """
    free = free_bytes(folder)
    has = f"{free / GIGABYTE:.2f} GB are free"
    found = f"up to {needed / GIGABYTE:.2f} GB of disk are needed, {has}"
    if needed * LEAST_DISK_SHARE > free:
        raise InputError(f"{folder}: {found}; {advice}")
    if needed > free:
        progress.warn(f"{folder}: {found}; if it fills up, make room and run again to go on")


def free_bytes(folder: Path) -> float:
    """Return how much room there is: on the disk of a folder, or, without end, in a store."""
    return math.inf if isinstance(folder, RemotePath) else shutil.disk_usage(folder).free


def foretold(disk: int, folder: Path, memory_bytes: int, seconds: float | None = None) -> str:
    """Return in words what work will take, at the most.

    Args:
        disk: bytes.
        folder: on the disk that they go to.
        memory_bytes: of this process, about.
        seconds: None where they are not known.
    """
    free = free_bytes(folder)
    time = "" if seconds is None else f", {span(seconds)}"
    room = "in the store" if math.isinf(free) else f"of disk ({free / GIGABYTE:.1f} GB free)"
    return (
        f"up to {disk / GIGABYTE:.2f} GB {room}, "
        f"about {memory_bytes / GIGABYTE:.1f} GB of memory{time}"
    )


def span(seconds: float) -> str:
    """Return a time in words that promise no more than an estimate can."""
    if seconds < 90:
        return "about a minute" if seconds > 30 else "less than a minute"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def foretell_maps(
    plans: Sequence[Plan],
    folder: Path,
    layouts: Sequence[Layout],
    readers: int,
    *,
    on_cpu: bool,
    progress: Progress,
) -> None:
    """Say what maps will take that are made one after the other.

    Args:
        plans: of the maps.
        folder: on the disk that they go to.
        layouts: of the rasters.
        readers: threads that each decode a block at one time.
        on_cpu: whether the network's activations are in this memory.
        progress: is told.

    Raises:
        InputError: more memory than the machine has, or less disk than maps need at the least.
    """
    disk = sum(one.output_bytes for one in plans) + max(one.scratch_bytes for one in plans)
    check_disk(disk, folder, "make room or give another disk with --out", progress)
    most = max(plans, key=lambda one: one.memory_bytes + one.cache_bytes)
    activations = max(most.window**2, PIXELS_AT_ONCE) * ACTIVATION_BYTES if on_cpu else 0
    used = check_memory(
        "predict",
        most.memory_bytes + max(readers, 1) * max(one.block_bytes for one in layouts),
        most.cache_bytes + activations + LOADED_BYTES,
        "give a smaller --batch-size, --window or --block-rows",
        progress,
    )
    windows = sum(math.prod(one.windows) for one in plans)
    progress.note(f"{windows} windows of {most.window} px; {foretold(disk, folder, used)}")


def foretell_site(plan: SitePlan, folder: Path, progress: Progress) -> str:
    """Return in words what making a site will take.

    Args:
        plan: of the site.
        folder: on the disk that it goes to.
        progress: is warned where memory is scarce.

    Raises:
        InputError: more memory than the machine has.
    """
    rasters = plan.rasters.values()
    strip = max(
        min(plan.core, raster.grid.shape[0])
        * raster.grid.shape[1]
        * (len(raster.bands) * np.dtype(raster.dtype).itemsize + 1)
        for raster in rasters
    )
    # As read, as it lies beyond the edge, and as it is compressed.
    advice = "give a smaller --size, or cut the raster into several"
    used = check_memory("tile", 3 * strip, cache_bytes() + MEASURING_BYTES, advice, progress)
    pixels = sum(raster.grid.window.area * len(raster.bands) for raster in rasters)
    size, _ = plan.estimate()
    return foretold(size, folder, used, 2 * pixels / VALUES_PER_SECOND)


def foretell_layers(site: Site, window: int, batch_size: int, progress: Progress) -> None:
    """Say what labelling a site will take; its steps say how long they take as they go.

    Args:
        site: the site.
        window: side of the windows that the classifier sees, pixels.
        batch_size: windows that it learns from at a time.
        progress: is told and warned.

    Raises:
        InputError: more memory than the machine has, or less disk than labels need at the least.
    """
    scenes = site.scenes.values()
    sources = [scene.source for scene in scenes if scene.linked and scene.source.exists()]
    look_at(sources, Reading((window, window), (window, window)), progress)
    held = sum(_held(scene, site.bands) for scene in scenes)
    learning = batch_size * window**2 * ACTIVATION_BYTES
    advice = "give a smaller batch_size in [classifier]"
    used = check_memory("pseudo-label", held, cache_bytes() + learning, advice, progress)
    disk = LABEL_LAYERS * sum(scene.grid.window.area for scene in scenes) + MODEL_BYTES
    check_disk(disk, site.path, "make room, the site stays as it is", progress)
    progress.note(foretold(disk, site.path, used))


def _held(scene: Scene, bands: Bands) -> int:
    """Return the bytes of pixels and their validity that a scene keeps in memory."""
    if scene.linked or not scene.hold:
        return 0
    return scene.grid.window.area * (len(bands) * np.dtype(bands.dtype).itemsize + 1)
