"""pseudo_label: from tags to dense labels, by CAM, dense CRF and segment proposals."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from rsseg.api.classifying import classifier_of
from rsseg.api.preflight import foretell_layers
from rsseg.api.windows import Chain, windows_of, windows_over
from rsseg.cluster import Cluster, connected
from rsseg.config import (
    RECIPES,
    ClassifierConfig,
    ProposalConfig,
    Purify,
    Settings,
    fingerprint,
    recipe_for,
)
from rsseg.errors import InputError
from rsseg.grid import Tile
from rsseg.io.masks import MASKS, OBJECTS
from rsseg.io.opinions import SiteOpinions
from rsseg.io.remote import as_path, describe_source
from rsseg.io.site import Site
from rsseg.nets.checkpoint import Checkpoint
from rsseg.nets.device import default_batch_size, pick_device
from rsseg.nets.weights import find, sam_at_hand
from rsseg.progress import SILENT, Progress
from rsseg.run import run
from rsseg.stages.cam import CamStage
from rsseg.stages.crf import CrfStage, require_engine
from rsseg.stages.objects import number_objects
from rsseg.stages.sam import LabelStage, MaskStage
from rsseg.stages.segmenter import SegmenterStage
from rsseg.stages.stage import Stage

Until = Literal["cam", "crf", "sam"]


def pseudo_label(
    site: str | Path,
    *,
    settings: Settings | None = None,
    until: Until = "sam",
    sam: str | None = None,
    model: str | Path | None = None,
    purify: Purify = "none",
    aoi: str | Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    dask: str | None = None,
    progress: Progress = SILENT,
) -> Site:
    """Make the layer ``labels`` of a tagged site; each step is kept in the site and resumed.

    With a ``model`` that ``train`` made from such labels, its scores take the place of the CAMs: a
    round of self-training, after which ``train`` learns once more.

    Args:
        site: the tagged site.
        settings: of classifier, CAM, CRF, proposals and labels; by default the recipe for classes
            with or without a background.
        until: the last step: ``cam`` and ``crf`` make only those layers.
        sam: SAM's weights, by registry name or path, where the settings want SAM; None takes those
            at hand.
        model: a segmenter's checkpoint; None goes by the image-level classifier.
        purify: ``vlm`` lets the layer ``opinions``, which ``ask_opinions`` makes, mend labels
            whose posterior is below ``tau_conf`` of ``[semi]``.
        aoi: polygons that say where to label; everywhere by default.
        device: where networks run.
        batch_size: windows at a time for the CAMs; by default what suits the device.
        workers: threads for the CRF, processes for superpixels; all cores by default. With
            ``dask="auto"`` processes for every step, by default one per core, or per GPU.
        dask: the address of a Dask scheduler whose workers compute the layers, or ``auto`` for
            workers on this machine; None for this process, which in any case fits the classifier
            and numbers objects. All must see the same files under the same absolute paths. A
            script calls this below ``if __name__ == "__main__":``.
        progress: shows what is going on.

    Returns:
        The site.

    Raises:
        InputError: no tags, no SAM weights, no opinions, a model of other classes or bands,
            polygons that do not meet the site, or Dask workers that cannot do the work.
        RunError: workers were lost for good.
    """
    if settings is None:
        settings = RECIPES[recipe_for(background=Site(site).classes.background is not None)]
    settings.check()
    if until != "cam":
        require_engine(settings.crf)
    if dask is None:
        pick_device(device)
    else:  # workers may stand in another folder
        site = as_path(site).absolute()
        model = None if model is None else as_path(model).absolute()
    opened = Site(site)
    opinions = None if purify == "none" else SiteOpinions(opened).key
    if model is None:
        _check_jitter(opened, settings.classifier)
    else:
        _check_model(opened, as_path(model))
    chain = Chain.plan(opened, settings, aoi)
    opened.tidy()
    seen = settings.classifier.window + 2 * settings.classifier.halo
    foretell_layers(opened, seen, settings.classifier.batch_size, progress)
    weights = _sam_weights(settings, sam, until, progress)
    with connected(dask, workers, device, progress) as cluster:
        if cluster is None:
            where = pick_device(device)
        else:
            linked = [scene.source for scene in opened.scenes.values() if scene.linked]
            weights = None if weights is None else weights.absolute()
            files = [as_path(path) for path in (model, weights) if path is not None]
            where, _ = cluster.survey([opened.path, *linked, *files], opened.path)
        means = _Means(where, workers or os.cpu_count() or 1, cluster, progress)
        checkpoint = classifier_of(chain, device, progress) if model is None else as_path(model)
        cams = _cams(chain, settings, checkpoint, model is not None, batch_size, means)
        if until == "cam":
            return opened
        stretched = model is None and settings.cam.scores == "minmax"
        posteriors = _posteriors(chain, settings, cams, stretched, means)
        if until != "crf":
            _labels(chain, settings, posteriors, weights, opinions, means)
    return opened


@dataclass(frozen=True)
class _Means:
    """Who computes layers.

    Args:
        device: where networks run.
        workers: threads or processes, where there is no cluster.
        cluster: computes in their place, or None.
        progress: shows what is going on.
    """

    device: torch.device
    workers: int
    cluster: Cluster | None
    progress: Progress

    def run(self, stage: Stage, site: Site, key: str, tiles: Mapping[str, Sequence[Tile]]) -> None:
        """Compute a layer."""
        run(
            stage,
            site,
            key,
            tiles,
            workers=self.workers,
            progress=self.progress,
            cluster=self.cluster,
        )


def _cams(
    chain: Chain,
    settings: Settings,
    checkpoint: Path,
    is_segmenter: bool,
    batch_size: int | None,
    means: _Means,
) -> str:
    """Make the layer ``cam``; return its fingerprint."""
    where, foreground = means.device, chain.site.classes.foreground
    at_once = batch_size or default_batch_size(where) // 2
    stage: Stage
    if is_segmenter:
        flips = settings.cam.flips
        stage = SegmenterStage(checkpoint, flips, where, at_once, foreground)
        seen = [settings.classifier.window, settings.classifier.halo]
        key = fingerprint(describe_source(checkpoint), flips, seen)
    else:
        cell = settings.classifier.cell
        stage = CamStage(checkpoint, settings.cam, where, at_once, cell, foreground)
        key = fingerprint(settings.cam, checkpoint.stem)
    means.run(stage, chain.site, key, chain.mixed)
    return key


def _posteriors(chain: Chain, settings: Settings, cams: str, stretched: bool, means: _Means) -> str:
    """Make the layer ``crf``; return its fingerprint."""
    site = chain.site
    stage = CrfStage(
        cams,
        settings.crf,
        site.bands,
        len(site.classes),
        site.classes.background,
        settings.cam.background_power if stretched else None,
        means.device,
    )
    key = fingerprint(settings.crf, cams)
    means.run(stage, site, key, chain.mixed)
    return key


def _labels(
    chain: Chain,
    settings: Settings,
    posteriors: str,
    weights: Path | None,
    opinions: str | None,
    means: _Means,
) -> None:
    """Make the layer ``labels``, and those that it needs besides the posteriors."""
    masks = objects = None
    if settings.proposals.proposals != "none":
        masks, objects = _objects(chain, settings.proposals, weights, means)
    site, overlap = chain.site, settings.proposals.overlap
    stage = LabelStage(
        posteriors,
        masks,
        objects,
        settings.labels,
        overlap,
        site.classes.background,
        opinions,
        settings.semi.tau_conf,
    )
    heard = [] if opinions is None else [opinions, settings.semi.tau_conf]
    key = fingerprint(settings.labels, overlap, posteriors, objects, chain.area_key, *heard)
    means.run(stage, site, key, chain.tagged)


def _check_model(site: Site, model: Path) -> None:
    """Raise InputError where a segmenter is not of the site's classes and bands."""
    card = Checkpoint(model, "segmenter").card
    if card.classes.names != site.classes.names:
        raise InputError(
            f"{model}: knows the classes {', '.join(card.classes.names)}, but {site.path} has "
            f"{', '.join(site.classes.names)}; give a model that was trained on this site"
        )
    needs, has = (f"{len(b)} bands of {b.dtype}" for b in (card.bands, site.bands))
    if needs != has:
        raise InputError(
            f"{model}: needs {needs}, but {site.path} has {has}; "
            "give a model that was trained on this site"
        )


