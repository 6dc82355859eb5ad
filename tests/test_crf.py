import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from rsseg.api import pseudo_label
from rsseg.config import CrfConfig, Settings
from rsseg.errors import InputError
from rsseg.ops.crf import dense_crf
from rsseg.ops.permutohedral import Lattice
from rsseg.stages import crf as stage

ENGINES = ("torch", "pydensecrf")

PARAMETERS = {
    "iterations": 10,
    "gaussian_sxy": 3.0,
    "gaussian_compat": 3.0,
    "bilateral_sxy": 50.0,
    "bilateral_srgb": 13.0,
    "bilateral_compat": 10.0,
}


@pytest.fixture(scope="module", params=ENGINES)
def crf(request):
    return crf_by(request.param)


def crf_by(engine):
    def crf(scores, image, valid=None, **changes):
        settings = {**PARAMETERS, "engine": engine, **changes}
        return dense_crf(scores, image, **settings, valid=valid)

    return crf


def random_image(seed, shape=(24, 20)):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def random_scores(seed, classes=3, shape=(24, 20)):
    return np.random.default_rng(seed).random((classes, *shape), dtype=np.float32)


def two_tone(size=64):
    """An image of two greys with a vertical edge, and the class on each side of it."""
    truth = np.zeros((size, size), np.uint8)
    truth[:, size // 2 :] = 1
    image = np.where(truth, 190, 70).astype(np.uint8)[..., None].repeat(3, axis=2)
    return image, truth


def one_hot(labels, classes=2, certainty=0.7):
    hot = labels == np.arange(classes)[:, None, None]
    return np.where(hot, certainty, (1 - certainty) / (classes - 1)).astype(np.float32)


@pytest.mark.parametrize(
    "nothing", [{"iterations": 0}, {"gaussian_compat": 0, "bilateral_compat": 0}]
)
def test_without_a_step_or_a_kernel_scores_are_only_normalised(crf, nothing):
    scores = random_scores(0)
    posterior = crf(scores, random_image(0), **nothing)
    assert posterior.dtype == np.float32
    assert np.array_equal(posterior, scores / scores.sum(axis=0))


@given(seed=st.integers(0, 50), winner=st.integers(0, 2))
@settings(deadline=None, max_examples=15)
def test_constant_scores_keep_their_argmax_on_any_image(crf, seed, winner):
    scores = np.full((3, 24, 20), 0.2, np.float32)
    scores[winner] = 0.5
    assert (crf(scores, random_image(seed)).argmax(axis=0) == winner).all()


def test_label_noise_snaps_to_the_edge_of_a_two_tone_image(crf):
    image, truth = two_tone()
    noise = np.random.default_rng(0).random(truth.shape) < 0.2
    posterior = crf(one_hot(truth ^ noise), image)
    assert np.array_equal(posterior.argmax(axis=0), truth)


def test_a_blob_beside_the_edge_snaps_to_it(crf):
    image, truth = two_tone()
    shifted = np.roll(truth, 5, axis=1)
    shifted[:, :5] = 0
    assert np.array_equal(crf(one_hot(shifted), image).argmax(axis=0), truth)


@given(order=st.permutations(range(4)))
@settings(deadline=None, max_examples=10)
def test_permuting_classes_commutes(crf, order):
    scores, image = random_scores(1, classes=4), two_tone(20)[0]
    scores = scores[:, :20]
    permuted = crf(scores[order], image, iterations=3)
    assert permuted == pytest.approx(crf(scores, image, iterations=3)[order], abs=1e-4)


def test_posterior_sums_to_one(crf):
    posterior = crf(random_scores(2), random_image(2))
    assert posterior.sum(axis=0) == pytest.approx(1, abs=1e-5)
    assert posterior.min() >= 0


def test_a_class_without_scores_never_gets_any(crf):
    scores = random_scores(3)
    scores[1] = 0
    posterior = crf(scores, random_image(3))
    assert not posterior[1].any()
    others = crf(scores[[0, 2]], random_image(3))
    assert np.array_equal(posterior[[0, 2]], others)


def test_pixels_without_scores_start_undecided_between_the_present_classes(crf):
    scores = random_scores(4)
    scores[2] = 0
    scores[:, 5, 5] = 0
    assert crf(scores, random_image(4), iterations=0)[:, 5, 5].tolist() == [0.5, 0.5, 0]


def test_scores_of_0_everywhere_stay_undecided(crf):
    posterior = crf(np.zeros((4, 8, 8), np.float32), random_image(0, (8, 8)))
    assert posterior == pytest.approx(0.25)


def test_one_class_alone_is_certain(crf):
    assert (crf(random_scores(5, classes=1), random_image(5)) == 1).all()


def test_invalid_pixels_have_no_say(crf):
    image, truth = two_tone(32)
    valid = np.ones(truth.shape, np.bool_)
    valid[10:20, 8:24] = False
    scores = one_hot(truth)
    changed, repainted = scores.copy(), image.copy()
    changed[:, ~valid] = scores[::-1, ~valid]
    repainted[~valid] = 0
    posterior, other = crf(scores, image, valid), crf(changed, repainted, valid)
    assert np.array_equal(posterior[:, valid], other[:, valid])
    assert np.array_equal(posterior[:, ~valid], scores[:, ~valid])


def test_an_image_without_a_valid_pixel_passes(crf):
    scores = random_scores(6)
    posterior = crf(scores, random_image(6), np.zeros((24, 20), np.bool_))
    assert np.array_equal(posterior, scores / scores.sum(axis=0))


def test_agrees_with_pydensecrfs_two_dimensional_form(crf):
    from pydensecrf.densecrf import DenseCRF2D

    image = np.random.default_rng(7).integers(0, 60, (24, 20, 3), dtype=np.uint8)
    scores = random_scores(7)
    reference = DenseCRF2D(20, 24, 3)
    energy = -np.log(scores / scores.sum(axis=0)).reshape(3, -1)
    reference.setUnaryEnergy(np.ascontiguousarray(energy))
    reference.addPairwiseGaussian(sxy=3, compat=3)
    reference.addPairwiseBilateral(sxy=50, srgb=13, rgbim=image, compat=10)
    expected = np.array(reference.inference(5)).reshape(3, 24, 20)
    assert crf(scores, image, iterations=5) == pytest.approx(expected, abs=1e-5)


def test_scores_and_image_are_left_as_they_are(crf):
    scores, image = random_scores(8), random_image(8)
    before = scores.copy(), image.copy()
    crf(scores, image)
    assert np.array_equal(scores, before[0])
    assert np.array_equal(image, before[1])


def textured(seed, shape=(96, 80)):
    """A picture of smooth patches and grain, and scores of three classes that follow it roughly."""
    random = np.random.default_rng(seed)
    patches = gaussian_filter(random.normal(size=(3, *shape)), (0, 7, 7))
    patches /= patches.std()
    grain = random.normal(scale=6, size=(*shape, 3))
    image = np.clip(120 + 45 * patches.transpose(1, 2, 0) + grain, 0, 255).astype(np.uint8)
    scores = np.exp(patches + random.normal(scale=0.7, size=patches.shape)).astype(np.float32)
    return scores, image


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"iterations": 1},
        {"gaussian_compat": 0},
        {"bilateral_compat": 0},
        {"bilateral_sxy": 0.5, "bilateral_srgb": 0.5},
        {"bilateral_sxy": 500, "bilateral_srgb": 100, "gaussian_sxy": 30},
        {"gaussian_sxy": 0.3, "gaussian_compat": 50, "bilateral_compat": 0.2},
    ],
    ids=str,
)
@pytest.mark.parametrize("cut", [False, True])
def test_engines_agree(changes, cut):
    scores, image = textured(9)
    valid = np.random.default_rng(1).random(image.shape[:2]) < 0.9 if cut else None
    one, other = (crf_by(engine)(scores, image, valid, **changes) for engine in ENGINES)
    assert (one.argmax(axis=0) == other.argmax(axis=0)).mean() >= 0.99
    assert np.abs(one - other).mean() < 1e-3


