"""The scratch of a prediction: finished blocks, gone on with."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy_networks import a_job, a_raster, run

from rsseg.errors import InputError, RunError
from rsseg.io.blocks import BlockStore


@pytest.fixture
def raster(tmp_path):
    return a_raster(tmp_path)


def a_store(path, fingerprint="f", **options):
    return BlockStore(
        path,
        **({"fingerprint": fingerprint, "count": 1, "shape": (10, 3), "block_rows": 4} | options),
    )


def filled(path):
    store = a_store(path)
    store.write(0, np.full((1, 4, 3), 1, np.uint8))
    store.write(2, np.full((1, 2, 3), 3, np.uint8))
    return store


def test_a_store_is_continued(tmp_path):
    store = filled(tmp_path / "s")
    assert (len(store), store.missing()) == (3, [1])
    again = a_store(tmp_path / "s")
    assert again.missing() == [1]
    assert (again.read(2) == 3).all()
    again.write(1, np.full((1, 4, 3), 2, np.uint8))
    assert again.rows(3, 9)[0, :, 0].tolist() == [1, 2, 2, 2, 2, 3]
    again.remove()
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("other", [{"fingerprint": "g"}, {"block_rows": 5}, {"shape": (10, 4)}])
def test_a_store_of_something_else_is_begun_anew(tmp_path, other):
    filled(tmp_path / "s")
    store = a_store(tmp_path / "s", **other)
    assert store.missing() == list(range(len(store)))
    assert a_store(tmp_path / "s").missing() == [1], "nothing is lost before there is something new"
    store.write(1, np.zeros(store._block_shape(1), np.uint8))
    assert 1 not in store.missing()
    assert a_store(tmp_path / "s").missing() == [0, 1, 2]


def test_a_folder_of_the_users_is_left_alone(tmp_path, raster):
    folder = tmp_path / "out" / "map.tif.partial"
    folder.mkdir(parents=True)
    (folder / "store.json").write_text(json.dumps({"mine": True}))
    (folder / "000000.block").write_text("mine, too")
    with pytest.raises(InputError, match=r"map\.tif\.partial is in the way"):
        run(tmp_path / "out", a_job(raster))
    assert len(list(folder.iterdir())) == 2
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match="in the way"):
        a_store(tmp_path / "file")


def test_files_of_others_in_the_store_survive_its_end(tmp_path):
    store = filled(tmp_path / "s")
    (tmp_path / "s" / "notes.txt").write_text("mine")
    store.remove()
    assert [file.name for file in (tmp_path / "s").iterdir()] == ["notes.txt"]


def test_a_store_killed_at_birth_is_continued(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "store.json.new").write_text("{")
    assert filled(tmp_path / "s").missing() == [1]


def test_a_store_that_cannot_be_written(tmp_path):
    store = a_store(tmp_path / "gone" / "s")
    with pytest.raises(RunError, match="what is done is kept"):
        store.write(0, np.zeros((1, 4, 3), np.uint8))


def test_an_unfinished_block_is_missing_and_a_damaged_one_is_dropped(tmp_path):
    store = filled(tmp_path / "s")
    (tmp_path / "s" / "000001.block.new").write_bytes(b"half")
    assert store.missing() == [1]
    (tmp_path / "s" / "000000.block").write_bytes(b"")
    with pytest.raises(RunError, match="run again"):
        store.read(0)
    assert store.missing() == [0, 1]
