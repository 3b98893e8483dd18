"""Bad inputs of ``emim_features``, and of regressions by ``emim_classify``."""

from __future__ import annotations

from pathlib import Path

from tests.robustness.inputs.spoiling import classify, damaged_checkpoint, image
from tests.robustness.inputs.table import bad
from tests.robustness.world import DATASET_ID, stage_folder


def features(world: Path, *options: str) -> list[str]:
    return [str(stage_folder(world)), "-d", DATASET_ID, "-o", str(world / "features.csv"), "-device", "cpu", *options]


@bad("features", r"damaged or no checkpoint|has no|not a checkpoint")
def features_of_damage(world: Path) -> list[str]:
    return [str(damaged_checkpoint(world)), *features(world)[1:]]


@bad("features", r"expected 'segmentation', a folder of label maps, or a label map")
def features_of_regions_that_are_nowhere(world: Path) -> list[str]:
    return features(world, "--regions", str(world / "nothing"))


@bad("features", r"--region x=0: expected NAME=VALUE")
def features_of_the_background(world: Path) -> list[str]:
    return features(world, "--regions", "segmentation", "--region", "x=0")


@bad("features", r"must be a label map: it holds values that are no whole numbers|is not known|has the size")
def features_of_an_image_for_an_atlas(world: Path) -> list[str]:
    return features(world, "--regions", str(image(world)))


@bad("features", r"the ending must be \.csv or \.parquet")
def features_into_a_spreadsheet(world: Path) -> list[str]:
    return features(world, "-o", str(world / "features.xlsx"))


@bad("classify", r"line 3: 'old' in column 'kind' is no number")
def number_that_is_a_word(world: Path) -> list[str]:
    return [*classify(world, "case,kind\ncase00000,7\ncase00001,old\n"), "--number", "kind"]


@bad("classify", r"column 'kind' has 1 number")
def numbers_that_are_all_alike(world: Path) -> list[str]:
    return [*classify(world, "case,kind\ncase00000,7\ncase00001,7\n"), "--number", "kind"]
