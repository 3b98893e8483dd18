"""Mask patterns: exact ratios, geometry, seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emim_nnunet.masking import (
    cells_to_voxels,
    foreground_cells,
    grid_size,
    hybrid_mask,
    masked_fraction,
    position_mask,
    voxels_to_cells,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("num_modalities", "expected"),
    [(1, 1 - 0.75 * 0.5), (2, 1 - 0.5 * 0.75 * 0.5), (4, 0.71875), (8, 1 - 7 / 8 * 0.75 * 0.5)],
)
def test_hybrid_mask_hides_exactly_the_stated_fraction_of_every_sample(num_modalities: int, expected: float) -> None:
    masked = hybrid_mask(5, num_modalities, (8, 8, 8), position_ratio=0.25, patch_ratio=0.5, generator=generator())
    assert masked.dtype == torch.bool
    assert masked.shape == (5, num_modalities, 8, 8, 8)
    assert masked.flatten(1).float().mean(1).tolist() == pytest.approx([expected] * 5, abs=1e-7)
    assert masked_fraction(num_modalities, position_ratio=0.25, patch_ratio=0.5) == pytest.approx(expected)


def test_hybrid_mask_is_the_union_of_its_three_parts() -> None:
    masked = hybrid_mask(64, 4, (8, 8), position_ratio=0.25, patch_ratio=0.5, generator=generator()).flatten(2)
    whole = masked.all(2)
    assert (whole.sum(1) == 1).all()
    everywhere = masked.all(1).float().mean().item()
    assert everywhere == pytest.approx(0.25 + 0.75 * 0.5**3, abs=0.01)
    # every modality takes its turn
    assert set(whole.float().argmax(1).tolist()) == {0, 1, 2, 3}
    # the patch masks of two visible modalities are drawn independently
    sample = masked[0][~whole[0]]
    assert not torch.equal(sample[0], sample[1])


def test_without_modality_mask_no_modality_is_hidden_everywhere() -> None:
    masked = hybrid_mask(
        16, 4, (4, 4, 4), position_ratio=0.25, patch_ratio=0.5, modality_mask=False, generator=generator()
    )
    assert not masked.flatten(2).all(2).any()
    assert masked.float().mean().item() == pytest.approx(masked_fraction(1, position_ratio=0.25, patch_ratio=0.5))


def test_same_seed_same_mask_other_seed_other_mask() -> None:
    def draw(seed: int) -> torch.Tensor:
        return hybrid_mask(2, 4, (8, 8, 8), position_ratio=0.25, patch_ratio=0.5, generator=generator(seed))

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


def test_no_global_randomness_is_used() -> None:
    torch.manual_seed(0)
    first = position_mask(2, (8, 8), 0.5, generator(1))
    torch.manual_seed(1)
    assert torch.equal(first, position_mask(2, (8, 8), 0.5, generator(1)))


def test_every_cell_is_masked_equally_often() -> None:
    share = position_mask(4000, (3, 4), 0.25, generator()).float().mean(0)
    assert share.numpy() == pytest.approx(np.full((1, 3, 4), 0.25), abs=0.04)


@pytest.mark.parametrize("cell", [(2, 4), (1, 2, 4)])
def test_cells_to_voxels_repeats_and_averaging_inverts_it(cell: tuple[int, ...]) -> None:
    grid = (3, 2, 5)[-len(cell) :]
    cells = torch.randn(2, 3, *grid, generator=generator())
    voxels = cells_to_voxels(cells, cell)
    assert voxels.shape[2:] == tuple(g * c for g, c in zip(grid, cell, strict=True))
    assert voxels.numpy() == pytest.approx(np.kron(cells.numpy(), np.ones((1, 1, *cell))), abs=0)
    assert torch.allclose(voxels_to_cells(voxels, grid), cells, atol=1e-6)


def test_foreground_cells_need_half_of_their_voxels() -> None:
    foreground = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    foreground[..., :2, :1] = True  # half of the first cell
    foreground[..., 3, 3] = True  # a quarter of the last one
    assert foreground_cells(foreground, (2, 2)).flatten().tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("patch", "cell", "message"),
    [
        ((32, 32), (64, 8), "at most patch_size"),
        ((32, 32), (12, 8), "must divide"),
        ((32, 32), (8,), "one entry per axis"),
    ],
)
def test_impossible_cells_are_refused(patch: tuple[int, ...], cell: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid_size(patch, cell)


def test_the_masked_modality_is_one_that_is_there_and_never_the_only_one() -> None:
    present = torch.tensor([False, True, True, False])
    chosen = set()
    for seed in range(40):
        masked = hybrid_mask(
            1, 4, (4, 4), position_ratio=0.25, patch_ratio=0.5, generator=generator(seed), present=present
        )
        chosen |= {c for c in range(4) if masked[0, c].all()}
    assert chosen == {1, 2}
    alone = torch.tensor([False, True, False, False])
    masked = hybrid_mask(40, 4, (4, 4), position_ratio=0.25, patch_ratio=0.5, generator=generator(), present=alone)
    assert not masked.flatten(2).all(2).any()
