from __future__ import annotations

import math
import multiprocessing
import pickle
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.rpc import RPC
from rasterio.windows import Window as RasterioWindow

from rsseg.classes import Classes
from rsseg.errors import InputError, RunError
from rsseg.grid import Grid, Window
from rsseg.io.mapfile import strips, tile_shape, write_map
from rsseg.io.raster import Raster, list_rasters, measure

UTM = "EPSG:32633"
NORTH_UP = Affine(0.1, 0, 500_000 + 1 / 3, 0, -0.1, 5_000_000 + 2 / 3)
SOUTH_UP = Affine(0.1, 0, 500_000.5, 0, 0.1, 5_000_000.25)
ROTATED = NORTH_UP * Affine.rotation(20)
TRANSFORMS = {"north up": NORTH_UP, "south up": SOUTH_UP, "rotated": ROTATED}
DTYPES = ("uint8", "uint16", "int16", "uint32", "int32", "float32", "float64")
RGBA = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


def write(
    path: Path,
    image: NDArray[Any],
    *,
    mask: NDArray[np.bool_] | None = None,
    colours: list[ColorInterp] | None = None,
    **options: Any,
) -> Path:
    """Write a (C, H, W) image as GDAL would, and not through the code under test."""
    count, height, width = image.shape
    profile = {"driver": "GTiff", "crs": UTM, "transform": NORTH_UP, **options}
    if profile["driver"] == "GTiff" and profile.get("compress") != "jpeg" and colours is None:
        profile["photometric"] = "minisblack"  # or GDAL takes the last of four bands for alpha
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
            rasterio.open(
                path, "w", width=width, height=height, count=count, dtype=image.dtype, **profile
            ) as target,
        ):
            if colours is not None:
                target.colorinterp = colours
            target.write(image)
            if mask is not None:
                target.write_mask(mask)
    return path


def noise(shape: tuple[int, ...], dtype: str = "uint8", seed: int = 0) -> NDArray[Any]:
    random = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return random.normal(100, 30, shape).astype(dtype)
    top = 250 if dtype == "uint8" else 30_000
    bottom = -1000 if np.dtype(dtype).kind == "i" else 1
    return random.integers(bottom, top, shape).astype(dtype)


