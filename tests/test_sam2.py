"""SAM 2: its published tensors land where they belong, and it answers as its makers' code does."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import Resize

from rsseg.errors import InputError
from rsseg.nets.sam2 import Sam2, build_sam2, load_sam2, recognise, squeeze

FRAME = 128
"""A frame with a 64th of SAM 2's pixels; no tensor depends on it."""

SIZE = 37, 53
"""Height and width of the test image: squeezed unevenly."""


def official_name(name: str) -> str:
    """The name in the published checkpoints of a tensor of ours, part by part."""
    match name.split("."):
        case ["trunk", *rest]:
            parts = ["image_encoder", "trunk", *rest]
        case ["laterals", level, part]:
            parts = ["image_encoder", "neck", "convs", level, "conv", part]
        case ["prompt_encoder" | "mask_decoder" as module, *rest]:
            parts = [f"sam_{module}", *rest]
        case parts:
            return ".".join(parts)
    layers = {"fc1": "layers.0", "fc2": "layers.1", "lin1": "layers.0", "lin2": "layers.1"}
    return ".".join(layers.get(part, part) for part in parts)


def drawn(name: str, shape: torch.Size) -> Tensor:
    """Values for a tensor that depend on its name only, of a size that keeps activations sane."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    values = random.standard_normal(tuple(shape)).astype(np.float32)
    if name.endswith("bias"):
        values *= 0.1
    elif len(shape) == 1:
        values = 1 + values / 10
    elif "embed" in name or "token" in name:
        values /= 2
    elif "gaussian" not in name:
        values /= 2 * np.sqrt(np.prod(shape[1:], dtype=np.float32))
    return torch.from_numpy(values)


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    """A tiny SAM 2.1 under its published names, with some of the tensors that video needs."""
    own = build_sam2("tiny").state_dict()
    state = {name: drawn(name, own[n].shape) for n in own if (name := official_name(n))}
    for name in (
        "maskmem_tpos_enc",
        "memory_attention.layers.0.linear1.weight",
        "memory_encoder.out_proj.bias",
        "no_obj_ptr",
        "obj_ptr_tpos_proj.weight",
        "sam_mask_decoder.pred_obj_score_head.layers.0.weight",
    ):
        state[name] = torch.ones(2)
    return state


@pytest.fixture(scope="module")
def checkpoint(official: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "sam2.1_hiera_tiny.pt"
    torch.save({"model": official}, path)
    return path


@pytest.fixture(scope="module")
def sam(checkpoint: Path) -> Sam2:
    """The SAM 2 of the checkpoint, for small images."""
    small = build_sam2("tiny", FRAME)
    small.load_state_dict(load_sam2(checkpoint).state_dict(), strict=True)
    return small.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    bands = [127 * (1 + np.sin(x / 5)), 127 * (1 + np.cos(y / 3)), (3 * x + 2 * y) % 256]
    return np.stack(bands, axis=-1).astype(np.uint8)


def as_batch(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None]


POINTS = np.array([[[10.0, 8.0]], [[40.0, 30.0]]])  # x, y in pixels of the image
LABELS = np.array([[1], [0]])
BOXES = np.array([[5.0, 4.0, 30.0, 20.0], [20.0, 1.0, 52.0, 36.0]])  # x0, y0, x1, y1


def ask(
    sam: Sam2,
    image: NDArray[np.uint8],
    *,
    points: bool = False,
    boxes: bool = False,
    masks: Tensor | None = None,
    multimask: bool = True,
) -> tuple[Tensor, Tensor]:
    """Mask logits and predicted IoU for the test's two prompts."""
    features, fine = sam.embed(squeeze(as_batch(image), FRAME))
    scale = torch.tensor([FRAME / SIZE[1], FRAME / SIZE[0]])
    sparse, dense = sam.prompt_encoder(
        points=(torch.from_numpy(POINTS) * scale, torch.from_numpy(LABELS)) if points else None,
        boxes=torch.from_numpy(BOXES) * scale.repeat(2) if boxes else None,
        masks=masks,
    )
    where = sam.prompt_encoder.get_dense_pe()
    return sam.mask_decoder(features, where, sparse, dense, multimask, fine)


