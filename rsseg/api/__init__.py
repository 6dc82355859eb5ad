"""The verbs: what rsseg does, as Python functions; one module each.

Importing this package loads nothing heavy; a verb's module is loaded when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rsseg.api.evaluation import Evaluation, evaluate
    from rsseg.api.exporting import export, export_paths
    from rsseg.api.labelling import pseudo_label
    from rsseg.api.overview import SiteInfo, info
    from rsseg.api.prediction import Prediction, predict
    from rsseg.api.tagging import tag
    from rsseg.api.tiling import tile
    from rsseg.api.training import train

_HOMES = {
    "Evaluation": "evaluation",
    "Prediction": "prediction",
    "SiteInfo": "overview",
    "evaluate": "evaluation",
    "export": "exporting",
    "export_paths": "exporting",
    "info": "overview",
    "predict": "prediction",
    "pseudo_label": "labelling",
    "tag": "tagging",
    "tile": "tiling",
    "train": "training",
}

__all__ = [
    "Evaluation",
    "Prediction",
    "SiteInfo",
    "evaluate",
    "export",
    "export_paths",
    "info",
    "predict",
    "pseudo_label",
    "tag",
    "tile",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
