"""Estimates from stratified samples: a published example, hand-made edges, and 1,000 samples."""

import numpy as np
import pytest
from affine import Affine
from pyproj import CRS

from rsseg.grid import Grid
from rsseg.io.ground import row_areas
from rsseg.ops.accuracy import estimate_accuracy
from rsseg.ops.sampling import allocate, draw

# Olofsson et al. (2014), table 8: deforestation, forest gain, stable forest, stable non-forest.
COUNTS = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
PIXELS = np.array([200_000, 150_000, 3_200_000, 6_450_000])
PIXEL_HA = 0.09


@pytest.fixture
def published():
    return estimate_accuracy(COUNTS, PIXELS.astype(float))


# --- The example of the paper --------------------------------------------------------------------


def test_published_proportions(published):
    assert published.proportions.round(4).tolist() == [
        [0.0176, 0, 0.0013, 0.0011],
        [0, 0.0110, 0.0016, 0.0024],
        [0.0019, 0, 0.2967, 0.0213],
        [0.0040, 0.0020, 0.0179, 0.6212],
    ]


def test_published_accuracies(published):
    found = published
    assert found.overall.value.round(2) == 0.95
    assert found.overall.margin.round(2) == 0.02
    assert found.users.value.round(2).tolist() == [0.88, 0.73, 0.93, 0.96]
    assert found.users.margin.round(2).tolist() == [0.07, 0.10, 0.04, 0.02]
    assert found.producers.value.round(2).tolist() == [0.75, 0.85, 0.93, 0.96]
    assert found.producers.margin.round(2).tolist() == [0.21, 0.25, 0.03, 0.02]


def test_published_areas(published):
    shares = published.shares
    assert (shares.value * PIXELS.sum()).round()[0] == 235_086
    assert shares.error.round(4)[0] == 0.0035
    assert (shares.margin * PIXELS.sum()).round()[0] == 68_418
    hectares = PIXELS.sum() * PIXEL_HA
    assert (shares.value * hectares).round().tolist() == [21_158, 11_686, 285_770, 581_386]
    assert (shares.margin * hectares).round().tolist() == [6_158, 3_756, 15_510, 16_282]


def test_the_unit_of_area_does_not_matter(published):
    in_hectares = estimate_accuracy(COUNTS, PIXELS * PIXEL_HA)
    assert in_hectares.producers.error == pytest.approx(published.producers.error)
    assert in_hectares.shares.error == pytest.approx(published.shares.error)


# --- By hand -------------------------------------------------------------------------------------


def test_two_classes_by_hand():
    found = estimate_accuracy(np.array([[8, 2], [1, 9]]), np.array([1.0, 3.0]))
    assert found.proportions == pytest.approx(np.array([[0.2, 0.05], [0.075, 0.675]]))
    assert found.overall.value == pytest.approx(0.875)
    # eq. 5: W1^2 U1 (1 - U1) / (n1 - 1) + W2^2 U2 (1 - U2) / (n2 - 1)
    variance = 0.0625 * 0.16 / 9 + 0.5625 * 0.09 / 9
    assert found.overall.error**2 == pytest.approx(variance)
    assert found.users.error**2 == pytest.approx([0.16 / 9, 0.09 / 9])
    assert found.shares.value == pytest.approx([0.275, 0.725])
    assert found.shares.error**2 == pytest.approx([variance, variance])
    # eq. 7 with areas of 1 and 3: the class is estimated at 1.1
    p1 = 0.8 / 1.1
    first = 1 * (1 - p1) ** 2 * 0.8 * 0.2 / 9 + p1**2 * 9 * 0.1 * 0.9 / 9
    assert found.producers.value[0] == pytest.approx(p1)
    assert found.producers.error[0] ** 2 == pytest.approx(first / 1.1**2)


def test_all_right_has_no_error_and_no_nan():
    found = estimate_accuracy(np.diag([5, 7]), np.array([1.0, 3.0]))
    assert found.overall.value == 1
    for estimate in (found.overall, found.users, found.producers, found.shares):
        assert not estimate.error.any()
    assert found.shares.value.tolist() == [0.25, 0.75]


