"""Bad tables for ``emim_classify``, and bad options of ``emim_compare`` and ``emim_demo``."""

from __future__ import annotations

from pathlib import Path

from tests.robustness.inputs.spoiling import classify, damaged_checkpoint
from tests.robustness.inputs.table import bad
from tests.robustness.world import DATASET, DATASET_ID


@bad("classify", r"has no column 'case'")
def table_without_cases(world: Path) -> list[str]:
    return classify(world, "id,kind\ncase00000,a\n")


@bad("classify", r"names cases that are not preprocessed")
def table_of_other_cases(world: Path) -> list[str]:
    return classify(world, "case,kind\nghost,a\ncase00000,b\n")


@bad("classify", r"column 'kind' has 1 class")
def table_of_one_class(world: Path) -> list[str]:
    return classify(world, "case,kind\ncase00000,a\ncase00001,a\n")


@bad("classify", r"case case00000 is there twice")
def table_with_a_case_twice(world: Path) -> list[str]:
    return classify(world, "case,kind\ncase00000,a\ncase00000,b\n")


@bad("classify", r"line 3: expected 2 cells")
def table_with_a_short_line(world: Path) -> list[str]:
    return classify(world, "case,kind\ncase00000,a\ncase00001\n")


@bad("classify", r"has 5000 columns of classes, at most 100 at once: choose with --column")
def table_of_thousands_of_columns(world: Path) -> list[str]:
    names = ",".join(f"c{number}" for number in range(5000))
    rows = (f"case0000{number}" + f",{number}" * 5000 for number in range(6))
    return classify(world, "\n".join([f"case,{names}", *rows]))


@bad("classify", r"cannot be read as a CSV file in UTF-8")
def table_of_bytes(world: Path) -> list[str]:
    return classify(world, b"case,kind\n\xff\xfe\x00\n")


@bad("classify", r"labels.csv, line 3: field larger than field limit")
def table_with_an_endless_cell(world: Path) -> list[str]:
    return classify(world, f"case,kind\ncase00000,a\ncase00001,{'x' * 140_000}\n")


@bad("classify", r"column 'kind' is there twice")
def table_with_a_column_twice(world: Path) -> list[str]:
    return classify(world, "case,kind,kind\ncase00000,a,a\ncase00001,b,b\n")


@bad("classify", r"labels.csv is empty")
def table_of_nothing(world: Path) -> list[str]:
    return classify(world, "")


@bad("classify", r"damaged or no checkpoint|has no|not a checkpoint")
def predict_with_damage(world: Path) -> list[str]:
    return ["predict", str(damaged_checkpoint(world)), DATASET_ID, "-o", str(world / "p.csv"), "-device", "cpu"]


@bad("classify", r"nothing.csv")
def evaluate_nothing(world: Path) -> list[str]:
    classify(world, "case,kind\ncase00000,a\ncase00001,b\n")
    labels = ["--labels", str(world / "labels.csv"), "-o", str(world / "scores")]
    return ["evaluate", str(world / "nothing.csv"), *labels]


@bad("compare", r"--labelled: different whole numbers")
def compare_with_no_cases(world: Path) -> list[str]:
    return [DATASET_ID, "tiny", "-o", str(world / "comparison"), "--labelled", "0", "-device", "cpu"]


@bad("compare", r"NoSuch")
def compare_an_unknown_arm(world: Path) -> list[str]:
    return [DATASET_ID, "tiny", "-o", str(world / "comparison"), "--arms", "x=NoSuch", "-device", "cpu"]


@bad("compare", r"--num_test 99")
def compare_on_more_cases_than_there_are(world: Path) -> list[str]:
    return [DATASET_ID, "tiny", "-o", str(world / "comparison"), "--num_test", "99", "-device", "cpu"]


@bad("demo", r"exists")
def demo_over_something(world: Path) -> list[str]:
    (world / "demo").mkdir()
    (world / "demo" / "precious.txt").write_text("mine")
    return ["-o", str(world / "demo")]


@bad("compare", r"splits_final.json cannot be read as JSON")
def compare_again_beside_a_damaged_split(world: Path) -> list[str]:
    folder = world / "comparison" / "nnUNet_preprocessed" / DATASET
    folder.mkdir(parents=True)
    (folder / "splits_final.json").write_text("[{")
    return [DATASET_ID, "tiny", "-o", str(world / "comparison"), "-device", "cpu"]
