"""emim_features: vectors against means that are computed by hand, and label maps on preprocessed voxels."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from emim_nnunet.checkpoints.locate import find_checkpoint
from emim_nnunet.checkpoints.source import read_source
from emim_nnunet.classification.feature_table import MEANING
from emim_nnunet.classification.features import BODY, STATISTICS, StageMoments, case_features
from emim_nnunet.classification.model import open_masked
from emim_nnunet.classification.regions import Regions
from emim_nnunet.cli import features
from emim_nnunet.cli._run import run
from emim_nnunet.datasets.dataset import PreprocessedDataset
from emim_nnunet.datasets.preprocessed import open_case
from emim_nnunet.errors import UserError
from emim_nnunet.storage.files import sha256_of
from tests.pipeline import DATASET, PLANS, PRETRAIN, trained
from tests.toy import toy_primus, toy_unet

CPU = torch.device("cpu")
CASES = [f"BraTS-GLI-{number:05d}-000" for number in range(1, 8)]  # 1 to 5 with segmentation


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def write_map(file: Path, voxels: np.ndarray, like: Path) -> Path:
    image = sitk.GetImageFromArray(voxels)
    image.CopyInformation(sitk.ReadImage(str(like)))
    sitk.WriteImage(image, str(file))
    return file


@pytest.mark.parametrize("kind", ["residual", "plain"])
def test_a_vector_holds_the_moments_of_a_region_in_one_patch(kind: str, nnunet: Path) -> None:
    """Of a patch that holds the whole case, against sums over its voxels."""
    data = PreprocessedDataset.find(1, PLANS, "toy")
    case = data.cases[CASES[0]]
    image, masks = open_masked(case)
    size = [-(-n // 4) * 4 for n in image.shape[1:]]
    encoder = toy_unet(kind).encoder.eval()
    label_map = np.zeros(image.shape[1:], int)
    label_map[5:9, 6:12, 7:10] = 3
    entered: list[torch.Tensor] = []
    last = encoder.stages[0].blocks[-1].conv2.norm if kind == "residual" else encoder.stages[0][0].convs[-1].norm
    last.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
    moments = StageMoments(encoder, before=True)
    found = case_features(moments, data, case, size, {"box": (3, 7), "none": (9,)}, label_map, STATISTICS, CPU)
    assert list(found) == [BODY, "box", "none"]
    assert found[BODY]["voxels"] == masks[0].sum()
    assert found["box"]["voxels"] == 4 * 6 * 3
    assert found["none"] == {"voxels": 0}
    before = [(s - n) // 2 for s, n in zip(size, image.shape[1:], strict=True)]
    padded = np.zeros((4, *size), np.float32)
    place = tuple(slice(b, b + n) for b, n in zip(before, image.shape[1:], strict=True))
    padded[:, place[0], place[1], place[2]] = image[:]
    with torch.no_grad():
        first = encoder(torch.from_numpy(padded)[None])[0][0].numpy()
    box = tuple(
        slice(b + lower, b + upper) for b, (lower, upper) in zip(before, ((5, 9), (6, 12), (7, 10)), strict=True)
    )
    values = first[2][box]
    assert found["box"]["stage0_mean_2"] == pytest.approx(values.mean(), abs=1e-5)
    assert found["box"]["stage0_std_2"] == pytest.approx(values.std(), rel=1e-3)
    assert found["box"]["stage0_before_2"] == pytest.approx(entered[-1][0, 2][box].mean().item(), abs=1e-5)
    assert len(found["box"]) == 1 + 3 * (4 + 8 + 16)


def test_what_enters_a_normalisation_differs_where_its_output_does_not(nnunet: Path) -> None:
    """Brighter images: instance normalisation takes the brightness away from what comes behind it."""
    encoder = toy_unet("plain").encoder.eval()
    moments = StageMoments(encoder, before=True)
    image = torch.rand(1, 4, 16, 16, 16)
    with torch.no_grad():
        (output, entered), (brighter, more) = moments(image)[0], moments(3 * image)[0]
    assert entered is not None
    assert more is not None
    assert torch.allclose(output.mean((2, 3, 4)), brighter.mean((2, 3, 4)), atol=1e-2)
    assert ((more - entered).abs().amax((2, 3, 4)) > 0).all()
    with pytest.raises(UserError, match="--statistic before: stages of this encoder"):
        from emim_nnunet.networks import encoder_of

        StageMoments(encoder_of(toy_primus()), before=True)


def test_a_label_map_is_cropped_and_resampled_as_the_segmentations_were(nnunet: Path, tmp_path: Path) -> None:
    """Preprocessing did the same with them, but that it interpolates; so a map of a segmentation must be its result."""
    data = PreprocessedDataset.find(1, PLANS, "toy")
    raw = nnunet / "nnUNet_raw" / DATASET / "labelsTr"
    for case in data.labelled:
        label = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / f"{case.identifier}.nii.gz")))
        write_map(tmp_path / f"{case.identifier}.nii.gz", label, raw / f"{case.identifier}.nii.gz")
    regions = Regions(str(tmp_path), {}, data)
    assert list(regions.values) == ["label1", "label2", "label3"]
    for case in data.labelled:
        seg = np.asarray(open_case(case.folder, case.identifier)[1])[0]
        assert np.mean(regions.label_map(case) == np.maximum(seg, 0)) > 0.99
    assert regions.label_map(data.unlabelled[0]) is None


def test_a_table_of_cases_and_regions(nnunet: Path, tmp_path: Path, capsys: Any) -> None:
    folder, out = trained(PRETRAIN, fold="all"), tmp_path / "f.csv"
    common = [str(folder), "-d", DATASET, "-o", str(out), "-device", "cpu"]
    assert run(features.main, [*common, "--regions", "segmentation", "--statistic", *STATISTICS]) == 0
    rows = table(out)
    of_class = [row for row in rows if row["region"] != BODY]
    assert [row["case"] for row in rows if row["region"] == BODY] == CASES
    assert {row["case"] for row in of_class} == set(CASES[:5])  # nobody knows whether the others have lesions
    assert {row["region"] for row in of_class} == {"whole tumor", "tumor core", "enhancing tumor"}
    assert list(rows[0])[:5] == ["case", "patient", "region", "voxels", "stage0_mean_0"]
    assert len(rows[0]) == 4 + 3 * (4 + 8 + 16)
    about = json.loads(out.with_suffix(".json").read_text())
    assert about["encoder"]["sha256"] == sha256_of(find_checkpoint(folder))
    assert about["encoder"]["method"] == "EMIM"
    assert about["channel_names"] == ["T1", "T1ce", "T2", "Flair"]
    assert about["statistics"] == MEANING
    assert about["regions"]["tumor core"] == [1, 3]
    assert str(tmp_path) not in out.with_suffix(".json").read_text()
    first = rows[0]
    assert run(features.main, [*common, "--untrained"]) == 0
    assert table(out)[0]["stage0_mean_0"] != first["stage0_mean_0"]
    assert len(table(out)) == len(CASES)
    assert "7 rows of 7 cases, 56 features" in capsys.readouterr().out


def test_an_atlas_in_parquet_and_encoders_of_others(
    nnunet: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    image = next((nnunet / "nnUNet_raw" / DATASET / "imagesTr").glob("*_0000.nii.gz"))
    atlas = np.zeros((32, 32, 32), np.uint8)
    atlas[8:16, 8:24, 8:24], atlas[16:24, 8:24, 8:24] = 4, 43
    file = write_map(tmp_path / "atlas.nii.gz", atlas, image)
    out = tmp_path / "f.parquet"
    checkpoint = find_checkpoint(trained(PRETRAIN, fold="all"))
    command = [str(checkpoint), "-d", "1", "-o", str(out), "-device", "cpu"]
    assert run(features.main, [*command, "--regions", str(file), "--region", "both=4,43", "--region", "upper=43"]) == 0
    frame = pandas.read_parquet(out)
    assert len(frame) == 3 * 7
    assert frame.groupby("region").voxels.min()["both"] > frame.groupby("region").voxels.max()["upper"] > 0
    monkeypatch.setattr("emim_nnunet.classification.feature_table.find_spec", lambda name: None)
    assert run(features.main, command) == 2
    assert "Parquet needs pyarrow" in capsys.readouterr().err
    from emim_nnunet.cli import export

    nnssl = tmp_path / "encoder.pth"  # as nnssl writes them: an adaptation plan
    assert run(export.main, [str(checkpoint), "--encoder_only", "-o", str(nnssl)]) == 0
    assert read_source(nnssl).kind == "adaptation plan"
    words = [str(nnssl), "-d", "1", "-p", PLANS, "-c", "toy", "-o", str(tmp_path / "g.csv"), "-device", "cpu"]
    assert run(features.main, words) == 0
    ours = frame[frame.region == BODY].reset_index(drop=True)
    theirs = pandas.read_csv(tmp_path / "g.csv")
    assert np.allclose(ours.filter(like="stage"), theirs.filter(like="stage"), atol=1e-4)


def test_a_flat_network(nnunet: Path, tmp_path: Path, capsys: Any) -> None:
    checkpoint, out = trained(PRETRAIN, "toy_2d"), tmp_path / "f.csv"
    command = [str(checkpoint), "-d", "1", "-o", str(out), "-device", "cpu", "--regions", "segmentation"]
    assert run(features.main, command) == 0
    assert {row["region"] for row in table(out)} == {BODY, "whole tumor", "tumor core", "enhancing tumor"}
    assert run(features.main, [*command, "-c", "toy"]) == 2
    assert "is of a 2D network, the configuration 'toy' of the data is 3D" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "f.xlsx"], "the ending must be .csv or .parquet"),
        (["--region", "a=1"], "--region names values of label maps"),
        (["--regions", "segmentation", "--region", "a=x"], "--region a=x: expected NAME=VALUE,VALUE"),
        (["--regions", "segmentation", "--region", "body=1"], "'body' is always there"),
        (["--regions", "nowhere.nii.gz"], "expected 'segmentation', a folder of label maps, or a label map"),
        (["--regions", "EMPTY"], "holds no label map of a case, such as BraTS-GLI-00001-000.nii.gz"),
        (["--regions", "SMALL"], "has the size [8, 8, 8], its images [32, 32, 32] (z, y, x)"),
        (["--regions", "MOVED"], "is on another grid than its images: another origin"),
        (["--regions", "HALVES"], "holds values that are no whole numbers"),
        (["--regions", "ZERO"], "hold nothing but 0"),
        (["--regions", "TEXT"], "is not a readable image"),
    ],
)
def test_mistakes_end_in_one_line_and_write_nothing(
    options: list[str], message: str, nnunet: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    image = next((nnunet / "nnUNet_raw" / DATASET / "imagesTr").glob("*_0000.nii.gz"))
    ones = np.ones((32, 32, 32), np.float32)
    moved = sitk.GetImageFromArray(ones)
    moved.SetOrigin([5.0, 0, 0])
    sources = {
        name: tmp_path / "maps" / f"{name.lower()}.nii.gz" for name in ("SMALL", "MOVED", "HALVES", "ZERO", "TEXT")
    }
    (tmp_path / "maps").mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((8, 8, 8), np.uint8)), str(sources["SMALL"]))
    sitk.WriteImage(moved, str(sources["MOVED"]))
    write_map(sources["HALVES"], ones / 2, image)
    write_map(sources["ZERO"], ones * 0, image)
    sources["TEXT"].write_text("no image")
    sources["EMPTY"] = tmp_path / "maps"
    checkpoint = trained(PRETRAIN, fold="all")
    given = [str(sources.get(word, word)) for word in options]
    before = sorted(tmp_path.iterdir())
    assert run(features.main, [str(checkpoint), "-d", "1", "-o", "f.csv", "-device", "cpu", *given]) == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1]
    assert sorted(tmp_path.iterdir()) == before
