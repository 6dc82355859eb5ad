"""Tables whose columns are arrays of one length: named tuples of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

Table = TypeVar("Table", bound=tuple[Any, ...])


def taken(table: Table, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> Table:
    """Return some rows of a table."""
    return _like(table, (column[chosen] for column in table))


def stacked(tables: Sequence[Table]) -> Table:
    """Return the rows of several tables in one."""
    return _like(tables[0], (np.concatenate(column) for column in zip(*tables, strict=True)))


def _like(table: Table, columns: Any) -> Table:
    return cast(Table, cast(Any, type(table))(*columns))
