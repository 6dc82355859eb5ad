"""The image-level classifier of a site's tags: fitted once, found again by its fingerprint."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch

from rsseg.api.windows import Chain, tags_under
from rsseg.config import fingerprint
from rsseg.io.files import replacing
from rsseg.io.remote import workplace
from rsseg.learn.data import TagWindows
from rsseg.learn.fit import Schedule, fit
from rsseg.learn.tags import TagObjective
from rsseg.nets.checkpoint import Card, save_checkpoint
from rsseg.nets.classifier import Classifier
from rsseg.nets.device import pick_device
from rsseg.progress import Progress


def classifier_of(chain: Chain, device: str, progress: Progress) -> Path:
    """Return the checkpoint of the classifier of these tags, fitted now unless it was before."""
    site, config = chain.site, chain.config
    key = fingerprint(
        config,
        {name: tags.tolist() for name, tags in chain.tags.items()},
        {name: scene.validation.tolist() for name, scene in site.scenes.items()},
    )
    path = site.models / f"classifier-{key}.safetensors"
    work = workplace(site.models / f"classifier-{key}.partial")
    if path.exists():
        progress.detail(f"classifier {key} was fitted before")
    else:
        network = _fit_classifier(chain, work, pick_device(device), progress)
        with replacing(path.with_suffix(".csv"), overwrite=True) as temporary:
            shutil.copyfile(work / "metrics.csv", temporary)
        card = Card("classifier", config, site.classes, site.bands, site.ground_sample_distance)
        save_checkpoint(path, network, card)
    shutil.rmtree(work, ignore_errors=True)
    return path


def _fit_classifier(
    chain: Chain, work: Path, device: torch.device, progress: Progress
) -> Classifier:
    site, config = chain.site, chain.config
    torch.manual_seed(config.seed)
    count = len(site.classes.foreground)
    network = Classifier(config, len(site.bands), count)
    tiling = next(iter(chain.tilings.values()))
    objective = TagObjective(
        network,
        config,
        tiling.halo,
        tiling.core // site.core,
        count,
        site.classes.background is not None,
    )
    train, held_back = (_tag_windows(chain, held) for held in (False, True))
    schedule = Schedule(
        config.epochs,
        config.min_steps,
        config.batch_size,
        config.seed,
        config.optimiser,
        config.momentum,
        config.schedule,
        config.warm_up,
    )
    fit(objective, train, held_back, schedule, work, device, progress, "classifier")
    return network


def _tag_windows(chain: Chain, validation: bool) -> TagWindows:
    """Return the windows with a core to learn from, or to validate on; other cores are masked."""
    site = chain.site
    masked = {
        name: np.where((scene.validation == validation)[..., None], chain.tags[name], np.int8(-1))
        for name, scene in site.scenes.items()
    }
    windows = {
        name: [tile for tile in tiling if len(tags_under(site.scenes[name], masked[name], tile))]
        for name, tiling in chain.tilings.items()
    }
    config = chain.config
    return TagWindows(site, windows, masked, config.cell, config.seed, config.jitter)
