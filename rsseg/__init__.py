"""rsseg: turn large orthophotos into maps with almost no labelling."""

from importlib.metadata import version

__version__ = version("rsseg")