def test_engines_agree_on_noise():
    scores, image = random_scores(3, 5, (64, 64)), random_image(3, (64, 64))
    one, other = (crf_by(engine)(scores, image) for engine in ENGINES)
    assert (one.argmax(axis=0) == other.argmax(axis=0)).mean() >= 0.99


def test_any_number_of_threads_gives_the_same_bytes():
    scores, image = textured(10, (256, 256))
    before, found = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(crf_by("torch")(scores, image))
    torch.set_num_threads(before)
    assert found[0].tobytes() == found[1].tobytes()


def test_what_was_computed_before_changes_nothing(crf):
    scores, image = textured(11, (40, 30))
    valid = np.arange(30) < 20
    masks = [np.broadcast_to(mask, (40, 30)) for mask in (valid, ~valid, valid | True)]
    first = [crf(scores, image, mask) for mask in masks]
    again = [crf(scores, image, mask) for mask in reversed(masks)]
    assert all(map(np.array_equal, first, reversed(again)))


def test_lattice_weighs_like_a_gaussian():
    grid = np.indices((61, 61)).reshape(2, -1)
    features = torch.from_numpy(grid / 6).float()
    impulse = torch.zeros(grid.shape[1], 1)
    impulse[30 * 61 + 30] = 1
    response = Lattice.of(features)(impulse)[:, 0].numpy()
    exact = np.exp(-((grid - 30) ** 2).sum(axis=0) / 6**2 / 2)
    assert np.corrcoef(response, exact)[0, 1] > 0.99
    reach = [
        (value * ((grid - 30) ** 2).sum(axis=0)).sum() / value.sum() for value in (response, exact)
    ]
    assert reach[0] == pytest.approx(reach[1], rel=0.1)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_points_of_a_lattice_share_themselves_out_among_its_corners(count):
    features = torch.randn(count, 300, generator=torch.Generator().manual_seed(count)) * 3
    lattice = Lattice.of(features)
    assert lattice.weights.sum(dim=1).numpy() == pytest.approx(1, abs=1e-5)
    assert lattice.weights.min() > -1e-5
    assert all(len(set(corners)) == count + 1 for corners in lattice.corners.tolist())
    values = torch.rand(300, 2)
    twice = lattice(torch.cat([values, 3 * values], dim=1))
    assert twice[:, 2:].numpy() == pytest.approx(3 * twice[:, :2].numpy(), rel=1e-5)


