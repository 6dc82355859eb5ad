"""A drawn orthophoto with exact truth, and the colour-only control that has to fail on it.

A scene is laid out as land is: roads cut the country into blocks, a block becomes a farm, a town,
a wood or a lake, and blocks are cut again into parcels and lots. Everything is drawn as colour plus
height; one sun then lights roofs and crowns and casts their shadows. The palettes of the classes
overlap on purpose, so that texture, shape and context have to tell the classes apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

CLASS_NAMES = ("building", "road", "field", "tree", "water")
BUILDING, ROAD, FIELD, TREE, WATER = range(len(CLASS_NAMES))

Floats = NDArray[np.float32]
Pixels = NDArray[np.int64]
Mask = NDArray[np.bool_]
Colour = tuple[int, int, int]

# The unit vector (x, y) on the image from an object towards its shadow: a sun in the south-east.
SHADE_X, SHADE_Y = -0.64, -0.77
SHADOW_STEPS = 5

# The share of the land that each kind of block gets; a lake fills about two thirds of its block.
BLOCK_SHARES = {"farm": 0.40, "town": 0.29, "wood": 0.17, "lake": 0.14}
PIXELS_PER_DISTRICT = 470**2
PIXELS_PER_BLOCK = 320**2
PIXELS_PER_PARCEL = 140**2
PIXELS_PER_QUARTER = 165**2
PIXELS_PER_LOT = 60**2

CROWN_TINTS: tuple[Colour, ...] = ((58, 78, 44), (74, 94, 50), (92, 108, 62), (66, 76, 58))
WATER_TINTS: tuple[Colour, ...] = ((58, 72, 54), (84, 98, 68), (84, 94, 92), (118, 108, 84))
ROOF_TINTS: tuple[Colour, ...] = (
    (146, 96, 78),
    (122, 120, 118),
    (126, 102, 82),
    (84, 82, 82),
    (178, 174, 166),
    (150, 130, 106),
)
BANK_TINT: Colour = (128, 120, 88)
MARKING_TINT: Colour = (205, 203, 198)


@dataclass(frozen=True)
class _Surface:
    """What runs along a cut: a road, or the ground of a row of trees; ``width`` in pixels."""

    tint: Colour
    width: int
    marked: bool = False
    kind: int = ROAD


@dataclass(frozen=True)
class _Crop:
    """How a parcel looks: row period in pixels, row and mottle contrast as shares of the tint."""

    tint: Colour
    period: tuple[float, float]
    rows: float
    mottle: float


@dataclass(frozen=True)
class _Plot:
    """A piece of land: flat pixel indices, and the direction (radians) its borders follow."""

    pixels: Pixels
    angle: float


@dataclass(frozen=True)
class _Scene:
    """The canvas, drawn in place: colour (H, W, 3) in [0, 255], height (H, W) in pixels and truth.

    ``x`` and ``y`` are bent coordinates in pixels; ``swell``, ``mottle`` and ``grain`` are noise
    whose bumps are 45, 14 and 2 pixels apart; all (H, W).
    """

    rng: np.random.Generator
    x: Floats
    y: Floats
    swell: Floats
    mottle: Floats
    grain: Floats
    colour: Floats
    height: Floats
    truth: NDArray[np.uint8]


HIGHWAYS = (
    _Surface((112, 112, 113), 16, marked=True),
    _Surface((134, 132, 128), 14),
    _Surface((98, 98, 101), 15, marked=True),
)
TRACKS = (None, None, None, _Surface((158, 138, 110), 11), _Surface((136, 114, 90), 11))
STREETS = (
    _Surface((120, 119, 118), 13),
    _Surface((100, 100, 102), 13),
    _Surface((146, 142, 134), 13),
)
FOREST_FLOOR: Colour = (50, 66, 38)
BORDERS = (*[None] * 19, _Surface(FOREST_FLOOR, 16, kind=TREE))
CROPS = (
    _Crop((82, 106, 58), (5.0, 8.0), 0.16, 0.05),
    _Crop((66, 88, 50), (6.0, 9.0), 0.20, 0.05),
    _Crop((106, 122, 72), (11.0, 15.0), 0.09, 0.08),
    _Crop((178, 160, 112), (7.0, 11.0), 0.10, 0.04),
    _Crop((122, 100, 76), (5.0, 8.0), 0.14, 0.06),
    _Crop((156, 136, 110), (6.0, 9.0), 0.12, 0.06),
    _Crop((96, 84, 70), (6.0, 10.0), 0.18, 0.06),
)
MEADOW = _Crop((98, 114, 66), (12.0, 16.0), 0.06, 0.10)


def draw_orthophoto(
    size: int | tuple[int, int], seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw a countryside with towns as seen from above, at an imagined 0.3 m per pixel.

    Args:
        size: side, or (height, width), in pixels, at least 2. Every class gets its share, and
            colour alone fails, from about 1024 on; smaller pictures may hold too few blocks.
        seed: equal seeds and sizes give equal pictures.

    Returns:
        The image (3, H, W) uint8 in [0, 255] and its truth (H, W) uint8, ids of ``CLASS_NAMES``;
        every pixel has a class, and a cast shadow has the class of the ground it falls on.
    """
    shape = (size, size) if isinstance(size, int) else size
    scene = _blank(shape, np.random.default_rng(seed))
    country = _Plot(np.arange(scene.truth.size), scene.rng.uniform(0, np.pi))
    districts = _split(scene, country, PIXELS_PER_DISTRICT, HIGHWAYS)
    river = _river(scene, country.angle)
    blocks = [
        block
        for district in districts
        for block in _split(scene, _without(district, river), PIXELS_PER_BLOCK, TRACKS)
    ]
    _settle(scene, blocks, river)
    return _expose(scene), scene.truth


