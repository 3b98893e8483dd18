"""Counter-based randomness: every draw depends on the seed and on its purpose, never on what was drawn before.

The crop and the mask of sample ``i`` come from a generator seeded with (seed, stream, i). So an interrupted run continues
exactly without stored random states, and neither the number of data-loading workers nor the number of ranks changes what is
drawn.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """The purpose of a generator, part of its key."""

    ORDER = 0
    CROP = 1
    AUGMENTATION = 2
    MASK = 3
    PROBE = 4
    SPATIAL = 5
    LINEAR_HEAD = 6
    MODALITIES = 7


def seeded_generator(*key: int) -> torch.Generator:
    """Make a CPU generator that depends on the whole key.

    Args:
        key: Whole numbers >= 0, for example (seed, stream, sample number).

    Returns:
        A new generator; equal keys give equal draws, different keys give independent ones.
    """
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(seed)
