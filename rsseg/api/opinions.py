"""ask_opinions: what a vision-language model (VLM) sees in a site, as the layer ``opinions``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rsseg.api.windows import windows_of, windows_over
from rsseg.config import VlmConfig, checked, fingerprint
from rsseg.errors import InputError
from rsseg.grid import Tile
from rsseg.io.answers import Answered, AnswerFiles
from rsseg.io.site import Site
from rsseg.nets.device import pick_device
from rsseg.nets.vision import VisionModel, guess_coordinates
from rsseg.nets.vlm import LocalModel
from rsseg.nets.vlm_server import ServedModel, served_model
from rsseg.nets.weights import find, sam_at_hand
from rsseg.ops.answers import Coordinates, question
from rsseg.progress import SILENT, Progress
from rsseg.run import run
from rsseg.stages.asking import Asking
from rsseg.stages.opinions import OpinionStage, boxes_of

Windows = Mapping[str, Sequence[Tile]]
BOXES = "boxes"
"""In the place of SAM's weights: boxes are filled."""

_SHOWN = 12
"""Names that a line counts."""


@dataclass(frozen=True)
class OpinionReport:
    """What came of asking.

    Attributes:
        layer: fingerprint of the layer ``opinions``.
        answers: folder of the answers.
        windows: how many there are.
        answered: how many of them have an answer.
        empty: answers without a word.
        readable: answers in a form that was asked for, also those that name nothing.
        boxes: class name → boxes.
        unknown: names that are no class → boxes.
        rejected: what is wrong with a box → boxes.
    """

    layer: str
    answers: Path
    windows: int
    answered: int
    empty: int
    readable: int
    boxes: dict[str, int]
    unknown: dict[str, int]
    rejected: dict[str, int]

    @property
    def parse_rate(self) -> float:
        """Share of the answers that are readable, of those that have a word; 1 without any."""
        said = self.answered - self.empty
        return self.readable / said if said else 1.0

    def summary(self) -> str:
        """Return all of it in one line."""
        parts = [
            f"{self.answered} of {self.windows} windows answered, {self.empty} of them empty",
            f"{self.parse_rate:.0%} of the others readable",
            "boxes: " + _counts(self.boxes),
        ]
        if self.unknown:
            parts.append("unknown names: " + _counts(self.unknown))
        if self.rejected:
            parts.append("left out: " + _counts(self.rejected))
        return "; ".join(parts)


def ask_opinions(
    site: str | Path,
    *,
    vlm: str | VisionModel | None = None,
    url: str | None = None,
    model: str | None = None,
    bits: int | None = None,
    coordinates: Coordinates | None = None,
    sam: str | None = None,
    config: VlmConfig | None = None,
    tiles: Windows | None = None,
    device: str = "auto",
    progress: Progress = SILENT,
) -> OpinionReport:
    """Ask a VLM which classes it sees where, and make the layer ``opinions`` of what it says.

    Answers are kept in the site (``site.zarr/answers``) and nothing is asked twice. Windows that
    stay without an answer have no opinion, and are asked again by the next run.

    Args:
        site: the site; tags are not needed.
        vlm: a local model, by its folder or its name on the Hugging Face hub, or one of your own.
        url: of a server with OpenAI's protocol instead, like ``http://localhost:8000/v1``. The
            windows go there. Its key, if it wants one, is in the variable ``OPENAI_API_KEY``.
        model: what the server calls its model; None takes the only one it has.
        bits: 4 or 8 quantises a local model's weights.
        coordinates: what the model measures boxes in; None goes by its name or kind.
        sam: SAM's weights, by registry name or path; None takes those at hand, ``boxes`` fills the
            boxes instead.
        config: of windows and answers.
        tiles: scene name → tiles of the site's tiling to have opinions on; all by default.
        device: where networks run.
        progress: shows what is going on.

    Returns:
        How much of it was understood.

    Raises:
        InputError: not one model, or one that cannot be used; nobody answers at the address.
        RunError: the model keeps failing; what it answered stays.
    """
    opened, config, where = Site(site), checked(config or VlmConfig()), pick_device(device)
    windows = _windows(opened, config, tiles)
    asked = _vision_model((vlm, url), model, bits, coordinates, config, where)
    weights = _sam_weights(sam, progress)
    opened.tidy()
    names = _asked_names(opened)
    asking = _asking(opened, asked, names, config)
    if isinstance(asked, ServedModel):
        progress.note(f"windows go to {asked.url}, except those that are answered already")
    reasons = asking.run(windows, progress)
    stage = OpinionStage(asking.files, names, opened.bands, weights, str(where))
    layer = _make_layer(opened, stage, windows, progress)
    report = _report(asking.files, windows, names, layer)
    progress.note(f"{asked.label}: {report.summary()}")
    if reasons:
        missing = report.windows - report.answered
        progress.warn(f"{missing} windows have no answer ({reasons[-1]}); run again to ask them")
    return report


