"""What can go wrong, as exceptions.

The tree::

    RssegError            exit code 1
    ├── InputError        exit code 2: what the user gave cannot be used; raised before work starts
    └── RunError          exit code 1: the run itself failed, or its result is below what was asked

Every message is one line: what is wrong, what was found, what to do. Everything else that is
raised is a bug of ours and keeps its traceback.
"""


class RssegError(Exception):
    """Any failure that is explained to the user in one line."""

    exit_code = 1


class InputError(RssegError):
    """The input or the usage is at fault; nothing was changed."""

    exit_code = 2


class RunError(RssegError):
    """A run failed, or its result did not reach what was asked for."""
