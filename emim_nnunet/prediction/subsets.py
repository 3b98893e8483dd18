"""What a model's segmentations are worth with every subset of the modalities: the table beside the model."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from emim_nnunet.datasets.channel_names import standard_name
from emim_nnunet.errors import UserError
from emim_nnunet.prediction.model import TrainedModel
from emim_nnunet.storage.files import read_json

TABLE = "modality_subsets.json"
LOW_DICE, LARGE_LOSS = 0.5, 0.1  # below the one, or worse by the other than with all modalities: a prediction warns
MAX_CHANNELS = 6  # 63 subsets
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What segmentations with a subset of the modalities are worth, on cases that have all of the subset.

    Attributes:
        modalities: Names of the channels that the model saw.
        num_cases: Number of validation cases.
        dice: Mean Dice over the labels, of each the mean over the cases where it is defined; None where it never is.
        dice_per_label: Label -> its mean Dice.
        surface_distance: Mean surface distance in mm, likewise; None where reference or segmentation are always empty.
        num_distances: Number of cases and labels that have a surface distance.
        change: Mean difference of the Dice from that with all modalities, over the cases that have all; None without such
            cases.
    """

    modalities: tuple[str, ...]
    num_cases: int
    dice: float | None
    dice_per_label: dict[str, float | None]
    surface_distance: float | None
    num_distances: int
    change: float | None


@dataclass(frozen=True)
class SubsetTable:
    """The rows of the table, the fullest subset first."""

    rows: tuple[Measured, ...]

    def of(self, modalities: Collection[str]) -> Measured | None:
        """The row of a subset; None where it was not measured."""
        wanted = {standard_name(name) for name in modalities}
        return next((row for row in self.rows if {standard_name(name) for name in row.modalities} == wanted), None)

    def doubts(self, modalities: Collection[str]) -> list[str]:
        """Why segmentations with a subset deserve no trust, a text for each reason; empty where they do or nobody knows."""
        row = self.of(modalities)
        if row is None or row.dice is None:
            return ["its Dice was not measured"]
        told = f"Dice {row.dice:.2f} in {row.num_cases} validation case{'s' * (row.num_cases > 1)}"
        if row.change is not None and row.change <= -LARGE_LOSS:
            return [f"{told}, {-row.change:.2f} less than with all modalities"]
        return [told] if row.dice < LOW_DICE else []


def subsets_of(channels: Sequence[str]) -> list[tuple[str, ...]]:
    """All subsets but the empty one, the fullest first.

    Args:
        channels: Names of C channels, C at most 6.

    Returns:
        2^C - 1 subsets, each in the order of the channels.

    Raises:
        UserError: There are more channels.
    """
    if len(channels) > MAX_CHANNELS:
        raise UserError(
            f"{len(channels)} modalities have {2 ** len(channels) - 1} subsets: name those that matter with --subsets"
        )
    return [subset for size in range(len(channels), 0, -1) for subset in combinations(channels, size)]


def read_subset_table(model: TrainedModel) -> SubsetTable | None:
    """Read the table beside a model.

    Args:
        model: The model. A table of other checkpoints of these folds, or that lacks one of the folds, does not count.

    Returns:
        None where there is none that counts.

    Raises:
        UserError: The file is not as :func:`.evaluate.evaluate` writes it.
    """
    path = model.folder / TABLE
    if not path.is_file():
        return None
    content = read_json(path)
    try:
        if any(content["checkpoints"].get(fold) != sha for fold, sha in model.sha256.items()):
            logger.warning("WARNING: %s is of other checkpoints or folds of the model: measure anew", path)
            return None
        return SubsetTable(tuple(measured_of(row) for row in content["subsets"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not as emim_evaluate_modalities writes it: move it away, or measure anew"
        ) from error


def measured_of(row: dict[str, Any]) -> Measured:
    """A row as JSON gives it back."""
    return Measured(**row | {"modalities": tuple(row["modalities"])})
