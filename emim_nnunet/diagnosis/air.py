"""Air that counts as body: the monitor must not take the outline of a head for skill.

Where preprocessing did not look for the body, or did not find it, everything in a patch counts as body. A network that paints a
flat head on black then has a skill of 0.5, in a "body" without an outline. So the monitor looks for the body in such patches
itself.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from emim_nnunet.datasets.body import MAX_SHARE, find_body, is_sensible

# spread outside over inside of what stands out: below 0.03 in nine of ten patches of whole heads with noise around them (LGG),
# and 0.2 or more in the few patches from within brains in which anything stands out (BraTS)
AIR = 0.1


def without_air(image: Tensor, foreground: Tensor) -> Tensor:
    """Take the air out of the body in patches that count as body throughout.

    Args:
        image: (B, C, *P) float, two or three axes.
        foreground: (B, 1, *P) bool.

    Returns:
        (B, 1, *P) bool: ``foreground``; where more than 0.95 of a patch are, what stands out from the rest of it, if the
        rest hardly varies.
    """
    full = foreground.flatten(1).float().mean(1) > MAX_SHARE
    if not full.any():
        return foreground
    result = foreground.clone()
    for sample in full.nonzero().flatten().tolist():
        found = _body(image[sample].float().cpu().numpy(), foreground[sample, 0].cpu().numpy())
        if found is not None:
            result[sample, 0] = torch.from_numpy(found).to(result.device)
    return result


def _body(image: np.ndarray, inside: np.ndarray) -> np.ndarray | None:
    axes = (1,) * (4 - image.ndim)  # a slice is a volume of one
    volume = image.reshape(len(image), *axes, *image.shape[1:])
    body = find_body(volume, inside.reshape(volume.shape[1:]))
    if not is_sensible(float(body.mean())):
        return None
    within, beyond = (sum(_spread(channel[part]) for channel in volume) for part in (body, ~body))
    return body.reshape(inside.shape) if beyond < AIR * within else None


def _spread(values: np.ndarray) -> float:
    """Squared distance between the percentiles 10 and 90: the rim of a body that was cut off does not count."""
    low, high = np.percentile(values, (10, 90))
    return float(high - low) ** 2