def test_a_stratum_with_one_point():
    found = estimate_accuracy(np.array([[1, 0], [2, 8]]), np.array([1.0, 3.0]))
    assert found.users.value.tolist() == [1, 0.8]
    assert np.isnan(found.users.error).tolist() == [True, False]
    others = (found.overall, found.producers, found.shares)
    assert all(np.isfinite(one.value).all() and np.isfinite(one.error).all() for one in others)
    assert found.overall.error == pytest.approx(0.75 * np.sqrt(0.16 / 9))


def test_a_class_that_the_map_lacks():
    counts = np.array([[9, 0, 1], [0, 9, 1], [0, 0, 0]])
    found = estimate_accuracy(counts, np.array([1.0, 1.0, 0.0]))
    assert found.shares.value == pytest.approx([0.45, 0.45, 0.1])
    assert found.shares.error[2] > 0
    assert found.producers.value[2] == 0
    assert np.isnan(found.users.value).tolist() == [False, False, True]
    assert found.proportions.sum() == pytest.approx(1)


def test_a_class_that_no_point_is_of():
    found = estimate_accuracy(np.array([[0, 5], [0, 5]]), np.array([1.0, 1.0]))
    assert np.isnan(found.producers.value).tolist() == [True, False]
    assert found.shares.value.tolist() == [0, 1]


def test_many_samples_at_once(published):
    found = estimate_accuracy(np.stack([COUNTS, COUNTS + 1]), PIXELS.astype(float))
    assert found.producers.error[0] == pytest.approx(published.producers.error)
    assert found.overall.value.shape == (2,)


# --- Allocation ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("areas", "sizes", "total", "minimum", "expected"),
    [
        ([1, 1, 2], [1000] * 3, 400, 50, [100, 100, 200]),
        ([1, 1, 98], [1000] * 3, 400, 50, [50, 50, 300]),
        ([1, 10, 89], [1000] * 3, 300, 50, [50, 50, 200]),
        ([1, 1, 98], [1000] * 3, 90, 50, [30, 30, 30]),
        ([1, 1, 98], [1000] * 3, 7, 2, [2, 2, 3]),
        ([1, 1, 98], [3, 1000, 1000], 300, 50, [3, 50, 247]),
        ([1, 0, 1], [1000, 0, 1000], 101, 50, [51, 0, 50]),
        ([1, 2], [4, 5], 100, 50, [4, 5]),
        ([1, 1, 1], [1000] * 3, 10, 2, [4, 3, 3]),
    ],
)
def test_allocation(areas, sizes, total, minimum, expected):
    found = allocate(np.array(areas, float), np.array(sizes), total, minimum)
    assert found.tolist() == expected


def test_the_allocation_of_the_paper():
    # Rounded to fives in the paper's section 5.1.2: 75, 75, 165, 325.
    found = allocate(PIXELS.astype(float), PIXELS, 640, 75)
    assert found.tolist() == [75, 75, 162, 328]


# --- Drawing -------------------------------------------------------------------------------------

ROWS = np.array([0, 3, 0, 5, 2, 0])
"""Pixels of a class in each row."""


def pixels(found):
    return list(zip(*(part.tolist() for part in found), strict=True))


def test_no_pixel_is_drawn_twice():
    for seed in range(50):
        found = pixels(draw(ROWS, np.arange(1.0, 7), 7, np.random.default_rng(seed)))
        assert len(set(found)) == 7
        assert all(0 <= rank < ROWS[row] for row, rank in found)


def test_all_pixels_are_drawn_once():
    found = pixels(draw(ROWS, np.ones(6), 10, np.random.default_rng(1)))
    assert sorted(found) == [(row, rank) for row in range(6) for rank in range(ROWS[row])]