def _windows(site: Site, config: VlmConfig, tiles: Windows | None) -> Windows:
    """Return the windows to ask about: those with a pixel, and in the tiles that are wanted."""
    tilings = windows_of(site.scenes, config.window - 2 * config.halo, config.halo)
    windows = {}
    for name, scene in site.scenes.items():
        wanted = scene.tiling if tiles is None else tiles.get(name, ())
        valid = [tile for tile in wanted if scene.tile_valid[tile.row, tile.col]]
        windows[name] = windows_over(tilings[name], valid)
    return windows


def _asked_names(site: Site) -> tuple[str | None, ...]:
    """Return the names of the classes; None for the background, which cannot be located."""
    names = site.classes.names
    return tuple(None if i == site.classes.background else name for i, name in enumerate(names))


def _asking(
    site: Site, model: VisionModel, names: Sequence[str | None], config: VlmConfig
) -> Asking:
    """Return how the model is asked; answers are kept by all that decides them."""
    text = question([name for name in names if name is not None], model.coordinates)
    size = config.window - 2 * config.halo
    tiling = next(iter(windows_of(site.scenes, size, config.halo).values()))
    facts: dict[str, Any] = {
        "model": model.identity,
        "question": text,
        "core": tiling.core,
        "halo": tiling.halo,
        "side": config.side,
    }
    files = AnswerFiles(site.path, fingerprint(facts, site.bands.to_dict()))
    files.open(facts)
    return Asking(site, model, text, config.side, files)


def _vision_model(
    which: tuple[str | VisionModel | None, str | None],
    model: str | None,
    bits: int | None,
    coordinates: Coordinates | None,
    config: VlmConfig,
    device: torch.device,
) -> VisionModel:
    """Return the model that a user names.

    Raises:
        InputError: none or two are named, or one that is not there.
    """
    vlm, url = which
    if (vlm is None) == (url is None):
        raise InputError("which model? give either --vlm, a local one, or --vlm-url, a server")
    if url is not None:
        if bits is not None:
            raise InputError("--vlm-bits is for local models; a server decides for itself")
        address, name = served_model(url, model)
        measures = coordinates or guess_coordinates(name)
        return ServedModel(address, name, measures, max_tokens=config.max_tokens)
    if model is not None:
        raise InputError("--vlm-model is for servers; --vlm names the local model itself")
    if not isinstance(vlm, str):
        assert vlm is not None
        return vlm
    return LocalModel(vlm, device, bits, config.max_tokens, measures=coordinates)


def _sam_weights(sam: str | None, progress: Progress) -> Path | None:
    """Return the weights to make masks of boxes with; None where boxes are filled."""
    if sam == BOXES:
        return None
    if sam is not None:
        return find(sam)
    at_hand = sam_at_hand()
    if at_hand is None:
        progress.warn(
            "no SAM weights at hand: the boxes of the model are filled instead; for masks run "
            "rsseg weights fetch mobile_sam, or give --sam FILE"
        )
        return None
    progress.detail(f"masks come from {at_hand.name}; --sam takes another")
    return at_hand.path


def _make_layer(site: Site, stage: OpinionStage, windows: Windows, progress: Progress) -> str:
    """Make the layer where there are answers; return its fingerprint."""
    files = stage.answers
    masks = BOXES if stage.checkpoint is None else stage.checkpoint.name
    layer = fingerprint(files.key, stage.names, masks)
    answered = {
        scene: [tile for tile in members if files.has(scene, tile)]
        for scene, members in windows.items()
    }
    run(stage, site, layer, answered, workers=1, progress=progress)
    return layer


def _report(
    files: AnswerFiles, windows: Windows, names: Sequence[str | None], layer: str
) -> OpinionReport:
    """Read all answers again, also those of earlier runs, and count what is in them."""
    boxes = Counter({name: 0 for name in names if name is not None})
    unknown: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    answered = empty = readable = 0
    for said in _answers(files, windows):
        answer = boxes_of(said, names)
        answered += 1
        empty += not said.text.strip()
        readable += answer.readable
        boxes.update(str(names[index]) for index in answer.classes)
        unknown += answer.unknown
        rejected += answer.rejected
    return OpinionReport(
        layer=layer,
        answers=files.folder,
        windows=sum(map(len, windows.values())),
        answered=answered,
        empty=empty,
        readable=readable,
        boxes=dict(boxes),
        unknown=dict(unknown.most_common()),
        rejected=dict(rejected.most_common()),
    )


def _answers(files: AnswerFiles, windows: Windows) -> Iterator[Answered]:
    for scene, members in windows.items():
        for tile in members:
            said = files.read(scene, tile)
            if said is not None:
                yield said


def _counts(counts: Mapping[str, int]) -> str:
    shown = [f"{name} {count}" for name, count in counts.items()][:_SHOWN]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
