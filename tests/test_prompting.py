"""Images are looked at and asked, and masks come to their pixels, as SAM itself does it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from segment_anything.utils.amg import batched_mask_to_box, calculate_stability_score
from small_sams import roughened, small_sam
from torch import Tensor, nn
from torch.nn import functional as F

from rsseg.nets import prompting as module
from rsseg.nets.device import cpu_has_bf16, fast_dtype
from rsseg.nets.prompting import Drawn, Prompter, Seen, stability
from rsseg.nets.sam import FirstSam
from rsseg.nets.sam2 import Sam2, build_sam2

SIZES = [(512, 512), (256, 256), (1024, 1024), (512, 300), (201, 333), (77, 1500), (2, 3)]


class Blank(nn.Module):
    """An encoder that sees nothing."""

    img_size = 1024

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.zeros(len(pixels), 256, 64, 64)


@pytest.fixture(scope="module")
def blank() -> Prompter:
    """A SAM with the frame of the real ones, quick to look."""
    sam = small_sam(1024)
    sam.image_encoder = Blank()
    return Prompter(FirstSam(sam), torch.float32)


@pytest.fixture(scope="module")
def sam() -> Sam:
    torch.manual_seed(3)
    return roughened(small_sam(64), contrast=4)


def picture(size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def smooth_logits(count: int) -> Tensor:
    """Logits (count, 256, 256) with outlines and slopes of many kinds."""
    rng = np.random.default_rng(1)
    fields = [gaussian_filter(rng.normal(size=(256, 256)), 3 + 4 * i) for i in range(count)]
    return torch.tensor(np.array([6 * field / field.std() - i for i, field in enumerate(fields)]))


def whole(seen: Seen, drawn: list[Drawn]) -> NDArray[np.bool_]:
    """Masks (M, H, W) of what was drawn."""
    masks = np.zeros((len(drawn), *seen.size), np.bool_)
    for mask, one in zip(masks, drawn, strict=True):
        y0, x0, y1, x1 = one.box
        assert one.mask.shape == (y1 - y0, x1 - x0)
        mask[y0:y1, x0:x1] = one.mask
    return masks


def postprocessed(prompter: Prompter, size: tuple[int, int], logits: Tensor) -> Tensor:
    """Logits (M, H, W) as SAM brings them to an image."""
    net = prompter._net
    return net.sam.postprocess_masks(logits[:, None], net.extent(size), size)[:, 0]


@pytest.mark.parametrize("size", SIZES)
def test_masks_come_to_the_image_as_sams_do(blank: Prompter, size: tuple[int, int]) -> None:
    (seen,) = blank.look([picture(size)])
    logits = smooth_logits(3).float()
    drawn = blank.drawn(seen, logits)
    expected = postprocessed(blank, size, logits)
    masks = whole(seen, drawn)
    differ = torch.from_numpy(masks) != (expected > 0)
    assert not (differ & (expected.abs() > 1e-4)).any()
    for one, mask, logit in zip(drawn, masks, expected, strict=True):
        assert one.area == mask.sum()
        outer = int((logit > -1).sum())
        reference = float(calculate_stability_score(logit[None], 0, 1)) if outer else 0
        assert one.stability == pytest.approx(reference, abs=2.1 / max(outer, 1))
        if mask.any():
            x0, y0, x1, y1 = batched_mask_to_box(torch.from_numpy(mask)).tolist()
            assert one.box == (y0, x0, y1 + 1, x1 + 1)


def blob(y: int, x: int, radius: float, top: float, slope: float = 2) -> Tensor:
    """A cone of logits (1, 256, 256), which falls by the slope per pixel of the mask."""
    rows, columns = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    return (top - slope * (torch.hypot(rows - y, columns - x) - radius).clamp(min=0))[None]


@pytest.mark.parametrize(
    ("y", "x"), [(0, 0), (255, 255), (0, 128), (100, 50), (255, 3), (128, 128)]
)
@pytest.mark.parametrize("size", [(512, 512), (201, 333)])
def test_small_masks_lose_nothing_at_their_ends(
    blank: Prompter, y: int, x: int, size: tuple[int, int]
) -> None:
    (seen,) = blank.look([picture(size)])
    logits = blob(y, x, 2, 0.7)
    expected = postprocessed(blank, size, logits)[0]
    (one,) = blank.drawn(seen, logits)
    mask = torch.from_numpy(whole(seen, [one])[0])
    assert not ((mask != (expected > 0)) & (expected.abs() > 1e-4)).any()
    outer = int((expected > -1).sum())
    assert one.stability == pytest.approx(int((expected > 1).sum()) / max(outer, 1), abs=0.02)


def test_a_faint_surrounding_counts_for_stability(blank: Prompter) -> None:
    (seen,) = blank.look([picture((512, 512))])
    logits = blob(120, 90, 10, 2, slope=0.1)
    expected = postprocessed(blank, (512, 512), logits)
    (one,) = blank.drawn(seen, logits)
    reference = float(calculate_stability_score(expected, 0, 1))
    assert 0.2 < reference < 0.4
    assert one.stability == pytest.approx(reference, abs=1e-3)
    assert one.area == pytest.approx(int((expected > 0).sum()), abs=3)


def test_masks_together_are_as_masks_alone(
    blank: Prompter, monkeypatch: pytest.MonkeyPatch
) -> None:
    (seen,) = blank.look([picture((200, 333))])
    logits = torch.cat([blob(30, 40, 6, 3), blob(120, 200, 20, 0.5), blob(9, 9, 1, -9)])
    alone = blank.drawn(seen, logits)
    together = module._drawn(seen, logits)  # what a GPU does
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)
        assert one.box == other.box
        assert one.area == other.area
        assert one.stability == pytest.approx(other.stability)


def test_empty_masks_are_empty(blank: Prompter) -> None:
    (seen,) = blank.look([picture((200, 333))])
    never, nearly = torch.full((1, 256, 256), -5.0), blob(50, 60, 5, -0.5)
    # All but the upper 154 rows of the network's masks lie in the padding.
    padding = blob(240, 60, 10, 5)
    for one in blank.drawn(seen, torch.cat([never, nearly, padding])):
        assert one.mask.size == one.area == 0
        assert one.box == (0, 0, 0, 0)
        assert one.stability == 0
    assert blank.drawn(seen, torch.zeros(0, 256, 256)) == []


def test_full_masks_fill_the_image(blank: Prompter) -> None:
    (seen,) = blank.look([picture((201, 333))])
    (one,) = blank.drawn(seen, torch.full((1, 256, 256), 5.0))
    assert one.box == (0, 0, 201, 333)
    assert one.area == 201 * 333
    assert one.stability == 1


def test_stability_is_sams() -> None:
    logits = smooth_logits(4)
    expected = calculate_stability_score(logits, 0.0, 1.0)
    torch.testing.assert_close(stability(logits), expected)
    assert stability(torch.full((1, 4, 4), -2.0)).tolist() == [0]


def test_inside_is_what_the_image_fills_of_a_mask(blank: Prompter) -> None:
    for size, inside in (
        ((512, 512), (256, 256)),
        ((100, 200), (128, 256)),
        ((300, 100), (256, 86)),  # 341.3 rounds to 341 of 1024 columns
        ((100, 300), (86, 256)),
    ):
        assert blank.look([picture(size)])[0].inside == inside


PROMPTS = {
    "points": {"points": np.array([[[10.0, 8.0]], [[20.0, 3.0]], [[2.0, 9.0]]])},
    "labels": {
        "points": np.array([[[10.0, 8.0], [20.0, 3.0]], [[2.0, 9.0], [5.0, 5.0]]]),
        "labels": np.array([[1, 0], [1, 1]]),
    },
    "boxes": {"boxes": np.array([[5.0, 4.0, 21.0, 11.0], [0.0, 1.0, 9.0, 8.0]])},
    "both": {
        "points": np.array([[[10.0, 8.0]], [[4.0, 3.0]]]),
        "boxes": np.array([[5.0, 4.0, 21.0, 11.0], [0.0, 1.0, 9.0, 8.0]]),
    },
}


def predicted(sam: Sam, image: NDArray[np.uint8], asked: dict[str, NDArray]) -> tuple[Tensor, ...]:
    """Logits (B, 3, H, W) and scores (B, 3) of SAM's own predictor."""
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    size, points, labels = image.shape[:2], None, None
    if "points" in asked:
        points = torch.tensor(predictor.transform.apply_coords(asked["points"], size))
        labels = torch.tensor(asked.get("labels", np.ones(asked["points"].shape[:2])))
    boxes = asked.get("boxes")
    if boxes is not None:
        boxes = torch.tensor(predictor.transform.apply_boxes(boxes, size))
    return predictor.predict_torch(points, labels, boxes, None, True, return_logits=True)[:2]


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("size", [(64, 64), (12, 22), (50, 31), (100, 130)])
def test_answers_are_those_of_sams_predictor(sam: Sam, kind: str, size: tuple[int, int]) -> None:
    image, asked = picture(size), PROMPTS[kind]
    logits, scores = predicted(sam, image, asked)
    prompter = Prompter(FirstSam(sam), torch.float32)
    (seen,) = prompter.look([image])
    answers = prompter.ask(seen, **asked)
    torch.testing.assert_close(answers.scores, scores, rtol=1e-4, atol=1e-4)
    every = torch.ones_like(scores, dtype=torch.bool)
    drawn = whole(seen, prompter.drawn(seen, prompter.logits(seen, answers, every)))
    expected = logits.flatten(0, 1)
    differ = torch.from_numpy(drawn) != (expected > 0)
    assert not (differ & (expected.abs() > 1e-3)).any()


