"""The experiment on real patients: its draws are paired, its scores right, and it runs and goes on."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from real.arms import arm_of
from real.brains import make_brain, write_subject
from real.brats import write_case
from real.curve import CONTROLS, curve
from real.data import BLOCK, CHANNELS, COHORT, FEATURES, FINAL, PATCH, PLANNED, SEARCH, SPACING, folds
from real.finetune import chosen_patients, training_batches
from real.hypotheses import HYPOTHESES, control_table, encoder_table, fold_table, over_folds, rotated
from real.linear import fit_linear
from real.missing import subset_table
from real.others import contrast_table, others_table
from real.part import UNET
from real.plan import BEST_SCRATCH, LOCAL_ARM, LOCAL_FOLDS, PARTS, PRIMARY, PRIMARY_ARM, RECIPES
from real.pretrain import encoder_file
from real.report import primary, read_results, score_table
from real.run import missing_rows, take_encoders

from emim_nnunet.methods import method_class
from emim_nnunet.networks import encoder_of
from emim_nnunet.settings.block import config_from_block
from emim_nnunet.storage.files import read_json, write_json
from emim_nnunet.training.linear_fit import SHRINKAGES
from emim_nnunet.training.linear_probe import LinearProbeNetwork
from tests.conftest import SHARED, shared_data
from tests.toy import toy_unet

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "real" / "run.py"
PATIENTS = [f"TCGA_{site}_{number}_19960101" for site in ("CS", "DU", "HT", "EZ") for number in range(6)]


def cases(*names: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Patients of random voxels with a lesion of one slice."""
    made = {}
    for number, name in enumerate(names):
        generator = torch.Generator().manual_seed(number)
        lesion = torch.zeros(5, 120, 128, dtype=torch.bool)
        lesion[2, 30:50, 60:80] = True
        made[name] = (torch.randn(5, 3, 120, 128, generator=generator), lesion)
    return made


def test_no_patient_is_learnt_from_and_tested_on_and_the_search_never_sees_the_last_site() -> None:
    split = folds(PATIENTS)
    for fold in split:
        assert not set(fold["train"]) & set(fold["val"])
    assert {name.split("_")[1] for name in split[FINAL]["val"]} == {"HT"}
    searched = [*split[SEARCH]["train"], *split[SEARCH]["val"]]
    assert not set(searched) & set(split[FINAL]["val"])
    assert sorted(searched) == sorted(split[FINAL]["train"])
    assert {name.split("_")[1] for name in split[SEARCH]["val"]} == {"DU"}
    held_out = [name for fold in COHORT for name in split[fold]["val"]]
    assert sorted(held_out) == sorted(set(PATIENTS) - set(split[SEARCH]["val"]))  # each once
    assert all({name.split("_")[1] for name in split[fold]["val"]} >= {"CS", "DU", "HT"} for fold in COHORT)


def test_an_anatomy_that_brains_were_drawn_on_is_learnt_from_or_tested_on() -> None:
    subjects = [f"drawn_{anatomy:02d}_{number}" for anatomy in range(1, 21) for number in range(4)]
    split = folds(subjects)
    for fold in split:
        anatomies = [{name.split("_")[1] for name in fold[part]} for part in ("train", "val")]
        assert not anatomies[0] & anatomies[1]
    assert sorted(name for fold in split for name in fold["val"]) == subjects  # each once
    assert len(split[SEARCH]["val"]) == 16


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_the_network_of_the_experiment(name: str) -> None:
    arm = arm_of(name)
    assert arm.method is not None
    method = method_class(arm.method)
    config = config_from_block(method.config_class, BLOCK | arm.settings)
    method.check(config, PATCH, [[1, 1]] + [[2, 2]] * (len(FEATURES) - 1))


def test_draws_differ_and_smaller_ones_are_part_of_larger_ones() -> None:
    eight = chosen_patients(PATIENTS, 3, 8)
    assert chosen_patients(PATIENTS, 3, 2) == eight[:2]
    assert len({tuple(chosen_patients(PATIENTS, draw, 2)) for draw in range(16)}) > 10