def gaussian_classifier(image: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Classify each pixel by its colour alone, with one Gaussian per class fitted on the truth.

    Quadratic discriminant analysis with full covariances and class priors: the best that a
    per-pixel Gaussian model can do, as it has seen the answers.

    Args:
        image: (C, H, W) uint8.
        truth: (H, W) uint8, any class ids.

    Returns:
        (H, W) uint8, the most probable class id of each pixel.
    """
    colours = image.reshape(len(image), -1).astype(np.float64)
    ids = np.unique(truth)
    scores = [_log_posterior(colours, truth.ravel() == i) for i in ids]
    best: NDArray[np.uint8] = ids[np.argmax(scores, axis=0)]
    return best.reshape(truth.shape)


def _log_posterior(colours: NDArray[np.float64], members: Mask) -> NDArray[np.float64]:
    """Log of prior times Gaussian density, up to a constant, for (C, N) colours -> (N,)."""
    own = colours[:, members]
    mean = own.mean(axis=1, keepdims=True)
    # A unit of variance keeps a class of one flat colour invertible.
    covariance = (own - mean) @ (own - mean).T / own.shape[1] + np.eye(len(colours))
    centred = colours - mean
    distance = np.einsum("cn,cn->n", centred, np.linalg.solve(covariance, centred))
    prior = np.log(members.mean()) - 0.5 * np.linalg.slogdet(covariance)[1]
    return np.asarray(prior - 0.5 * distance, dtype=np.float64)


# ---------------------------------------------------------------- canvas


def _blank(shape: tuple[int, int], rng: np.random.Generator) -> _Scene:
    """An empty scene whose coordinates are bent, so that straight cuts come out as curves."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    return _Scene(
        rng=rng,
        x=x + 26 * _noise(shape, 170, rng),
        y=y + 26 * _noise(shape, 170, rng),
        swell=_noise(shape, 45, rng),
        mottle=_noise(shape, 14, rng),
        grain=_noise(shape, 2, rng),
        colour=np.zeros((*shape, 3), np.float32),
        height=np.zeros(shape, np.float32),
        truth=np.full(shape, FIELD, np.uint8),
    )