@pytest.mark.parametrize("kind", PROMPTS)
def test_segment_gives_the_best_mask_of_each_prompt(sam: Sam, kind: str) -> None:
    image, asked = picture((40, 61)), PROMPTS[kind]
    logits, scores = predicted(sam, image, asked)
    prompter = Prompter(FirstSam(sam), torch.float32)
    (seen,) = prompter.look([image])
    masks, best = prompter.segment(seen, **asked)
    count = len(scores)
    assert masks.shape == (count, 40, 61)
    assert masks.dtype == np.bool_
    assert best.dtype == np.float32
    np.testing.assert_allclose(best, scores.amax(dim=1), atol=1e-4)
    expected = logits[torch.arange(count), scores.argmax(dim=1)]
    assert (torch.from_numpy(masks) != (expected > 0)).float().mean() < 1e-3
    assert 0 < masks.mean() < 1


def test_segment_takes_the_level_of_the_best_score(
    sam: Sam, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompter = Prompter(FirstSam(sam), torch.float32)
    (seen,) = prompter.look([picture((40, 61))])
    given = torch.tensor([[0.1, 0.9, 0.3], [0.5, 0.2, 0.6], [0.7, 0.1, 0.2]])
    answers = replace(prompter.ask(seen, **PROMPTS["points"]), scores=given)
    monkeypatch.setattr(prompter, "ask", lambda *_: answers)
    masks, best = prompter.segment(seen, **PROMPTS["points"])
    assert best.tolist() == pytest.approx([0.9, 0.6, 0.7])
    for prompt, level in enumerate((1, 2, 0)):
        wanted = torch.zeros(3, 3, dtype=torch.bool)
        wanted[prompt, level] = True
        alone = whole(seen, prompter.drawn(seen, prompter.logits(seen, answers, wanted)))
        assert (masks[prompt] != alone[0]).mean() < 1e-3


@torch.inference_mode()
def all_logits(prompter: Prompter, seen: Seen) -> Tensor:
    answers = prompter.ask(seen, **PROMPTS["points"])
    return prompter.logits(seen, answers, torch.ones(3, 3, dtype=torch.bool))


@pytest.mark.parametrize("name", ["sam", "sam2"])
def test_images_looked_at_together_are_as_alone(name: str, request: pytest.FixtureRequest) -> None:
    net = request.getfixturevalue(name)
    prompter = Prompter(FirstSam(net) if name == "sam" else net, torch.float32)
    images = [picture((40, 61), seed) for seed in (1, 2)]
    together = [all_logits(prompter, seen) for seen in prompter.look(images)]
    alone = [all_logits(prompter, prompter.look([image])[0]) for image in images]
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(alone[0], alone[1], atol=0.05)


@pytest.fixture(scope="module")
def sam2() -> Sam2:
    torch.manual_seed(4)
    return roughened(build_sam2("tiny", 128).eval(), contrast=4)


@pytest.mark.parametrize("kind", PROMPTS)
def test_sam_2_is_asked_in_its_own_frame(sam2: Sam2, kind: str) -> None:
    size = (37, 53)
    image, asked = picture(size), PROMPTS[kind]
    scale = np.array([128 / 53, 128 / 37])
    points = boxes = None
    if "points" in asked:
        labels = torch.tensor(asked.get("labels", np.ones(asked["points"].shape[:2], int)))
        points = torch.tensor(asked["points"] * scale).float(), labels
    if "boxes" in asked:
        boxes = torch.tensor(asked["boxes"] * np.tile(scale, 2)).float()
    with torch.inference_mode():
        features, fine = sam2.embed(sam2.framed([image]))
        sparse, dense = sam2.prompt_encoder(points=points, boxes=boxes, masks=None)
        where = sam2.prompt_encoder.get_dense_pe()
        logits, scores = sam2.mask_decoder(features, where, sparse, dense, True, fine)
    prompter = Prompter(sam2, torch.float32)
    (seen,) = prompter.look([image])
    assert seen.inside == (32, 32)
    answers = prompter.ask(seen, **asked)
    torch.testing.assert_close(answers.scores, scores, rtol=1e-4, atol=1e-4)
    every = torch.ones_like(scores, dtype=torch.bool)
    low = prompter.logits(seen, answers, every)
    torch.testing.assert_close(low, logits.flatten(0, 1), rtol=1e-3, atol=1e-3)
    masks = torch.from_numpy(whole(seen, prompter.drawn(seen, low)))
    expected = F.interpolate(logits, size, mode="bilinear").flatten(0, 1) > 0
    assert (masks != expected).float().mean() < 0.02


def test_the_arithmetic_is_what_the_device_does_fastest(sam: Sam) -> None:
    expected = torch.bfloat16 if cpu_has_bf16() else torch.float32
    assert fast_dtype(torch.device("cpu")) == expected
    assert Prompter(FirstSam(sam)).dtype == expected
    assert fast_dtype(torch.device("mps")) == torch.float32


def test_bfloat16_prompts_agree_roughly(sam: Sam) -> None:
    logits, scores = [], []
    for dtype in (torch.float32, torch.bfloat16):
        prompter = Prompter(FirstSam(sam), dtype)
        (seen,) = prompter.look([picture((40, 61))])
        masks, best = prompter.segment(seen, **PROMPTS["both"])
        assert masks.shape == (2, 40, 61)
        scores.append(best)
        logits.append(all_logits(prompter, seen))
    np.testing.assert_allclose(scores[0], scores[1], atol=0.05)
    exact, rough = logits
    assert (rough - exact).abs().mean() < 0.05 * exact.std()
