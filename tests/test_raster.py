from __future__ import annotations

import math
import multiprocessing
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from helpers import DTYPES, TRANSFORMS, UTM, noise, write_raster
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.rpc import RPC
from rasterio.windows import Window as RasterioWindow

from rsseg.errors import InputError, RunError
from rsseg.grid import Grid, Window
from rsseg.io.raster import Raster, list_rasters

NORTH_UP, ROTATED = TRANSFORMS["north up"], TRANSFORMS["rotated"]
RGBA = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


def write(path: Path, image: NDArray[Any], **options: Any) -> Path:
    return write_raster(path, image, **{"transform": NORTH_UP, **options})


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


@pytest.mark.data
def test_a_single_band_of_16_bits(data_root: Path) -> None:
    raster = Raster(data_root / "ortho/traps/uint16_1band_utm16n_nodata0.tif")
    image, valid = both(raster, raster.grid.window)
    assert (raster.dtype, raster.rgb) == ("uint16", (0, 0, 0))
    np.testing.assert_array_equal(valid, image[0] != 0)


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
