from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says more of the machine than of the code.
settings.register_profile("rsseg", deadline=None)
settings.load_profile("rsseg")

TEST_DATA = Path(os.environ.get("RSSEG_TEST_DATA", Path(__file__).parents[2] / "shared"))
"""The folder with ``data`` and ``weights``; beside the repository unless the variable says."""


def _folder(name: str) -> Path:
    folder = TEST_DATA / name
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist; set RSSEG_TEST_DATA to the folder that has {name}/")
    return folder


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the test images: ``ortho``, ``dubai`` …"""
    return _folder("data")


@pytest.fixture(scope="session")
def weights_root() -> Path:
    """The folder of the networks' weights: ``mobile_sam.pt`` …"""
    return _folder("weights")