def _check_jitter(site: Site, config: ClassifierConfig) -> None:
    if config.jitter == "colour" and sorted(site.bands.rgb) != [*range(len(site.bands))]:
        raise InputError(
            f'{site.path}: jitter = "colour" needs three bands, red, green and blue; the site has '
            f'{len(site.bands)}; use jitter = "bands"'
        )


def _objects(
    chain: Chain,
    config: ProposalConfig,
    weights: Path | None,
    means: _Means,
) -> tuple[str, str]:
    """Make the masks and objects where tags leave a choice; return the layers' fingerprints.

    Masks hang on nothing but the image: other tags may need more windows, never other ones.
    """
    site = chain.site
    tilings = windows_of(site.scenes, config.window - 2 * config.halo, config.halo)
    windows = {name: windows_over(tiling, chain.mixed[name]) for name, tiling in tilings.items()}
    places = {name: [[tile.row, tile.col] for tile in tiles] for name, tiles in windows.items()}
    tiling = next(iter(tilings.values()))
    geometry = [tiling.core, tiling.halo]
    stage = MaskStage(config, site.bands, weights, str(means.device), *geometry)
    masks = fingerprint(_mask_settings(config, weights), site.bands.to_dict(), geometry)
    if site.layers.get(MASKS) != masks:
        site.forget_layers([OBJECTS])  # they number the masks of other settings
    means.run(stage, site, masks, windows)
    objects = fingerprint(masks, config.join, places)
    number_objects(site, masks, objects, windows, join=config.join, progress=means.progress)
    return masks, objects


def _mask_settings(config: ProposalConfig, weights: Path | None) -> dict[str, Any]:
    """Return what decides masks besides image and windows: SAM's settings or the superpixels'.

    Windows have their own say, and ``join`` and ``overlap`` only matter to later steps.
    """
    superpixels = weights is None
    own = {
        name: value
        for name, value in asdict(config).items()
        if name.startswith("superpixel_") == superpixels
        and name not in ("proposals", "window", "halo", "join", "overlap")
    }
    return own if weights is None else {**own, "weights": weights.name}


def _sam_weights(
    settings: Settings, sam: str | None, until: Until, progress: Progress
) -> Path | None:
    if settings.proposals.proposals != "sam" or until != "sam":
        return None
    if sam is not None:
        return find(sam)
    at_hand = sam_at_hand()
    if at_hand is not None:
        progress.detail(f"segments come from {at_hand.name}; --sam takes another")
        return at_hand.path
    progress.warn(
        "no SAM weights at hand: superpixels serve as proposals instead; for SAM run "
        "rsseg weights fetch mobile_sam, or give --sam FILE"
    )
    return None
