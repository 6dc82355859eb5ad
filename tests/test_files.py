from __future__ import annotations

import os
from pathlib import Path

import pytest

from rsseg.errors import InputError, RunError
from rsseg.io.files import check_output, replacing, scratch_beside


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_new_file_in_a_writable_folder_is_fine(tmp_path: Path) -> None:
    check_output(tmp_path / "map.tif", overwrite=False)
    assert names(tmp_path) == set()


def test_a_relative_name_means_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_output(Path("map.tif"), overwrite=False)


def test_an_existing_file_needs_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "map.tif"
    path.write_text("old")
    check_output(path, overwrite=True)
    with pytest.raises(InputError, match=r"exists already.*--overwrite"):
        check_output(path, overwrite=False)


def test_a_folder_is_no_output_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        check_output(tmp_path, overwrite=True)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing does not exist"):
        check_output(tmp_path / "missing" / "map.tif", overwrite=False)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        check_output(tmp_path / "file" / "map.tif", overwrite=False)


def test_an_unwritable_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    # Not by chmod: the tests may run as a user who may write anywhere.
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(InputError, match=r"cannot write to the folder.*Permission denied"):
        check_output(tmp_path / "map.tif", overwrite=False)


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symlink", "hard link"])
def test_an_input_is_never_an_output(tmp_path: Path, link: object) -> None:
    source, alias = tmp_path / "in.tif", tmp_path / "alias.tif"
    source.write_text("precious")
    try:
        link(source, alias)  # type: ignore[operator]
    except OSError as error:
        pytest.skip(f"no links here: {error}")
    for output in (source, alias, tmp_path / "." / "in.tif"):
        with pytest.raises(InputError, match="is an input of this run"):
            check_output(output, overwrite=True, inputs=[source])


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "map.tif"
    with replacing(path, overwrite=False) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".tif"
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert names(tmp_path) == {"map.tif"}


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(tmp_path: Path, exception: type[BaseException]) -> None:
    path = tmp_path / "map.tif"
    path.write_text("old")

    def fail() -> None:
        with replacing(path, overwrite=True) as temporary:
            temporary.write_text("half")
            temporary.with_name(temporary.name + ".aux.xml").write_text("side file")
            raise exception

    with pytest.raises(exception):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == {"map.tif"}


def test_an_existing_file_stays_without_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "map.tif"
    path.write_text("old")
    with pytest.raises(InputError, match="exists already"), replacing(path, overwrite=False):
        pass
    assert path.read_text() == "old"


def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    path = tmp_path / "map.gpkg"
    with replacing(path, overwrite=False) as temporary:
        name = temporary.name
        temporary.write_text("")
    for left in (name, f"{name}-journal"):
        (tmp_path / left).write_text("left by kill -9")
    with replacing(path, overwrite=True) as temporary:
        assert not temporary.exists()
        temporary.write_text("new")
    assert names(tmp_path) == {"map.gpkg"}


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "map.tif", tmp_path / "map.tif"
    target.write_text("old")
    try:
        link.symlink_to(target)
    except OSError as error:
        pytest.skip(f"no links here: {error}")
    with replacing(link, overwrite=True) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_scratch_is_a_hidden_folder_that_goes(tmp_path: Path) -> None:
    path = tmp_path / "map.gpkg"
    path.write_text("old")
    with scratch_beside(path) as scratch:
        assert scratch.parent == tmp_path
        assert scratch.name.startswith(".")
        assert names(scratch) == set()
        (scratch / "deep").mkdir()
        (scratch / "deep" / "file").write_text("")
    assert names(tmp_path) == {"map.gpkg"}
    assert path.read_text() == "old"


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt, InputError])
def test_scratch_goes_with_a_failure(tmp_path: Path, exception: type[BaseException]) -> None:
    def fail() -> None:
        with scratch_beside(tmp_path / "map.gpkg") as scratch:
            (scratch / "file").write_text("")
            raise exception

    with pytest.raises(exception):
        fail()
    assert names(tmp_path) == set()


def test_scratch_of_a_killed_run_is_emptied(tmp_path: Path) -> None:
    with scratch_beside(tmp_path / "map.gpkg") as scratch:
        pass
    (scratch / "deep").mkdir(parents=True)
    (scratch / "deep" / "left").write_text("by kill -9")
    with scratch_beside(tmp_path / "map.gpkg") as again:
        assert (again, names(again)) == (scratch, set())
    assert names(tmp_path) == set()


def test_scratch_on_a_full_disk_is_one_line(tmp_path: Path) -> None:
    def fill() -> None:
        with scratch_beside(tmp_path / "map.gpkg"):
            raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match=r"map\.gpkg: .*No space left on device.*disk full"):
        fill()
    assert names(tmp_path) == set()


@pytest.mark.parametrize("path", ["nowhere/map.gpkg", "folder"])
def test_scratch_is_checked_as_its_output_is(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError), scratch_beside(tmp_path / path):
        pass
    assert names(tmp_path) == {"folder"}
