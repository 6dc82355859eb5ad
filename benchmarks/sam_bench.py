"""One run of the SAM benchmark: what a unit is, and what it leaves for later ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import sam_labels
import sam_metrics
import sam_pictures
import torch
from kept import Results
from numpy.typing import NDArray
from sam_generators import Way, encoder_seconds, generate, load, timed, together_seconds
from sam_tiles import BenchTile

from rsseg.config import ProposalConfig
from rsseg.io.site import Site
from rsseg.ops.confusion import confusion
from rsseg.ops.segments import Masks

HERE = Path(__file__).parent
WARM_UP = 4
"""Points per side of what is asked before anything is timed on a CPU."""
ENCODINGS = 3
"""How often the encoder alone is timed beside each tile; the median counts."""


class Bench:
    """One run: where results are, what asks, and on what.

    Args:
        out: folder of results.
        checkpoint: SAM's weights.
        device: where networks run.
        heavy: add the time of a ViT-H to the encoder's.
    """

    def __init__(self, out: Path, checkpoint: Path, device: torch.device, *, heavy: bool) -> None:
        self.out = out
        self.checkpoint = checkpoint
        self.device = device
        self.heavy = heavy
        self.results = Results(out / "results.json")

    @cached_property
    def net(self) -> Any:
        """The network, loaded when it is first asked."""
        return load(self.checkpoint, self.device, heavy=self.heavy)

    def masks_path(self, tile: BenchTile, way: Way) -> Path:
        """Where the masks of a tile are kept."""
        return self.out / "masks" / f"{tile.name}_{way.key}.npz"

    def masks(self, tile: BenchTile, way: Way) -> Masks:
        """Return the masks of a tile, found in an earlier unit."""
        kept = np.load(self.masks_path(tile, way))
        side = kept["bits"].shape[1]
        bits: NDArray[np.bool_] = np.unpackbits(kept["bits"], axis=2, count=side).astype(np.bool_)
        return Masks(bits, kept["level"], kept["score"])

    def warm_up(self, ways: Sequence[Way], tile: BenchTile) -> None:
        """Ask every way once; a GPU must have seen the very sizes that are timed."""
        few = {Way("official", WARM_UP), Way("grid", WARM_UP), Way("adaptive", WARM_UP**2)}
        image = tile.read_image()
        for way in ways if self.device.type == "cuda" else few:
            generate(self.net, way, image)

    def encoder(self) -> dict[str, Any]:
        """Time the image encoder alone: in single precision, and as rsseg runs it."""
        taken = partial(encoder_seconds, self.net, self.device, ENCODINGS)
        return {"seconds": taken(exact=True), "fast": taken(exact=False)}

    def time(self, tile: BenchTile, way: Way) -> dict[str, Any]:
        """Ask one way about one tile, and keep the masks."""
        image = tile.read_image()
        found, seconds = timed(self.device, lambda: generate(self.net, way, image))
        masks, path = found.masks, self.masks_path(tile, way)
        path.parent.mkdir(parents=True, exist_ok=True)
        bits = np.packbits(masks.masks, axis=2)
        np.savez_compressed(path, bits=bits, level=masks.level, score=masks.score)
        return {"seconds": seconds, "prompts": found.prompts, "masks": len(masks)}

    def together(self, tiles: Sequence[BenchTile], way: Way) -> dict[str, Any]:
        """Time one way on all tiles in one call."""
        images = [tile.read_image() for tile in tiles]
        _, seconds = together_seconds(self.net, self.device, way, images)
        return {"seconds": seconds / len(tiles), "tiles": len(tiles)}

    def quality(self, tile: BenchTile, way: Way) -> dict[str, Any]:
        """Measure how masks cover a tile and meet its true outlines."""
        masks, truth = self.masks(tile, way).masks, tile.read_truth()
        segments = sam_metrics.partition(masks)
        return {
            "covered": sam_metrics.covered_share(masks),
            "recall": sam_metrics.boundary_recall(segments, truth),
            "asa": sam_metrics.achievable_accuracy(segments, truth),
            "segments": len(np.unique(segments)),
        }

    def match(self, tile: BenchTile, first: Way, second: Way) -> dict[str, Any]:
        """Count the masks of two ways that are the same."""
        one, two = (self.masks(tile, way).masks for way in (first, second))
        return {
            "masks": [len(one), len(two)],
            "matched": [
                int(sam_metrics.matched(one, two).sum()),
                int(sam_metrics.matched(two, one).sum()),
            ],
        }

    def labels(self, tile: BenchTile, way: Way | None, site: Path) -> dict[str, Any]:
        """Count the pixels of a way's pseudo-labels by true and given class.

        As the masks come, and without those that break rsseg's rules of area and share, which the
        official generator does not know. No way: the CRF's own labels.
        """
        known = sam_labels.read_evidence(Site(site), tile), tile.classes.background
        truth, config = tile.read_truth(), ProposalConfig()
        masks = no_masks(truth.shape) if way is None else self.masks(tile, way)
        thin = sam_metrics.thinned(masks, min_area=config.min_area, max_share=config.max_share)
        count = partial(confusion, truth, count=len(tile.classes))
        return {
            "matrix": count(prediction=sam_labels.labels_of(masks, *known)).tolist(),
            "thinned": count(prediction=sam_labels.labels_of(thin, *known)).tolist(),
        }

    def memory(self, tile: BenchTile, way: Way) -> dict[str, Any]:
        """Measure the peak memory of one way on one tile, in a process of its own."""
        image = self.out / "memory.npy"
        np.save(image, tile.read_image())
        words = [sys.executable, str(HERE / "sam_memory.py"), str(self.checkpoint)]
        words += [str(self.device), way.name, str(image)] + ["heavy"] * self.heavy
        done = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True)
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def picture(self, tile: BenchTile, ways: Sequence[Way]) -> None:
        """Draw a tile and the masks of several ways."""
        path = self.out / "pictures" / f"{tile.name}.png"
        sam_pictures.write(path, tile.read_image(), *(self.masks(tile, way) for way in ways))


def no_masks(shape: tuple[int, ...]) -> Masks:
    """Return no masks at all."""
    return Masks(np.zeros((0, *shape), np.bool_), np.zeros(0, np.int8), np.zeros(0, np.float32))