def test_the_seed_decides():
    first, again, other = (
        pixels(draw(ROWS * 1000, np.ones(6), 9, np.random.default_rng(seed))) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_pixels_are_drawn_by_their_area():
    random, times = np.random.default_rng(0), 20_000
    counts, areas = np.array([2, 0, 1, 4]), np.array([1.0, 9.0, 3.0, 0.5])
    found = [pixels(draw(counts, areas, 1, random))[0] for _ in range(times)]
    for row, rank, chance in [(0, 0, 1 / 7), (0, 1, 1 / 7), (2, 0, 3 / 7), (3, 3, 0.5 / 7)]:
        assert found.count((row, rank)) / times == pytest.approx(chance, abs=0.012)


# --- A thousand samples of a map with known truth ------------------------------------------------

K = 4
SIDE = 320


def scene():
    """A map in patches, and a truth that it misses the more often the farther up."""
    random = np.random.default_rng(5)
    patches = random.choice(K, (SIDE // 8, SIDE // 8), p=[0.4, 0.3, 0.2, 0.1])
    mapped = np.kron(patches, np.ones((8, 8), np.int64))
    missed = random.random(mapped.shape) < np.linspace(0.45, 0.05, SIDE)[:, None]
    return mapped, np.where(missed, (mapped + random.integers(1, K, mapped.shape)) % K, mapped)


def samples(mapped, truth, areas, total, repeats, chances=None):
    """Error matrices (repeats, K, K) of samples, and the areas of the classes in the map."""
    counts = np.stack([(mapped == k).sum(axis=1) for k in range(K)], axis=1)
    starts = counts.cumsum(axis=0) - counts
    ordered = [truth[mapped == k] for k in range(K)]
    numbers = allocate(areas @ counts, counts.sum(axis=0), total, 50)
    random = np.random.default_rng(0)
    found = np.zeros((repeats, K, K), np.int64)
    for repeat in range(repeats):
        for k in range(K):
            rows, ranks = draw(
                counts[:, k], areas if chances is None else chances, int(numbers[k]), random
            )
            found[repeat, k] = np.bincount(ordered[k][starts[rows, k] + ranks], minlength=K)
    return found, areas @ counts


def coverages(mapped, truth, areas, found, strata):
    """How often the intervals hold the truth: overall, user's, producer's, areas, (1 + 3 K,)."""
    exact = np.zeros((K, K))
    np.add.at(exact, (mapped, truth), np.broadcast_to(areas[:, None], mapped.shape))
    exact /= exact.sum()
    right = np.diagonal(exact)
    estimates = estimate_accuracy(found, strata)
    pairs = [
        (estimates.overall, right.sum()),
        (estimates.users, right / exact.sum(axis=1)),
        (estimates.producers, right / exact.sum(axis=0)),
        (estimates.shares, exact.sum(axis=0)),
    ]
    held = [np.abs(one.value - true) <= one.margin for one, true in pairs]
    return np.concatenate([np.atleast_1d(one.mean(axis=0)) for one in held])


EQUAL = np.ones(SIDE)
DEGREES = row_areas(
    Grid((SIDE, SIDE), Affine(0.25, 0, 0, 0, -0.25, 80), CRS.from_epsg(4326).to_wkt())
)
"""From the equator to 80 degrees north, where a pixel has a sixth of the area."""


@pytest.mark.parametrize("areas", [EQUAL, DEGREES], ids=["planar", "degrees"])
def test_intervals_hold_the_truth(areas):
    # 250 points of the rarest class: with 50, discreteness costs up to four points of coverage.
    mapped, truth = scene()
    found, strata = samples(mapped, truth, areas, 2400, 1000)
    held = coverages(mapped, truth, areas, found, strata)
    assert held.min() >= 0.93, held
    assert held.max() <= 0.97, held


def test_intervals_would_not_hold_if_pixels_of_unlike_area_had_like_chances():
    mapped, truth = scene()
    found, strata = samples(mapped, truth, DEGREES, 2400, 200, chances=EQUAL)
    assert coverages(mapped, truth, DEGREES, found, strata).min() < 0.8


def test_estimates_are_not_biased():
    mapped, truth = scene()
    found, strata = samples(mapped, truth, DEGREES, 300, 1000)
    estimated = estimate_accuracy(found, strata).shares.value
    weights = np.broadcast_to(DEGREES[:, None], truth.shape)
    exact = np.bincount(truth.ravel(), weights.ravel()) / weights.sum()
    error = estimated.std(axis=0) / np.sqrt(len(estimated))
    assert (np.abs(estimated.mean(axis=0) - exact) < 4 * error).all()
