from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import DTYPES, noise, write_raster
from numpy.typing import NDArray

from rsseg.errors import InputError
from rsseg.io.measure import measure
from rsseg.io.raster import Raster


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
    raster = Raster(write_raster(tmp_path / "a.tif", image, nodata=0))
    check_measured([raster], image[:, valid])
    check_measured([raster], image[:, valid], (4, 2, 1))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_statistics_are_pooled_over_pixels(tmp_path: Path, dtype: str) -> None:
    images = [noise((3, 30, 40), dtype), noise((3, 90, 20), dtype, 1) // 2]
    rasters = [
        Raster(write_raster(tmp_path / f"{index}.tif", image)) for index, image in enumerate(images)
    ]
    check_measured(rasters, np.concatenate([i.reshape(3, -1) for i in images], axis=1))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("tiled", [True, False])
def test_statistics_of_many_windows(tmp_path: Path, dtype: str, tiled: bool) -> None:
    image = noise((1, 1500, 3000), dtype)
    options = {"tiled": True, "blockxsize": 256, "blockysize": 256} if tiled else {}
    check_measured(
        [Raster(write_raster(tmp_path / "a.tif", image, **options))], image.reshape(1, -1)
    )


def test_outliers_cost_no_resolution(tmp_path: Path) -> None:
    image = np.random.default_rng(0).uniform(-1, 1, (1, 60, 70)).astype("float32")
    image[0, 0, :3] = -3e38, 3e38, -9999
    bands = measure([Raster(write_raster(tmp_path / "a.tif", image))], None)
    np.testing.assert_allclose(bands.low[0], np.percentile(image.astype(np.float64), 2), rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_constant_band_has_deviation_one(tmp_path: Path, dtype: str) -> None:
    image = np.full((1, 33, 44), 0.1, dtype) if dtype[0] == "f" else np.full((1, 33, 44), 77, dtype)
    bands = measure([Raster(write_raster(tmp_path / "a.tif", image))], None)
    assert bands.std == (1.0,)
    assert bands.low == bands.high == (pytest.approx(float(image[0, 0, 0])),) * 3


def test_measuring_leaves_no_file_open(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    path = write_raster(tmp_path / "a.tif", noise((1, 20, 30)))
    before = len(psutil.Process().open_files())
    measure([Raster(path) for _ in range(20)], None)
    assert len(psutil.Process().open_files()) == before


def test_statistics_need_a_valid_pixel(tmp_path: Path) -> None:
    for dtype in ("uint8", "float32"):
        path = write_raster(tmp_path / "a.tif", np.zeros((1, 20, 30), dtype), nodata=0)
        with pytest.raises(InputError, match=r"no valid pixel in .*a\.tif"):
            measure([Raster(path)], None)


def test_rasters_that_differ_are_named(tmp_path: Path) -> None:
    first = Raster(write_raster(tmp_path / "a.tif", noise((3, 20, 30))))
    for other in (noise((4, 20, 30)), noise((3, 20, 30), "uint16")):
        path = write_raster(tmp_path / "b.tif", other)
        with pytest.raises(InputError, match=r"a\.tif has bands 1,2,3 of uint8.*b\.tif has"):
            measure([first, Raster(path)], None)


def test_shown_bands_must_be_in_use(tmp_path: Path) -> None:
    raster = Raster(write_raster(tmp_path / "a.tif", noise((4, 20, 30))), (4, 2, 1))
    assert measure([raster], (1, 2, 4)).rgb == (2, 1, 0)
    with pytest.raises(InputError, match=r"band 3 is to be shown .* in use are 4,2,1"):
        measure([raster], (3, 2, 1))


@pytest.mark.data
@pytest.mark.parametrize(
    "name", ["naip_4band_5m_2009.tif", "naip_4band_5m_2020.tif", "uint16_1band_utm16n_nodata0.tif"]
)
def test_statistics_of_real_images(data_root: Path, name: str) -> None:
    raster = Raster(data_root / "ortho" / "traps" / name)
    image, valid = raster.read(raster.grid.window)
    check_measured([raster], image[:, valid])