def test_batches_depend_on_the_draw_alone_and_a_third_looks_at_the_lesion() -> None:
    def batches(draw: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        torch.rand(3)  # whatever was drawn before
        return list(training_batches(cases("a", "b"), draw, 3))

    one, again, other = batches(0), batches(0), batches(1)
    assert all(torch.equal(x, y) for a, b in zip(one, again, strict=True) for x, y in zip(a, b, strict=True))
    assert not torch.equal(one[0][0], other[0][0])
    assert one[0][0].shape == (8, 3, 96, 96)
    lesion = torch.cat([lesion for _, lesion in one])
    assert lesion.flatten(1).any(1).float().mean() >= 0.3


def test_the_linear_read_out_finds_what_a_linear_map_of_the_features_can_tell() -> None:
    torch.manual_seed(0)
    network = LinearProbeNetwork(encoder_of(toy_unet("plain", num_axes=2, num_channels=3)), 2)
    weights = network.encoder.stages[0][0].convs[0].conv.weight.detach().clone()
    patients = cases("a", "b", "c")
    for name, (image, _) in patients.items():
        with torch.no_grad():
            features = network.encoder(image)[0]
        told = features[:, 1] - features[:, 2]
        patients[name] = (image, told > told.quantile(0.95))
    test = {name: patients.pop(name) for name in ["c"]}
    fit = fit_linear(network, patients, 0, 4)
    assert fit["shrinkage"] in SHRINKAGES
    assert torch.equal(network.encoder.stages[0][0].convs[0].conv.weight, weights)
    image, lesion = test["c"]
    with torch.no_grad():
        logits = network(image)
    found = logits[:, 1] > logits[:, 0]
    assert 2 * (found & lesion).sum() / (found.sum() + lesion.sum()) > 0.7  # chance is 0.1
    again = LinearProbeNetwork(network.encoder, 2)
    assert fit_linear(again, patients, 0, 4) == fit


def training(arm: str, rate: float, dice: float, *, steps: int = 16, seed: int = 0, head: str = UNET) -> dict[str, Any]:
    """The row of a training that ends with that Dice in the first test patient, and 0.1 more in the second."""
    course = {str(steps // 2): [dice - 0.05, dice + 0.05], str(steps): [dice, dice + 0.1]}
    about = {"arm": arm, "stage": f"{arm}_fold1_epochs1_seed{seed}" if arm != "scratch" else "", "epoch": 1}
    about |= {"evaluation": "finetune", "rate": rate, "steps": steps, "head": head}
    scores = {"dice": course, "cross_entropy": dict.fromkeys(course, 0.5)}
    return about | scores | {"average_precision": [0.5, 0.6], "surface_distance": [3.0, None], "seconds": 1.0}


def write_draw(folder: Path, fold: int, draw: int, rows: list[dict[str, Any]]) -> None:
    """The file of a draw of two labelled patients."""
    (folder / "draws").mkdir(exist_ok=True)
    content = {"train": ["x", "y"], "test": ["v", "w"], "rows": rows}
    write_json(folder / "draws" / f"fold{fold}_labelled2_draw{draw}.json", content)


def test_the_report_pairs_draws_and_takes_scratch_at_its_best_rate(tmp_path: Path) -> None:
    for draw in range(8):
        hard = 0.05 * draw  # a draw is hard for all arms alike
        rows = [training("scratch", 1e-3, 0.4 - hard), training("scratch", 1e-2, 0.2 - hard)]
        if draw < 3:
            rows.append(training("scratch", 3e-3, 0.9))  # in too few draws to be the reference
        rows.append(training("emim", 1e-3, 0.45 - hard + 0.01 * (draw % 2)))
        write_draw(tmp_path, SEARCH, draw, rows)
    _, rows = read_results(tmp_path)
    line = next(line for line in score_table(rows).splitlines() if "emim" in line)
    assert "+0.055" in line
    low, high = (float(end) for end in line.split("|")[-4].split(" to "))
    assert 0.05 <= low < 0.055 < high <= 0.06  # nothing of the draws' difficulty is in the interval
    assert line.split("|")[-3:-1] == [" 0.008 ", " 0.5 "]  # the least p that eight draws can give; half of the steps
    assert " search " in line
    assert primary(rows) is None  # no test of the last site


def test_the_hypothesis_is_read_from_the_last_site_and_against_scratch_at_its_best(tmp_path: Path) -> None:
    for draw in range(4):
        how = {"steps": PRIMARY.steps, "head": PRIMARY.head}
        rows = [training("scratch", 1e-3, 0.4, steps=500), training("scratch", 1e-3, 0.3, **how)]
        rows.append(training(PRIMARY_ARM, PRIMARY.rate, 0.42, seed=draw % 3, **how))
        rows.append(training(PRIMARY_ARM, 1e-2, 0.7, **how))  # explores
        rows.append(training("scratch", 1e-3, 0.6, steps=10_000))  # equal compute: another row, not the reference
        write_draw(tmp_path, FINAL, draw, rows)
        searched = [training("scratch", 1e-3, 0.1), training(PRIMARY_ARM, PRIMARY.rate, 0.9, **how)]
        write_draw(tmp_path, SEARCH, draw, searched)
    found = primary(read_results(tmp_path)[1])
    assert found is not None
    assert [round(found[key], 6) for key in ("difference", "low", "high")] == [0.02, 0.02, 0.02]
    expected = {"arm": PRIMARY_ARM, "labelled": 2, "draws": 4, "seeds": 3, "steps_ratio": 0.4}
    assert {key: found[key] for key in expected} == expected
    assert found["p"] == pytest.approx(0.125)


def test_a_hypothesis_is_read_over_its_folds_in_its_own_draws_and_encoders(tmp_path: Path) -> None:
    how = {"steps": PRIMARY.steps, "head": PRIMARY.head}
    for fold, name in zip(LOCAL_FOLDS, HYPOTHESES["third"], strict=True):
        part = PARTS[name]
        for draw in range(6):
            hard = 0.1 * fold
            rows = [training("scratch", 1e-3, 0.5 - hard, **how)]
            for seed in range(part.seeds):  # those that the draw does not belong to are far ahead
                better = 0.01 * fold if seed == draw % part.seeds else 0.4
                row = training(LOCAL_ARM, PRIMARY.rate, 0.5 - hard + better, seed=seed, **how)
                rows.append(row | {"stage": part.stage(LOCAL_ARM, seed)})
            rows.append(training("scratch", 3e-3, 0.9))  # the hypothesis names another control
            write_draw(tmp_path, fold, draw, rows)
    rows = read_results(tmp_path)[1]
    for row in rows:
        row["patients"] = [f"{row['tests']}, {name}" for name in row["patients"]]
    found = over_folds(rows, HYPOTHESES["third"])
    assert found is not None
    assert found["difference"] == pytest.approx(0.035)  # 0.03 and 0.04
    assert 0.0299 < found["low"] < 0.035 < found["high"] < 0.0401
    assert (found["arm"], found["draws"], found["patients"], found["encoders"]) == (LOCAL_ARM, 12, 4, 6)
    assert found["steps_ratio"] == 1.0  # at half of the steps it is 0.05 below
    assert primary(rows) is None
    assert over_folds(rows, HYPOTHESES["second"]) is None
    lines = encoder_table(rows, HYPOTHESES["third"]).splitlines()[2:]
    own, shared = ([line.split("|")[at : at + 2] for line in lines] for at in (3, 5))
    assert own == [[" 2 ", " +0.030 (+0.030 to +0.030) "]] * 3 + [[" 2 ", " +0.040 (+0.040 to +0.040) "]] * 3
    assert [(row["draw"], row["stage"][-1]) for row in rotated(rows) if row["stage"]][:4] == [
        (d, str(d % 3)) for d in range(4)
    ]
    assert shared[0][0] == " 6 "
    assert shared[0][1].startswith(f" {(0.4 * 4 + 0.03 * 2) / 6:+.3f} ")


def test_other_arms_of_a_hypothesis_stand_beside_it_in_the_same_draws(tmp_path: Path) -> None:
    names = HYPOTHESES["fourth"]
    how = {"steps": BEST_SCRATCH[0].steps, "head": BEST_SCRATCH[0].head}
    for fold, name in zip(LOCAL_FOLDS, names, strict=True):
        rows = [training("scratch", 1e-3, 0.5, **how)]
        for arm, better in zip(PARTS[name].arms[:2], (-0.01, 0.02), strict=True):
            stage = {"stage": PARTS[name].stage(arm, 0)}
            rows += [training(arm, rate, 0.5 + better, **how) | stage for rate in (1e-3, 3e-4)]
        for draw in range(3):
            write_draw(tmp_path, fold, draw, rows)
    rows = read_results(tmp_path)[1]
    found = over_folds(rows, names)
    assert found is not None
    assert (found["arm"], round(found["difference"], 6), found["draws"]) == ("mask_in_mask", -0.01, 6)
    lines = [[cell.strip() for cell in line.split("|")] for line in control_table(rows, names).splitlines()[2:]]
    assert [(*line[1:4], line[6]) for line in lines] == [
        ("mask_in_mask", "scratch, linear head, 200 steps", "6", "-0.010"),
        ("emim", "scratch, linear head, 200 steps", "6", "0.020"),
        ("mask_in_mask", "emim", "6", "-0.030"),
    ]
    lines = [
        [cell.strip() for cell in line.split("|")[1:5]] for line in fold_table(rows, names, "emim").splitlines()[2:]
    ]
    assert [line[:3] for line in lines] == [
        [folds_of, draws, "mask_in_mask minus emim"] for folds_of, draws in (("3, 4", "6"), ("3", "3"), ("4", "3"))
    ]
    assert {line[3] for line in lines} == {"-0.030 (-0.030 to -0.030)"}
    assert fold_table(rows, HYPOTHESES["sixth"], "mim") == ""


def test_a_contrast_changes_one_thing_in_the_draws_that_both_have(tmp_path: Path) -> None:
    how = {"steps": PRIMARY.steps, "head": PRIMARY.head}
    for draw in range(3):
        rows = [
            training("emim", PRIMARY.rate, 0.4 - 0.1 * draw, **how),
            training("emim", 1e-3, 0.42 - 0.1 * draw, **how),
        ]
        rows.append(training("mim", PRIMARY.rate, 0.9, **how))  # not at the other rate
        for arm, dice in (("scratch", 0.5), ("emim", 0.53)):
            rows.append(training(arm, PRIMARY.rate, dice, **how) | {"configuration": PLANNED})
        rows.append(training("scratch", 1e-3, 0.9, **how) | {"configuration": PLANNED})  # E-MIM not at that rate
        write_draw(tmp_path, COHORT[0], draw, rows[draw == 2 :])
    lines = contrast_table(read_results(tmp_path)[1]).splitlines()[2:]
    assert [[cell.strip() for cell in line.split("|")[1:6]] for line in lines] == [
        ["all sites, 2", "2", "emim, 1e-3 minus 3e-4", "2", "+0.020 (+0.020 to +0.020)"],
        ["all sites, 2, planned network", "2", "emim minus scratch, 0.0003", "3", "+0.030 (+0.030 to +0.030)"],
    ]


def test_the_curve_takes_the_draws_that_all_arms_have() -> None:
    part = PARTS["emim_curve"]
    ways = {"emim": {"arm": "emim"} | asdict(part.tunings[0])} | CONTROLS

    def row(name: str, labelled: int, draw: int, dice: list[float]) -> dict[str, Any]:
        about = {"tests": f"all sites, {COHORT[0]}", "evaluation": "finetune", "labelled": labelled, "draw": draw}
        return about | ways[name] | {"dice": {"100": [0.0, 0.0], "200": dice}}

    ours, linear, unet = ways
    rows = [row(ours, 4, draw, [0.6, 0.8]) for draw in range(3)] + [row(linear, 4, draw, [0.5, 0.5]) for draw in (0, 2)]
    rows += [row(unet, 4, draw, [0.5, 0.9]) for draw in range(4)] + [row(ours, 8, 0, [1.0, 1.0])]
    rows.append(row(ours, 4, 3, [0.0, 0.0]) | {"rate": PRIMARY.rate})  # at another rate
    (found,) = curve(rows, part)
    assert (found["labelled"], found["draws"]) == (4, 2)
    assert found["dice"][ours][0] == pytest.approx(0.7)
    assert found["minus"][linear][0] == pytest.approx(0.2)
    assert found["minus"][unet] == pytest.approx((0.0, -0.1, 0.1))
    assert found["worth"] == {linear: "", unet: ""}  # one number is no curve
    level = {4: (0.7, 0.5, 0.6), 8: (0.8, 0.9, 0.8)}
    rows = [
        row(name, labelled, draw, [dice] * 2)
        for labelled, values in level.items()
        for name, dice in zip(ways, values, strict=True)
        for draw in range(2)
    ]
    four, eight = curve(rows, part)
    assert four["worth"] == {linear: "5.7 (5.7 to 5.7)", unet: "5.7 (5.7 to 5.7)"}  # half way, on a logarithm
    assert eight["worth"][linear] == "6.7 (6.7 to 6.7)"


def test_methods_are_compared_with_the_same_head_in_the_same_draws() -> None:
    part = PARTS["others"]

    def row(arm: str, draw: int, dice: float, tuning: Any = None) -> dict[str, Any]:
        about = {"tests": f"all sites, {COHORT[0]}", "arm": arm, "labelled": 2, "draw": draw, "stage": arm}
        how = {"evaluation": "linear", "steps": 0} if tuning is None else {"evaluation": "finetune", **asdict(tuning)}
        return about | how | {"dice": {"end" if tuning is None else "200": [dice, dice]}}

    rows = []
    for draw in range(part.draws + 1):  # the last is beyond the part
        hard = 0.02 * draw if draw < part.draws else 9
        for arm, frozen, tuned in (("scratch", 0.3, 0.5), ("mim", 0.35, 0.49), ("emim", 0.4, 0.52)):
            tuning = BEST_SCRATCH[0] if arm == "scratch" else PRIMARY
            rows += [row(arm, draw, frozen - hard), row(arm, draw, tuned - hard, tuning)]
        rows += [row("scratch", draw, 0.9, BEST_SCRATCH[1]), row("moco", draw, 0.9)]  # another head; not fine-tuned
    lines = others_table(rows).splitlines()[2:]
    assert [line.split("|")[2].strip() for line in lines] == [
        "mim minus scratch",
        "emim minus scratch",
        "emim minus mim",
    ]
    assert lines[1] == (
        "| 2 | emim minus scratch | 8 | 0.330 | 0.450 | +0.100 (+0.100 to +0.100) | 0.008 | +0.020 (+0.020 to +0.020) | 0.008 |"
    )
    assert others_table([]) == ""


def test_subsets_of_modalities_are_paired_by_draw() -> None:
    rows = []
    for draw, hard in enumerate((0.0, 0.1, 0.3)):
        for arm, p_drop, complete, alone in (
            ("scratch", 0.0, 0.6, 0.2),
            ("scratch", 0.5, 0.59, 0.5),
            ("emim", 0.5, 0.6, 0.52),
        ):
            about = {"arm": arm, "p_drop": p_drop, "draw": draw, "dice": {"500": [complete - hard] * 2}}
            rows.append(about | {"dice_of_subsets": {"T1": [alone - hard] * 2, "FLAIR": [alone + 0.1 - hard] * 2}})
    text = subset_table(rows)
    assert "| scratch | 0 | 3 | 0.067 | 0.167 | 0.467 |" in text
    assert (
        "| scratch (0.5) minus scratch (0) | incomplete, mean of the subsets | 3 | +0.300 | +0.300 to +0.300 | 0.000 |"
        in text
    )
    assert "| scratch (0.5) minus scratch (0) | complete | 3 | -0.010 | -0.010 to -0.010 |" in text
    assert "| emim (0.5) minus scratch (0.5) | incomplete, mean of the subsets | 3 | +0.020 |" in text
    assert "emim (0.5) minus emim (0)" not in text  # was not run


def head() -> np.ndarray:
    """Balls in balls: skin around cortex around white matter around fluid."""
    axes = np.meshgrid(*[np.linspace(-1, 1, 48)] * 3, indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    labels = np.zeros(radius.shape, dtype=np.int16)
    for identifier, edge in ((502, 0.95), (3, 0.8), (2, 0.65), (4, 0.2)):
        labels[radius < edge] = identifier
    return labels


def test_a_drawn_brain_has_the_contrasts_of_its_tissues_and_repeats() -> None:
    labels = head()
    image, lesion = make_brain(labels, 4, displacement=0.3)
    assert image.shape == (4, 48, 48, 48)
    assert all(
        np.array_equal(a, b) for a, b in zip((image, lesion), make_brain(labels, 4, displacement=0.3), strict=True)
    )
    assert not np.array_equal(image, make_brain(labels, 5, displacement=0.3)[0])
    assert (image[:, labels == 0] == 0).mean() > 0.99
    white, grey, fluid = (image[:, labels == identifier].mean(1) for identifier in (2, 3, 4))
    assert (white[:2] > grey[:2]).all()  # T1, T1ce
    assert (fluid[:2] < grey[:2]).all()
    assert fluid[2] > grey[2] > white[2]  # T2
    assert fluid[3] < white[3]  # FLAIR
    lesions = [make_brain(labels, seed, displacement=0.3) for seed in range(4)]
    bright = [image[3][lesion > 0].mean() for image, lesion in lesions if lesion.any()]
    assert bright
    assert min(bright) > 1.2 * white[3]


def test_coarser_voxels_and_the_skull_are_drawn_too() -> None:
    labels = head()
    assert make_brain(labels, 0, spacing=2.0)[0].shape == (4, 24, 24, 24)
    with_skull, _ = make_brain(labels, 0, skull=True, displacement=0.3)
    assert with_skull[0][labels == 502].mean() > 400
    assert 0 < with_skull[0][labels == 0].mean() < 120  # noise, a little skin that was moved there


def test_a_drawn_subject_is_written_like_a_patient_in_thick_slices(tmp_path: Path) -> None:
    write_subject(head(), 0, "drawn_01_0", tmp_path)
    files = {file.name: sitk.ReadImage(file) for file in (tmp_path / "drawn_01_0").glob("*.nii.gz")}
    assert {f"drawn_01_0_{name}.nii.gz" for name in (*CHANNELS, "mask")} <= files.keys()
    assert all(image.GetSize() == (24, 24, 8) and image.GetSpacing() == SPACING for image in files.values())
    assert set(np.unique(sitk.GetArrayFromImage(files["drawn_01_0_mask.nii.gz"]))) <= {0, 1}
    about = read_json(tmp_path / "drawn_01_0" / "about.json")
    assert about["ventricles_ml"] == pytest.approx((head() == 4).sum() / 1000, rel=0.3)  # moved by the deformation
    assert [path.name for path in tmp_path.iterdir()] == ["drawn_01_0"]


def test_a_case_of_brats_is_written_like_a_patient_in_thick_slices(tmp_path: Path) -> None:
    source = tmp_path / "BraTS-GLI-00007-000"
    source.mkdir()
    ball = np.hypot.reduce(np.meshgrid(*[np.linspace(-1, 1, 60)] * 3, indexing="ij")) < 0.8
    tumour = np.zeros(ball.shape, np.uint8)
    tumour[20:40, 12:32, 30:50] = 3
    for ending, voxels in {"t1n": 500 * ball, "t1c": 700 * ball, "t2f": 900 * ball, "seg": tumour}.items():
        image = sitk.GetImageFromArray(voxels.astype(np.int16))
        image.SetSpacing((1.5, 1.5, 1.5))
        sitk.WriteImage(image, source / f"{source.name}-{ending}.nii.gz")
    write_case(source, tmp_path / "out")
    files = {file.name: sitk.ReadImage(file) for file in (tmp_path / "out" / "brats_00007-000").iterdir()}
    assert files.keys() == {f"brats_00007-000_{name}.nii.gz" for name in (*CHANNELS, "mask")}
    assert all(image.GetSize() == (45, 45, 15) and image.GetSpacing() == SPACING for image in files.values())
    voxels = {name: sitk.GetArrayFromImage(image) for name, image in files.items()}
    mask, flair = (voxels[f"brats_00007-000_{name}.nii.gz"] for name in ("mask", "FLAIR"))
    assert (mask > 0).sum() == pytest.approx((tumour > 0).sum() * 1.5**3 / np.prod(SPACING), rel=0.15)
    assert np.argwhere(mask).mean(0) == pytest.approx(np.array([29.5, 21.5, 39.5]) * 1.5 / SPACING[::-1], abs=0.6)
    assert (flair == 0).mean() == pytest.approx((~ball).mean(), abs=0.05)  # no tails of the smoothing
    assert flair[7, 22, 22] == pytest.approx(900, rel=0.01)


def test_transfer_has_rows_of_its_own_and_scratch_in_common(tmp_path: Path) -> None:
    (tmp_path / "draws").mkdir()
    cohort2, channels, drawn = (PARTS[name] for name in ("cohort2", "two_channels", "from_drawn"))
    rows = missing_rows(cohort2, 0, 2, tmp_path)
    rows = [row | training("", 0, 0.4 if row["arm"] == "scratch" else 0.5) | row for row in rows]
    write_draw(tmp_path, cohort2.label_fold, 0, rows)
    assert missing_rows(cohort2, 0, 2, tmp_path) == []
    assert [row["arm"] for row in missing_rows(channels, 0, 2, tmp_path)] == ["scratch", PRIMARY_ARM]
    missing = [(row["arm"], row["evaluation"]) for row in missing_rows(drawn, 0, 2, tmp_path)]
    assert ("scratch", "finetune") not in missing
    assert (f"{PRIMARY_ARM}_from_drawn", "finetune") in missing
    more = [row | training("", 0, 0.9) | row for row in missing_rows(channels, 0, 2, tmp_path)]
    write_draw(tmp_path, cohort2.label_fold, 0, rows + more)
    found = read_results(tmp_path)[1]
    assert {row["tests"] for row in found} == {"all sites, 2", "T1+FLAIR of all sites, 2"}
    pairs = over_folds(found + [row | {"draw": 1} for row in found], HYPOTHESES["second"])
    assert pairs is not None
    assert pairs["draws"] == 2
    assert pairs["difference"] == pytest.approx(0.1)  # the rows of two channels are 0.9


def test_encoders_of_other_data_are_named_after_them_or_asked_for(tmp_path: Path) -> None:
    part, other, work = PARTS["from_drawn"], tmp_path / "drawn", tmp_path / "work"
    for arm in part.arms:
        file = encoder_file(other, PARTS["drawn"].stage(arm, 0), 8)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(arm.encode())
    with pytest.raises(SystemExit, match=r"no encoder moco_zca_fold2_epochs8_seed0_after8\.pth of drawn: .*--encoders"):
        take_encoders(part, None, work)
    work.mkdir()
    take_encoders(part, other, work)
    assert encoder_file(work, part.stage("mim", 0), 8).read_bytes() == b"mim"
    assert encoder_file(work, part.stage("mim", 0), 8).name == "mim_from_drawn_fold2_epochs8_seed0_after8.pth"
    take_encoders(part, None, work)  # they are there


@pytest.mark.slow
def test_a_part_runs_and_is_not_run_again(tmp_path: Path) -> None:
    shared_data("lgg")
    command = [sys.executable, str(SCRIPT), "--quick", "--part", "linear_first", "--data", str(SHARED / "lgg")]
    command += ["--work", str(tmp_path / "work"), "--json", str(tmp_path / "out.json"), "--workers", "1"]
    subprocess.run(command, check=True, timeout=3600)
    part = PARTS["linear_first"].quick()
    draw = tmp_path / "out" / "draws" / f"fold{part.label_fold}_labelled{part.labelled[0]}_draw0.json"
    before = draw.stat().st_mtime_ns
    assert {row["arm"] for row in read_json(draw)["rows"]} == {"scratch", *part.arms}
    assert "minus scratch" in (tmp_path / "out.md").read_text()
    subprocess.run(command, check=True, timeout=600)
    assert draw.stat().st_mtime_ns == before
