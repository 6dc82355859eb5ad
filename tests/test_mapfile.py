from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from helpers import DTYPES, TRANSFORMS, UTM, noise, write_raster
from numpy.typing import NDArray
from rasterio.crs import CRS

from rsseg.classes import Classes
from rsseg.errors import InputError, RunError
from rsseg.grid import Grid, Window
from rsseg.io.mapfile import read_classes, read_colours, strips, tile_shape, write_map
from rsseg.io.raster import Raster

NORTH_UP = TRANSFORMS["north up"]

pytestmark = pytest.mark.filterwarnings("error::UserWarning")

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
    source = Raster(
        write_raster(tmp_path / "a.tif", noise((1, 50, 40)), crs=crs, transform=transform)
    )
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
    assert read_classes(path) == CLASSES
    assert read_colours(path) == {
        **dict.fromkeys(range(256), (0, 0, 0)),
        3: (16, 32, 48),
        7: (255, 0, 0),
    }


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


def test_other_rasters_carry_no_classes(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", noise((1, 20, 30)))
    assert read_classes(path) is None
    assert read_colours(path) == {}
    with pytest.raises(InputError, match="no such file"):
        read_classes(tmp_path / "gone.tif")
