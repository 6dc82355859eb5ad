"""Accuracy assessment from a map to its report: points drawn, filled, read, and refused."""

import csv
import json
import shutil
import sqlite3
import subprocess

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from helpers import NORTH_UP, TRANSFORMS, UTM, Listener, write_raster

from rsseg.api import assess, draw_sample
from rsseg.classes import Classes
from rsseg.cli import main
from rsseg.errors import InputError
from rsseg.io.ground import row_areas
from rsseg.io.raster import Raster
from rsseg.ops.accuracy import estimate_accuracy

LAND = Classes.from_dict(
    {"classes": [{"name": n, "id": i} for n, i in (("water", 7), ("field", 3), ("wood", 0))]}
)
SHAPE = (90, 120)


def ids(seed=0, shape=SHAPE, chances=(0.1, 0.3, 0.6)):
    """Class ids in patches of 3 x 3 pixels."""
    height, width = (-(-side // 3) for side in shape)
    patches = np.random.default_rng(seed).choice(LAND.ids, (height, width), p=chances)
    return np.kron(patches, np.ones((3, 3), int))[: shape[0], : shape[1]].astype(np.uint8)


def spoilt(truth, seed=1, share=0.2):
    """A map with errors: some pixels of any class have become wood."""
    wrong = np.random.default_rng(seed).random(truth.shape) < share
    return np.where(wrong, np.uint8(0), truth)


def values_at(points, pixels):
    return pixels[points["row"], points["col"]].astype("int32")


def read(path):
    return pyogrio.read_dataframe(path, layer="sample")


def save(points, path):
    """Save points as a user's GIS would."""
    path.unlink(missing_ok=True)
    pyogrio.write_dataframe(points, path, layer="sample", **options_of(path))
    return path


def options_of(path):
    return {"layer_options": {"RESIZE": "YES"}} if path.suffix == ".shp" else {}


@pytest.fixture
def study(tmp_path):
    """A map, its truth as ids, and a sample of 90 points with the truth filled in."""
    return make_study(tmp_path)


def make_study(folder, count=90, minimum=20, truth=None, transform=NORTH_UP, crs=UTM):
    truth = ids() if truth is None else truth
    path = write_raster(folder / "map.tif", spoilt(truth), transform, crs, classes=LAND, nodata=255)
    draw_sample(path, folder / "sample.gpkg", count=count, min_per_class=minimum)
    points = read(folder / "sample.gpkg")
    points["reference"] = values_at(points, truth)
    save(points, folder / "filled.gpkg")
    return path, truth, folder / "filled.gpkg"


# --- The sample ----------------------------------------------------------------------------------


def test_the_points(tmp_path):
    mapped = ids()
    path = write_raster(tmp_path / "map.tif", mapped, classes=LAND)
    drawn = draw_sample(path, tmp_path / "s.gpkg", count=100, min_per_class=20)
    points = read(tmp_path / "s.gpkg")
    assert list(points.columns) == [
        *("point", "reference", "row", "col", "points", "map", "geometry")
    ]
    assert points["point"].tolist() == list(range(1, 101))
    assert points["reference"].isna().all()
    assert points.crs == UTM
    centres = [NORTH_UP @ (c + 0.5, r + 0.5) for r, c in zip(points.row, points.col, strict=True)]
    assert np.allclose(shapely.get_coordinates(points.geometry), centres, atol=1e-6)
    assert not points.duplicated(["row", "col"]).any()
    found = [int((values_at(points, mapped) == class_id).sum()) for class_id in LAND.ids]
    assert [one.points for one in drawn.strata] == found
    assert found[0] == 20
    assert sum(found) == 100
    assert [one.pixels for one in drawn.strata] == [int((mapped == i).sum()) for i in LAND.ids]
    assert sum(one.hectares for one in drawn.strata) == pytest.approx(90 * 120 * 4 / 10_000)


def test_the_order_does_not_tell_the_class(tmp_path):
    mapped = ids()
    path = write_raster(tmp_path / "map.tif", mapped, classes=LAND)
    draw_sample(path, tmp_path / "s.gpkg", count=300, min_per_class=100)
    of_class = values_at(read(tmp_path / "s.gpkg"), mapped)
    assert [set(of_class[:30]), set(of_class[-30:])] == [set(LAND.ids)] * 2


def test_equal_runs_give_equal_bytes_whatever_the_blocks(tmp_path, monkeypatch):
    path = write_raster(tmp_path / "map.tif", ids(), classes=LAND)
    (tmp_path / "again").mkdir()
    for folder, side in ((tmp_path, 1024), (tmp_path / "again", 16)):
        monkeypatch.setattr("rsseg.io.map_classes.BLOCK", side)
        draw_sample(path, folder / "s.gpkg", count=90)
    first, again = ((f / "s.gpkg").read_bytes() for f in (tmp_path, tmp_path / "again"))
    assert first == again
    draw_sample(path, tmp_path / "other.gpkg", count=90, seed=1)
    assert (read(tmp_path / "other.gpkg")["col"] != read(tmp_path / "s.gpkg")["col"]).any()


def test_gdal_and_qgis_find_the_layer_and_its_style(tmp_path):
    path = write_raster(tmp_path / "map.tif", ids(), classes=LAND)
    draw_sample(path, tmp_path / "s.gpkg", count=90)
    with sqlite3.connect(tmp_path / "s.gpkg") as database:
        ((name, style),) = database.execute("SELECT f_table_name, styleQML FROM layer_styles")
    assert name == "sample"
    assert all(one in style for one in LAND.names)
    if shutil.which("ogrinfo") is None:
        pytest.skip("GDAL's tools are not installed")
    command = ["ogrinfo", "-so", str(tmp_path / "s.gpkg"), "sample"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Geometry: Point" in said
    assert "Feature Count: 90" in said
    assert "reference: Integer" in said


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:4326", Affine(0.1, 0, 10, 0, -0.5, 80)),
        ("EPSG:3857", Affine(9000, 0, 0, 0, -90_000, 1.5e7)),
    ],
    ids=["degrees", "web mercator"],
)
def test_classes_get_points_by_their_area_on_the_ground(tmp_path, crs, transform):
    mapped = np.repeat(np.uint8([7, 3]), 40)[:, None].repeat(50, axis=1)
    path = write_raster(tmp_path / "map.tif", mapped, transform, crs, classes=LAND)
    drawn = draw_sample(path, tmp_path / "s.gpkg", count=400, min_per_class=2)
    areas = row_areas(Raster(path).grid).reshape(2, 40).sum(axis=1)
    north, south, _ = drawn.strata
    assert south.share / north.share == pytest.approx(areas[1] / areas[0])
    assert south.points / north.points == pytest.approx(areas[1] / areas[0], rel=0.03)
    assert south.points > 1.2 * north.points
    rows = read(tmp_path / "s.gpkg")["row"]
    # Within a class too, the rows far from the equator get fewer points.
    assert (rows < 20).sum() < (rows.between(20, 39)).sum()


def test_what_is_no_class_gets_no_point(tmp_path):
    mapped = ids()
    mapped[:, :30] = 255
    mapped[:, 30:60] = 99
    path = write_raster(tmp_path / "map.tif", mapped, classes=LAND, nodata=255)
    listener = Listener()
    draw_sample(path, tmp_path / "s.gpkg", count=200, progress=listener)
    assert read(tmp_path / "s.gpkg")["col"].min() >= 60
    assert "2700 pixels with ids that are no class (99) are left out" in listener.warnings[0]


def test_a_rare_class_is_taken_whole(tmp_path):
    mapped = ids(chances=(0, 0.4, 0.6))
    mapped[5, 100:103] = 7
    path = write_raster(tmp_path / "map.tif", mapped, classes=LAND)
    listener = Listener()
    drawn = draw_sample(path, tmp_path / "s.gpkg", count=60, min_per_class=20, progress=listener)
    assert drawn.strata[0].points == 3
    assert sum(one.points for one in drawn.strata) == 60
    (warning,) = listener.warnings
    assert "fewer than 20 points for some classes (water 3)" in warning


def test_a_foreign_map_is_sampled_by_its_ids(tmp_path):
    path = write_raster(tmp_path / "map.tif", ids())
    drawn = draw_sample(path, tmp_path / "s.gpkg", count=90)
    assert [one.name for one in drawn.strata] == ["0", "3", "7"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"count": 5}, "has 3 classes, and each needs at least 2 points"),
        ({"min_per_class": 1}, "at least 2 are needed"),
        ({"out": "s.shp"}, "ends in .gpkg"),
        ({"out": "map.tif"}, "ends in .gpkg"),
        ({"out": "there.gpkg"}, "exists already"),
        ({"out": "no/s.gpkg"}, "does not exist"),
        ({"classes": Classes.parse("a,b,c"), "pixels": 9}, "no pixel of it has a class"),
    ],
)
def test_samples_that_cannot_be_drawn(tmp_path, options, complaint):
    options = {"out": "s.gpkg", "pixels": ids(), **options}
    pixels = np.broadcast_to(np.uint8(options.pop("pixels")), SHAPE)
    path = write_raster(tmp_path / "map.tif", pixels, classes=LAND)
    (tmp_path / "there.gpkg").write_text("mine")
    with pytest.raises(InputError, match=complaint):
        draw_sample(path, tmp_path / options.pop("out"), **options)
    assert not (tmp_path / "s.gpkg").exists()
    assert (tmp_path / "there.gpkg").read_text() == "mine"


