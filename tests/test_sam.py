from __future__ import annotations

from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from rasterio import windows
from rasterio.features import rasterize
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from shapely.geometry import box
from torch import Tensor, nn

from rsseg.errors import InputError
from rsseg.nets import sam as sam_module
from rsseg.nets.sam import (
    TinyViTEncoder,
    build_mobile_sam,
    encode,
    load_sam,
    prompt_points,
    propose,
    upsample,
)
from rsseg.ops.segments import PART, SUBPART, WHOLE

TILE = 256

EMBED_DIMS = {"vit_b": 768, "vit_l": 1024, "vit_h": 1280}


def small_vit_sam(embed_dim: int) -> Sam:
    """A SAM of the official classes and tensor names, of one block and for images of 64 px."""
    return Sam(
        ImageEncoderViT(
            img_size=64, embed_dim=embed_dim, depth=1, num_heads=8, mlp_ratio=0.1, out_chans=256
        ),
        PromptEncoder(
            embed_dim=256, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=16
        ),
        MaskDecoder(
            transformer_dim=256,
            transformer=TwoWayTransformer(depth=2, embedding_dim=256, num_heads=8, mlp_dim=64),
        ),
    )


@pytest.fixture
def small_vits(monkeypatch: pytest.MonkeyPatch) -> None:
    builders = {kind: partial(small_vit_sam, dim) for kind, dim in EMBED_DIMS.items()}
    monkeypatch.setattr(sam_module, "sam_model_registry", builders)


def official_name(name: str) -> str:
    """The name in MobileSAM's checkpoint of a tensor of ours, part by part."""
    match name.split("."):
        case ["image_encoder", "patch_embed", conv, part, *rest]:
            place = {"conv1": "0", "conv2": "2"}[conv]
            parts = ["image_encoder", "patch_embed", "seq", place, part, *rest]
        case ["image_encoder", "stages", stage, "downsample", *rest]:
            parts = ["image_encoder", "layers", str(int(stage) - 1), "downsample", *rest]
        case ["image_encoder", "stages", *rest]:
            parts = ["image_encoder", "layers", *rest]
        case parts:
            return ".".join(parts)
    return ".".join("c" if part == "conv" else part for part in parts)


@pytest.fixture(scope="module")
def mobile_state() -> dict[str, Tensor]:
    """MobileSAM's tensors under their official names, each with values of its own."""
    torch.manual_seed(0)
    own = build_mobile_sam().state_dict()
    state = {official_name(n): torch.rand(t.shape).to(t.dtype) for n, t in own.items()}
    state["image_encoder.norm_head.weight"] = torch.rand(320)
    state["image_encoder.norm_head.bias"] = torch.rand(320)
    state["image_encoder.head.weight"] = torch.rand(1000, 320)
    state["image_encoder.head.bias"] = torch.rand(1000)
    return state


def saved(state: object, folder: Path) -> Path:
    path = folder / "sam.pt"
    torch.save(state, path)
    return path


def test_tiny_vit_has_sams_shapes() -> None:
    encoder = TinyViTEncoder().eval()
    with torch.inference_mode():
        features = encoder(torch.zeros(1, 3, 1024, 1024))
    assert features.shape == (1, 256, 64, 64)
    names = encoder.state_dict()
    assert sum(not name.startswith("neck.") for name in names) == 292
    assert sum(name.startswith("neck.") for name in names) == 6


def test_mobile_sam_loads_from_its_official_names(
    mobile_state: dict[str, Tensor], tmp_path: Path
) -> None:
    assert len(mobile_state) == 439
    sam = load_sam(saved(mobile_state, tmp_path))
    assert isinstance(sam.image_encoder, TinyViTEncoder)
    assert not sam.training
    assert not any(parameter.requires_grad for parameter in sam.parameters())
    for name, tensor in sam.state_dict().items():
        torch.testing.assert_close(tensor, mobile_state[official_name(name)], rtol=0, atol=0)


@pytest.mark.usefixtures("small_vits")
@pytest.mark.parametrize("kind", EMBED_DIMS)
def test_official_vits_are_recognised(kind: sam_module.Kind, tmp_path: Path) -> None:
    state = small_vit_sam(EMBED_DIMS[kind]).state_dict()
    path = saved(state, tmp_path)
    for sam in (load_sam(path), load_sam(path, kind)):
        torch.testing.assert_close(dict(sam.state_dict()), dict(state), rtol=0, atol=0)


