"""A vision-language model of transformers on this machine: Qwen2.5-VL, Qwen3-VL and their like.

Of the extra ``rsseg[vlm]``. A model is a folder or a name on the Hugging Face hub. Weights are
read from safetensors alone, and no code that comes with a model is ever run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rsseg.errors import InputError
from rsseg.nets.device import fast_dtype, halving
from rsseg.nets.vision import RELATIVE, guess_coordinates
from rsseg.ops.answers import Coordinates
from rsseg.progress import SILENT

_SAFE: dict[str, Any] = {"trust_remote_code": False}
BITS = (4, 8)


@dataclass(frozen=True)
class LocalModel:
    """A model that is loaded when it is first asked.

    Args:
        name: its folder, or its name on the hub.
        device: where it runs.
        bits: 4 or 8 quantises its weights by bitsandbytes (NVIDIA GPUs); None leaves them.
        max_tokens: longest answer, in tokens.
        batch_size: images at a time; halved where the memory does not suffice.
        measures: what it measures boxes in; None goes by its kind.
        workers: none but the caller's thread.

    Raises:
        InputError: an extra is missing, or the device cannot quantise.
    """

    name: str
    device: torch.device
    bits: int | None = None
    max_tokens: int = 2048
    batch_size: int = 1
    measures: Coordinates | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        if find_spec("transformers") is None:
            raise InputError("a local model needs transformers: pip install rsseg[vlm]")
        if self.bits is None:
            return
        if self.bits not in BITS:
            raise InputError(f"--vlm-bits {self.bits}: must be 4 or 8")
        if self.device.type != "cuda":
            raise InputError(f"--vlm-bits {self.bits} needs an NVIDIA GPU; leave it out")
        if find_spec("bitsandbytes") is None:
            raise InputError(f"--vlm-bits {self.bits} needs bitsandbytes: pip install bitsandbytes")

    @property
    def label(self) -> str:
        """Its name."""
        return self.name

    @property
    def identity(self) -> dict[str, Any]:
        """Name and quantisation; of a folder its name and which weights are in it."""
        folder = Path(self.name).expanduser()
        facts: dict[str, Any] = {"bits": self.bits, "max_tokens": self.max_tokens}
        if not folder.is_dir():
            return {"hub": self.name, **facts}
        files = [(path.name, path.stat()) for path in sorted(folder.glob("*.safetensors"))]
        weights = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in files]
        return {"folder": folder.resolve().name, "weights": weights, **facts}

    @property
    def coordinates(self) -> Coordinates:
        """What it measures boxes in."""
        return self.measures or guess_coordinates(self._kind)

    @cached_property
    def _kind(self) -> str:
        from transformers import AutoConfig

        with _loading(self.name):
            config = AutoConfig.from_pretrained(self._source, **_SAFE)
        return str(config.model_type)

    @property
    def _source(self) -> str:
        """What transformers calls it: names of the hub look like relative paths."""
        folder = Path(self.name).expanduser()
        return str(folder) if folder.is_dir() else self.name

    @cached_property
    def _processor(self) -> Any:
        from transformers import AutoProcessor

        with _loading(self.name):
            return AutoProcessor.from_pretrained(self._source, **_SAFE)

    @cached_property
    def _network(self) -> Any:
        from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

        options: dict[str, Any] = {"dtype": fast_dtype(self.device), "use_safetensors": True}
        if self.bits is not None:
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=self.bits == 4,
                load_in_8bit=self.bits == 8,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=options["dtype"],
            )
            options["device_map"] = {"": self.device}
        with _loading(self.name):
            network = AutoModelForImageTextToText.from_pretrained(self._source, **options, **_SAFE)
        return network.eval() if self.bits is not None else network.to(self.device).eval()

    def prepare(self) -> None:
        """Load it; from the hub, where it is not on this machine yet."""
        assert self._processor is not None
        assert self._network is not None

    def frame(self, size: tuple[int, int]) -> tuple[int, int]:
        """What the processor makes of an image of that size, where the model measures in pixels."""
        if self.coordinates == "thousandths":
            return RELATIVE
        blank = np.zeros((*size, 3), np.uint8)
        images = self._processor.image_processor
        grid = images(images=[blank], return_tensors="pt").get("image_grid_thw")
        if grid is None:  # not cut into patches of a grid: seen as it is
            return size
        return int(grid[0, 1]) * images.patch_size, int(grid[0, 2]) * images.patch_size

    def ask(self, images: Sequence[NDArray[np.uint8]], prompt: str) -> list[str]:
        """Ask about all images at once, greedily; see ``VisionModel``.

        Source: SemiEarth eq. 7.
        """

        def run(batch_size: int) -> list[str]:
            starts = range(0, len(images), batch_size)
            return [
                text
                for start in starts
                for text in self._answers(images[start : start + batch_size], prompt)
            ]

        return halving(run, len(images), SILENT)

    @torch.inference_mode()
    def _answers(self, images: Sequence[NDArray[np.uint8]], prompt: str) -> list[str]:
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        conversation = [{"role": "user", "content": content}]
        with _loading(self.name):
            text = self._processor.apply_chat_template(
                conversation, add_generation_prompt=True, tokenize=False
            )
        # Images of one size and one question make prompts of one length: nothing is padded.
        given = self._processor(
            text=[text] * len(images), images=[[image] for image in images], return_tensors="pt"
        ).to(self.device, self._network.dtype)
        said = self._network.generate(
            **given,
            do_sample=False,
            num_beams=1,
            max_new_tokens=self.max_tokens,
            temperature=None,
            top_p=None,
            top_k=None,
        )
        new = said[:, given["input_ids"].shape[1] :]
        answers: list[str] = self._processor.batch_decode(new, skip_special_tokens=True)
        return answers


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Let transformers load something; raise InputError where it cannot, which it says variously.

    Its warnings are for developers, and its bars are worth seeing for downloads alone.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    bars = logging.is_progress_bar_enabled() and Path(name).expanduser().is_dir()
    if bars:
        logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, AttributeError, ImportError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(
            f"{name}: not a vision-language model that can be used ({first[:200]}); give a folder "
            "or the hub's name of one with safetensors, like Qwen/Qwen2.5-VL-3B-Instruct"
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()
