import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsseg.config import CrfConfig
from rsseg.ops.crf import dense_crf

PARAMETERS = {
    "iterations": 10,
    "gaussian_sxy": 3.0,
    "gaussian_compat": 3.0,
    "bilateral_sxy": 50.0,
    "bilateral_srgb": 13.0,
    "bilateral_compat": 10.0,
}


def crf(scores, image, valid=None, **changes):
    return dense_crf(scores, image, **{**PARAMETERS, **changes}, valid=valid)


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
def test_without_a_step_or_a_kernel_scores_are_only_normalised(nothing):
    scores = random_scores(0)
    posterior = crf(scores, random_image(0), **nothing)
    assert posterior.dtype == np.float32
    assert np.array_equal(posterior, scores / scores.sum(axis=0))


@given(seed=st.integers(0, 50), winner=st.integers(0, 2))
@settings(deadline=None, max_examples=15)
def test_constant_scores_keep_their_argmax_on_any_image(seed, winner):
    scores = np.full((3, 24, 20), 0.2, np.float32)
    scores[winner] = 0.5
    assert (crf(scores, random_image(seed)).argmax(axis=0) == winner).all()


def test_label_noise_snaps_to_the_edge_of_a_two_tone_image():
    image, truth = two_tone()
    noise = np.random.default_rng(0).random(truth.shape) < 0.2
    posterior = crf(one_hot(truth ^ noise), image)
    assert np.array_equal(posterior.argmax(axis=0), truth)


def test_a_blob_beside_the_edge_snaps_to_it():
    image, truth = two_tone()
    shifted = np.roll(truth, 5, axis=1)
    shifted[:, :5] = 0
    assert np.array_equal(crf(one_hot(shifted), image).argmax(axis=0), truth)


@given(order=st.permutations(range(4)))
@settings(deadline=None, max_examples=10)
def test_permuting_classes_commutes(order):
    scores, image = random_scores(1, classes=4), two_tone(20)[0]
    scores = scores[:, :20]
    permuted = crf(scores[order], image, iterations=3)
    assert permuted == pytest.approx(crf(scores, image, iterations=3)[order], abs=1e-4)


def test_posterior_sums_to_one():
    posterior = crf(random_scores(2), random_image(2))
    assert posterior.sum(axis=0) == pytest.approx(1, abs=1e-5)
    assert posterior.min() >= 0


def test_a_class_without_scores_never_gets_any():
    scores = random_scores(3)
    scores[1] = 0
    posterior = crf(scores, random_image(3))
    assert not posterior[1].any()
    others = crf(scores[[0, 2]], random_image(3))
    assert np.array_equal(posterior[[0, 2]], others)


def test_pixels_without_scores_start_undecided_between_the_present_classes():
    scores = random_scores(4)
    scores[2] = 0
    scores[:, 5, 5] = 0
    assert crf(scores, random_image(4), iterations=0)[:, 5, 5].tolist() == [0.5, 0.5, 0]


def test_scores_of_0_everywhere_stay_undecided():
    posterior = crf(np.zeros((4, 8, 8), np.float32), random_image(0, (8, 8)))
    assert posterior == pytest.approx(0.25)


def test_one_class_alone_is_certain():
    assert (crf(random_scores(5, classes=1), random_image(5)) == 1).all()


def test_invalid_pixels_have_no_say():
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


def test_an_image_without_a_valid_pixel_passes():
    scores = random_scores(6)
    posterior = crf(scores, random_image(6), np.zeros((24, 20), np.bool_))
    assert np.array_equal(posterior, scores / scores.sum(axis=0))


def test_agrees_with_pydensecrfs_two_dimensional_form():
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


def test_scores_and_image_are_left_as_they_are():
    scores, image = random_scores(8), random_image(8)
    before = scores.copy(), image.copy()
    crf(scores, image)
    assert np.array_equal(scores, before[0])
    assert np.array_equal(image, before[1])


def test_parameters_are_those_of_the_configuration():
    assert set(PARAMETERS) == set(vars(CrfConfig()))


def test_module_loads_without_torch_and_without_pydensecrf():
    code = "import sys, rsseg.ops.crf; print(sorted({'torch', 'pydensecrf'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"
