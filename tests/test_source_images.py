"""What a conversion notices in images and changes in them: backgrounds, masks, fields of view, text in headers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from emim_nnunet.cli import convert as command
from emim_nnunet.cli import plan_and_preprocess
from emim_nnunet.cli._run import run
from emim_nnunet.datasets.background import Background, outside_value, wrong_background
from emim_nnunet.datasets.headers import copy_without_text, header_text
from emim_nnunet.datasets.raw import cases_without_orientation
from emim_nnunet.phantom import make_phantom
from emim_nnunet.planners.preprocess import orientation_of
from tests.conftest import shared_data

HEAD = make_phantom(0, (24, 26, 28))[0][0]
BODY = HEAD > 0
DRAW = np.random.default_rng(0)
NOISE = DRAW.normal(0, 12, (2, *HEAD.shape))
TO_A_COIL = np.linalg.norm(np.indices((20, 40, 40)) - np.array([10, 0, 20])[:, None, None, None], axis=0)
SOUND = {
    "zeros around": HEAD,
    "normalised inside": np.where(BODY, (HEAD - HEAD[BODY].mean()) / HEAD[BODY].std(), 0),
    "tight": HEAD[3:-3, 3:-3, 3:-3],
    "tissue everywhere": DRAW.normal(300, 40, (20, 30, 30)),
    "tissue with a coil": 200 * np.exp(-TO_A_COIL / 30) + DRAW.normal(0, 3, TO_A_COIL.shape) ** 2,
    "a slice": HEAD[12][None],
}
WRONG = {
    "normalised as a whole": ((HEAD - HEAD.mean()) / HEAD.std(), True),
    "-1000 around": (np.where(BODY, HEAD, -1000), True),
    "one grey value around": (np.where(BODY, HEAD, 3).astype(np.uint8), True),
    "magnitude noise": (np.hypot(HEAD + NOISE[0], NOISE[1]), False),
    "noise of both signs": (HEAD + NOISE[0], False),
    "noise, normalised": ((HEAD + NOISE[0] - HEAD.mean()) / HEAD.std(), False),
    "a slice in noise": (np.hypot(HEAD + NOISE[0], NOISE[1])[12][None], False),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_background_of_zero_or_none_raises_no_alarm(name: str) -> None:
    assert wrong_background(SOUND[name]) is None


@pytest.mark.parametrize("name", WRONG)
def test_a_constant_and_noise_around_the_body_are_noticed(name: str) -> None:
    voxels, constant = WRONG[name]
    found = wrong_background(voxels)
    assert found is not None
    assert (found.value is not None) == constant
    assert abs(found.share - (~BODY).mean()) < 0.3
    if constant:
        assert found == Background(voxels[0, 0, 0], float((voxels == voxels[0, 0, 0]).mean()))


def test_real_images() -> None:
    """Skull-stripped ones have a background of 0; the whole heads of LGG lie in noise, by their publisher."""
    for folder, pattern in (("open_ms", "*/[FT]*.nii.gz"), ("brats2023_gli", "*/*/*0-t1c.nii.gz")):
        files = sorted(shared_data(folder).glob(pattern))
        assert files
        assert [f.name for f in files if wrong_background(voxels_of(f)) is not None] == []
    heads = sorted(shared_data("lgg").glob("*DU*/*_T1.nii.gz"))[:20]
    assert sum(wrong_background(voxels_of(f)) is not None for f in heads) >= 15


@pytest.mark.parametrize(
    ("voxels", "expected"),
    [
        (HEAD, 0),
        (SOUND["tight"] - 0.0, 0),
        (np.where(BODY, HEAD, -1000), -1000),
        (DRAW.uniform(-1000, -500, (9, 9, 9)).clip(-990), None),
    ],
)
def test_what_lies_outside_of_an_image(voxels: np.ndarray, expected: float | None) -> None:
    assert outside_value(voxels) == (voxels.min() if expected is None else expected)


# ------------------------------------------------------------------------------------------- conversion


def voxels_of(file: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def write(file: Path, voxels: np.ndarray, spacing: float = 1.0, origin: float = 0.0) -> None:
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing([spacing] * 3)
    image.SetOrigin([origin] * 3)
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(file))


def convert(folder: Path, *options: str, dataset_id: str = "7") -> int:
    channels = ["--channel", "T1={case}/T1.nii.gz", "--channel", "T2={case}/T2.nii.gz"]
    return run(command.main, ["folders", str(folder / "SURNAME_1970"), "-d", dataset_id, *channels, *options])


def result(folder: Path) -> Path:
    return folder / "nnUNet_raw" / "Dataset007_Own"


def provenance(folder: Path, case: str = "P1") -> dict[str, Any]:
    return json.loads((result(folder) / "provenance.json").read_text())["cases"][case]


@pytest.fixture
def heads(nnunet_dirs: Path) -> Path:
    """P1 has a constant around its T1, P2 noise around its T2."""
    source = nnunet_dirs / "SURNAME_1970"
    head = HEAD.astype(np.float32)
    write(source / "P1" / "T1.nii.gz", np.where(BODY, head - 50, np.float32(-0.42)))
    write(source / "P1" / "T2.nii.gz", head)
    write(source / "P2" / "T1.nii.gz", head)
    write(source / "P2" / "T2.nii.gz", (head + NOISE[0]).astype(np.float32))
    return nnunet_dirs


def remark_of_planning(folder: Path, caplog: pytest.LogCaptureFixture) -> str:
    """What the command says before it comes to a folder that it cannot make."""
    (folder / "nnUNet_preprocessed" / "Dataset007_Own").touch()
    assert run(plan_and_preprocess.main, ["-d", "7", "-npfp", "2"]) == 2
    return "".join(message for message in caplog.messages if "background" in message)


def test_a_wrong_background_is_told_at_conversion_and_planning(
    heads: Path, capsys: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert convert(heads, "--dry_run") == 0
    dry = capsys.readouterr().out
    assert convert(heads) == 0
    printed = capsys.readouterr().out
    expected = "the background of 2 of 4 images is not 0 (most in case P1, T1: -0.42 in 75% of the voxels)"
    for text in (dry, printed, remark_of_planning(heads, caplog)):
        assert expected in text
        assert "--background_to_zero" in text
        assert "--mask" in text
    assert "WARNING: the background" in printed.splitlines()[-1]
    assert provenance(heads)["background_not_zero"]["T1"]["value"] == pytest.approx(-0.42)
    assert provenance(heads, "P2")["background_not_zero"]["T2"]["value"] is None


def test_a_constant_background_becomes_zero_and_nothing_else_changes(heads: Path, capsys: Any) -> None:
    source = heads / "SURNAME_1970" / "P1" / "T1.nii.gz"
    before = voxels_of(source)
    assert convert(heads, "--background_to_zero", "--link") == 0
    written = voxels_of(result(heads) / "imagesUnlabelled" / "P1_0000.nii.gz")
    assert np.array_equal(written, np.where(BODY, before, 0))
    assert written.dtype == before.dtype
    assert (result(heads) / "imagesUnlabelled" / "P1_0001.nii.gz").is_symlink()  # was right before
    about = provenance(heads)
    assert about["set_to_zero"] == {"T1": pytest.approx(-0.42)}
    assert about["background_not_zero"] == {}
    assert "the background of 1 of 4 images" in capsys.readouterr().out  # the noise: no constant


@pytest.mark.parametrize("spacing", [1.0, 0.5])
def test_outside_of_a_mask_all_channels_are_zero(spacing: float, heads: Path, capsys: Any) -> None:
    for case in ("P1", "P2"):
        mask = np.kron(BODY, np.ones([round(1 / spacing)] * 3)).astype(np.uint8)
        write(heads / "SURNAME_1970" / case / "brain.nii.gz", mask, spacing, -(1 - spacing) / 2)
    options = ["--mask", "{case}/brain.nii.gz"]
    if spacing != 1:
        assert convert(heads, *options) == 2
        assert "brain.nii.gz is on another grid than T1.nii.gz" in capsys.readouterr().err
        options += ["--resample-to", "T1"]
    assert convert(heads, *options) == 0
    assert "WARNING: the background" not in capsys.readouterr().out
    for case, channel in (("P1", "T1"), ("P2", "T2")):
        before = voxels_of(heads / "SURNAME_1970" / case / f"{channel}.nii.gz")
        written = voxels_of(result(heads) / "imagesUnlabelled" / f"{case}_000{int(channel[1]) - 1}.nii.gz")
        assert np.array_equal(written, np.where(BODY, before, 0))
    assert len(provenance(heads)["sha256"]["body mask"]) == 64


def test_labels_outside_of_a_mask_are_told(heads: Path, capsys: Any) -> None:
    for case in ("P1", "P2"):
        write(heads / "SURNAME_1970" / case / "brain.nii.gz", BODY.astype(np.uint8))
    label = np.zeros(HEAD.shape, np.uint8)
    label[0, 0, :2] = label[tuple(np.argwhere(BODY)[0])] = 1
    write(heads / "SURNAME_1970" / "P1" / "seg.nii.gz", label)
    options = ["--mask", "{case}/brain.nii.gz", "--label", "{case}/seg.nii.gz", "--classes", "lesion=1"]
    assert convert(heads, *options) == 0
    assert "1 cases have labelled voxels outside of their body mask" in (out := capsys.readouterr().out)
    assert "most in P1: 67%" in out


def test_bids_has_masks_too(nnunet_dirs: Path) -> None:
    session = nnunet_dirs / "source" / "sub-01" / "anat"
    write(session / "sub-01_T1w.nii.gz", HEAD + 7)
    write(session / "sub-01_space-T1w_desc-brain_mask.nii.gz", BODY.astype(np.uint8))
    options = ["-d", "7", "--channel", "T1=T1w", "--mask", "desc-brain_mask"]
    assert run(command.main, ["bids", str(nnunet_dirs / "source"), *options]) == 0
    written = voxels_of(result(nnunet_dirs) / "imagesUnlabelled" / "sub-01_0000.nii.gz")
    assert np.array_equal(written != 0, BODY)


def test_one_bids_suffix_is_not_two_things(nnunet_dirs: Path, capsys: Any) -> None:
    options = ["-d", "7", "--channel", "T1=T1w", "--label", "mask", "--classes", "lesion=1", "--mask", "mask"]
    assert run(command.main, ["bids", str(nnunet_dirs), *options]) == 2
    assert "the suffix 'mask' is given twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("voxels", "outside"),
    [
        (DRAW.uniform(-990, -500, (8, 8, 8)).astype(np.float32), "least"),
        (np.where(np.arange(8) > 3, DRAW.uniform(-900, -500, (8, 8, 8)), -1000).astype(np.float32), -1000),
        (np.where(np.arange(8) > 3, DRAW.normal(0, 1, (8, 8, 8)), 0).astype(np.float32), 0),
    ],
    ids=["no background", "constant", "zero"],
)
def test_beyond_the_field_of_view_is_background(
    voxels: np.ndarray, outside: Any, nnunet_dirs: Path, capsys: Any
) -> None:
    source = nnunet_dirs / "SURNAME_1970" / "P1"
    write(source / "T1.nii.gz", HEAD)
    write(source / "T2.nii.gz", voxels, origin=3.0)
    assert convert(nnunet_dirs, "--resample-to", "T1") == 0
    written = voxels_of(result(nnunet_dirs) / "imagesUnlabelled" / "P1_0001.nii.gz")
    value = voxels.min() if outside == "least" else np.float32(outside)
    inside = (slice(3, 11),) * 3
    assert np.allclose(written[inside], voxels)
    written[inside] = value
    assert (written == value).all()
    assert provenance(nnunet_dirs)["filled_with"] == {"T2": pytest.approx(float(value))}
    assert ("the background of 1 of 2 images" in capsys.readouterr().out) == (value != 0)


def test_lost_labels_show_in_a_dry_run_and_in_provenance(nnunet_dirs: Path, capsys: Any) -> None:
    source = nnunet_dirs / "SURNAME_1970" / "P1"
    write(source / "T1.nii.gz", HEAD[::2, ::2, ::2], 2.0)
    write(source / "T2.nii.gz", HEAD)
    label = np.zeros(HEAD.shape, np.uint8)
    label[5, 5, 5], label[8:12, 8:12, 8:12] = 3, 1
    write(source / "seg.nii.gz", label)
    options = ["--resample-to", "T1", "--label", "{case}/seg.nii.gz", "--classes", "big=1", "small=3"]
    convert(nnunet_dirs, *options, "--dry_run")
    assert "loses all voxels of the label 3 by resampling" in capsys.readouterr().out
    assert convert(nnunet_dirs, *options, "--allow_lost_labels") == 0
    assert "WARNING: 1 cases lost labels by resampling" in capsys.readouterr().out
    assert provenance(nnunet_dirs)["lost_labels"] == [3]


# ---------------------------------------------------------------------------------------- text in headers


NAME = b"DOE JANE"


def with_text(file: Path, kind: type = nib.Nifti1Image, order: str = "<") -> None:
    """An int16 image with slope, both forms, and a name in every place that takes one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.ascontiguousarray(HEAD.T).astype(f"{order}i2")
    header = kind.header_class(endianness=order)
    image = kind(voxels, np.diag([-1, -1, 1, 1.0]), header)
    image.set_qform(np.diag([-1, -1, 1, 1.0]), 1)
    for field in ("descrip", "aux_file", "intent_name", *(("db_name",) if kind is nib.Nifti1Image else ())):
        image.header[field] = NAME
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"MRN 12345 " + NAME))
    image.header.set_slope_inter(2.0, -3.0)
    image.to_filename(file)
    content = gzip.decompress(file.read_bytes())
    with gzip.GzipFile(f"{NAME.decode()}.nii", "wb", fileobj=file.open("wb")) as stream:
        stream.write(content + NAME)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_text_leaves_a_file_and_nothing_else_does(kind: type, order: str, tmp_path: Path) -> None:
    source, target = tmp_path / "source.nii.gz", tmp_path / "target.nii.gz"
    with_text(source, kind, order)
    assert {"gzip", "descrip", "aux_file", "intent_name", "extensions"} <= set(header_text(source))
    copy_without_text(source, target)
    assert header_text(target) == []
    assert NAME not in target.read_bytes()
    assert NAME not in gzip.decompress(target.read_bytes())
    old, new = nib.load(source), nib.load(target)
    assert np.array_equal(old.dataobj.get_unscaled(), new.dataobj.get_unscaled())
    changed = [key for key in old.header if old.header[key].tobytes() != new.header[key].tobytes()]
    assert set(changed) <= {"descrip", "aux_file", "intent_name", "db_name", "vox_offset"}
    assert old.dataobj.slope == new.dataobj.slope == 2
    if kind is nib.Nifti2Image:
        return  # ITK does not read it
    images = [sitk.ReadImage(str(file)) for file in (source, target)]
    assert np.array_equal(*map(sitk.GetArrayFromImage, images))
    assert images[0].GetDirection() == images[1].GetDirection()
    assert images[0].GetOrigin() == images[1].GetOrigin()


