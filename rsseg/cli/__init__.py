"""The command line: parse, call one verb, print what it found.

Everything heavy is imported inside the commands, so that ``rsseg --help`` is quick.
"""

from rsseg.cli.program import app, main

__all__ = ["app", "main"]