@pytest.mark.parametrize("away", [100, 4000])
def test_points_far_away_have_no_say(away):
    random = torch.Generator().manual_seed(0)
    near, values = torch.rand(5, 50, generator=random), torch.rand(50, 1, generator=random)
    alone = Lattice.of(near)(values)
    both = Lattice.of(torch.cat([near, near + away], dim=1))(torch.cat([values, values]))
    assert both[:50].numpy() == pytest.approx(alone.numpy(), abs=1e-5)


def test_a_lattice_beyond_all_numbers_is_refused():
    with pytest.raises(OverflowError, match="too large"):
        Lattice.of(torch.tensor([[0, 1e6]] * 5))


def test_an_engine_that_is_not_installed_is_refused_before_work_starts(monkeypatch, tmp_path):
    reference = Settings(crf=CrfConfig(engine="pydensecrf"))
    with pytest.raises(InputError, match="no-site"):
        pseudo_label(tmp_path / "no-site", settings=reference)
    monkeypatch.setattr(stage, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=re.escape("pip install 'rsseg[crf]'")):
        pseudo_label(tmp_path / "no-site", settings=reference)
    with pytest.raises(InputError, match="no-site"):  # needed neither here nor by the default
        pseudo_label(tmp_path / "no-site", settings=reference, until="cam")
    with pytest.raises(InputError, match="no-site"):
        pseudo_label(tmp_path / "no-site")


def test_parameters_are_those_of_the_configuration():
    assert {*PARAMETERS, "engine"} == set(vars(CrfConfig()))


def test_module_loads_without_torch_and_without_pydensecrf():
    code = "import sys, rsseg.ops.crf; print(sorted({'torch', 'pydensecrf'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"
