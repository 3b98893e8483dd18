"""Boxes at positions that differ between samples, against slicing."""

from __future__ import annotations

import pytest
import torch

from emim_nnunet.views.boxes import centre_box, pool_boxes, take_blocks, take_boxes, unravel


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(4, 5), (3, 6, 2)])
def test_boxes_equal_slices(size: tuple[int, ...]) -> None:
    image = randn(3, 2, *(s + 4 for s in size))
    lower = torch.randint(5, (3, len(size)), generator=torch.Generator().manual_seed(1))
    boxes = take_boxes(image, lower, size)
    for sample in range(3):
        where = [slice(start, start + s) for start, s in zip(lower[sample].tolist(), size, strict=True)]
        assert torch.equal(boxes[sample], image[(sample, slice(None), *where)])


def test_the_centre_box_is_centred() -> None:
    image = torch.arange(7.0).view(1, 1, 7, 1) * torch.ones(1, 1, 7, 4)
    assert centre_box(image, (3, 4))[0, 0, :, 0].tolist() == [2.0, 3.0, 4.0]


def test_blocks_are_those_of_the_row_major_grid() -> None:
    image, grid = randn(2, 3, 4, 6, 8), (2, 1, 4)
    numbers = torch.tensor([[0, 7, 3], [5, 5, 2]])
    blocks = take_blocks(image, grid, numbers)
    assert blocks.shape == (6, 3, 2, 6, 2)
    for sample in range(2):
        for place, number in enumerate(numbers[sample].tolist()):
            z, x = divmod(number, 4)
            expected = image[sample, :, 2 * z : 2 * z + 2, :, 2 * x : 2 * x + 2]
            assert torch.equal(blocks[3 * sample + place], expected)
    assert unravel(torch.tensor([0, 7]), grid).tolist() == [[0, 0, 0], [1, 0, 3]]


def test_pooling_equals_the_mean_of_slices_and_counts_shares_of_voxels() -> None:
    image = randn(2, 3, 10, 12, 8)
    lower, upper = torch.tensor([[1, 0, 4], [2, 4, 0]]), torch.tensor([[7, 12, 8], [10, 8, 8]])
    pooled = pool_boxes(image, lower, upper, 2)
    for sample in range(2):
        box = [slice(a, b) for a, b in zip(lower[sample].tolist(), upper[sample].tolist(), strict=True)]
        inside = image[(sample, slice(None), *box)]
        expected = torch.nn.functional.adaptive_avg_pool3d(inside, 2)  # all sides are even
        assert torch.allclose(pooled[sample], expected, atol=1e-6)
    line = torch.arange(4.0).view(1, 1, 1, 4)
    halves = pool_boxes(line, torch.tensor([[0.0, 0.5]]), torch.tensor([[1.0, 2.0]]), 1)
    assert halves.item() == pytest.approx((0.5 * 0 + 1 * 1) / 1.5)
