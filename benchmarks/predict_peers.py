"""The other tools of the prediction benchmark, by their public calls.

Each is given the same raster, network, windows and batches; what a tool fixes itself stays as it
is (see docs/results.md).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predict_job import Job, Prepare, Work
from predict_nets import Card, Fed, load


@dataclass(frozen=True)
class Peer:
    """A way to predict with another tool.

    Args:
        tool: what the command line calls it.
        package: what has to be installed.
        module: what has to be importable.
        call: the public call that is timed.
        prepare: makes what is timed.
    """

    tool: str
    package: str
    module: str
    call: str
    prepare: Prepare


def geoai(job: Job) -> Work:
    """``geoai.inference.predict_geotiff``: scores of the whole raster in float64."""
    from geoai.inference import predict_geotiff

    net, card = fed(job, white=1)

    def work() -> dict[str, Any]:
        predict_geotiff(
            net,
            str(job.raster),
            str(job.made),
            tile_size=job.window,
            overlap=job.overlap,
            batch_size=job.batch,
            num_classes=card.classes,
            output_dtype="uint8",
            output_nodata=255,
            postprocess_fn=lambda scores: scores.argmax(axis=0),
            device=job.device,
            verbose=False,
        )
        return {"input": net.pixels}

    return work


def geoai_semantic(job: Job) -> Work:
    """``geoai.train.semantic_inference_on_geotiff``: scores of the whole raster in float32.

    It is what ``geoai.semantic_segmentation`` does when it has loaded its network.
    """
    import torch
    from geoai.train import semantic_inference_on_geotiff

    net, card = fed(job, white=1)

    def work() -> dict[str, Any]:
        semantic_inference_on_geotiff(
            net,
            str(job.raster),
            str(job.made),
            window_size=job.window,
            overlap=job.overlap,
            batch_size=job.batch,
            num_channels=len(card.mean),
            num_classes=card.classes,
            device=torch.device(job.device),
            quiet=True,
        )
        return {"input": net.pixels}

    return work


def rastervision(job: Job) -> Work:
    """A ``SemanticSegmentationLearner`` on a sliding window, its smooth labels saved as classes."""
    from rastervision.core.data import ClassConfig, SemanticSegmentationLabels
    from rastervision.pytorch_learner import (
        SemanticSegmentationGeoDataConfig,
        SemanticSegmentationLearner,
        SemanticSegmentationLearnerConfig,
        SemanticSegmentationSlidingWindowGeoDataset,
        SolverConfig,
    )

    net, card = fed(job, white=1)
    # Its null class, which it always needs, is one more name that no pixel gets.
    classes = ClassConfig(names=[*(f"class {k}" for k in range(card.classes)), "null"])
    config = SemanticSegmentationLearnerConfig(
        data=SemanticSegmentationGeoDataConfig(class_config=classes, num_workers=0),
        solver=SolverConfig(batch_sz=job.batch),
    )
    learner = SemanticSegmentationLearner(config, model=net, training=False)

    def work() -> dict[str, Any]:
        windows = SemanticSegmentationSlidingWindowGeoDataset.from_uris(
            image_uri=str(job.raster), size=job.window, stride=job.stride
        )
        scores = learner.predict_dataset(windows, raw_out=True, numpy_out=True, progress_bar=False)
        labels = SemanticSegmentationLabels.from_predictions(
            windows.windows,
            scores,
            extent=windows.scene.extent,
            num_classes=card.classes,
            smooth=True,
        )
        folder = job.made.with_suffix("")
        transformer = windows.scene.raster_source.crs_transformer
        labels.save(str(folder), transformer, classes, smooth_output=False)
        moved(folder / "labels.tif", job.made)
        return {"input": net.pixels}

    return work


def geo_inference(job: Job) -> Work:
    """``geo_inference.GeoInference``: windows one by one in Dask's threads, overlap of a half."""
    import rasterio
    import torch
    from geo_inference.geo_inference import GeoInference

    net, card = fed(job, white=255)
    folder = job.made.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    scripted = folder / "network.pt"
    example = torch.zeros((1, len(card.mean), job.window, job.window), dtype=torch.uint8)
    with torch.inference_mode():
        torch.jit.trace(net, example, check_trace=False).save(str(scripted))
    with rasterio.open(job.raster) as source:
        shape = source.shape
    inference = GeoInference(
        model=str(scripted), work_dir=str(folder), device=job.device, num_classes=card.classes
    )

    def work() -> dict[str, Any]:
        threads = torch.get_num_threads()
        name = inference(str(job.raster), patch_size=job.window, workers=threads)
        moved(folder / name, job.made)
        # A traced network does not count. A window starts at every half one; the last is a half.
        half = job.window // 2
        rows, cols = (2 * math.ceil(side / half) * half - half for side in shape)
        return {"input": rows * cols}

    return work


def terratorch(job: Job) -> Work:
    """``terratorch.tasks.tiled_inference``: a raster in memory, its scores in memory.

    It writes no file; the one that is compared with the others' is written when time is up.
    """
    import rasterio
    import torch
    from terratorch.tasks.tiled_inference import tiled_inference

    net, _ = fed(job, white=255)

    def work() -> dict[str, Any]:
        with rasterio.open(job.raster) as source:
            profile, image = source.profile, torch.from_numpy(source.read())
        scores = tiled_inference(
            net,
            image[None].float(),
            crop=job.window,
            stride=job.stride,
            batch_size=job.batch,
            device=job.device,
        )
        labels = scores[0].argmax(0).to(torch.uint8).cpu().numpy()

        def finish() -> None:
            with rasterio.open(job.made, "w", **one_band(profile)) as target:
                target.write(labels, 1)

        return {"input": net.pixels, "finish": finish}

    return work


PEERS = {
    "geoai": Peer("geoai", "geoai-py", "geoai", "`predict_geotiff`", geoai),
    "geoai-semantic": Peer(
        "geoai", "geoai-py", "geoai", "`semantic_inference_on_geotiff`", geoai_semantic
    ),
    "rastervision": Peer(
        "rastervision",
        "rastervision-pytorch-learner",
        "rastervision",
        "`SemanticSegmentationLearner.predict_dataset`",
        rastervision,
    ),
    "geoinference": Peer(
        "geoinference", "geo-inference", "geo_inference", "`GeoInference`", geo_inference
    ),
    "terratorch": Peer("terratorch", "terratorch", "terratorch", "`tiled_inference`", terratorch),
}


def fed(job: Job, white: float) -> tuple[Fed, Card]:
    """Return the network as a tool gets it that sends bytes (``white`` 255) or shares (1)."""
    network, card = load(job.model)
    return Fed(network, card, white).eval(), card


def one_band(profile: Mapping[str, Any]) -> dict[str, Any]:
    """Return how to write a map on the grid of an image."""
    return {**profile, "count": 1, "dtype": "uint8", "photometric": "minisblack", "predictor": 1}


def moved(found: Path, wanted: Path) -> None:
    """Move the map that a tool wrote under a name of its own; remove the rest of its folder."""
    found.replace(wanted)
    shutil.rmtree(wanted.with_suffix(""))