# --- Loading -------------------------------------------------------------------------------------


def test_every_tensor_lands_where_it_belongs(checkpoint: Path, official: dict[str, Tensor]) -> None:
    loaded = load_sam2(checkpoint)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    state = loaded.state_dict()
    assert len(state) == 471 - 160 - 6  # of SAM 2.1 tiny, of its memory, of its object score
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, official[official_name(name)], rtol=0, atol=0)


def test_tensors_may_lie_bare_in_the_file(official: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(official, tmp_path / "bare.pt")
    assert load_sam2(tmp_path / "bare.pt").frame == 1024


@pytest.mark.parametrize("size", ["tiny", "small", "base_plus", "large"])
def test_sizes_are_known_by_their_tensors(size: str) -> None:
    with torch.device("meta"):
        state = build_sam2(size).state_dict()
    assert recognise({official_name(name): tensor for name, tensor in state.items()}) == size


def without(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if key != name}


TOKEN = "sam_mask_decoder.obj_score_token.weight"


def test_tensors_must_fit(official: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "odd.pt"
    for state, first in (
        (without(official, TOKEN), "mask_decoder.obj_score_token.weight"),
        (official | {TOKEN: torch.ones(2, 256)}, "mask_decoder.obj_score_token.weight"),
        (official | {"adapter.weight": torch.ones(1)}, "adapter.weight"),
    ):
        torch.save({"model": state}, path)
        with pytest.raises(InputError, match=rf"looks like SAM 2 tiny, but 1 .*\({first} first\)"):
            load_sam2(path)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"mask_decoder.iou_token.weight": torch.ones(1, 256)}, "checkpoint of the first SAM"),
        ({"conv.weight": torch.ones(1)}, "not a SAM 2 checkpoint"),
        ({"image_encoder.trunk.patch_embed.proj.weight": torch.ones(96, 3, 7, 7)}, "no Hiera"),
        ({"model": {"epoch": 3}}, "expected tensors by name"),
        ({"model": torch.ones(3)}, "not a SAM 2 checkpoint"),
    ],
)
def test_other_files_are_refused(state: object, message: str, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(InputError, match=message) as refusal:
        load_sam2(tmp_path / "other.pt")
    assert "\n" not in str(refusal.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.pt: no such weights file"):
        load_sam2(tmp_path / "gone.pt")


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_pickled_code_is_never_run(official: dict[str, Tensor], tmp_path: Path) -> None:
    trap = Trap(tmp_path / "sprung")
    torch.save({"model": {TOKEN: official[TOKEN]}, "optimizer": trap}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="would run foreign code"):
        load_sam2(tmp_path / "evil.pt")
    assert not trap.path.exists()


# --- Images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(37, 53), (300, 210), (128, 128)])
def test_images_are_squeezed_as_torchvision_does(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, *size), dtype=np.uint8)
    expected = 255 * Resize((FRAME, FRAME))(torch.from_numpy(pixels).float() / 255)
    squeezed = squeeze(torch.from_numpy(pixels), FRAME)
    assert squeezed.dtype == torch.float32
    torch.testing.assert_close(squeezed, expected, rtol=0, atol=1e-3)


def test_images_are_embedded_alike_alone_and_together(sam: Sam2, image: NDArray[np.uint8]) -> None:
    pixels = squeeze(torch.cat([as_batch(image), 255 - as_batch(image)]), FRAME)
    together, (fine, middle) = sam.embed(pixels)
    assert together.shape == (2, 256, 8, 8)
    assert fine.shape == (2, 32, 32, 32)
    assert middle.shape == (2, 64, 16, 16)
    alone, (fine_alone, _) = sam.embed(pixels[1:])
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fine[1:], fine_alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[:1], alone, atol=0.1)


# --- Answers -------------------------------------------------------------------------------------


def test_one_mask_is_the_first_token_s(sam: Sam2, image: NDArray[np.uint8]) -> None:
    three, scores = ask(sam, image, points=True)
    one, score = ask(sam, image, points=True, multimask=False)
    assert three.shape == (2, 3, 32, 32)
    assert one.shape == (2, 1, 32, 32)
    assert scores.shape == (2, 3)
    assert ((scores > 0) & (scores < 1)).all()
    assert score.shape == (2, 1)
    assert not torch.isin(score.flatten(), scores.flatten()).any()


