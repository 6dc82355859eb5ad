"""The report: one page, all in it, nothing else needed."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from affine import Affine
from helpers import NORTH_UP, noise, write_raster
from matplotlib.image import imread

from rsseg.api import evaluate, write_report
from rsseg.classes import Classes
from rsseg.cli import main
from rsseg.errors import InputError
from rsseg.ops.picture import RIGHT

LAND = Classes.from_names(["water", "field", "wood"])
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """A page taken apart; fails where a tag is not closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._open = [], [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self):
        return " ".join("".join(self.text).split())


def images(page):
    """Alternative text → pixels, (H, W, 3) uint8."""
    found = {}
    for attributes in page.all("img"):
        kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.+)", attributes["src"]).groups()
        pixels = imread(io.BytesIO(base64.b64decode(data)), format=kind)
        found[attributes["alt"]] = pixels if kind == "jpeg" else np.round(pixels * 255)
    return found


def ids(seed=0, shape=(60, 80)):
    cells = np.random.default_rng(seed).integers(0, 3, [n // 10 for n in shape], dtype=np.uint8)
    return cells.repeat(10, axis=0).repeat(10, axis=1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with an image, a map with some errors and a gap, and the truth."""
    monkeypatch.chdir(tmp_path)
    mapped = ids()
    mapped[:30, :20] = 1
    mapped[50:, 60:] = 255
    truth = ids()
    truth[:5] = 255
    write_raster(tmp_path / "map.tif", mapped, classes=LAND, nodata=255)
    write_raster(tmp_path / "truth.tif", truth, nodata=255)
    write_raster(tmp_path / "image.tif", noise((3, 60, 80)))
    return tmp_path


def test_all_is_in_one_page(folder):
    found = evaluate("map.tif", "truth.tif")
    write_report(found, "report.html", image="image.tif")
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert not re.findall(r"https?://|url\(|@import", text)
    assert len(text) < 200_000
    pictures = images(page)
    assert len(pictures) == 4
    assert all(alt and pixels.shape[:2] == (60, 80) for alt, pixels in pictures.items())
    for row in found.rows()[:3]:
        assert f"{row.iou:.3f}" in page.words
        assert f"{row.boundary_iou:.3f}" in page.words
    for score in (found.scores.oa, found.scores.miou, found.scores.mf1, found.boundary_iou[1]):
        assert f"{score:.3f}" in page.words


def test_pictures_show_map_truth_and_errors(folder):
    write_report(evaluate("map.tif", "truth.tif"), "report.html")
    mapped, truth, errors = images(Page((folder / "report.html").read_text("utf-8"))).values()
    assert mapped[20, 5].tolist()[:3] == list(LAND.colours[1])
    assert truth[40, 40].tolist()[:3] == list(LAND.colours[ids()[40, 40]])
    assert truth[2, 2].tolist()[:3] == errors[2, 2].tolist()[:3] == [255] * 3
    assert errors[40, 40].tolist()[:3] == list(RIGHT)
    wrong = (ids() != 1)[:30, :20]
    wrong[:5] = False
    pale = (errors[:30, :20, :3] == RIGHT).all(axis=-1)
    assert not (wrong & pale).any()
    assert wrong.any()


def test_the_confusion_matrix_says_its_pixels(folder):
    found = evaluate("map.tif", "truth.tif")
    write_report(found, "report.html")
    page = Page((folder / "report.html").read_text("utf-8"))
    titles = [cell["title"] for cell in page.all("td") if "title" in cell]
    assert len(titles) == 12
    counts = [int(title.partition(" pixels")[0].replace("\u202f", "")) for title in titles]
    assert counts == found.matrix.ravel().tolist()
    assert titles[3].endswith(" pixels of water not mapped")
    assert titles[1].endswith(" pixels of water mapped as field")


def test_a_gapless_map_has_no_column_of_gaps(folder):
    write_report(evaluate("truth.tif", "truth.tif", classes=LAND), "report.html")
    page = Page((folder / "report.html").read_text("utf-8"))
    assert len([cell for cell in page.all("td") if "title" in cell]) == 9
    assert "not mapped" not in page.words


def test_equal_evaluations_give_equal_pages(folder):
    for name in ("one.html", "two.html"):
        write_report(evaluate("map.tif", "truth.tif"), name, image="image.tif")
    assert (folder / "one.html").read_bytes() == (folder / "two.html").read_bytes()


def test_names_are_text_and_not_markup(folder):
    evil = Classes.from_names(["<script>alert(1)</script>", 'a" onload="x', "b&amp;c"])
    write_raster(folder / "<b>map.tif", ids(), classes=evil)
    write_report(evaluate("<b>map.tif", "truth.tif"), "report.html", image="image.tif")
    page = Page((folder / "report.html").read_text("utf-8"))
    assert not {"script", "b>map"} & {tag for tag, _ in page.tags}
    assert not any("onload" in attributes for _, attributes in page.tags)
    assert "<script>alert(1)</script>" in page.words
    assert "b&amp;c" in page.words
    assert "<b>map.tif against truth.tif" in page.words


def test_classes_that_do_not_occur_are_undefined(folder):
    classes = Classes.from_names(["water", "field", "wood", "sand"])
    write_report(evaluate("map.tif", "truth.tif", classes=classes), "report.html")
    page = Page((folder / "report.html").read_text("utf-8"))
    assert re.search(r"sand – – – – – 0\.0 %0", page.words)


def test_large_maps_are_shown_reduced_and_said_so(folder, monkeypatch):
    monkeypatch.setattr("rsseg.api.evaluation.PREVIEW_SIDE", 20)
    write_report(evaluate("map.tif", "truth.tif"), "report.html", image="image.tif")
    page = Page((folder / "report.html").read_text("utf-8"))
    assert {pixels.shape[:2] for pixels in images(page).values()} == {(15, 20)}
    assert "one pixel in 4 along each side" in page.words


def test_an_image_without_georeference_is_of_the_maps_size(folder):
    write_raster(folder / "bare.tif", noise((3, 60, 80)), crs=None, transform=None)
    found = evaluate("map.tif", "truth.tif")
    write_report(found, "placed.html", image="image.tif")
    write_report(found, "bare.html", image="bare.tif")
    one, two = (
        next(iter(images(Page((folder / name).read_text("utf-8"))).values()))
        for name in ("placed.html", "bare.html")
    )
    assert np.array_equal(one, two)


def test_a_map_without_crs_has_no_ground_sizes(folder):
    for name in ("map", "truth"):
        write_raster(folder / f"bare_{name}.tif", ids(), crs=None, transform=None, classes=LAND)
    write_report(evaluate("bare_map.tif", "bare_truth.tif"), "report.html")
    words = Page((folder / "report.html").read_text("utf-8")).words
    assert not re.search(r"\bha\b|Pixel size", words)
    assert "here 3 px wide" in words


def test_the_command_writes_it(folder, capsys):
    run = ["evaluate", "map.tif", "truth.tif", "--report", "r.html", "--image", "image.tif", "-q"]
    assert main([*run, "--boundary", "2"]) == 0
    assert "boundary IoU" in capsys.readouterr().out
    assert "2 px (4 m)" in (folder / "r.html").read_text("utf-8")
    assert main(run) == 2
    assert "r.html: exists already" in capsys.readouterr().err
    assert main([*run, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--report", "r.txt"], "r.txt: a report is a web page"),
        (["--report", "nowhere/r.html"], "does not exist"),
        (["--report", "r.html", "--image", "missing.tif"], "missing.tif: no such file"),
        (["--report", "r.html", "--image", "far.tif"], "far.tif: does not overlap map.tif"),
        (["--report", "r.html", "--image", "bare.tif"], "does not overlap map.tif"),
        (["--image", "image.tif"], "give --report FILE.html too"),
        (["--report", "r.html", "--boundary", "0"], "--boundary 0: give 1 to 256 pixels"),
    ],
)
def test_bad_input_is_told_before_anything_is_compared(
    folder, capsys, monkeypatch, arguments, message
):
    far = NORTH_UP @ Affine.translation(1000, 0)
    write_raster(folder / "far.tif", noise((3, 60, 80)), transform=far)
    write_raster(folder / "bare.tif", noise((3, 6, 8)), crs=None, transform=None)
    monkeypatch.setattr("rsseg.api.evaluation._compare", None)
    before = sorted(folder.iterdir())
    assert main(["evaluate", "map.tif", "truth.tif", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(folder.iterdir()) == before


def test_an_input_is_not_written_over(folder):
    (folder / "image.html").write_bytes((folder / "image.tif").read_bytes())
    with pytest.raises(InputError, match="is an input of this run"):
        write_report(
            evaluate("map.tif", "truth.tif"), "image.html", image="image.html", overwrite=True
        )


@pytest.mark.data
def test_a_real_report_can_be_sent_by_mail(data_root, tmp_path):
    folder = data_root / "dubai"
    found = evaluate(folder / "scene4_classes.tif", folder / "scene4_classes.tif")
    write_report(found, tmp_path / "report.html", image=folder / "scene4.tif")
    assert found.boundary_iou[1] == 1
    assert (tmp_path / "report.html").stat().st_size < 3e6