@pytest.mark.usefixtures("small_vits")
def test_another_kind_than_asked_for_is_refused(tmp_path: Path) -> None:
    path = saved(small_vit_sam(768).state_dict(), tmp_path)
    with pytest.raises(InputError, match="vit_b, not vit_h"):
        load_sam(path, "vit_h")
    with pytest.raises(InputError, match="one of vit_t, vit_b"):
        load_sam(path, "vit_x")  # type: ignore[arg-type]


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_tensors_that_do_not_fit_are_named(
    change: str, mobile_state: dict[str, Tensor], tmp_path: Path
) -> None:
    state = dict(mobile_state)
    name = "mask_decoder.iou_token.weight"
    if change == "missing":
        del state[name]
    elif change == "unknown":
        name = "mask_decoder.extra"
        state[name] = torch.zeros(1)
    else:
        state[name] = torch.zeros(2, 2)
    with pytest.raises(InputError, match=f"1 of its tensors .*{name} first"):
        load_sam(saved(state, tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        nn.Linear(2, 2).state_dict(),
        {},
        {"model": nn.Linear(2, 2).state_dict()},
        [torch.zeros(2)],
        torch.zeros(2),
    ],
)
def test_what_is_not_sam_is_refused(content: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a SAM checkpoint"):
        load_sam(saved(content, tmp_path))


@pytest.mark.parametrize("content", [Fraction(1, 2), {"weight": Fraction(1, 2)}, nn.Linear(2, 2)])
def test_nothing_foreign_is_unpickled(content: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="foreign code"):
        load_sam(saved(content, tmp_path))


@pytest.mark.parametrize("content", [b"", b"hello, I am no checkpoint\n", b"\x80\x02."])
def test_unreadable_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "sam.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        load_sam(path)


def test_truncated_checkpoints_are_refused(tmp_path: Path) -> None:
    path = saved(nn.Linear(100, 100).state_dict(), tmp_path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(InputError, match="damaged"):
        load_sam(path)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(InputError, match="no such checkpoint"):
            load_sam(path)


class Blank(nn.Module):
    """An encoder that sees nothing."""

    img_size = 1024

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(1, 1, 1, 1)


class PointsAsTheyAre(nn.Module):
    """A prompt encoder that hands the points on, (B, 1, 2) in the encoder's pixels."""

    def forward(self, points: tuple[Tensor, Tensor], boxes: None, masks: None) -> Any:
        return points[0], None

    def get_dense_pe(self) -> None:
        return None


class Discs(nn.Module):
    """A mask decoder that draws discs of three radii around each point; steep ones are stable."""

    def __init__(
        self, radii: tuple[float, ...], scores: tuple[float, ...], slope: float = 10
    ) -> None:
        super().__init__()
        self.radii, self.scores, self.slope = torch.tensor(radii), torch.tensor(scores), slope

    def forward(self, sparse_prompt_embeddings: Tensor, **_: object) -> tuple[Tensor, Tensor]:
        x, y = (sparse_prompt_embeddings / 4).unbind(dim=-1)  # (B, 1) in mask pixels
        centre = torch.arange(256) + 0.5
        distance = torch.hypot(centre - x[..., None], centre[:, None] - y[..., None])
        logits = self.slope * (self.radii[:, None, None] - distance[:, None])
        return logits, self.scores.expand(len(x), 3)


def disc_sam(*args: Any, **kwargs: Any) -> Sam:
    return Sam(Blank(), PointsAsTheyAre(), Discs(*args, **kwargs))


def landscape() -> NDArray[np.uint8]:
    return np.zeros((128, 256, 3), dtype=np.uint8)


def test_points_and_masks_lie_where_they_belong() -> None:
    sam = disc_sam((20, 0, 0), (0.9, 0, 0))
    found = propose(sam, landscape(), points_per_side=2, device="cpu")
    assert found.masks.shape == (4, 128, 256)
    centres = [tuple(np.argwhere(mask).mean(axis=0) + 0.5) for mask in found.masks]
    assert sorted(centres) == [(32, 64), (32, 192), (96, 64), (96, 192)]
    assert (np.abs(found.areas() - np.pi * 20**2) < 20).all()


def test_a_smaller_image_is_brought_back_to_its_size() -> None:
    sam = disc_sam((40, 0, 0), (0.9, 0, 0))
    found = propose(sam, landscape()[:64, :128], points_per_side=1, device="cpu")
    assert found.masks.shape == (1, 64, 128)
    assert abs(found.areas()[0] - np.pi * 20**2) < 20
    np.testing.assert_allclose(np.argwhere(found.masks[0]).mean(axis=0) + 0.5, (32, 64))


def test_what_lies_in_the_padding_is_cut_off() -> None:
    sam = disc_sam((100, 0, 0), (0.9, 0, 0))
    found = propose(sam, landscape(), points_per_side=1, device="cpu", max_share=1)
    assert found.boxes().tolist() == [[28, 0, 228, 128]]


def test_a_mask_of_most_of_the_image_leaves_room_for_the_others() -> None:
    sam = disc_sam((20, 0, 100), (0.9, 0, 0.9))
    found = propose(sam, landscape(), points_per_side=1, device="cpu")
    assert found.level.tolist() == [SUBPART]
    everything = propose(sam, landscape(), points_per_side=1, device="cpu", max_share=1)
    assert everything.level.tolist() == [WHOLE]


def test_levels_follow_the_order_of_sams_masks() -> None:
    sam = disc_sam((10, 20, 40), (0.9, 0.9, 0.9))
    found = propose(sam, landscape(), points_per_side=1, device="cpu", t_overlap=1.1)
    assert found.level.tolist() == [WHOLE, PART, SUBPART]
    assert (np.diff(found.areas()) < 0).all()
    alone = propose(sam, landscape(), points_per_side=1, device="cpu")
    assert alone.level.tolist() == [WHOLE]


@pytest.mark.parametrize(
    ("scores", "levels"),
    [((0.9, 0.5, 0.5), [SUBPART]), ((0.77, 0.77, 0.77), [WHOLE]), ((0.5, 0.5, 0.5), [])],
)
def test_unsure_masks_are_dropped(scores: tuple[float, ...], levels: list[int]) -> None:
    found = propose(disc_sam((10, 20, 40), scores), landscape(), points_per_side=1, device="cpu")
    assert found.level.tolist() == levels
    assert found.masks.shape == (len(levels), 128, 256)


def test_unstable_and_small_masks_are_dropped() -> None:
    good = {"points_per_side": 1, "device": "cpu"}
    scores = (0.9, 0.0, 0.0)
    assert len(propose(disc_sam((20, 0, 0), scores), landscape(), **good)) == 1
    assert len(propose(disc_sam((20, 0, 0), scores, slope=0.5), landscape(), **good)) == 0
    assert len(propose(disc_sam((5, 0, 0), scores), landscape(), **good)) == 0
    assert len(propose(disc_sam((5, 0, 0), scores), landscape(), **good, min_area=50)) == 1


def test_the_batch_changes_nothing() -> None:
    sam = disc_sam((10, 20, 40), (0.9, 0.95, 0.8))
    one, many = (
        propose(sam, landscape(), points_per_side=5, device="cpu", batch=batch) for batch in (1, 64)
    )
    np.testing.assert_array_equal(one.masks, many.masks)


def test_a_real_decoder_fits_the_generator() -> None:
    torch.manual_seed(0)
    image = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    found = propose(
        small_vit_sam(64).eval(),
        image,
        points_per_side=3,
        device="cpu",
        t_score=-99,
        t_whole=-99,
        t_stability=0,
        min_area=1,
        max_share=1,
    )
    assert found.masks.shape[1:] == (40, 64)
    assert (found.areas() >= 1).all()


class Roof(NamedTuple):
    tile: NDArray[np.uint8]  # (256, 256, 3) RGB, centred on the point
    mask: NDArray[np.bool_]  # (256, 256)
    point: NDArray[np.float64]  # (1, 2) x, y in pixels


def largest_compact_roofs(folder: Path, count: int) -> list[Roof]:
    """The largest buildings with an isoperimetric quotient of 0.75 or more that fit in a tile."""
    roofs: list[Roof] = []
    with rasterio.open(folder / "banepa_train_3857.tif") as raster:
        polygons = gpd.read_file(folder / "buildings_osm.geojson").to_crs(raster.crs).geometry
        compact = polygons[4 * np.pi * polygons.area / polygons.length**2 >= 0.75]
        extent = box(0, 0, raster.width, raster.height)
        for polygon in compact.loc[compact.area.sort_values(ascending=False).index]:
            inside = polygon.representative_point()
            x, y = ~raster.transform @ (inside.x, inside.y)
            window = windows.Window(int(x) - TILE // 2, int(y) - TILE // 2, TILE, TILE)
            corner = window.col_off, window.row_off
            if not extent.contains(box(*corner, corner[0] + TILE, corner[1] + TILE)):
                continue
            if not box(*windows.bounds(window, raster.transform)).contains(polygon):
                continue
            transform = windows.transform(window, raster.transform)
            mask = rasterize([polygon], (TILE, TILE), transform=transform) == 1
            tile = np.ascontiguousarray(raster.read(window=window).transpose(1, 2, 0))
            roofs.append(Roof(tile, mask, np.array([[x, y]]) - corner))
            if len(roofs) == count:
                break
    return roofs


def median_roof_iou(sam: Sam, roofs: list[Roof]) -> float:
    """Median over roofs of the best IoU among SAM's three masks for a point on the roof."""
    best = []
    for roof in roofs:
        logits, _ = prompt_points(sam, encode(sam, roof.tile), roof.point, (TILE, TILE))
        masks = upsample(logits[0], (TILE, TILE))
        common = (masks & roof.mask).sum(axis=(1, 2))
        best.append((common / (masks | roof.mask).sum(axis=(1, 2))).max())
    return float(np.median(best))


@pytest.mark.data
@pytest.mark.slow
def test_mobile_sam_finds_the_roof_clicked_on(data_root: Path, weights_root: Path) -> None:
    sam = load_sam(weights_root / "mobile_sam.pt", "vit_t")
    roofs = largest_compact_roofs(data_root / "ortho" / "banepa", 6)
    assert len(roofs) == 6
    assert median_roof_iou(sam, roofs) >= 0.75
    # The bound means something: blocks of one shape in another order stay far below it.
    stage = sam.image_encoder.stages[2]
    stage.blocks = nn.Sequential(*reversed(stage.blocks))
    assert median_roof_iou(sam, roofs[:3]) <= 0.5
