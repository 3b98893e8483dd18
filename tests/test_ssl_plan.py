"""Each rule of the plan of an SSL stage."""

from __future__ import annotations

from typing import Any

import pytest

from emim_nnunet.errors import UserError
from emim_nnunet.planners import ssl_plan

BRATS = [[1, 1, 1]] + [[2, 2, 2]] * 5
PROSTATE = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2], [1, 2, 2]]
FLAT = [[1, 1]] + [[2, 2]] * 6


@pytest.mark.parametrize(
    ("strides", "patch", "cell"),
    [
        (BRATS, (128, 128, 128), (16, 16, 16)),
        (BRATS, (128, 160, 112), (16, 16, 16)),
        (BRATS, (64, 64, 64), (16, 16, 16)),
        (BRATS, (32, 32, 32), (8, 8, 8)),
        (PROSTATE, (20, 320, 256), (4, 16, 16)),
        (FLAT, (192, 160), (16, 16)),
        ([[1, 1, 1], [2, 2, 2], [2, 2, 2]], (24, 24, 24), (4, 4, 4)),
    ],
)
def test_cell_is_the_deepest_stride_up_to_16_that_leaves_four_cells(strides: Any, patch: Any, cell: Any) -> None:
    assert ssl_plan.cell_size(strides, patch) == cell


def test_a_patch_without_room_for_cells_is_refused() -> None:
    with pytest.raises(UserError, match="too small to mask"):
        ssl_plan.cell_size(BRATS, (128, 128, 3))


@pytest.mark.parametrize(
    ("strides", "patch", "cell", "batch", "levels"),
    [
        (BRATS, (128, 128, 128), (16, 16, 16), 2, (2, 3, 4)),  # the bottleneck offers 2 * 4^3 = 128 cells
        (BRATS, (160, 160, 160), (16, 16, 16), 3, (3, 4, 5)),  # 3 * 5^3 = 375
        (PROSTATE, (20, 320, 256), (4, 16, 16), 2, (3, 4, 5)),  # stage 5: 2 * 5 * 10 * 8 = 800, stage 6: 200
        (FLAT, (192, 160), (16, 16), 40, (3, 4, 5)),  # 40 * 12 * 10, 40 * 6 * 5
        ([[1, 1, 1], [2, 2, 2], [2, 2, 2]], (16, 16, 16), (4, 4, 4), 1, (2,)),  # nobody offers 256
    ],
)
def test_levels_are_the_deepest_three_with_256_cells(
    strides: Any, patch: Any, cell: Any, batch: int, levels: Any
) -> None:
    assert ssl_plan.pyramid_levels(strides, patch, cell, batch) == levels


def test_projector_widths_are_four_times_the_channels_within_bounds() -> None:
    assert ssl_plan.projector_widths([32, 64, 128, 256, 320, 640], (1, 3, 4, 5)) == (512, 1024, 1280, 2048)


@pytest.mark.parametrize(
    ("strides", "axes", "channels", "width"),
    [(BRATS, 3, 4, 32), (PROSTATE, 3, 3, 12), (FLAT, 2, 4, 16), (FLAT, 2, 1, 8), ([1, 2, 2], 3, 24, 192)],
)
def test_the_decoder_is_as_wide_as_what_its_head_produces(strides: Any, axes: int, channels: int, width: int) -> None:
    assert ssl_plan.decoder_min_width(strides, axes, channels) == width


@pytest.mark.parametrize(
    ("cases", "batch", "epochs"), [(8, 2, 100), (125, 2, 100), (500, 2, 400), (1251, 2, 1000), (500, 4, 200)]
)
def test_schedule_shows_400_crops_of_each_case(cases: int, batch: int, epochs: int) -> None:
    assert ssl_plan.num_epochs(cases, batch) == epochs


@pytest.mark.parametrize("guess", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    ("memory", "target", "expected"),
    [
        (lambda b: 1.0 + 2.0 * b, 9.0, [4]),
        (lambda b: 1.0 + 2.0 * b, 8.9, [3]),
        (lambda b: 1.0 * b, 0.5, [1]),
        (lambda b: 3.0 + 0.5 * b, 6.0, [6]),
        (lambda b: 0.1 + 0.01 * b, 1.004, [50]),  # the data set's limit
        (lambda b: 0.5 + 0.1 * b, 4.0, range(33, 36)),  # within 5 % of the target
        (lambda b: 1.0 + 0.1 * b + 0.01 * b * b, 4.0, range(12, 14)),  # not linear: negatives of each other in a batch
        (lambda b: b + (3 if b > 4 else 0), 7.0, [4]),
    ],
)
def test_ssl_batch_is_the_largest_that_fits(memory: Any, target: float, expected: Any, guess: int) -> None:
    tried = []

    def gigabytes(batch: int) -> float:
        tried.append(batch)
        return memory(batch)

    assert ssl_plan.ssl_batch_size(gigabytes, target, guess, 50) in expected
    assert len(tried) == len(set(tried)) <= 12


@pytest.mark.parametrize(
    ("patch", "expected"),
    [((128, 128, 128), (2, 2, 2)), ((20, 256, 224), (1, 2, 2)), ((40, 96, 96), (2, 2, 2)), ((25, 64), (1, 2))],
)
def test_the_wide_crop_spares_odd_axes_and_thick_slices(patch: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert ssl_plan.parent_factor(patch) == expected
