"""The pseudo-labels that come out of masks: tags, CAM and CRF as ever, then the masks' classes.

The evidence is rsseg's own, by the verbs ``tile``, ``tag`` and ``pseudo_label(until="crf")``, with
settings that stay as they were when the results were taken; tags are derived from the class rasters
("this tile contains water"). It is made once per dataset and is the same for all generators.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sam_tiles import BenchTile, Dataset

from rsseg.api import pseudo_label, tag, tile
from rsseg.config import (
    CamConfig,
    ClassifierConfig,
    CrfConfig,
    LabelConfig,
    ProposalConfig,
    Settings,
    TileConfig,
)
from rsseg.grid import Tile
from rsseg.io.site import Site
from rsseg.ops.objects import Objects
from rsseg.ops.segments import Masks
from rsseg.progress import Progress
from rsseg.run import read_tile
from rsseg.stages.sam import LabelStage
from rsseg.stages.stage import TileData

EVIDENCE = Settings(
    cam=CamConfig(scores="minmax", scales=(0.5, 1.0, 1.5, 2.0)),
    crf=CrfConfig(bilateral_sxy=50.0, bilateral_compat=10.0),
    labels=LabelConfig(stretch=True, purity=0.0),
)
"""What the evidence is made with, and every segment takes its class by eq. 8."""


def make_site(dataset: Dataset, path: Path, steps: int, device: str, progress: Progress) -> Site:
    """Make a dataset's site up to the CRF, or go on where that was interrupted.

    Args:
        dataset: whose images and class rasters.
        path: the site.
        steps: least optimiser steps of the classifier.
        device: where networks run.
        progress: shows what is going on.
    """
    images, truths = zip(*dataset.pairs, strict=True)
    if not path.exists():
        config = TileConfig() if dataset.core is None else TileConfig(dataset.core, overlap=0)
        tile(
            images,
            path,
            dataset.classes,
            config=config,
            chips=dataset.core is None,
            overwrite=True,
            progress=progress,
        )
    tag(path, truths, progress=progress)
    settings = replace(EVIDENCE, classifier=replace(ClassifierConfig(), min_steps=steps))
    return pseudo_label(path, settings=settings, until="crf", device=device, progress=progress)


def read_evidence(site: Site, where: BenchTile) -> TileData:
    """Return what is known of a tile before there are masks.

    Where tags leave one class alone, it has a posterior of 1: rsseg makes no CRF of such windows.
    """
    scene = next(s for s in site.scenes.values() if s.source == where.image.resolve())
    cores = Tile(0, 0, where.window, where.window)
    data = read_tile(site, scene, cores, {"crf": site.layers["crf"]})
    alone = data.allowed.sum(axis=0) == 1
    known = np.uint8(255) * data.allowed
    return replace(data, layers={"crf": np.where(alone, known, data.layers["crf"])})


def labels_of(masks: Masks, evidence: TileData, background: int | None) -> NDArray[np.uint8]:
    """Return the pseudo-labels of a tile, by rsseg's own stage, the tile being one window of it.

    The stage leaves out masks that coarser ones cover.

    Args:
        masks: of (H, W).
        evidence: of the same pixels, with the layer ``crf``.
        background: index of the background class, or None.

    Returns:
        (H, W) uint8 class indices, 255 where no class is allowed.
    """
    objects = Objects(masks, np.arange(1, len(masks) + 1, dtype=np.uint32))
    overlap = ProposalConfig().overlap
    stage = LabelStage("", "", "", EVIDENCE.labels, overlap=overlap, background=background)
    return stage([replace(evidence, objects=objects)])[0]
