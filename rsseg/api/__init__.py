"""The verbs: what rsseg does, as Python functions; one module each.

Importing this package loads nothing heavy; a verb's module is loaded when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rsseg.api.assessing import Assessment, assess
    from rsseg.api.evaluation import evaluate
    from rsseg.api.exporting import export, export_paths
    from rsseg.api.labelling import pseudo_label
    from rsseg.api.opinions import OpinionReport, ask_opinions
    from rsseg.api.orders import Prediction
    from rsseg.api.overview import SiteInfo, info
    from rsseg.api.picturing import quicklook
    from rsseg.api.prediction import predict
    from rsseg.api.reporting import write_report
    from rsseg.api.sampling import Sample, draw_sample
    from rsseg.api.scoring import Evaluation
    from rsseg.api.tagging import tag
    from rsseg.api.tiling import tile
    from rsseg.api.training import train
    from rsseg.api.vectorizing import Vectors, vectorize

_HOMES = {
    "Assessment": "assessing",
    "Evaluation": "scoring",
    "OpinionReport": "opinions",
    "Prediction": "orders",
    "Sample": "sampling",
    "SiteInfo": "overview",
    "Vectors": "vectorizing",
    "ask_opinions": "opinions",
    "assess": "assessing",
    "draw_sample": "sampling",
    "evaluate": "evaluation",
    "export": "exporting",
    "export_paths": "exporting",
    "info": "overview",
    "predict": "prediction",
    "pseudo_label": "labelling",
    "quicklook": "picturing",
    "tag": "tagging",
    "tile": "tiling",
    "train": "training",
    "vectorize": "vectorizing",
    "write_report": "reporting",
}

__all__ = [
    "Assessment",
    "Evaluation",
    "OpinionReport",
    "Prediction",
    "Sample",
    "SiteInfo",
    "Vectors",
    "ask_opinions",
    "assess",
    "draw_sample",
    "evaluate",
    "export",
    "export_paths",
    "info",
    "predict",
    "pseudo_label",
    "quicklook",
    "tag",
    "tile",
    "train",
    "vectorize",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
