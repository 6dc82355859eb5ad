"""What tests of the prediction engine share: networks that are a line of numpy, and their runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import geopandas
import numpy as np
import rasterio
from affine import Affine
from scipy.ndimage import uniform_filter
from shapely.geometry import box

from rsseg.bands import Bands
from rsseg.classes import Classes
from rsseg.io.raster import Raster
from rsseg.io.vector import Area
from rsseg.stages.blending import predict_blocks
from rsseg.stages.job import Job
from rsseg.stages.outputs import Outputs
from rsseg.stages.predict import predict_map

CLASSES = Classes(("roof", "tree", "other"), (7, 20, 3), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
BANDS = Bands((1, 2, 3), "uint8", (120.0,) * 3, (50.0,) * 3, (0, 1, 2), (0.0,) * 3, (255.0,) * 3)
K = len(CLASSES)
TRANSFORM = Affine(0.5, 0, 400_000, 0, -0.5, 5_000_000)


def make_raster(path: Path, height=230, width=310, *, nodata_box=None, transform=TRANSFORM):
    """Write a smooth, random RGB GeoTIFF; in ``nodata_box`` (row and column slices) it is 0."""
    rng = np.random.default_rng(7)
    noise = uniform_filter(rng.normal(size=(3, height, width)), (0, 9, 9))
    image = np.clip(120 + 350 * noise, 1, 255).astype(np.uint8)
    if nodata_box is not None:
        image[:, *nodata_box] = 0
    profile = {
        "driver": "GTiff", "height": height, "width": width, "count": 3, "dtype": "uint8",
        "crs": "EPSG:32633", "transform": transform, "nodata": 0,
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as target:
        target.write(image)
    return path


def softmax(scores):
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    return (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)


class Net:
    """A network that is a function of (B, C, S, S) to logits (B, K, S, S)."""

    def __init__(self, function):
        self.function = function

    def logits(self, images):
        return np.asarray(self.function(images), np.float32)


def local_filter(radius):
    """A network that sees ``radius`` pixels around each pixel, zero beyond the window."""

    def forward(images):
        size = (0, 0, 2 * radius + 1, 2 * radius + 1)
        return 3 * uniform_filter(images.astype(np.float64), size, mode="constant")

    return Net(forward)


@Net
def unsteady(images):
    """A network whose answer depends on the place in the window and on the rest of the batch."""
    side = images.shape[-1]
    field = np.random.default_rng(side).normal(size=(K, side, side))
    mixing = np.random.default_rng(1).normal(size=(K, images.shape[1]))
    scores = np.einsum("kc,bcij->bkij", mixing, images) + field
    return scores * (1 + np.abs(images.mean(axis=0).sum()) * 1e-4)


def a_job(raster, window=64, overlap=0.25, batch_size=3, area=None, blend="ramp"):
    return Job(raster, BANDS, K, window, overlap, batch_size, area, blend)


def blocks_of(job, forward, block_rows=64, **options):
    blocks = dict(predict_blocks(job, forward, block_rows=block_rows, **options))
    return np.concatenate([blocks[i] for i in sorted(blocks)], axis=1)


MAP_FILES = {"map.tif", "map.tif.aux.xml", "map.qml"}


def outputs_in(folder, **options):
    return Outputs(folder / "map.tif", folder / "conf.tif", **options)


def run(folder, job, forward=unsteady, tags=None, overwrite=False, probabilities=False, **options):
    """Predict into ``folder``; return the bytes of the map and of the other rasters."""
    folder.mkdir(exist_ok=True)
    shares = folder / "shares.tif" if probabilities else None
    to = outputs_in(folder, probabilities=shares, tags=tags or {}, overwrite=overwrite)
    options = {"classes": CLASSES, "fingerprint": "f", "block_rows": 64, "workers": 1} | options
    predict_map(job, forward, to, **options)
    assert {file.name for file in folder.iterdir()} == MAP_FILES | {p.name for p in to.paths}
    return tuple(path.read_bytes() for path in to.paths if path != shares) + (
        (shares.read_bytes(),) if shares else ()
    )


def a_raster(folder):
    """A raster with a hole of nodata."""
    return Raster(make_raster(folder / "in.tif", nodata_box=(slice(40, 170), slice(90, 260))))


class Stopping:
    """A network that is interrupted at its n-th call."""

    def __init__(self, calls):
        self.calls = calls

    def logits(self, images):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return unsteady.logits(images)


def area_of(folder, raster, rows, cols):
    (left, top), (right, bottom) = (raster.grid.transform @ p for p in zip(cols, rows, strict=True))
    outline = geopandas.GeoSeries([box(left, bottom, right, top)], crs=raster.grid.crs)
    outline.to_file(folder / "aoi.gpkg")
    return Area(folder / "aoi.gpkg", raster.grid)


def start(file, function, *arguments):
    """Run a function of a test file in another process."""
    code = f"import {Path(file).stem} as t, sys; t.{function}(*sys.argv[1:])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(file).parent), *sys.path])}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
