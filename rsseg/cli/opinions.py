"""Asking a vision-language model, for the commands that can have labels mended by it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rsseg.config import VlmConfig
from rsseg.errors import InputError
from rsseg.options import CoordinatesName, PurifierName

if TYPE_CHECKING:
    from rsseg.console import Console


def ask(
    site: Path,
    purify: PurifierName,
    vlm: str | None,
    url: str | None,
    model: str | None,
    bits: int | None,
    coordinates: CoordinatesName | None,
    *,
    sam: str | None,
    config: VlmConfig,
    device: str,
    console: Console,
) -> None:
    """Make the layer ``opinions`` where a model is named; else the one that is there serves.

    Raises:
        InputError: a model is named but not wanted, or cannot be used.
    """
    named = [one for one in (vlm, url, model, bits, coordinates) if one is not None]
    if not named:
        return
    if purify != PurifierName.VLM:
        raise InputError("--vlm and its like name a model that nobody asks; give --purify vlm")
    from rsseg.api import ask_opinions
    from rsseg.learn.team import Team

    if Team.of_environment().size > 1:
        raise InputError(
            "several processes would all ask the same: name the model in a run of one process, "
            "which keeps the layer opinions, and leave it out under torchrun"
        )
    ask_opinions(
        site,
        vlm=vlm,
        url=url,
        model=model,
        bits=bits,
        coordinates=None if coordinates is None else coordinates.value,
        sam=sam,
        config=config,
        device=device,
        progress=console,
    )
