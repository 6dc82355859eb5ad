"""Regions of a class map: pixels of one class that hang together by their sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg.ops.compiled import compiled


@dataclass(frozen=True, eq=False)
class Regions:
    """The N regions of a class map, numbered from 1 in the order of their first pixels.

    Attributes:
        labels: (H, W) int32, the number of each pixel's region; 0 is no class.
        first: (N + 1,) int64, the first pixel of each region in raster order, row * W + column.
    """

    labels: NDArray[np.int32]
    first: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.first) - 1

    def sums(
        self, weights: NDArray[np.int64], values: NDArray[np.uint8] | None, ignore: int = 255
    ) -> NDArray[np.int64]:
        """Return what the pixels of each region add up to, (N + 1, 4) int64.

        The columns are the pixels, their weights, their values, and how many of them have a value.

        Args:
            weights: (H,) int64, the weight of the pixels of each row.
            values: (H, W) uint8, or None.
            ignore: what is no value.
        """
        if values is None:
            return _sums(self.labels, len(self), weights, np.empty((0, 0), np.uint8), ignore)
        return _sums(self.labels, len(self), weights, values, ignore)


def find_regions(classes: NDArray[np.uint8], nodata: int = 255) -> Regions:
    """Find the regions of a class map; pixels that meet at a corner only do not hang together.

    ``skimage.measure.label`` numbers them alike, but takes twice the memory and keeps Python's
    lock, so that threads wait for each other.

    Args:
        classes: (H, W) uint8.
        nodata: the value that is no class.
    """
    return Regions(*_label(classes, nodata))


@compiled
def find_root(parents: NDArray[np.integer[Any]], node: int) -> int:
    """Return the root of a node of a forest, and shorten the way there."""
    while parents[node] != node:
        parents[node] = parents[parents[node]]
        node = parents[node]
    return node


@compiled
def _label(classes: NDArray[np.uint8], nodata: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    height, width = classes.shape
    labels = np.empty((height, width), np.int32)
    parents = np.zeros(max(1024, height * width // 16), np.int32)
    first = np.zeros(len(parents), np.int64)
    count = 0
    for row in range(height):
        for col in range(width):
            value = classes[row, col]
            if value == nodata:
                labels[row, col] = 0
                continue
            left = col > 0 and classes[row, col - 1] == value
            above = row > 0 and classes[row - 1, col] == value
            if left:
                label = labels[row, col - 1]
                # Where the pixel above continues the one above left, both are united already.
                if above and classes[row - 1, col - 1] != value:
                    one, other = find_root(parents, label), find_root(parents, labels[row - 1, col])
                    label = min(one, other)
                    parents[max(one, other)] = label
            elif above:
                label = labels[row - 1, col]
            else:
                count += 1
                if count == len(parents):
                    parents = np.concatenate((parents, np.zeros(count, np.int32)))
                    first = np.concatenate((first, np.zeros(count, np.int64)))
                label = count
                parents[label] = label
                first[label] = row * width + col
            labels[row, col] = label
    number = np.zeros(count + 1, np.int32)
    total = 0
    for label in range(1, count + 1):
        if parents[label] == label:
            total += 1
            number[label] = total
            first[total] = first[label]
        else:
            number[label] = number[find_root(parents, label)]
    for row in range(height):
        for col in range(width):
            labels[row, col] = number[labels[row, col]]
    return labels, first[: total + 1].copy()


@compiled
def _sums(
    labels: NDArray[np.int32],
    count: int,
    weights: NDArray[np.int64],
    values: NDArray[np.uint8],
    ignore: int,
) -> NDArray[np.int64]:
    sums = np.zeros((count + 1, 4), np.int64)
    for row in range(labels.shape[0]):
        for col in range(labels.shape[1]):
            region = labels[row, col]
            sums[region, 0] += 1
            sums[region, 1] += weights[row]
            if values.size and values[row, col] != ignore:
                sums[region, 2] += values[row, col]
                sums[region, 3] += 1
    return sums