def _noise(shape: tuple[int, int], scale: int, rng: np.random.Generator) -> Floats:
    """Smooth noise (H, W), deviation about 0.7, with bumps about ``scale`` pixels apart."""
    coarse = rng.standard_normal((shape[0] // scale + 4, shape[1] // scale + 4)).astype(np.float32)
    down, right = (np.arange(n, dtype=np.float32) / np.float32(scale) + 1 for n in shape)
    smooth = _interpolate(_interpolate(coarse, down, axis=0), right, axis=1)
    # The splines leave about half of the coarse noise's deviation.
    return smooth * np.float32(1.5)


def _interpolate(values: Floats, at: Floats, axis: int) -> Floats:
    """Cubic B-spline smoothing of ``values`` at fractional indices ``at`` along one axis."""
    base = np.floor(at).astype(np.int64)
    t = at - base
    weights = (
        (1 - t) ** 3 / 6,
        (3 * t**3 - 6 * t**2 + 4) / 6,
        (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
        t**3 / 6,
    )
    along = (-1, 1) if axis == 0 else (1, -1)
    taps = zip(weights, range(-1, 3), strict=True)
    return np.asarray(
        sum(w.reshape(along) * np.take(values, base + k, axis=axis) for w, k in taps),
        dtype=np.float32,
    )


# ---------------------------------------------------------------- layout


def _split(
    scene: _Scene, plot: _Plot, area: int, surfaces: Sequence[_Surface | None] = (None,)
) -> list[_Plot]:
    """Cut a plot until no part has more than ``area`` pixels.

    Along each cut runs one of ``surfaces``, drawn at random; None leaves a plain border.
    """
    if plot.pixels.size <= area:
        return [plot] if plot.pixels.size else []
    surface = surfaces[int(scene.rng.integers(len(surfaces)))]
    halves = _cut(scene, plot, surface)
    return [part for half in halves for part in _split(scene, half, area, surfaces)]


def _cut(scene: _Scene, plot: _Plot, surface: _Surface | None) -> tuple[_Plot, _Plot]:
    """Cut a plot across its longer side; the road's own pixels belong to neither half."""
    u, v = _along(scene, plot.pixels, plot.angle)
    turn = 0.0 if np.ptp(u) >= np.ptp(v) else np.pi / 2
    angle = plot.angle + turn + scene.rng.normal(0, 0.07)
    across, lengthwise = _along(scene, plot.pixels, angle)
    offset = across - np.quantile(across, scene.rng.uniform(0.4, 0.6))
    margin = 0.0
    if surface is not None:
        margin = surface.width / 2
        strip = np.abs(offset) <= margin
        _pave(scene, surface, plot.pixels[strip], offset[strip], lengthwise[strip])
    return (
        _Plot(plot.pixels[offset < -margin], angle),
        _Plot(plot.pixels[offset > margin], angle),
    )


def _along(scene: _Scene, pixels: Pixels, angle: float) -> tuple[Floats, Floats]:
    """Warped coordinates of pixels along ``angle`` and at right angles to it."""
    x, y = scene.x.ravel()[pixels], scene.y.ravel()[pixels]
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * c + y * s, y * c - x * s


def _without(plot: _Plot, mask: Mask) -> _Plot:
    """The plot less the pixels of a mask (H, W)."""
    return _Plot(plot.pixels[~mask.ravel()[plot.pixels]], plot.angle)


def _settle(scene: _Scene, blocks: list[_Plot], river: Mask) -> None:
    """Give every block its use and draw it: ground first, then what stands on it."""
    waters = [np.flatnonzero(river)]
    lots: list[_Plot] = []
    for block, kind in zip(blocks, _allot(scene, blocks), strict=True):
        if kind == "town":
            for quarter in _split(scene, block, PIXELS_PER_QUARTER, STREETS):
                lots += _split(scene, quarter, PIXELS_PER_LOT)
        elif kind == "wood":
            _wood(scene, block.pixels)
        else:
            _farm(scene, block)
        if kind == "lake":
            waters.append(_basin(scene, block, 15))
    _flood(scene, waters)
    for lot in lots:
        _build_up(scene, lot)
    _plant(scene)


def _allot(scene: _Scene, blocks: Sequence[_Plot]) -> list[str]:
    """A kind for each block: always the kind that is furthest behind its share of the land."""
    land = sum(block.pixels.size for block in blocks)
    owed = {kind: share * land for kind, share in BLOCK_SHARES.items()}
    kinds = [""] * len(blocks)
    for i in scene.rng.permutation(len(blocks)):
        kinds[i] = max(owed, key=lambda kind: owed[kind])
        owed[kinds[i]] -= blocks[i].pixels.size
    return kinds


def _basin(scene: _Scene, plot: _Plot, rim: float) -> Pixels:
    """The pixels of a plot further than about ``rim`` from its border, with a wavy outline."""
    rows, cols = np.unravel_index(plot.pixels, scene.truth.shape)
    top, left = rows.min(), cols.min()
    inside = np.zeros((np.ptp(rows) + 3, np.ptp(cols) + 3), bool)
    inside[rows - top + 1, cols - left + 1] = True
    # Smoothing the distance rounds off the corners of the block.
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(inside), rim / 2)
    wave = 0.35 * rim * scene.swell.ravel()[plot.pixels]
    keep: Mask = depth[rows - top + 1, cols - left + 1] + wave > rim
    return plot.pixels[keep]


# ---------------------------------------------------------------- ground


def _floats(tint: Colour) -> Floats:
    """A colour as an array (3,)."""
    return np.asarray(tint, np.float32)


def _tinted(scene: _Scene, tint: Colour, spread: float = 5.0) -> Floats:
    """A colour (3,) near ``tint``: lighter or darker, and a little off in hue."""
    shift = scene.rng.normal(0, spread) + scene.rng.normal(0, spread / 3, 3)
    return (np.asarray(tint) + shift).astype(np.float32)


def _paint(scene: _Scene, pixels: Pixels, tint: Floats, tone: Floats) -> None:
    """Colour pixels with a tint (3,), or one each (N, 3), times a tone (N,) around one."""
    scene.colour.reshape(-1, 3)[pixels] = tint * tone[:, None]


def _pave(
    scene: _Scene, surface: _Surface, pixels: Pixels, offset: Floats, lengthwise: Floats
) -> None:
    """Lay a strip along a cut: wheel tracks, and dashes in the middle where it is marked."""
    wheels = 0.05 * np.cos(offset * np.float32(4 * np.pi / surface.width))
    tone = 1 - wheels + 0.03 * scene.mottle.ravel()[pixels]
    _paint(scene, pixels, _tinted(scene, surface.tint), tone)
    scene.truth.ravel()[pixels] = surface.kind
    if surface.marked:
        dash = pixels[(np.abs(offset) < 0.9) & (lengthwise % 26 < 11)]
        scene.colour.reshape(-1, 3)[dash] = MARKING_TINT


def _farm(scene: _Scene, block: _Plot) -> None:
    """Cut a block into parcels, each under its own crop."""
    for parcel in _split(scene, block, PIXELS_PER_PARCEL, BORDERS):
        _sow(scene, parcel, CROPS[scene.rng.integers(len(CROPS))])


def _sow(scene: _Scene, parcel: _Plot, crop: _Crop) -> None:
    """Draw a parcel: rows that run along its borders, tramlines, mottled growth."""
    rng = scene.rng
    turn = rng.choice([0.0, np.pi / 2]) + rng.normal(0, 0.05)
    across, _ = _along(scene, parcel.pixels, parcel.angle + turn)
    rows = np.sin(across * np.float32(2 * np.pi / rng.uniform(*crop.period)))
    tramline = (across % 48 < 2.5) | ((across - 7) % 48 < 2.5)
    growth = scene.mottle.ravel()[parcel.pixels]
    contrast = crop.rows * rng.uniform(0.6, 1.1)
    tone = 1 + contrast * rows + crop.mottle * growth - 0.08 * tramline
    _paint(scene, parcel.pixels, _tinted(scene, crop.tint, 8), tone.astype(np.float32))


def _river(scene: _Scene, angle: float) -> Mask:
    """A winding river (H, W) aslant to the roads, which bridge it."""
    rng = scene.rng
    everywhere = np.arange(scene.truth.size)
    slant = angle + rng.choice([-1, 1]) * rng.uniform(0.6, 0.95)
    across, lengthwise = _along(scene, everywhere, slant)
    bend = 34 * np.sin(lengthwise / 95 + rng.uniform(0, 6)) + 4 * scene.swell.ravel()
    offset = across + bend - np.quantile(across, rng.uniform(0.35, 0.65))
    wet = (np.abs(offset) < rng.uniform(20, 27)) & (scene.truth.ravel() != ROAD)
    return np.asarray(wet.reshape(scene.truth.shape), dtype=np.bool_)


def _flood(scene: _Scene, bodies: list[Pixels]) -> None:
    """Fill water bodies, each of a colour of its own, and give them banks."""
    for body in bodies:
        scene.truth.ravel()[body] = WATER
    wet = scene.truth == WATER
    depth = np.minimum(ndimage.distance_transform_edt(wet) / 9, 1).astype(np.float32).ravel()
    # Neighbouring waters differ, or a small scene's water would be told by its colour.
    order = scene.rng.permutation(len(WATER_TINTS))
    for i, body in enumerate(bodies):
        clear, silty = (WATER_TINTS[order[(i + k) % len(order)]] for k in (0, 1))
        _fill(scene, body, depth[body], (clear, silty))
    _raise_banks(scene, wet)


def _fill(scene: _Scene, body: Pixels, depth: Floats, tints: tuple[Colour, Colour]) -> None:
    """Colour one water body: drifts of silt, paler shallows (``depth`` in [0, 1]), faint glint."""
    clear, silty = (_tinted(scene, tint, 4) for tint in tints)
    swell = scene.swell.ravel()[body]
    silt = np.clip(0.25 + 0.3 * swell, 0, 1)[:, None]
    mix = (0.72 + 0.28 * depth)[:, None]
    tint = mix * (silt * silty + (1 - silt) * clear) + (1 - mix) * _floats(BANK_TINT)
    _paint(scene, body, tint, 1 + 0.25 * np.maximum(swell - 1.4, 0))


def _raise_banks(scene: _Scene, wet: Mask) -> None:
    """A sandy strip that fades into the land around the water."""
    away = ndimage.distance_transform_edt(~wet).astype(np.float32)
    near = np.flatnonzero((away > 0) & (away < 6) & (scene.truth == FIELD))
    mix = (away.ravel()[near] / 6)[:, None]
    land = scene.colour.reshape(-1, 3)
    land[near] = mix * land[near] + (1 - mix) * _floats(BANK_TINT)


# ---------------------------------------------------------------- buildings


def _build_up(scene: _Scene, lot: _Plot) -> None:
    """Put a house in a garden full of trees on a lot, or leave it as a lawn."""
    _sow(scene, lot, MEADOW)
    if scene.rng.random() < 0.08:
        return
    sides = [float(np.ptp(side)) for side in _along(scene, lot.pixels, lot.angle)]
    for share in (0.78, 0.7, 0.62, 0.54):
        if _roof(scene, lot, (sides[0] * share / 2, sides[1] * share / 2)):
            break
    _wood(scene, lot.pixels[scene.truth.ravel()[lot.pixels] == FIELD])


def _roof(scene: _Scene, lot: _Plot, half: tuple[float, float]) -> bool:
    """Draw a roof of half sides ``half`` in the middle of a lot, unless it would leave the land."""
    height, width = scene.truth.shape
    rows, cols = np.unravel_index(lot.pixels, (height, width))
    cy, cx = round(rows.mean()), round(cols.mean())
    reach = int(np.hypot(*half)) + 1
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    c, s = np.float32(np.cos(lot.angle)), np.float32(np.sin(lot.angle))
    u, v = dx * c + dy * s, dy * c - dx * s
    cover = (np.abs(u) <= half[0]) & (np.abs(v) <= half[1])
    y, x = (cy + dy[cover]).astype(np.int64), (cx + dx[cover]).astype(np.int64)
    inside = (y >= 0) & (x >= 0) & (y < height) & (x < width)
    pixels = (y * width + x)[inside]
    if (scene.truth.ravel()[pixels] != FIELD).any():
        return False
    _cover(scene, pixels, u[cover][inside], v[cover][inside], half)
    return True


def _cover(scene: _Scene, pixels: Pixels, u: Floats, v: Floats, half: tuple[float, float]) -> None:
    """Colour a roof and raise it; ``u`` and ``v`` (N,) are measured from its middle."""
    gabled = scene.rng.random() < 0.7
    tone, rise = _gable(v, half[1]) if gabled else _flat(scene.rng, u, v, half)
    tint = _tinted(scene, ROOF_TINTS[scene.rng.integers(len(ROOF_TINTS))], 6)
    _paint(scene, pixels, tint, tone)
    scene.height.ravel()[pixels] = 4.5 + rise
    scene.truth.ravel()[pixels] = BUILDING


def _gable(v: Floats, half: float) -> tuple[Floats, Floats]:
    """Tone and rise (N,) of a gabled roof: courses of tiles up to a bright ridge along v = 0."""
    away = np.abs(v)
    tone = 1 + 0.04 * np.sin(v * np.float32(2 * np.pi / 4)) + 0.1 * (away < 1)
    return tone.astype(np.float32), (0.5 * (half - away)).astype(np.float32)


def _flat(
    rng: np.random.Generator, u: Floats, v: Floats, half: tuple[float, float]
) -> tuple[Floats, Floats]:
    """Tone and rise (N,) of a flat roof: a parapet all around and two boxes on top."""
    parapet = (half[0] - np.abs(u) < 1.5) | (half[1] - np.abs(v) < 1.5)
    tone, rise = 1 + 0.07 * parapet, 0.8 * parapet
    for _ in range(2):
        at = rng.uniform(-0.65, 0.65, 2) * half
        box = (np.abs(u - at[0]) < rng.uniform(1.5, 3)) & (np.abs(v - at[1]) < 2)
        rise = np.where(box, 2.0, rise)
    return tone.astype(np.float32), rise.astype(np.float32)


# ---------------------------------------------------------------- trees


def _wood(scene: _Scene, pixels: Pixels) -> None:
    """Turn land into the shaded undergrowth that trees will stand on."""
    tone = 0.95 + 0.12 * scene.grain.ravel()[pixels]
    _paint(scene, pixels, _floats(FOREST_FLOOR), tone)
    scene.truth.ravel()[pixels] = TREE


def _plant(scene: _Scene) -> None:
    """Cover the woods and gardens with crowns, and scatter a few trees over the fields."""
    rng, shape = scene.rng, scene.truth.shape
    stands = _noise(shape, 120, rng)
    room = ndimage.distance_transform_edt(scene.truth == TREE) + 2
    # Few of these sites stand, as most lie between the points of the scatter.
    lone = (scene.truth == FIELD) & (rng.random(shape) < 0.002)
    room[lone] = 12
    for cy, cx in _scatter(shape, 9, rng):
        if room[cy, cx] > 2:
            stand = int(stands[cy, cx] * 2 + rng.normal(0, 0.8)) % len(CROWN_TINTS)
            radius = min(rng.uniform(6, 10), room[cy, cx])
            _crown(scene, cy, cx, radius, _tinted(scene, CROWN_TINTS[stand], 5))


def _scatter(shape: tuple[int, int], step: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows and columns (N, 2) of points on a jittered grid, in random order."""
    grid = step * np.indices([-(-n // step) for n in shape]).reshape(2, -1).T
    points = grid + rng.integers(0, step, grid.shape)
    inside = (points < np.asarray(shape)).all(axis=1)
    return rng.permutation(points[inside].astype(np.int64))


def _crown(scene: _Scene, cy: int, cx: int, radius: float, tint: Floats) -> None:
    """Raise one crown, a leafy dome, wherever nothing higher and no roof stands."""
    reach = int(radius) + 2
    height, width = scene.truth.shape
    rows = slice(max(cy - reach, 0), min(cy + reach + 1, height))
    window = rows, slice(max(cx - reach, 0), min(cx + reach + 1, width))
    y, x = np.ogrid[window]
    grain = scene.grain[window]
    rise = 1 - ((y - cy) ** 2 + (x - cx) ** 2) / radius**2 + 0.12 * grain
    dome = np.where(rise > 0, 1.5 + 0.6 * radius * rise, 0).astype(np.float32)
    seen = (dome > scene.height[window]) & (scene.truth[window] != BUILDING)
    scene.colour[window][seen] = tint * (1 + 0.08 * grain[seen])[:, None]
    scene.height[window][seen] = dome[seen]
    scene.truth[window][seen] = TREE


# ---------------------------------------------------------------- light and camera


def _expose(scene: _Scene) -> NDArray[np.uint8]:
    """Light the scene and photograph it: (3, H, W) uint8."""
    rng, shape = scene.rng, scene.truth.shape
    light = _relief(scene.height) * _shadow(scene.height) * _haze(shape, rng)
    bands = np.moveaxis(scene.colour, -1, 0) * light
    blurred = np.stack([ndimage.gaussian_filter(band, 0.7) for band in bands])
    noisy = blurred + 3 * rng.standard_normal(blurred.shape, dtype=np.float32)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def _relief(height: Floats) -> Floats:
    """Brightness (H, W) of slopes: above one towards the sun, below one away from it."""
    down, right = np.gradient(height)
    facing = np.clip(right * SHADE_X + down * SHADE_Y, -1.1, 1.1)
    return np.asarray(1 + 0.42 * facing, dtype=np.float32)


def _shadow(height: Floats) -> Floats:
    """Brightness (H, W) under cast shadows, at most ``SHADOW_STEPS`` pixels long."""
    rows, cols = height.shape
    around = np.pad(height, SHADOW_STEPS)
    dark = np.zeros(height.shape, bool)
    for step in range(1, SHADOW_STEPS + 1):
        # The caster stands against the shadow's direction.
        top = SHADOW_STEPS - round(step * SHADE_Y)
        left = SHADOW_STEPS - round(step * SHADE_X)
        dark |= around[top : top + rows, left : left + cols] - height > 1.1 * step
    return np.where(dark, np.float32(0.62), np.float32(1))


def _haze(shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Uneven illumination (H, W): a slope over the whole picture and slow patches."""
    y, x = np.ogrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    slope = x * rng.uniform(-0.07, 0.07) + y * rng.uniform(-0.07, 0.07)
    return np.asarray(1 + slope + 0.025 * _noise(shape, 300, rng), dtype=np.float32)
