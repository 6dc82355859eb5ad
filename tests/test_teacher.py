"""The teacher: a moving average of the student."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rsseg.nets.teacher import new_teacher, update_teacher


def student(value=0.0):
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    fill(network, value)
    return network


def fill(network, value):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(value)


def level(network):
    """The one value that all parameters have."""
    least, greatest = nn.utils.parameters_to_vector(network.parameters()).detach().aminmax()
    assert least == greatest
    return float(least)


def test_after_the_first_step_the_teacher_is_the_student():
    pupil = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    teacher = new_teacher(student(7.0))
    pupil(torch.randn(4, 2, 5, 5))
    update_teacher(teacher, pupil, 0)
    for name, tensor in pupil.state_dict().items():
        assert torch.equal(teacher.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("step", "decay", "kept"), [(1, 0.996, 0.5), (3, 0.996, 0.75), (3, 0.6, 0.6), (1000, 0.9, 0.9)]
)
def test_the_momentum_rises_up_to_the_decay(step, decay, kept):
    teacher = new_teacher(student(1.0))
    update_teacher(teacher, student(0.0), step, decay)
    assert level(teacher) == pytest.approx(kept)


def test_the_first_steps_are_a_plain_mean():
    pupil = student()
    teacher = new_teacher(pupil)
    for step, value in enumerate((4.0, 1.0, 10.0)):
        fill(pupil, value)
        update_teacher(teacher, pupil, step)
    assert level(teacher) == pytest.approx(5)


def test_the_statistics_of_batch_norm_are_averaged_and_counts_copied():
    pupil = student(1.0)
    teacher = new_teacher(pupil)
    pupil(torch.randn(4, 2, 5, 5) + 3)
    update_teacher(teacher, pupil, 3)
    torch.testing.assert_close(teacher[1].running_mean, pupil[1].running_mean / 4)
    assert int(teacher[1].num_batches_tracked) == 1


def test_the_teacher_is_apart_and_takes_no_gradient():
    pupil = student(1.0)
    teacher = new_teacher(pupil)
    assert not teacher.training
    assert pupil.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in pupil.parameters())
    fill(pupil, 2.0)
    assert level(teacher) == 1.0
    update_teacher(teacher, pupil, 1)
    assert level(teacher) == 1.5
    assert level(pupil) == 2.0


def test_other_architectures_are_refused():
    with pytest.raises(ValueError, match="zip"):
        update_teacher(new_teacher(student()), nn.Conv2d(2, 3, 1), 0)
