"""What a conversion says about the images that it takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from emim_nnunet.dataset_conversion.case import MASK, SourceCase
from emim_nnunet.dataset_conversion.family import DatasetFamily
from emim_nnunet.dataset_conversion.options import Options
from emim_nnunet.datasets.background import background_remark


def remarks(family: DatasetFamily, cases: Sequence[SourceCase], options: Options) -> list[str]:
    """What a user must know about the images of a conversion, a line each.

    Args:
        family: The table that describes the data set.
        cases: The cases that are converted, all of them checked.
        options: How they are converted.
    """
    lines = []
    backgrounds = {f"case {c.identifier}, {channel}": found for c in cases for channel, found in c.background.items()}
    if backgrounds:
        constant = any(found.value is not None for found in backgrounds.values())
        noise = any(found.value is None for found in backgrounds.values())
        help_ = ["--background_to_zero sets a constant to 0"] * constant
        help_ += ["--mask of folders and bids takes a mask of the brain or body"] * (noise or not constant)
        num_images = sum(channel in case.files for case in cases for channel in family.channels)
        lines.append(f"{background_remark(backgrounds, num_images)}: {'; '.join(help_)}")
    texts = [places for case in cases for places in case.header_text.values()]
    if texts and not options.strip_header:
        fields = ", ".join(f"{n} {field}" for field, n in Counter(f for places in texts for f in places).most_common())
        remedy = "without --link, --strip_header leaves it out" if options.link else "--strip_header leaves it out"
        lines.append(
            f"{len(texts)} image files hold text in their headers ({fields}), which may say who a patient is, and goes with "
            f"them: {remedy}"
        )
    outside = {case.identifier: case.label_outside_mask for case in cases if case.label_outside_mask}
    if outside:
        worst = max(outside, key=lambda identifier: outside[identifier])
        lines.append(
            f"{len(outside)} cases have labelled voxels outside of their {MASK}, where the images are 0 now (most in {worst}: "
            f"{outside[worst]:.0%} of them)"
        )
    lost = [case.identifier for case in cases if case.lost_labels]
    if lost:
        lines.append(f"{len(lost)} cases lost labels by resampling (--allow_lost_labels), the first is {lost[0]}")
    return lines
