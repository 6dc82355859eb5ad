"""Views: there and back again."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rsseg.ops.views import View

ORIENTATIONS = list(product(range(4), (False, True)))


def maps(*size, seed=0):
    return torch.randn((2, 3, *size), generator=torch.Generator().manual_seed(seed))


def smooth(height, width):
    """Planes that bilinear resizing keeps, away from the border."""
    rows = (torch.arange(height) + 0.5) / height
    cols = (torch.arange(width) + 0.5) / width
    return torch.stack([rows[:, None].expand(height, width), cols.expand(height, width)])[None]


@pytest.mark.parametrize(("turns", "mirrored"), ORIENTATIONS)
@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
def test_turns_and_mirroring_are_undone_exactly(turns, mirrored, size):
    view = View(turns, mirrored)
    image = maps(*size)
    seen = view.apply(image)
    assert seen.shape[-2:] == (size if turns % 2 == 0 else size[::-1])
    assert torch.equal(view.undo(seen, size), image)


def test_the_orientations_are_eight():
    image = maps(4, 4)
    seen = {str(View(*one).apply(image).tolist()) for one in ORIENTATIONS}
    assert len(seen) == 8


def test_a_quarter_turn_is_counter_clockwise_and_comes_before_the_mirror():
    image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert View(1).apply(image)[0, 0].tolist() == [[2, 4], [1, 3]]
    assert View(1, True).apply(image)[0, 0].tolist() == [[4, 2], [3, 1]]


@pytest.mark.parametrize(("turns", "mirrored"), ORIENTATIONS)
@pytest.mark.parametrize("scale", [0.5, 1.5, 2.0])
def test_places_come_back_from_another_size(turns, mirrored, scale):
    view = View(turns, mirrored, scale)
    image = smooth(32, 48)
    seen = view.apply(image)
    sides = [round(side * scale) for side in ((32, 48) if turns % 2 == 0 else (48, 32))]
    assert list(seen.shape[-2:]) == sides
    inner = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(view.undo(seen, (32, 48))[inner], image[inner], atol=0.01, rtol=0)


@pytest.mark.parametrize(("turns", "mirrored"), ORIENTATIONS)
@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_maps_of_a_view_come_back_in_the_cells_of_the_original(turns, mirrored, scale):
    image = maps(64, 96)
    view = View(turns, mirrored, scale)
    pooled = torch.nn.functional.avg_pool2d
    back = view.undo(pooled(view.apply(image), 8), (8, 12))
    # Cells of half the image are 16 px: what comes back is the same, only coarser.
    coarse = round(8 / scale)
    expected = pooled(image, coarse)
    torch.testing.assert_close(pooled(back, coarse // 8), expected, atol=0.12, rtol=0)
    assert back.shape == (2, 3, 8, 12)


@given(side=st.integers(16, 300), scale=st.sampled_from([0.3, 0.5, 0.75, 1.5]))
def test_sizes_are_multiples_also_of_maps(side, scale):
    view = View(0, False, scale)
    image, cells = torch.zeros(1, 1, side * 8, 64), torch.zeros(1, 1, side, 8)
    height = view.apply(image, 16).shape[-2]
    assert height % 16 == 0
    assert height >= 16
    assert abs(height - side * 8 * scale) <= 16
    assert view.apply(cells, 2).shape[-2] * 8 == height


def test_shrinking_is_antialiased():
    stripes = torch.tensor([0.0, 1.0]).repeat(16).expand(1, 1, 32, 32)
    assert View(0, False, 0.25).apply(stripes).sub(0.5).abs().max() < 0.1


def test_views_are_drawn_evenly_and_by_the_generator():
    generator = torch.Generator().manual_seed(3)
    drawn = [View.draw((0.5, 1.0), generator) for _ in range(800)]
    counts = {view: drawn.count(view) for view in set(drawn)}
    assert len(counts) == 16
    assert min(counts.values()) > 20
    again = torch.Generator().manual_seed(3)
    assert drawn == [View.draw((0.5, 1.0), again) for _ in range(800)]
    torch.manual_seed(3)
    assert [View.draw((0.5, 1.0)) for _ in range(20)] == drawn[:20]
