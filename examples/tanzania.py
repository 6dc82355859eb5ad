"""Buildings of Tanzania: learn on one drone orthophoto from tile tags, map another.

Usage: python examples/tanzania.py DATA OUT

DATA holds ``data/ortho/tanzania`` and ``weights/mobile_sam.pt``. The tags are derived from building
polygons ("this tile contains buildings"); their outlines are used by the supervised control alone.
Interrupted, it goes on where it was.
"""

from __future__ import annotations

import sys

from steps import folders, learn_and_map, rsseg, score


def main() -> None:
    """Run the example."""
    shared, out = folders(sys.argv[1:], __doc__ or "")
    data = shared / "data" / "ortho" / "tanzania"
    site, labels = out / "site.zarr", out / "labels_a.tif"
    rsseg(
        *("tile", data / "ortho_a.tif", "--out", site),
        *("--classes", "other,building", "--size", "256", "--overlap", "0"),
        makes=site,
    )
    rsseg("tag", site, "--from", data / "buildings.geojson", "--min-area", "1")
    rsseg(
        *("pseudo-label", site, "--sam", shared / "weights" / "mobile_sam.pt"),
        *("--export", labels),
        makes=labels,
    )
    score(labels, data / "buildings_a.tif")
    learn_and_map(
        *(site, [data / "buildings_a.tif"]),
        *(data / "ortho_b.tif", data / "buildings_b.tif", out),
        steps=400,
    )


if __name__ == "__main__":
    main()