def names_in(folder: Path) -> list[str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    contents = {f: f.read_bytes() + (gzip.decompress(f.read_bytes()) if f.suffix == ".gz" else b"") for f in files}
    return sorted(f.name for f, content in contents.items() if NAME in content)


def test_names_in_headers_are_counted_but_not_printed(nnunet_dirs: Path, capfd: Any) -> None:
    for case in ("P1", "P2"):
        with_text(nnunet_dirs / "SURNAME_1970" / case / "T1.nii.gz")
        write(nnunet_dirs / "SURNAME_1970" / case / "T2.nii.gz", HEAD)
    assert convert(nnunet_dirs) == 0
    printed = "".join(capfd.readouterr())
    assert printed.count("hold text in their headers") == 1
    assert "WARNING: 2 image files hold text in their headers (2 gzip, 2 descrip" in printed
    assert "--strip_header" in printed
    assert NAME.decode() not in printed
    assert names_in(result(nnunet_dirs)) == ["P1_0000.nii.gz", "P2_0000.nii.gz"]
    assert "SURNAME" not in (result(nnunet_dirs) / "provenance.json").read_text()
    assert convert(nnunet_dirs, "--strip_header", dataset_id="8") == 0
    assert "hold text" not in "".join(capfd.readouterr())
    other = nnunet_dirs / "nnUNet_raw" / "Dataset008_Own"
    assert names_in(other) == []
    assert json.loads((other / "provenance.json").read_text())["header_text_left_out"] is True


def test_images_that_are_written_anew_have_no_text(nnunet_dirs: Path) -> None:
    source = nnunet_dirs / "SURNAME_1970" / "P1"
    with_text(source / "T1.nii.gz")
    (source / "T1.nii").write_bytes(gzip.decompress((source / "T1.nii.gz").read_bytes()))
    options = ["-d", "7", "--channel", "T1={case}/T1.nii"]
    assert run(command.main, ["folders", str(source.parent), *options]) == 0
    assert names_in(result(nnunet_dirs)) == []


def test_an_orientation_that_nobody_stated_stays_unknown(nnunet_dirs: Path) -> None:
    """Writing an image anew, ITK states an orientation whether its source did or not."""
    for case, code in (("said", 1), ("unsaid", 0)):
        image = nib.Nifti1Image(HEAD, np.eye(4))
        image.set_sform(np.eye(4), code)
        image.set_qform(np.eye(4), code)
        (nnunet_dirs / "source" / case).mkdir(parents=True)
        nib.save(image, nnunet_dirs / "source" / case / "T1.nii")  # not .nii.gz: it is written anew
    source = str(nnunet_dirs / "source")
    assert run(command.main, ["folders", source, "-d", "7", "--channel", "T1={case}/T1.nii"]) == 0
    assert provenance(nnunet_dirs, "said")["orientation_known"]
    assert not provenance(nnunet_dirs, "unsaid")["orientation_known"]
    assert orientation_of(result(nnunet_dirs) / "imagesUnlabelled" / "unsaid_0000.nii.gz") != ""
    assert cases_without_orientation(result(nnunet_dirs)) == {"unsaid"}
    assert cases_without_orientation(nnunet_dirs) == set()
