"""The verbs: what rsseg does, as Python functions; one module each.

Importing this package loads nothing heavy; a verb's module is loaded when it is first asked for.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rsseg.api.evaluate import Evaluation, evaluate
    from rsseg.api.export import export, export_paths
    from rsseg.api.info import SiteInfo, info
    from rsseg.api.predict import Prediction, predict
    from rsseg.api.pseudo_label import pseudo_label
    from rsseg.api.tag import tag
    from rsseg.api.tile import tile
    from rsseg.api.train import train

_HOME = {
    "Evaluation": "evaluate",
    "Prediction": "predict",
    "SiteInfo": "info",
    "export_paths": "export",
    **{
        verb: verb
        for verb in (
            "evaluate",
            "export",
            "info",
            "predict",
            "pseudo_label",
            "tag",
            "tile",
            "train",
        )
    },
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
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """Keeps the verb where importing the verb's module would put the module of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and name in _HOME:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
