"""The verbs: what rsseg does, as Python functions; one module each.

Importing this package loads nothing heavy; a verb's module is loaded when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rsseg.api.evaluate import Evaluation, evaluate
    from rsseg.api.export import export
    from rsseg.api.info import SiteInfo, info
    from rsseg.api.predict import predict
    from rsseg.api.pseudo_label import pseudo_label
    from rsseg.api.tag import tag
    from rsseg.api.tile import tile
    from rsseg.api.train import train

_HOME = {
    "Evaluation": "evaluate",
    "SiteInfo": "info",
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
    "SiteInfo",
    "evaluate",
    "export",
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
    # Replaces the submodule of the same name, which importing it has set here.
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