def both(raster: Raster, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Read a window, and make sure of what holds for every window."""
    image, valid = raster.read(window)
    assert image.shape == (len(raster.bands), window.height, window.width)
    assert image.dtype == raster.dtype
    assert valid.dtype == np.bool_
    assert valid.shape == image.shape[1:]
    np.testing.assert_array_equal(raster.valid(window), valid)
    return image, valid


# --- what a raster says of itself ---------------------------------------------------------------


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("crs", [UTM, "EPSG:3857", "EPSG:28992", "EPSG:4326"])
def test_the_grid_is_the_files(tmp_path: Path, transform: Affine, crs: str) -> None:
    path = write(tmp_path / "a.tif", noise((1, 20, 30)), crs=crs, transform=transform)
    grid = Raster(path).grid
    assert grid.shape == (20, 30)
    assert grid.transform == transform
    assert grid.crs is not None
    assert CRS.from_wkt(grid.crs) == CRS.from_user_input(crs)


def test_a_picture_without_georeference_is_fine_and_silent(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", noise((3, 20, 30)), driver="PNG", crs=None, transform=None)
    raster = Raster(path)
    assert raster.grid == Grid((20, 30), Affine.identity(), None)
    assert not raster.grid.is_georeferenced
    assert both(raster, raster.grid.window)[1].all()
    assert not raster.has_mask


@pytest.mark.parametrize(
    ("count", "colours", "bands", "expected"),
    [
        (1, None, None, ((1,), (0, 0, 0))),
        (2, None, None, ((1, 2), (0, 0, 1))),
        (3, RGBA[:3], None, ((1, 2, 3), (0, 1, 2))),
        (4, RGBA, None, ((1, 2, 3), (0, 1, 2))),
        (4, RGBA, (2, 4), ((2, 4), (0, 0, 1))),
        (3, [ColorInterp.blue, ColorInterp.green, ColorInterp.red], None, ((1, 2, 3), (2, 1, 0))),
        (4, [ColorInterp.undefined, *RGBA[:3]], None, ((1, 2, 3, 4), (1, 2, 3))),
        (4, [ColorInterp.undefined, *RGBA[:3]], (4, 3, 2, 1), ((4, 3, 2, 1), (2, 1, 0))),
        (4, [ColorInterp.undefined] * 4, (4, 2, 1), ((4, 2, 1), (0, 1, 2))),
    ],
)
def test_bands_and_their_colours(
    tmp_path: Path,
    count: int,
    colours: list[ColorInterp] | None,
    bands: tuple[int, ...] | None,
    expected: tuple[tuple[int, ...], tuple[int, int, int]],
) -> None:
    path = write(tmp_path / "a.tif", noise((count, 20, 30)), colours=colours)
    raster = Raster(path, bands)
    assert (raster.bands, raster.rgb) == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_bands_are_read_in_the_order_asked(tmp_path: Path, dtype: str) -> None:
    image = noise((4, 40, 50), dtype)
    raster = Raster(
        write(tmp_path / "a.tif", image, tiled=True, blockxsize=16, blockysize=16), (3, 1)
    )
    read, valid = both(raster, Window(5, 6, 20, 30))
    assert raster.dtype == dtype
    assert raster.block_shape == (16, 16)
    np.testing.assert_array_equal(read, image[[2, 0], 5:25, 6:36])
    assert valid.all()


# --- valid pixels -------------------------------------------------------------------------------


@pytest.fixture
def hole() -> NDArray[np.bool_]:
    """(40, 50), False in a corner and along an edge."""
    valid = np.ones((40, 50), np.bool_)
    valid[:7, :9] = valid[:, -3:] = False
    return valid


@pytest.mark.parametrize("dtype", DTYPES)
def test_nodata_is_honoured(tmp_path: Path, hole: NDArray[np.bool_], dtype: str) -> None:
    image = noise((3, 40, 50), dtype)
    image[:, ~hole] = 0
    raster = Raster(write(tmp_path / "a.tif", image, nodata=0))
    assert raster.has_mask
    read, valid = both(raster, raster.grid.window)
    np.testing.assert_array_equal(read, image)
    np.testing.assert_array_equal(valid, hole)


@pytest.mark.parametrize(("dtype", "lost"), [("uint8", False), ("int16", True), ("float32", True)])
def test_nodata_in_one_band_is_a_dark_pixel_only_where_it_can_be(
    tmp_path: Path, dtype: str, lost: bool
) -> None:
    image = np.full((3, 4, 5), 7, dtype)
    image[1, 2, 3] = 0
    valid = Raster(write(tmp_path / "a.tif", image, nodata=0)).valid(Window(0, 0, 4, 5))
    assert valid[2, 3] == (not lost)
    assert valid.sum() == 20 - lost


def test_nodata_of_bands_not_in_use_does_not_matter(tmp_path: Path) -> None:
    image = np.full((2, 4, 5), 7, "int16")
    image[1] = 0
    path = write(tmp_path / "a.tif", image, nodata=0)
    assert Raster(path, (1,)).valid(Window(0, 0, 4, 5)).all()
    assert not Raster(path, (2,)).valid(Window(0, 0, 4, 5)).any()


def test_alpha_is_honoured(tmp_path: Path, hole: NDArray[np.bool_]) -> None:
    image = noise((4, 40, 50))
    image[3] = np.where(hole, 255, 0)
    raster = Raster(write(tmp_path / "a.tif", image, colours=RGBA))
    assert raster.has_mask
    read, valid = both(raster, raster.grid.window)
    np.testing.assert_array_equal(read, image[:3])
    np.testing.assert_array_equal(valid, hole)


def test_alpha_counts_beside_nodata(tmp_path: Path) -> None:
    image = np.full((4, 4, 5), 200, "uint8")
    image[3, 0] = 0
    image[:3, :, 0] = 9
    path = write(tmp_path / "a.tif", image, colours=RGBA, nodata=9)
    valid = Raster(path).valid(Window(0, 0, 4, 5))
    np.testing.assert_array_equal(valid, np.pad(np.ones((3, 4), bool), ((1, 0), (1, 0))))


def test_a_mask_band_is_honoured(tmp_path: Path, hole: NDArray[np.bool_]) -> None:
    raster = Raster(write(tmp_path / "a.tif", noise((3, 40, 50)), mask=hole))
    assert raster.has_mask
    np.testing.assert_array_equal(both(raster, raster.grid.window)[1], hole)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("nodata", [None, -9999.0, math.nan])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_not_finite_is_invalid_and_zero(
    tmp_path: Path, value: float, nodata: float | None, dtype: str
) -> None:
    image = noise((2, 20, 30), dtype)
    image[1, 3, 4] = value
    raster = Raster(write(tmp_path / "a.tif", image, nodata=nodata))
    assert raster.has_mask
    read, valid = both(raster, raster.grid.window)
    assert not valid[3, 4]
    assert valid.sum() == valid.size - 1
    assert read[1, 3, 4] == 0
    assert read[0, 3, 4] == image[0, 3, 4]


def test_all_nodata_reads_as_nothing_valid(tmp_path: Path) -> None:
    raster = Raster(write(tmp_path / "a.tif", np.zeros((3, 20, 30), "uint8"), nodata=0))
    assert not both(raster, raster.grid.window.padded(5))[1].any()


# --- windows ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Raster, NDArray[Any], NDArray[Any]]:
    """A raster smaller than most windows, with its image and its valid pixels."""
    image = noise((2, 23, 37), "uint16")
    image[:, 5:9, 10:20] = 0
    path = tmp_path_factory.mktemp("windows") / "a.tif"
    write(path, image, nodata=0, tiled=True, blockxsize=16, blockysize=16)
    return Raster(path), image, (image != 0).any(axis=0)


@settings(max_examples=150, deadline=None)
@given(
    row=st.integers(-60, 60),
    col=st.integers(-90, 90),
    height=st.integers(1, 80),
    width=st.integers(1, 80),
)
def test_any_window_is_a_piece_of_the_padded_raster(
    sample: tuple[Raster, NDArray[Any], NDArray[Any]],
    row: int,
    col: int,
    height: int,
    width: int,
) -> None:
    raster, image, valid = sample
    pad = 200
    image = np.pad(image, ((0, 0), (pad, pad), (pad, pad)), mode="symmetric")
    valid = np.pad(valid, pad, constant_values=False)
    piece = np.s_[row + pad : row + pad + height, col + pad : col + pad + width]
    read_image, read_valid = both(raster, Window(row, col, height, width))
    np.testing.assert_array_equal(read_image, image[:, piece[0], piece[1]])
    np.testing.assert_array_equal(read_valid, valid[piece])


def test_a_single_pixel_fills_any_window(tmp_path: Path) -> None:
    raster = Raster(write(tmp_path / "a.tif", np.full((1, 1, 1), 7, "uint8")))
    image, valid = both(raster, Window(-3, -3, 8, 8))
    assert (image == 7).all()
    assert valid.sum() == 1


# --- workers ------------------------------------------------------------------------------------


def test_a_pickled_raster_is_its_arguments(tmp_path: Path) -> None:
    raster = Raster(write(tmp_path / "a.tif", noise((4, 60, 70))), (3, 1), 0.25)
    raster.read(raster.grid.window)
    copy = pickle.loads(pickle.dumps(raster))
    assert (copy.path, copy.bands, copy.grid) == (raster.path, raster.bands, raster.grid)
    assert len(pickle.dumps(raster)) < 300
    for one, other in zip(
        raster.read(Window(0, 0, 9, 9)), copy.read(Window(0, 0, 9, 9)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_threads_read_the_same(tmp_path: Path) -> None:
    image = noise((3, 300, 400))
    path = write(
        tmp_path / "a.tif", image, tiled=True, blockxsize=64, blockysize=64, compress="deflate"
    )
    windows = [Window(row, col, 90, 110) for row in range(0, 300, 50) for col in range(0, 400, 60)]
    with Raster(path) as raster, ThreadPoolExecutor(4) as pool:
        for window, (read, _) in zip(windows, pool.map(raster.read, windows), strict=True):
            rows, cols = window.clipped((300, 400)).slices
            height, width = image[0, rows, cols].shape
            np.testing.assert_array_equal(read[:, :height, :width], image[:, rows, cols])


def test_reading_goes_on_after_close(tmp_path: Path) -> None:
    image = noise((1, 20, 30))
    raster = Raster(write(tmp_path / "a.tif", image))
    for _ in range(2):
        np.testing.assert_array_equal(raster.read(raster.grid.window)[0], image)
        raster.close()


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="needs a system that forks"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forked_processes_open_their_own_file(tmp_path: Path) -> None:
    image = noise((1, 600, 640))
    raster = Raster(write(tmp_path / "a.tif", image, tiled=True, blockxsize=16, blockysize=16))
    raster.read(Window(0, 0, 1, 1))
    windows = [Window(row, 0, 16, 640) for row in range(0, 592, 16)]
    with multiprocessing.get_context("fork").Pool(3) as pool:
        for window, (read, _) in zip(windows, pool.map(raster.read, windows), strict=True):
            np.testing.assert_array_equal(read[0], image[0][window.slices])


# --- resampling ---------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("metres", [0.05, 0.1, 0.3, 0.77])
def test_resampling_keeps_the_extent(tmp_path: Path, transform: Affine, metres: float) -> None:
    path = write(tmp_path / "a.tif", noise((1, 101, 151)), transform=transform)
    source, raster = Raster(path), Raster(path, None, metres)
    assert raster.grid.crs == source.grid.crs
    assert raster.grid.ground_sample_distance == pytest.approx(metres, rel=1e-3)
    np.testing.assert_allclose(raster.grid.corners[0], source.grid.corners[0])
    factor = metres / (source.grid.ground_sample_distance or 0)
    for side, own in zip(raster.grid.shape, source.grid.shape, strict=True):
        assert own <= side * factor < own + factor
    image, valid = both(raster, raster.grid.window)
    inner = valid[:-1, :-1]
    assert inner.all()
    assert image.min() > 0 or not valid.all()


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_resampling_places_what_it_reads(tmp_path: Path, transform: Affine) -> None:
    rows, cols = np.mgrid[0:120, 0:160]
    image = np.stack([rows, cols]).astype("float32")
    source = Raster(write(tmp_path / "a.tif", image, transform=transform))
    raster = Raster(source.path, None, 3 * (source.grid.ground_sample_distance or 0))
    read, valid = both(raster, raster.grid.window)
    assert raster.grid.shape == (40, 54)
    assert valid[:, :53].all()
    expected = np.mgrid[0:40, 0:53] * 3 + 1
    np.testing.assert_allclose(read[:, 1:-1, 1:52], expected[:, 1:-1, 1:52], atol=1e-3)


@pytest.mark.parametrize("kind", ["nodata", "alpha", "alpha and nodata", "mask", "nan"])
def test_resampling_takes_the_nearest_mask(
    tmp_path: Path, hole: NDArray[np.bool_], kind: str
) -> None:
    image = np.full((3, 40, 50), 100, "float32" if kind == "nan" else "uint8")
    options: dict[str, Any] = {}
    if kind == "nodata":
        image[:, ~hole], options = 0, {"nodata": 0}
    elif kind == "nan":
        image[:, ~hole] = np.nan
    elif kind == "mask":
        options = {"mask": hole}
    else:
        alpha = np.where(hole, 255, 0).astype("uint8")
        image, options = np.concatenate([image, alpha[None]]), {"colours": RGBA}
        if kind == "alpha and nodata":
            options["nodata"] = 9
    path = write(tmp_path / "a.tif", image, **options)
    raster = Raster(path, None, 3 * (Raster(path).grid.ground_sample_distance or 0))
    read, valid = both(raster, raster.grid.window)
    np.testing.assert_array_equal(valid, np.pad(hole[1::3, 1::3], ((0, 1), (0, 0))))
    assert (read[:, valid] == 100).all()  # nothing of the masked pixels bleeds in


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_resampling_does_not_depend_on_the_window(tmp_path: Path, transform: Affine) -> None:
    path = write(tmp_path / "a.tif", noise((2, 900, 800)), nodata=1, transform=transform)
    raster = Raster(path, None, 0.137)
    whole, valid = both(raster, raster.grid.window)
    for window in (Window(0, 0, 77, 133), Window(300, 211, 129, 200), Window(513, 5, 1, 400)):
        rows, cols = window.slices
        image, part = both(raster, window)
        np.testing.assert_array_equal(part, valid[rows, cols])
        # In a rotated grid GDAL's coordinates carry rounding errors, so a .5 may go either way.
        differing = image != whole[:, rows, cols]
        assert differing.mean() <= (1e-4 if transform is ROTATED else 0)


def test_resampling_needs_a_crs_and_a_length(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise((1, 20, 30)), crs=None)
    with pytest.raises(InputError, match=r"CRS is unknown; assign one"):
        Raster(path, None, 0.5)
    for metres in (0, -1, math.nan, math.inf):
        with pytest.raises(InputError, match="not a positive number of metres"):
            Raster(path, None, metres)


# --- what cannot be used ------------------------------------------------------------------------


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.tif: no such file") as error:
        Raster(tmp_path / "none.tif")
    one_line(error)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        Raster(tmp_path)


@pytest.mark.parametrize(
    ("content", "what"), [(b"", "empty file"), (b"no raster at all" * 50, "not a raster")]
)
def test_a_file_of_another_kind(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    with pytest.raises(InputError, match=what) as error:
        Raster(path)
    one_line(error)


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("compress", [None, "deflate", "jpeg"])
@pytest.mark.parametrize("share", [0.001, 0.02, 0.5, 0.9, 0.9999])
def test_a_truncated_geotiff(
    tmp_path: Path, interleave: str, compress: str | None, share: float
) -> None:
    path = tmp_path / "a.tif"
    options = {"tiled": True, "blockxsize": 64, "blockysize": 64, "interleave": interleave}
    write(path, noise((3, 300, 300)), compress=compress, **options)
    assert Raster(path).grid.shape == (300, 300)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match="truncated") as error:
        Raster(path)
    assert "copy it again" in one_line(error)


@pytest.mark.parametrize("driver", ["PNG", "JPEG", "JP2OpenJPEG"])
def test_a_truncated_picture(tmp_path: Path, driver: str) -> None:
    path = tmp_path / "picture"
    try:
        write(path, noise((3, 200, 300)), driver=driver, crs=None, transform=None)
    except rasterio.errors.RasterioError as error:
        pytest.skip(f"no driver for {driver}: {error}")
    assert Raster(path).grid.shape == (200, 300)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"damaged|not a raster"):
        Raster(path)


def test_damage_inside_shows_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write(path, noise((1, 300, 300)), tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 9000] = bytes(9000)
    path.write_bytes(content)
    for raster in (Raster(path), Raster(path, None, 0.15)):
        with pytest.raises(RunError, match="the file is damaged") as error:
            raster.read(raster.grid.window)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("bands", [(5,), (0,), (1, 2, 9), (-1,)])
def test_bands_out_of_range(tmp_path: Path, bands: tuple[int, ...]) -> None:
    path = write(tmp_path / "a.tif", noise((4, 20, 30)))
    with pytest.raises(InputError, match=rf"asks for band {bands[-1]}, the raster has 4"):
        Raster(path, bands)


def test_alpha_alone_is_nothing_to_see(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise((1, 20, 30)), colours=[ColorInterp.alpha])
    with pytest.raises(InputError, match="no band is left"):
        Raster(path)
    with pytest.raises(InputError, match="no band is left"):
        Raster(path, ())


def test_complex_pixels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", np.ones((1, 20, 30), "complex64"))
    with pytest.raises(InputError, match=r"complex64 cannot be used.*gdal_translate"):
        Raster(path)


@pytest.mark.parametrize(("count", "command"), [(4, "-order 1"), (12, "-tps")])
def test_only_ground_control_points(tmp_path: Path, count: int, command: str) -> None:
    points = [
        GroundControlPoint(row=i % 4 * 5, col=i // 4 * 5 + i % 2, x=5e5 + i, y=5e6 - i * i)
        for i in range(count)
    ]
    path = tmp_path / "my ortho.tif"
    write(path, noise((1, 20, 30)), crs=None, transform=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "r+") as dataset:
            dataset.gcps = (points, CRS.from_user_input(UTM))
    with pytest.raises(InputError, match=f"{count} ground control points") as error:
        Raster(path)
    result = tmp_path / "my ortho_warped.tif"
    assert f"gdalwarp {command} '{path}' '{result}'" in one_line(error)


def test_only_rpcs(tmp_path: Path) -> None:
    twenty = [1.0] + [0.0] * 19
    rpcs = RPC(
        *(0.0, 1.0, 45.0, 1.0, twenty, twenty, 10.0, 10.0, 15.0, 1.0),
        *(twenty, twenty, 15.0, 15.0),
    )
    path = tmp_path / "a.tif"
    write(path, noise((1, 20, 30)), crs=None, transform=None, rpcs=rpcs)
    with pytest.raises(InputError, match="gdalwarp -rpc"):
        Raster(path)


def test_a_container_names_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "many.gpkg"
    for name in ("north", "south"):
        write(
            path,
            noise((1, 20, 30)),
            driver="GPKG",
            raster_table=name,
            append_subdataset=name == "south",
        )
    with pytest.raises(InputError, match=r"give one of them: GPKG:.*north, GPKG:.*south") as error:
        Raster(path)
    name = one_line(error).split(": ", 2)[2].split(", ")[0]
    assert Raster(name).grid.shape == (20, 30)


def test_a_vector_file_is_no_raster(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(InputError, match="not a raster"):
        Raster(path)


# --- other formats ------------------------------------------------------------------------------

VRT = """<VRTDataset rasterXSize="30" rasterYSize="20">
<GeoTransform>500000, 1, 0, 5000000, 0, -1</GeoTransform>
<VRTRasterBand dataType="Byte" band="1"><SimpleSource>
<SourceFilename relativeToVRT="1">{}</SourceFilename><SourceBand>1</SourceBand>
<SrcRect xOff="0" yOff="0" xSize="30" ySize="20"/><DstRect xOff="0" yOff="0" xSize="30" ySize="20"/>
</SimpleSource></VRTRasterBand></VRTDataset>"""


def test_a_vrt_is_read_through(tmp_path: Path) -> None:
    image = noise((1, 20, 30))
    write(tmp_path / "a.tif", image)
    (tmp_path / "a.vrt").write_text(VRT.format("a.tif"))
    raster = Raster(tmp_path / "a.vrt")
    np.testing.assert_array_equal(both(raster, raster.grid.window)[0], image)


def test_a_vrt_without_its_source(tmp_path: Path) -> None:
    (tmp_path / "a.vrt").write_text(VRT.format("gone.tif"))
    with pytest.raises(InputError, match=r"source .*gone\.tif does not exist"):
        Raster(tmp_path / "a.vrt")


def test_bands_of_several_types(tmp_path: Path) -> None:
    write(tmp_path / "a.tif", noise((1, 20, 30)))
    head, band = VRT.split("<VRTRasterBand", 1)
    other = band.replace("Byte", "Float32").replace('band="1"', 'band="2"')
    text = f"{head}<VRTRasterBand{band.removesuffix('</VRTDataset>')}<VRTRasterBand{other}"
    (tmp_path / "ab.vrt").write_text(text.replace("{}", "a.tif"))
    with pytest.raises(InputError, match=r"several pixel types \(float32, uint8\)"):
        Raster(tmp_path / "ab.vrt")
    assert Raster(tmp_path / "ab.vrt", (2,)).dtype == "float32"


def test_jpeg_2000_is_read(tmp_path: Path) -> None:
    image = noise((3, 200, 300))
    try:
        path = write(tmp_path / "a.jp2", image, driver="JP2OpenJPEG", quality=100, reversible=True)
    except rasterio.errors.RasterioError as error:
        pytest.skip(f"this GDAL cannot write JPEG 2000: {error}")
    raster = Raster(path)
    np.testing.assert_array_equal(both(raster, Window(10, 20, 64, 80))[0], image[:, 10:74, 20:100])
    assert raster.grid.transform.almost_equals(NORTH_UP)


def test_a_folder_stands_for_its_rasters(tmp_path: Path) -> None:
    for name in ("b.tif", "a.TIFF", "c.vrt", ".a.part.tif", "a.tif.aux.xml", "notes.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "d.tif").mkdir()
    assert [path.name for path in list_rasters(tmp_path)] == ["a.TIFF", "b.tif", "c.vrt"]
    assert list_rasters(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]


def test_a_folder_without_rasters(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no raster in this folder"):
        list_rasters(tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        list_rasters(tmp_path / "missing")


# --- statistics ---------------------------------------------------------------------------------


def check_measured(rasters: list[Raster], pixels: NDArray[Any], rgb: Any = None) -> None:
    """Compare with numpy on all valid (C, N) pixels at once."""
    bands = measure(rasters, rgb)
    assert bands.indices == rasters[0].bands
    assert bands.dtype == rasters[0].dtype
    exact = pixels.astype(np.float64)
    np.testing.assert_allclose(bands.mean, exact.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(bands.std, exact.std(axis=1), rtol=1e-10)
    single = pixels.astype(np.float32) if pixels.dtype == np.float64 else pixels
    shown = single[list(bands.rgb)].astype(np.float64)
    np.testing.assert_allclose(bands.low, np.percentile(shown, 2, axis=1), rtol=1e-12)
    np.testing.assert_allclose(bands.high, np.percentile(shown, 98, axis=1), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["int8", *DTYPES])
def test_statistics_are_numpys(tmp_path: Path, dtype: str) -> None:
    image = noise((4, 70, 90), "int8" if dtype == "int8" else dtype)
    image[:, :30, :40] = 0
    image[2] = image[2] // 3
    valid = (image != 0).all(axis=0) if dtype[0] != "u" else (image != 0).any(axis=0)
    raster = Raster(write(tmp_path / "a.tif", image, nodata=0))
    check_measured([raster], image[:, valid])
    check_measured([raster], image[:, valid], (4, 2, 1))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_statistics_are_pooled_over_pixels(tmp_path: Path, dtype: str) -> None:
    images = [noise((3, 30, 40), dtype), noise((3, 90, 20), dtype, 1) // 2]
    rasters = [
        Raster(write(tmp_path / f"{index}.tif", image)) for index, image in enumerate(images)
    ]
    check_measured(rasters, np.concatenate([i.reshape(3, -1) for i in images], axis=1))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("tiled", [True, False])
def test_statistics_of_many_windows(tmp_path: Path, dtype: str, tiled: bool) -> None:
    image = noise((1, 1500, 3000), dtype)
    options = {"tiled": True, "blockxsize": 256, "blockysize": 256} if tiled else {}
    check_measured([Raster(write(tmp_path / "a.tif", image, **options))], image.reshape(1, -1))


def test_outliers_cost_no_resolution(tmp_path: Path) -> None:
    image = np.random.default_rng(0).uniform(-1, 1, (1, 60, 70)).astype("float32")
    image[0, 0, :3] = -3e38, 3e38, -9999
    bands = measure([Raster(write(tmp_path / "a.tif", image))], None)
    np.testing.assert_allclose(bands.low[0], np.percentile(image.astype(np.float64), 2), rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_constant_band_has_deviation_one(tmp_path: Path, dtype: str) -> None:
    image = np.full((1, 33, 44), 0.1, dtype) if dtype[0] == "f" else np.full((1, 33, 44), 77, dtype)
    bands = measure([Raster(write(tmp_path / "a.tif", image))], None)
    assert bands.std == (1.0,)
    assert bands.low == bands.high == (pytest.approx(float(image[0, 0, 0])),) * 3


def test_measuring_leaves_no_file_open(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    path = write(tmp_path / "a.tif", noise((1, 20, 30)))
    before = len(psutil.Process().open_files())
    measure([Raster(path) for _ in range(20)], None)
    assert len(psutil.Process().open_files()) == before


def test_statistics_need_a_valid_pixel(tmp_path: Path) -> None:
    for dtype in ("uint8", "float32"):
        path = write(tmp_path / "a.tif", np.zeros((1, 20, 30), dtype), nodata=0)
        with pytest.raises(InputError, match=r"no valid pixel in .*a\.tif"):
            measure([Raster(path)], None)


def test_rasters_that_differ_are_named(tmp_path: Path) -> None:
    first = Raster(write(tmp_path / "a.tif", noise((3, 20, 30))))
    for other in (noise((4, 20, 30)), noise((3, 20, 30), "uint16")):
        path = write(tmp_path / "b.tif", other)
        with pytest.raises(InputError, match=r"a\.tif has bands 1,2,3 of uint8.*b\.tif has"):
            measure([first, Raster(path)], None)


def test_shown_bands_must_be_in_use(tmp_path: Path) -> None:
    raster = Raster(write(tmp_path / "a.tif", noise((4, 20, 30))), (4, 2, 1))
    assert measure([raster], (1, 2, 4)).rgb == (2, 1, 0)
    with pytest.raises(InputError, match=r"band 3 is to be shown .* in use are 4,2,1"):
        measure([raster], (3, 2, 1))


# --- maps ---------------------------------------------------------------------------------------

CLASSES = Classes.from_dict(
    {
        "classes": [
            {"name": "field", "id": 3, "colour": "#102030"},
            {"name": "roof", "id": 7, "colour": "#ff0000"},
        ]
    }
)


def blocks(image: NDArray[Any]) -> Iterator[tuple[Window, NDArray[Any]]]:
    for window in strips(image.shape[-2:]):
        rows, cols = window.slices
        yield window, image[..., rows, cols]


@pytest.mark.parametrize("transform", [*TRANSFORMS.values(), Affine.identity()])
@pytest.mark.parametrize("crs", [None, UTM, "EPSG:3857", "EPSG:4326", "EPSG:28992"])
def test_a_map_lies_where_its_source_does(
    tmp_path: Path, transform: Affine, crs: str | None
) -> None:
    source = Raster(write(tmp_path / "a.tif", noise((1, 50, 40)), crs=crs, transform=transform))
    write_map(tmp_path / "map.tif", source.grid, blocks(noise((50, 40))))
    assert Raster(tmp_path / "map.tif").grid == source.grid


def test_a_map_of_classes(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).choice(np.array([3, 7, 255], "uint8"), (600, 1100))
    path = tmp_path / "map.tif"
    grid = Grid(ids.shape, NORTH_UP, CRS.from_user_input(UTM).to_wkt())
    write_map(path, grid, blocks(ids), classes=CLASSES, tags={"MODEL": "m"}, descriptions=["class"])
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(dataset.read(1), ids)
        table = dataset.colormap(1)
        assert dataset.nodata == 255
        assert dataset.block_shapes == [(512, 512)]
        assert dataset.compression.value == "DEFLATE"
        assert dataset.tags()["MODEL"] == "m"
        assert dataset.descriptions == ("class",)
    assert table[3] == (0x10, 0x20, 0x30, 255)
    assert table[7] == (255, 0, 0, 255)
    assert table[255][3] == 0
    np.testing.assert_array_equal(Raster(path).valid(grid.window), ids != 255)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nodata", [None, 0])
def test_a_layer_of_any_type(tmp_path: Path, dtype: str, nodata: float | None) -> None:
    image = noise((3, 90, 33), dtype)
    path = tmp_path / "layer.tif"
    write_map(path, Grid((90, 33), NORTH_UP), blocks(image), count=3, dtype=dtype, nodata=nodata)
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(dataset.read(), image)
        assert dataset.nodata == nodata


def test_tiles_are_multiples_of_16_up_to_512() -> None:
    assert tile_shape((1, 1)) == (16, 16)
    assert tile_shape((17, 500)) == (32, 512)
    assert tile_shape((9000, 512)) == (512, 512)


@pytest.mark.parametrize("shape", [(1, 1), (512, 3), (1025, 700)])
def test_strips_cover_the_map_once(shape: tuple[int, int]) -> None:
    seen = np.zeros(shape, int)
    for window in strips(shape):
        seen[window.slices] += 1
    assert (seen == 1).all()


def test_equal_blocks_give_equal_bytes(tmp_path: Path) -> None:
    image = noise((1300, 1100))
    grid = Grid(image.shape, NORTH_UP, CRS.from_user_input(UTM).to_wkt())
    for name in ("a.tif", "b.tif"):
        write_map(tmp_path / name, grid, blocks(image), classes=CLASSES)
    # Taller strips hold the same tiles in the same order.
    write_map(tmp_path / "c.tif", grid, [(grid.window, image)], classes=CLASSES)
    contents = {(tmp_path / name).read_bytes() for name in ("a.tif", "b.tif", "c.tif")}
    assert len(contents) == 1


def test_a_full_block_cache_changes_nothing(tmp_path: Path) -> None:
    image = noise((3, 1500, 1600))
    grid = Grid(image.shape[1:], NORTH_UP)
    for name, cache in (("a.tif", 2**28), ("b.tif", 2**20)):
        with rasterio.Env(GDAL_CACHEMAX=cache):
            write_map(tmp_path / name, grid, blocks(image), count=3, nodata=None)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_blocks_come_in_any_order_and_may_be_missing(tmp_path: Path) -> None:
    image = noise((1100, 40))
    first, second, third = blocks(image)
    write_map(tmp_path / "map.tif", Grid(image.shape, NORTH_UP), [third, first])
    with rasterio.open(tmp_path / "map.tif") as dataset:
        read = dataset.read(1)
    expected = image.copy()
    expected[second[0].slices] = 255
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("window", [Window(0, 0, 100, 40), Window(100, 0, 512, 40)])
def test_a_block_that_splits_a_tile_is_a_bug(tmp_path: Path, window: Window) -> None:
    block = np.zeros((window.height, window.width), "uint8")
    with pytest.raises(AssertionError):
        write_map(tmp_path / "map.tif", Grid((1100, 40), NORTH_UP), [(window, block)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("exception", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_map_does_not_appear(tmp_path: Path, exception: type[BaseException]) -> None:
    image = noise((1100, 40))

    def interrupted() -> Iterator[tuple[Window, NDArray[Any]]]:
        yield next(blocks(image))
        raise exception

    with pytest.raises(exception):
        write_map(tmp_path / "map.tif", Grid(image.shape, NORTH_UP), interrupted())
    assert list(tmp_path.iterdir()) == []


def test_an_existing_map_stays(tmp_path: Path) -> None:
    path = tmp_path / "map.tif"
    path.write_text("old")
    grid = Grid((20, 30), NORTH_UP)
    with pytest.raises(InputError, match="--overwrite"):
        write_map(path, grid, blocks(noise((20, 30))))
    assert path.read_text() == "old"
    write_map(path, grid, blocks(noise((20, 30))), overwrite=True)
    assert Raster(path).grid == grid


@pytest.mark.parametrize("limit", [1_000, 200_000, -40])
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, limit: int) -> None:
    resource = pytest.importorskip("resource", reason="limits on file sizes are POSIX only")
    image, grid = noise((600, 600)), Grid((600, 600), NORTH_UP)
    write_map(tmp_path / "map.tif", grid, blocks(image))
    size = (tmp_path / "map.tif").stat().st_size
    (tmp_path / "map.tif").unlink()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit % size, old[1]))
    try:
        with pytest.raises(RunError, match=r"map\.tif: "):
            write_map(tmp_path / "map.tif", grid, blocks(image))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert list(tmp_path.iterdir()) == []


# --- real images --------------------------------------------------------------------------------


@pytest.mark.data
def test_amsterdam_has_alpha(data_root: Path) -> None:
    raster = Raster(data_root / "ortho/amsterdam/test_image_1210x718.tif")
    assert raster.bands == (1, 2, 3)
    assert raster.has_mask
    with rasterio.open(raster.path) as dataset:
        alpha = dataset.read(4)
    np.testing.assert_array_equal(both(raster, raster.grid.window)[1], alpha > 0)


@pytest.mark.data
@pytest.mark.parametrize("year", [2009, 2020])
def test_naip_has_nodata_zero(data_root: Path, year: int) -> None:
    raster = Raster(data_root / f"ortho/traps/naip_4band_5m_{year}.tif")
    image, valid = both(raster, raster.grid.window)
    assert raster.bands == (1, 2, 3, 4)
    np.testing.assert_array_equal(valid, (image != 0).any(axis=0))
    check_measured([raster], image[:, valid])


@pytest.mark.data
def test_a_single_band_of_16_bits(data_root: Path) -> None:
    raster = Raster(data_root / "ortho/traps/uint16_1band_utm16n_nodata0.tif")
    image, valid = both(raster, raster.grid.window)
    assert (raster.dtype, raster.rgb) == ("uint16", (0, 0, 0))
    np.testing.assert_array_equal(valid, image[0] != 0)
    check_measured([raster], image[:, valid])


@pytest.mark.data
def test_web_mercator_is_not_metres(data_root: Path) -> None:
    path = data_root / "ortho/banepa/banepa_train_3857.tif"
    raster = Raster(path)
    assert raster.grid.transform.a == pytest.approx(0.149, abs=1e-3)
    assert raster.grid.ground_sample_distance == pytest.approx(0.132, abs=1e-3)
    halved = Raster(path, None, 0.264)
    assert halved.grid.shape == pytest.approx((2048, 1536), abs=1)
    image, valid = both(halved, Window(500, 500, 256, 256))
    assert valid.all()
    with rasterio.open(path) as dataset:
        window = RasterioWindow(1000, 1000, 512, 512)
        coarse = dataset.read(window=window).reshape(3, 256, 2, 256, 2).mean(axis=(2, 4))
    assert np.abs(image - coarse).mean() < 6
