"""The loops over a window's pixels: normalised before the network; blended and decided after it.

Everything that happens to a pixel happens while its row of the window is in the processor's cache:
the loops along a row are simple enough for the compiler to do many pixels at once. They add in a
fixed order and contract nothing, so they give the same bits on every processor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseg.ops.compiled import compiled

Row = NDArray[np.float32]

_LEAST = np.float32(-87)
"""Below it float32 has no normal exponential."""
_TO_INTEGER = np.float32(1.5 * 2**23)
"""Added and subtracted again, it rounds to the nearest integer, half to even."""
_PER_LOG2 = np.float32(1.4426950408889634)
# ln 2 in two parts, of which the first has so few digits that its multiples are exact.
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.1219444005469057e-4)
_HALF, _ONE, _ZERO = np.float32(0.5), np.float32(1), np.float32(0)
# Taylor's polynomial of exp from the third power on, its rest spread evenly over |r| <= ln 2 / 2.
_C3, _C4 = np.float32(0.16666665459), np.float32(0.041665795894)
_C5, _C6 = np.float32(8.3334519073e-3), np.float32(1.3981999507e-3)
_C7 = np.float32(1.9875691500e-4)
_BIAS, _MANTISSA = np.int32(127), np.int32(23)


@compiled
def normalise_into(
    image: NDArray[Any], valid: NDArray[np.bool_], mean: Row, std: Row, out: NDArray[np.float32]
) -> None:
    """Write (image - mean) / std into ``out``, and 0 (the mean) where nothing was measured.

    Args:
        image: (C, H, W), any real dtype.
        valid: (H, W).
        mean: (C,) float32.
        std: (C,) float32, > 0.
        out: (H, W, C) float32.
    """
    for row in range(image.shape[1]):
        for band in range(image.shape[0]):
            for col in range(image.shape[2]):
                value = (np.float32(image[band, row, col]) - mean[band]) / std[band]
                out[row, col, band] = value if valid[row, col] else _ZERO


@compiled
def add_window(
    logits: NDArray[np.float32],
    origin: tuple[int, int],
    weights: tuple[Row, Row],
    final: tuple[int, int],
    left: NDArray[np.float32],
    left_cols: int,
    below: NDArray[np.float32],
    below_rows: int,
    valid: NDArray[np.bool_],
    strip: NDArray[np.uint8],
) -> None:
    """Add a window's weighted probabilities to its neighbours', and decide what is complete.

    The part of the window that has a say is n rows by m columns. Of these, the pixels of the first
    ``final`` rows and columns are complete and go into ``strip``. The columns beyond are left to
    the right neighbour, the rows beyond to the lower one.

    Args:
        logits: (K, S, S), of the whole window.
        origin: row and column of the window where it begins to have a say.
        weights: (n,) and (m,), of those rows and columns.
        final: how many of those rows and columns no later window touches.
        left: (K, at least n, …): what the left neighbour has left; what this one leaves.
        left_cols: columns of it that hold something.
        below: (K, …, final columns): what the windows above have left; what this one leaves.
        below_rows: rows of it that hold something.
        valid: (S, S), of the whole window; other pixels become 255.
        strip: (L, final rows, final columns), filled: class index (of equal probabilities the
            lowest) and, 0 to 254 for 0 to 1, the winner's probability if L is 2, or that of every
            class if L is 1 + K.
    """
    rows, cols = len(weights[0]), len(weights[1])
    shares = np.empty((logits.shape[0], cols), np.float32)
    scale, best = np.empty(cols, np.float32), np.empty(cols, np.float32)
    for row in range(rows):
        _softmax(logits[:, origin[0] + row, origin[1] : origin[1] + cols], shares, scale)
        for col in range(cols):
            scale[col] = weights[0][row] * weights[1][col] / scale[col]
        _weigh(shares, scale)
        _take_over(shares, left[:, row], left_cols, final[1])
        if row < below_rows:
            _add(shares, below[:, row], final[1])
        if row >= final[0]:
            _keep(shares, below[:, row - final[0]], final[1])
        else:
            _decide(shares, best, valid[origin[0] + row, origin[1] :], strip[:, row], final[1])


@compiled
def _softmax(logits: NDArray[np.float32], shares: NDArray[np.float32], total: Row) -> None:
    """Write exp(logits - the greatest of a pixel), and their sum."""
    count, cols = shares.shape
    for col in range(cols):
        total[col] = logits[0, col]
    for k in range(count):
        for col in range(cols):
            value = logits[k, col]
            shares[k, col] = value
            total[col] = value if value > total[col] else total[col]
    for k in range(count):
        for col in range(cols):
            shares[k, col] -= total[col]
        _exponential(shares[k])
    for col in range(cols):
        total[col] = shares[0, col]
    for k in range(1, count):
        for col in range(cols):
            total[col] += shares[k, col]


@compiled
def _exponential(values: Row) -> None:
    """Replace values <= 0 by their exponentials, to a relative error of 1e-7 (after Cephes)."""
    for i in range(len(values)):
        value = values[i] if values[i] > _LEAST else _LEAST
        power = (value * _PER_LOG2 + _TO_INTEGER) - _TO_INTEGER
        rest = (value - power * _LN2_HIGH) - power * _LN2_LOW
        sums = ((((_C7 * rest + _C6) * rest + _C5) * rest + _C4) * rest + _C3) * rest + _HALF
        mantissa = sums * (rest * rest) + rest + _ONE
        exponent = np.int32((np.int32(power) + _BIAS) << _MANTISSA)
        values[i] = mantissa * exponent.view(np.float32)


@compiled
def _weigh(shares: NDArray[np.float32], scale: Row) -> None:
    for k in range(shares.shape[0]):
        for col in range(shares.shape[1]):
            shares[k, col] *= scale[col]


@compiled
def _take_over(
    shares: NDArray[np.float32], left: NDArray[np.float32], left_cols: int, final: int
) -> None:
    """Add what the left neighbour has left, and leave what the right one shares."""
    for k in range(shares.shape[0]):
        for col in range(left_cols):
            shares[k, col] += left[k, col]
        for col in range(final, shares.shape[1]):
            left[k, col - final] = shares[k, col]


@compiled
def _add(shares: NDArray[np.float32], more: NDArray[np.float32], cols: int) -> None:
    for k in range(shares.shape[0]):
        for col in range(cols):
            shares[k, col] += more[k, col]


@compiled
def _keep(shares: NDArray[np.float32], kept: NDArray[np.float32], cols: int) -> None:
    for k in range(shares.shape[0]):
        for col in range(cols):
            kept[k, col] = shares[k, col]


@compiled
def _decide(
    shares: NDArray[np.float32],
    best: Row,
    valid: NDArray[np.bool_],
    layers: NDArray[np.uint8],
    cols: int,
) -> None:
    """Fill a row of the strip, (L, cols)."""
    for col in range(cols):
        best[col] = shares[0, col]
        layers[0, col] = 0
    for k in range(1, shares.shape[0]):
        for col in range(cols):
            better = shares[k, col] > best[col]
            layers[0, col] = k if better else layers[0, col]
            best[col] = shares[k, col] if better else best[col]
    if len(layers) == 2:
        _quantise(best, layers[1], cols)
    elif len(layers) > 2:
        for k in range(shares.shape[0]):
            _quantise(shares[k], layers[1 + k], cols)
    for layer in range(len(layers)):
        for col in range(cols):
            layers[layer, col] = layers[layer, col] if valid[col] else 255


@compiled
def _quantise(shares: Row, layer: NDArray[np.uint8], cols: int) -> None:
    for col in range(cols):
        share = shares[col] if shares[col] < _ONE else _ONE
        share = share if share > _ZERO else _ZERO
        layer[col] = np.uint8(np.int32((share * np.float32(254) + _TO_INTEGER) - _TO_INTEGER))
