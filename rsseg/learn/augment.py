"""Augmentation: how training images are cropped, turned, mirrored, recoloured and blurred.

All chance comes from the generator that is given, so that whoever draws it from (seed, epoch,
index) sees the same again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rsseg.bands import Bands
from rsseg.grid import Grid, Window
from rsseg.ops.cam import resized

LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in the brightness of a colour (ITU-R BT.601)."""


@dataclass(frozen=True)
class Crop:
    """A view around a tile: the same for an image and for all that belongs to its pixels.

    Args:
        window: what is read of the scene, a square; it may reach beyond a small raster.
        size: side S of what is shown, pixels; another size than the window's is another scale.
        turns: quarter turns.
        mirrored: whether left and right change places after that.
    """

    window: Window
    size: int
    turns: int = 0
    mirrored: bool = False

    @classmethod
    def centred(cls, core: Window, size: int, grid: Grid) -> Crop:
        """Return the view of the middle of a tile as it is, moved into the raster."""
        return cls(_around(core, size, grid, (0, 0)), size)

    @classmethod
    def draw(
        cls,
        core: Window,
        size: int,
        grid: Grid,
        rng: np.random.Generator,
        resize: tuple[float, ...] = (1.0, 1.0),
    ) -> Crop:
        """Return a view off the tile's middle by up to half a core, turned, mirrored and resized.

        Args:
            core: of the tile.
            size: side S of the view, pixels.
            grid: of the scene.
            rng: where chance comes from.
            resize: smallest and largest scale; all between are as likely.
        """
        scale = 1.0 if resize[0] == resize[1] == 1 else rng.uniform(resize[0], resize[1])
        sides = (core.height, core.width)
        shift = [int(rng.integers(-(side // 2), side // 2 + 1)) for side in sides]
        window = _around(core, max(1, round(size / scale)), grid, (shift[0], shift[1]))
        return cls(window, size, *draw_orientation(rng))

    def image(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """(C, h, w) float32 pixels of the window -> (C, S, S), bilinear."""
        tensor = torch.from_numpy(values)[None]
        shown = resized(tensor, (self.size, self.size), antialias=True)[0].numpy()
        return oriented(shown, self.turns, self.mirrored)

    def marks(self, values: NDArray[Any]) -> NDArray[Any]:
        """(…, h, w) labels or marks of the window's pixels -> (…, S, S), the nearest."""
        side = self.window.height
        if side != self.size:
            nearest = (2 * np.arange(self.size) + 1) * side // (2 * self.size)
            values = values[..., nearest[:, None], nearest]
        return oriented(values, self.turns, self.mirrored)


def _around(core: Window, side: int, grid: Grid, shift: tuple[int, int]) -> Window:
    """Return a square around the middle of a core, moved by a shift and then into the raster."""
    centre = (core.row + core.height // 2, core.col + core.width // 2)
    row, col = (
        min(max(middle - side // 2 + moved, 0), max(length - side, 0))
        for middle, moved, length in zip(centre, shift, grid.shape, strict=True)
    )
    return Window(row, col, side, side)


def draw_orientation(rng: np.random.Generator) -> tuple[int, bool]:
    """Return quarter turns and whether to mirror, for ``oriented``."""
    return int(rng.integers(4)), bool(rng.integers(2))


def oriented(values: NDArray[Any], turns: int, mirrored: bool) -> NDArray[Any]:
    """Turn (…, H, W) by quarter turns and mirror it: from above, no direction is special."""
    turned = np.rot90(values, turns, axes=(-2, -1))
    return turned[..., ::-1] if mirrored else turned


def jittered(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Change brightness and contrast of a normalised (C, H, W) image, a little per band."""
    bands = (len(image), 1, 1)
    gain = rng.uniform(0.8, 1.25) * rng.uniform(0.95, 1.05, bands)
    offset = rng.uniform(-0.25, 0.25) + rng.uniform(-0.08, 0.08, bands)
    return (image * gain + offset).astype(np.float32)


def colour_jittered(
    image: NDArray[np.float32],
    bands: Bands,
    rng: np.random.Generator,
    amount: float = 0.3,
    hue: float = 0.1,
) -> NDArray[np.float32]:
    """Change brightness, contrast, saturation and hue of red, green and blue.

    Args:
        image: (C, H, W) float32, normalised; bands of another colour stay as they are.
        bands: its bands.
        rng: where chance comes from.
        amount: brightness, contrast and saturation are multiplied by 1 - amount to 1 + amount.
        hue: greatest turn of the hue, as a share of the circle.

    Source: the defaults are SAN §4.3's.
    """
    from torchvision.transforms.v2 import functional

    view = _View(bands)
    steps = (
        (functional.adjust_brightness, rng.uniform(1 - amount, 1 + amount)),
        (functional.adjust_contrast, rng.uniform(1 - amount, 1 + amount)),
        (functional.adjust_saturation, rng.uniform(1 - amount, 1 + amount)),
        (functional.adjust_hue, rng.uniform(-hue, hue)),
    )
    colours = torch.from_numpy(view.colours(image))
    for index in rng.permutation(len(steps)):
        change, factor = steps[index]
        colours = change(colours, factor)
    return view.with_colours(image, colours.numpy())


def strengthened(
    image: NDArray[np.float32], bands: Bands, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Return the strong view of an image: jitter at 0.8, grey at 0.2, blur at 0.5 probability.

    Jitter changes brightness, contrast and saturation by up to half and the hue by up to a quarter
    of the circle; bands that are not red, green or blue change in brightness and contrast alone.
    Blur is Gaussian, of 0.1 to 2 pixels standard deviation, and the same in all bands.

    Args:
        image: (C, H, W) float32, normalised.
        bands: its bands.
        rng: where chance comes from.

    Source: UniMatch V2 (Yang et al., 2025), whose frame SemiEarth takes over.
    """
    from scipy.ndimage import gaussian_filter

    coloured = len(set(bands.rgb)) == 3
    if rng.random() < 0.8:
        if coloured:
            image = colour_jittered(image, bands, rng, amount=0.5, hue=0.25)
        image = _tone_jittered(image, set(bands.rgb) if coloured else set(), rng)
    if rng.random() < 0.2 and coloured:
        image = _greyed(image, bands)
    if rng.random() < 0.5:
        width = rng.uniform(0.1, 2.0)
        image = gaussian_filter(image, (0, width, width), truncate=3.0)
    return image


def _tone_jittered(
    image: NDArray[np.float32], kept: set[int], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Change the contrast of each band about its mean, and its brightness, but of those kept.

    Normalised bands have no black to multiply from; half of their standard deviation stands in.
    """
    others = [band for band in range(len(image)) if band not in kept]
    gain, offset = (rng.uniform(*ends, (len(others), 1, 1)) for ends in ((0.5, 1.5), (-0.5, 0.5)))
    mean = image[others].mean(axis=(1, 2), keepdims=True)
    changed = image.copy()
    changed[others] = (image[others] - mean) * gain + mean + offset
    return changed


def _greyed(image: NDArray[np.float32], bands: Bands) -> NDArray[np.float32]:
    """Return the image with its luma in place of red, green and blue."""
    view = _View(bands)
    luma = np.tensordot(np.array(LUMA, np.float32), view.colours(image), axes=1)
    return view.with_colours(image, np.stack([luma] * 3))


class _View:
    """Red, green and blue of normalised images brought to [0, 1], for which colours are defined.

    8-bit values go by their own range, others by that of the 8-bit view.
    """

    def __init__(self, bands: Bands) -> None:
        self._order = list(bands.rgb)
        self._mean, self._std = (
            np.asarray(values, np.float32)[self._order, None, None]
            for values in (bands.mean, bands.std)
        )
        eight_bit = ((0,) * 3, (255,) * 3)
        ends = eight_bit if bands.dtype == "uint8" else (bands.low, bands.high)
        self._low, high = (np.asarray(values, np.float32)[:, None, None] for values in ends)
        self._span = np.maximum(high - self._low, np.float32(1e-12))

    def colours(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """(C, H, W) normalised -> (3, H, W) in [0, 1]."""
        values = (image[self._order] * self._std + self._mean - self._low) / self._span
        return np.asarray(values.clip(0, 1))

    def with_colours(
        self, image: NDArray[np.float32], colours: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return the image with other colours, (3, H, W) in [0, 1]."""
        changed = image.copy()
        changed[self._order] = (colours * self._span + self._low - self._mean) / self._std
        return changed
