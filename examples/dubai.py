"""Land cover of Dubai: five classes on whole satellite scenes, from the tags of 128 px tiles.

Usage: python examples/dubai.py DATA OUT

DATA holds ``data/dubai``. Learns on scenes 1, 2, 5, 6 and 8 and maps scene 4, which nothing was
chosen on. The tags are derived from the class rasters ("this tile contains water"); their outlines
are used by the supervised control alone. Interrupted, it goes on where it was.
"""

from __future__ import annotations

import sys

from steps import folders, learn_and_map, rsseg, score

SCENES = (1, 2, 5, 6, 8)
CLASSES = """
[[classes]]
name = "building"
colour = "#d7301f"
[[classes]]
name = "land"
colour = "#d9b87c"
[[classes]]
name = "road"
colour = "#6e6e6e"
[[classes]]
name = "vegetation"
colour = "#1b7837"
[[classes]]
name = "water"
colour = "#2b83ba"
"""


def main() -> None:
    """Run the example."""
    shared, out = folders(sys.argv[1:], __doc__ or "")
    data = shared / "data" / "dubai"
    site, labels = out / "site.zarr", out / "labels.tif"
    classes = out / "classes.toml"
    classes.write_text(CLASSES, encoding="utf-8")
    images = [data / f"scene{number}.tif" for number in SCENES]
    truths = [data / f"scene{number}_classes.tif" for number in SCENES]
    rsseg(
        *("tile", *images, "--out", site, "--classes", classes, "--size", "128", "--overlap", "0"),
        makes=site,
    )
    rsseg("tag", site, *(word for truth in truths for word in ("--from", truth)))
    rsseg(
        *("pseudo-label", site, "--export", labels),
        makes=out / "labels_scene1.tif",
    )
    for number, truth in zip(SCENES, truths, strict=True):
        score(out / f"labels_scene{number}.tif", truth)
    learn_and_map(site, truths, data / "scene4.tif", data / "scene4_classes.tif", out, steps=250)


if __name__ == "__main__":
    main()