def test_a_sample_that_is_open_elsewhere_is_left_alone(study, tmp_path):
    path, _, _ = study
    (tmp_path / "sample.gpkg-wal").write_bytes(b"")
    with pytest.raises(InputError, match="open in another program"):
        draw_sample(path, tmp_path / "sample.gpkg", overwrite=True)


# --- The report ----------------------------------------------------------------------------------


def test_the_report_follows_from_the_points(study):
    path, truth, filled = study
    mapped, points = rasterio.open(path).read(1), read(filled)
    found = assess(path, filled)
    pairs = list(zip(values_at(points, mapped), values_at(points, truth), strict=True))
    expected = [[pairs.count((m, t)) for t in LAND.ids] for m in LAND.ids]
    assert found.points.tolist() == expected
    areas = np.array([(mapped == i).sum() * 4.0 for i in LAND.ids])
    assert found.areas == pytest.approx(areas)
    by_formula = estimate_accuracy(np.array(expected), areas)
    rows = found.rows()
    assert [row.name for row in rows] == [*LAND.names, "overall"]
    assert [row.users for row in rows[:3]] == pytest.approx(by_formula.users.value)
    assert rows[1].producers_ci95 == pytest.approx(by_formula.producers.margin[1])
    assert rows[3].users == rows[3].producers == pytest.approx(float(by_formula.overall.value))
    assert rows[2].mapped_ha == pytest.approx(areas[2] / 10_000)
    assert rows[2].ha == pytest.approx(by_formula.shares.value[2] * areas.sum() / 10_000)
    assert rows[3].ha == pytest.approx(90 * 120 * 4 / 10_000)


