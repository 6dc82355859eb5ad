from __future__ import annotations

from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from rasterio import windows
from rasterio.features import rasterize
from safetensors.torch import save_file
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from shapely.geometry import box
from small_sams import small_sam
from torch import Tensor, nn

from rsseg.errors import InputError
from rsseg.nets import sam as sam_module
from rsseg.nets.prompting import Prompter
from rsseg.nets.sam import FirstSam, TinyViTEncoder, build_mobile_sam, load_sam

TILE = 256

EMBED_DIMS = {"vit_b": 768, "vit_l": 1024, "vit_h": 1280}


def small_vit_sam(embed_dim: int) -> Sam:
    return small_sam(64, embed_dim)


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
    net = load_sam(saved(mobile_state, tmp_path))
    assert isinstance(net, FirstSam)
    assert isinstance(net.sam.image_encoder, TinyViTEncoder)
    assert net.frame == 1024
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())
    for name, tensor in net.sam.state_dict().items():
        torch.testing.assert_close(tensor, mobile_state[official_name(name)], rtol=0, atol=0)


@pytest.mark.usefixtures("small_vits")
@pytest.mark.parametrize("kind", EMBED_DIMS)
def test_official_vits_are_recognised(kind: sam_module.Kind, tmp_path: Path) -> None:
    state = small_vit_sam(EMBED_DIMS[kind]).state_dict()
    path = saved(state, tmp_path)
    for net in (load_sam(path), load_sam(path, kind)):
        torch.testing.assert_close(dict(net.sam.state_dict()), dict(state), rtol=0, atol=0)


@pytest.mark.usefixtures("small_vits")
def test_tensors_may_lie_under_model_or_in_safetensors(tmp_path: Path) -> None:
    state = small_vit_sam(768).state_dict()
    save_file(state, tmp_path / "sam.safetensors")
    for path in (saved({"model": state}, tmp_path), tmp_path / "sam.safetensors"):
        net = load_sam(path)
        torch.testing.assert_close(dict(net.sam.state_dict()), dict(state), rtol=0, atol=0)


def test_a_sam_2_goes_to_its_own_loader(tmp_path: Path) -> None:
    trunk = "image_encoder.trunk"
    state = {f"{trunk}.blocks.{i}.norm1.weight": torch.zeros(96) for i in range(12)}
    state[f"{trunk}.patch_embed.proj.weight"] = torch.zeros(96, 3, 7, 7)
    path = saved(state, tmp_path)
    with pytest.raises(InputError, match="looks like SAM 2 tiny, but"):
        load_sam(path)
    with pytest.raises(InputError, match="not a SAM checkpoint"):
        load_sam(path, "vit_b")


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
    ],
)
def test_what_is_not_sam_is_refused(content: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a SAM checkpoint"):
        load_sam(saved(content, tmp_path))


@pytest.mark.parametrize(
    "content", [[torch.zeros(2)], torch.zeros(2), {"epoch": 3, "weight": torch.zeros(2)}]
)
def test_what_is_not_tensors_by_name_is_refused(content: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected tensors by name"):
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
        with pytest.raises(InputError, match="no such weights file"):
            load_sam(path)


@pytest.mark.parametrize("size", [(64, 64), (40, 40), (100, 100), (31, 80), (90, 53), (7, 64)])
def test_images_are_prepared_as_sam_does_it(size: tuple[int, int]) -> None:
    sam = small_sam(64)
    net = FirstSam(sam)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(2)]
    resized = [ResizeLongestSide(64).apply_image(image) for image in images]
    pixels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)
    expected = sam.preprocess(pixels)
    assert net.extent(size) == resized[0].shape[:2]
    framed = net.framed(images)
    assert framed.shape == (2, 3, 64, 64)
    torch.testing.assert_close((framed - sam.pixel_mean) / sam.pixel_std, expected)
    with torch.inference_mode():
        features, fine = net.embed(framed)
        torch.testing.assert_close(features, sam.image_encoder(expected), rtol=1e-4, atol=1e-4)
    assert fine is None


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


def median_roof_iou(net: FirstSam, roofs: list[Roof]) -> float:
    """Median over roofs of the best IoU among SAM's three masks for a point on the roof."""
    prompter = Prompter(net, torch.float32)
    best = []
    for roof in roofs:
        (seen,) = prompter.look([roof.tile])
        answers = prompter.ask(seen, roof.point[None])
        logits = prompter.logits(seen, answers, torch.ones(1, 3, dtype=torch.bool))
        masks = np.zeros((3, TILE, TILE), np.bool_)
        for mask, one in zip(masks, prompter.drawn(seen, logits), strict=True):
            y0, x0, y1, x1 = one.box
            mask[y0:y1, x0:x1] = one.mask
        common = (masks & roof.mask).sum(axis=(1, 2))
        best.append((common / (masks | roof.mask).sum(axis=(1, 2))).max())
    return float(np.median(best))


@pytest.mark.data
@pytest.mark.slow
def test_mobile_sam_finds_the_roof_clicked_on(data_root: Path, weights_root: Path) -> None:
    net = load_sam(weights_root / "mobile_sam.pt", "vit_t")
    roofs = largest_compact_roofs(data_root / "ortho" / "banepa", 6)
    assert len(roofs) == 6
    assert median_roof_iou(net, roofs) >= 0.75
    # The bound means something: blocks of one shape in another order stay far below it.
    stage = net.sam.image_encoder.stages[2]
    stage.blocks = nn.Sequential(*reversed(stage.blocks))
    assert median_roof_iou(net, roofs[:3]) <= 0.5