# What the sam2 package, 1.1.0, made of the same tensors, image and prompts (its SAM2ImagePredictor
# with image_size 128), at a few places: x, y = 5, 2 of 8 x 8 and so on.
FEATURES = (1.39970, 1.00204, -0.19346, -0.63020)
FINE = (0.74404, 1.81618, -2.67015, -0.72157)
MIDDLE = (-0.13250, -0.01707, -0.28891, 0.37307)
IOU_OF_POINTS = ((0.51408, 0.49700, 0.49636), (0.51722, 0.49822, 0.49189))
IOU_OF_BOXES = ((0.51063, 0.48915, 0.49447), (0.51686, 0.49759, 0.50130))
IOU_OF_BOTH = ((0.51703, 0.49229, 0.50144), (0.51760, 0.49322, 0.49653))
LOGITS_OF_POINTS = ((2.34131, 0.67729, -0.48154), (2.47337, 0.78998, -0.48910))
LOGITS_OF_BOXES = ((2.46784, 0.77449, -0.30455), (2.48375, 0.48300, -0.41973))
LOGITS_OF_BOTH = ((2.43357, 0.82126, -0.42077), (2.56221, 0.52143, -0.48791))


def close(found: Tensor, expected: object) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=1e-4, atol=2e-4)


def test_features_are_those_of_the_published_code(sam: Sam2, image: NDArray[np.uint8]) -> None:
    features, (fine, middle) = sam.embed(squeeze(as_batch(image), FRAME))
    close(features[0, ::64, 2, 5], FEATURES)
    close(fine[0, ::8, 20, 7], FINE)
    close(middle[0, ::16, 10, 3], MIDDLE)


@pytest.mark.parametrize(
    ("points", "boxes", "scores", "logits"),
    [
        (True, False, IOU_OF_POINTS, LOGITS_OF_POINTS),
        (False, True, IOU_OF_BOXES, LOGITS_OF_BOXES),
        (True, True, IOU_OF_BOTH, LOGITS_OF_BOTH),
    ],
    ids=["points", "boxes", "both"],
)
def test_masks_are_those_of_the_published_code(
    sam: Sam2,
    image: NDArray[np.uint8],
    points: bool,
    boxes: bool,
    scores: object,
    logits: object,
) -> None:
    masks, iou = ask(sam, image, points=points, boxes=boxes)
    close(iou, scores)
    close(masks[:, :, 20, 7], logits)


@pytest.mark.parametrize("prompts", ["points", "boxes", "both", "mask"])
def test_the_sam2_package_agrees(
    official: dict[str, Tensor], sam: Sam2, image: NDArray[np.uint8], prompts: str
) -> None:
    pytest.importorskip("sam2", reason="only to compare with: pip install sam2")
    from sam2.build_sam import build_sam2 as build_theirs
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    theirs = build_theirs(
        "configs/sam2.1/sam2.1_hiera_t.yaml",
        device="cpu",
        hydra_overrides_extra=[f"++model.image_size={FRAME}"],
        apply_postprocessing=False,
    )
    ours = {name: t for name, t in official.items() if t.shape == theirs.state_dict()[name].shape}
    theirs.load_state_dict(ours, strict=False)
    predictor = SAM2ImagePredictor(theirs)
    predictor._bb_feat_sizes = [(FRAME // stride, FRAME // stride) for stride in (4, 8, 16)]
    predictor.set_image(image)
    asked = {"points": ("points",), "boxes": ("boxes",), "both": ("points", "boxes")}
    kinds = asked.get(prompts, ("points",))
    mask = drawn("mask", torch.Size((1, FRAME // 4, FRAME // 4))) if prompts == "mask" else None
    _, iou, logits = predictor.predict(
        POINTS if "points" in kinds else None,
        LABELS if "points" in kinds else None,
        BOXES if "boxes" in kinds else None,
        mask,
    )
    masks, scores = ask(
        sam,
        image,
        points="points" in kinds,
        boxes="boxes" in kinds,
        masks=None if mask is None else mask[None],
    )
    close(scores, iou)
    close(masks, logits)