def test_estimated_areas_are_nearer_to_the_truth_than_mapped_ones(tmp_path):
    path, truth, filled = make_study(tmp_path, count=1500, minimum=200)
    rows = assess(path, filled).rows()[:3]
    true = np.array([(truth == i).mean() for i in LAND.ids])
    mapped, estimated, margin = (
        np.array([getattr(row, name) for row in rows])
        for name in ("mapped_share", "share", "share_ci95")
    )
    assert (np.abs(mapped - true)[1:] > 2 * margin[1:]).all()
    assert (np.abs(estimated - true) < 1.5 * margin).all()


def test_json_and_csv(study, tmp_path):
    path, _, filled = study
    found = assess(path, filled)
    found.write_json(tmp_path / "r.json")
    found.write_csv(tmp_path / "r.csv")
    described = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert described == found.to_dict()
    assert described["error_matrix"]["points"] == found.points.tolist()
    wood = described["classes"][2]
    assert (wood["id"], wood["name"]) == (0, "wood")
    assert wood["users"]["ci95"] == pytest.approx(1.96 * wood["users"]["standard_error"])
    assert wood["ha"]["estimate"] == pytest.approx(wood["share"]["estimate"] * 4.32)
    with (tmp_path / "r.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == [*LAND.names, "overall"]
    assert float(rows[0]["ha_ci95"]) == pytest.approx(found.rows()[0].ha_ci95)
    assert rows[3]["ha_ci95"] == ""
    with pytest.raises(InputError, match="exists already"):
        found.write_csv(tmp_path / "r.csv")


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_grids_of_all_kinds(tmp_path, transform):
    path, _, filled = make_study(tmp_path, transform=transform)
    assert assess(path, filled).points.sum() == 90


@pytest.mark.parametrize(
    ("transform", "crs"), [(None, None), (NORTH_UP, None)], ids=["bare", "no CRS"]
)
@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_a_map_without_crs_has_no_hectares(tmp_path, transform, crs):
    path, _, filled = make_study(tmp_path, transform=transform, crs=crs)
    found = assess(path, filled)
    assert found.rows()[0].ha is None
    assert found.rows()[0].share > 0
    assert found.to_dict()["classes"][0]["ha"]["estimate"] is None
    if transform is None:
        assert (read(filled).geometry.y < 0).all()  # where QGIS shows a picture without a place


@pytest.mark.parametrize("name", ["s.geojson", "s.shp", "s.fgb"])
def test_other_formats_and_crs_and_names_for_ids(study, tmp_path, name):
    path, _, filled = study
    points = read(filled).sample(frac=1, random_state=0).to_crs("EPSG:4326")
    points["reference"] = [LAND.names[LAND.ids.index(i)] for i in points["reference"]]
    saved = save(points, tmp_path / name)
    assert assess(path, saved).points.tolist() == assess(path, filled).points.tolist()


def test_partial_samples(study, tmp_path):
    path, _, filled = study
    points = read(filled)
    points["reference"] = points["reference"].where(points["point"] <= 60)
    half = save(points.sample(frac=1, random_state=0), tmp_path / "half.gpkg")
    with pytest.raises(InputError, match=r"30 of 90 points have no reference .* number 61"):
        assess(path, half)
    listener = Listener()
    found = assess(path, half, partial=True, progress=listener)
    assert (found.points.sum(), found.open) == (60, 30)
    assert not [said for said in listener.warnings if "open before" in said]
    points["reference"] = read(filled)["reference"].where(points["point"] > 30)
    listener = Listener()
    assess(path, save(points, half), partial=True, progress=listener)
    assert "open before others that are filled" in listener.warnings[0]
    points["reference"] = points["reference"].where(points["point"] == 90)
    with pytest.raises(InputError, match="each class needs at least 2"):
        assess(path, save(points, half), partial=True)


def test_intervals_that_say_too_little(tmp_path):
    mapped = ids(chances=(0, 0.4, 0.6))
    mapped[5, 100] = 7
    path = write_raster(tmp_path / "map.tif", mapped, classes=LAND)
    draw_sample(path, tmp_path / "s.gpkg", count=61, min_per_class=20)
    points = read(tmp_path / "s.gpkg")
    points["reference"] = values_at(points, mapped)
    listener = Listener()
    found = assess(path, save(points, tmp_path / "s.gpkg"), progress=listener)
    water, field, wood = listener.warnings
    assert "water: one point only" in water
    assert "field: all " in field
    assert "points are right" in wood
    first = found.rows()[0]
    assert (first.users, first.users_ci95) == (1, None)
    json.dumps(found.to_dict(), allow_nan=False)


# --- Samples that are refused --------------------------------------------------------------------


def moved(points):
    points.loc[[3], "geometry"] = points.geometry[[3]].translate(2.2, 0)
    points.loc[[8], "geometry"] = points.geometry[[8]].translate(0, 2.2)
    return points


def deleted(points):
    return points.drop(index=[0, 89])


def added(points):
    points.loc[90] = points.loc[0]
    points.loc[90, "point"] = None
    return points


def copied(points):
    points.loc[90] = points.loc[0]
    return points


def without_field(points):
    return points.drop(columns="reference")


def without_numbers(points):
    return points.drop(columns="point")


def emptied(points):
    points["reference"] = None
    return points


def misspelt(points):
    points["reference"] = points["reference"].astype(str)
    points.loc[4, "reference"] = "watre"
    return points


def unknown(points):
    points.loc[4, "reference"] = 5
    return points


def without_place(points):
    points.loc[6, "geometry"] = None
    return points


def of_another_map(points):
    points["map"] = "0123456789ab"
    return points


def all_elsewhere(points):
    points["geometry"] = points.geometry.translate(1000, 0)
    return points


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (moved, r"2 points were moved \(number 4, 9\)"),
        (deleted, r"2 of 90 points are missing \(number 1, 90\)"),
        (added, "1 of its 91 points are not of the sample"),
        (copied, "more than one point has the number 1"),
        (without_field, "no field 'reference'"),
        (without_numbers, "no field 'point'"),
        (emptied, "no point has a reference yet"),
        (misspelt, "reference of point 5: unknown class 'watre'"),
        (unknown, "reference of point 5: unknown class"),
        (without_place, r"1 points were moved \(number 7\)"),
        (of_another_map, "drawn on another map than"),
        (all_elsewhere, "drawn on another map"),
    ],
)
def test_samples_that_are_refused(study, tmp_path, change, complaint):
    path, _, filled = study
    changed = save(change(read(filled)), tmp_path / "changed.gpkg")
    with pytest.raises(InputError, match=complaint) as error:
        assess(path, changed)
    assert "\n" not in str(error.value)


