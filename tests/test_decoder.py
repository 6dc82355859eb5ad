"""The prompt decoder answers as the networks' own mask decoders do."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from scipy.ndimage import maximum_filter, minimum_filter
from small_sams import roughened, small_sam
from torch import Tensor, nn
from torch.nn import functional as F

from rsseg.nets import decoder as module
from rsseg.nets.decoder import PromptDecoder
from rsseg.nets.sam import FirstSam, build_mobile_sam
from rsseg.nets.sam2 import build_sam2

Prompts = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A network and what it saw: features and, for SAM 2, the finer ones."""

    net: nn.Module
    features: Tensor
    fine: tuple[Tensor, Tensor] | None

    def decoder(self, dtype: torch.dtype = torch.float32) -> PromptDecoder:
        return PromptDecoder(self.net, dtype)


def smooth(channels: int, side: int) -> Tensor:
    """Features that change gradually, as those of images do."""
    coarse = torch.randn(1, channels, max(2, side // 3), max(2, side // 3))
    return F.interpolate(coarse, (side, side), mode="bicubic")[0]


def seen_by(net: nn.Module) -> Case:
    side = net.frame // 16
    if not hasattr(net.mask_decoder, "conv_s0"):
        return Case(net, smooth(256, side), None)
    return Case(net, smooth(256, side), (smooth(32, 4 * side), smooth(64, 2 * side)))


@pytest.fixture(scope="module", params=["sam", "mobile_sam", "sam2"])
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(1)
    if request.param == "sam2":
        return seen_by(roughened(build_sam2("tiny", 128).eval()))
    sam = small_sam(64) if request.param == "sam" else build_mobile_sam()
    return seen_by(roughened(FirstSam(sam).eval()))


@pytest.fixture(scope="module")
def contrasty() -> Case:
    """16 x 16 cells, with masks whose logits go far beyond 4."""
    torch.manual_seed(2)
    return seen_by(roughened(FirstSam(small_sam(256)).eval(), contrast=30))


def asked(kind: str, count: int, frame: int) -> Prompts:
    torch.manual_seed(count)
    prompts = {}
    if kind in ("boxes", "boxes and points"):
        corner = torch.rand(count, 2) * frame / 2
        prompts["boxes"] = torch.cat([corner, corner + 1 + torch.rand(count, 2) * frame / 2], 1)
    if kind != "boxes":
        each = 1 if kind == "a point" else 3
        prompts["points"] = torch.rand(count, each, 2) * frame
        prompts["labels"] = torch.ones(count, each, dtype=torch.int)
        prompts["labels"][:, 1:] = torch.randint(0, 2, (count, each - 1))
    return prompts


def official(case: Case, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """Logits (B, 3, 4h, 4w) and scores (B, 3) of the network's own decoder."""
    encoder, more = case.net.prompt_encoder, {}
    points = (prompts["points"], prompts["labels"]) if "points" in prompts else None
    sparse, dense = encoder(points=points, boxes=prompts.get("boxes"), masks=None)
    if case.fine is not None:
        more["fine"] = tuple(one[None] for one in case.fine)
    with torch.inference_mode():
        return case.net.mask_decoder(
            image_embeddings=case.features[None],
            image_pe=encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
            **more,
        )


@torch.inference_mode()
def ours(
    case: Case,
    prompts: Prompts,
    wanted: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Logits (M, 4h, 4w) of the masks wanted, by default all, and scores (B, 3)."""
    decoder = case.decoder(dtype)
    image = decoder.prepare(case.features, case.fine)
    answers = decoder.answer(image, decoder.tokens(**prompts))
    if wanted is None:
        wanted = torch.ones_like(answers.scores, dtype=torch.bool)
    return decoder.draw(image, answers, wanted), answers.scores


KINDS = ["a point", "points", "boxes", "boxes and points"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 5])
def test_answers_are_the_official_ones(case: Case, kind: str, count: int) -> None:
    prompts = asked(kind, count, case.net.frame)
    logits, scores = official(case, prompts)
    drawn, said = ours(case, prompts)
    assert drawn.dtype == torch.float32
    assert logits.std() > 0.05  # there is something to compare
    torch.testing.assert_close(said, scores, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(drawn, logits.flatten(0, 1), rtol=1e-4, atol=1e-4)


def test_prompts_count(case: Case) -> None:
    """What is compared above would not agree if a prompt were lost."""
    both = asked("boxes and points", 2, case.net.frame)
    _, said = ours(case, both)
    for lost in ("boxes", "points"):
        rest = {name: part for name, part in both.items() if name == "boxes" or lost == "boxes"}
        if lost == "boxes":
            del rest["boxes"]
        assert not torch.allclose(ours(case, rest)[1], said, atol=1e-3)
    flipped = both | {"labels": 1 - both["labels"]}
    assert not torch.allclose(ours(case, flipped)[1], said, atol=1e-3)


def test_one_image_answers_again_and_again(case: Case) -> None:
    frame = case.net.frame
    with torch.inference_mode():
        decoder = case.decoder()
        image = decoder.prepare(case.features, case.fine)
        first, second = (decoder.tokens(**asked(kind, 1, frame)) for kind in ("a point", "boxes"))
        before = decoder.answer(image, first).scores
        decoder.answer(image, second)
        torch.testing.assert_close(decoder.answer(image, first).scores, before, rtol=0, atol=0)
        other = decoder.prepare(case.features.flip(1), case.fine)
        assert not torch.allclose(decoder.answer(other, first).scores, before, atol=1e-4)
        torch.testing.assert_close(decoder.answer(image, first).scores, before, rtol=0, atol=0)


def test_bfloat16_agrees_roughly(case: Case) -> None:
    prompts = asked("a point", 2, case.net.frame)
    logits, scores = official(case, prompts)
    drawn, said = ours(case, prompts, dtype=torch.bfloat16)
    assert drawn.dtype == torch.float32
    assert (said - scores).abs().max() < 0.05
    assert (drawn - logits.flatten(0, 1)).abs().mean() < 0.05 * logits.std()


def by_cell(logits: Tensor) -> Tensor:
    """(M, 4h, 4w) -> (M, h, w, 16)."""
    height, width = logits.shape[1] // 4, logits.shape[2] // 4
    apart = logits.view(-1, height, 4, width, 4).transpose(2, 3)
    return apart.flatten(3)


@pytest.mark.parametrize("kind", ["a point", "boxes"])
def test_masks_are_drawn_where_their_outline_may_run(
    contrasty: Case, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_COMPLETE", set())
    prompts = asked(kind, 5, 256)
    logits, _ = official(contrasty, prompts)
    level = torch.tensor([0, 1, 2, 2, 0])
    wanted = F.one_hot(level, 3).bool()
    exact, drawn = by_cell(logits[wanted]), by_cell(ours(contrasty, prompts, wanted)[0])
    sample = exact[..., 5]  # row 1, column 1
    around = {"size": (1, 3, 3), "mode": "nearest"}
    clear = torch.from_numpy(
        (maximum_filter(sample.numpy(), **around) < -4)
        | (minimum_filter(sample.numpy(), **around) > 4)
    )
    assert 0.1 < clear.float().mean() < 0.9
    torch.testing.assert_close(drawn[~clear], exact[~clear], rtol=1e-4, atol=5e-3)
    # Elsewhere the cell is as its sample; the very first may be drawn to fill up.
    clear[0, 0, 0] = False
    plain = sample[..., None].expand(-1, -1, -1, 16)
    torch.testing.assert_close(drawn[clear], plain[clear], rtol=1e-4, atol=5e-3)


def test_what_is_wanted_decides_only_what_is_drawn(contrasty: Case) -> None:
    prompts = asked("a point", 5, 256)
    every, said = ours(contrasty, prompts)
    every = every.unflatten(0, (5, 3))
    for seed in range(4):
        wanted = torch.rand(5, 3, generator=torch.Generator().manual_seed(seed)) < 0.4
        some, scores = ours(contrasty, prompts, wanted)
        torch.testing.assert_close(some, every[wanted], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(scores, said, rtol=0, atol=0)


def test_nothing_wanted_gives_no_masks(case: Case) -> None:
    prompts = asked("a point", 2, case.net.frame)
    none, _ = ours(case, prompts, torch.zeros(2, 3, dtype=torch.bool))
    assert none.shape == (0, case.net.frame // 4, case.net.frame // 4)