def test_another_map_on_the_same_grid(study, tmp_path):
    _, truth, filled = study
    other = write_raster(tmp_path / "other.tif", truth, classes=LAND, nodata=255)
    with pytest.raises(InputError, match="drawn on another map than"):
        assess(other, filled)


def test_files_that_are_no_samples(study, tmp_path):
    path, _, filled = study
    with pytest.raises(InputError, match="no such file"):
        assess(path, tmp_path / "none.gpkg")
    with pytest.raises(InputError, match="no such file"):
        assess(tmp_path / "none.tif", filled)
    with pytest.raises(InputError, match="not a vector file"):
        assess(path, path)
    empty = geopandas.GeoDataFrame(read(filled).iloc[:0])
    with pytest.raises(InputError, match="no points in it"):
        assess(path, save(empty, tmp_path / "empty.gpkg"))


# --- The command line ----------------------------------------------------------------------------


def test_the_commands(study, tmp_path, capsys):
    path, _, filled = study
    assert main(["assess", "sample", str(path), "--n", "60", "--min-per-class", "10"]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "map_sample.gpkg")
    assert "wood: " in said.err
    assert main(["assess", "sample", str(path), "-q"]) == 2
    assert "exists already" in capsys.readouterr().err

    table = tmp_path / "r.csv"
    assert main(["assess", "report", str(path), str(filled), "--csv", str(table)]) == 0
    said = capsys.readouterr().out
    assert "user's accuracy" in said
    assert "±" in said
    assert table.exists()
    assert main(["assess", "report", str(path), str(filled), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == assess(path, filled).to_dict()
    assert main(["assess", "report", str(path), str(tmp_path / "map_sample.gpkg")]) == 2
    assert "no point has a reference yet" in capsys.readouterr().err
    assert main(["assess", "report", str(path), str(filled), "--json", str(filled)]) == 2
    assert "is an input" in capsys.readouterr().err
