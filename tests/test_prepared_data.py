"""Preprocessed cases: reading them runs no code, and what has changed is noticed."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import blosc2
import numpy as np
import pytest
from measure.data import write_cases
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy

from emim_nnunet.dataloading.crops import CropDataset
from emim_nnunet.datasets import checksums
from emim_nnunet.datasets.checksums import case_digests, checksums_of, record_file, write_record
from emim_nnunet.datasets.folders import read_plans
from emim_nnunet.datasets.preprocessed import (
    Case,
    case_identifiers,
    open_case,
    read_properties,
    unlabelled_folder,
    without_code,
)
from emim_nnunet.errors import UserError
from tests.pipeline import DATASET, PLANS

IDS = [f"case{number:05d}" for number in range(3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three preprocessed cases with their checksums."""
    target = tmp_path / "nnUNetPlans_3d_fullres"
    write_cases(target, len(IDS), 2, (12, 12, 12), 8)
    write_record(target, [checksums_of(target, identifier) for identifier in IDS])
    return target


def digests(folder: Path) -> dict[str, str]:
    return case_digests([Case(folder, identifier) for identifier in IDS])


def read_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Gets the names of the files that are hashed from now on."""
    names: list[str] = []
    real = checksums.sha256_of

    def watched(path: Path) -> str:
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(checksums, "sha256_of", watched)
    return names


class MakesFolder:
    """Its unpickling creates a folder."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.victim),)


# -------------------------------------------------------------------------------------------- no code


def test_voxels_and_properties_are_those_that_nnunet_reads(folder: Path, prepared: Path) -> None:
    real = prepared / "nnUNet_preprocessed" / DATASET / f"{PLANS}_3d_fullres"
    for place in (folder, real, unlabelled_folder(real)):
        theirs, ours = (kind(str(place), None) for kind in (nnUNetDatasetBlosc2, without_code(nnUNetDatasetBlosc2)))
        assert ours.identifiers == theirs.identifiers == case_identifiers(place)
        for identifier in ours.identifiers:
            pairs = list(zip(ours.load_case(identifier), theirs.load_case(identifier), strict=True))
            assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs[:2])
            assert pairs[2] == (None, None)
            assert pickle.dumps(pairs[3][0]) == pickle.dumps(pairs[3][1])
            assert np.array_equal(np.asarray(open_case(place, identifier)[0]), np.asarray(pairs[0][1]))
    assert without_code(type(ours)) is type(ours)


def test_files_of_older_versions_are_read_likewise(tmp_path: Path) -> None:
    data, seg = np.ones((1, 4, 4, 4), np.float32), np.zeros((1, 4, 4, 4), np.int8)
    nnUNetDatasetNumpy.save_case(data, seg, {"spacing": (1.0, 1.0)}, str(tmp_path / "a"))
    reader = without_code(nnUNetDatasetNumpy)(str(tmp_path), None, str(tmp_path))
    for unpacked in (False, True):
        if unpacked:
            np.save(tmp_path / "a.npy", data)
            np.save(tmp_path / "a_seg.npy", seg)
        image, label, earlier, properties = reader.load_case("a")
        assert (np.asarray(image) == data).all()
        assert (np.asarray(label) == seg).all()
        assert np.asarray(earlier).shape == seg.shape
        assert properties == {"spacing": (1.0, 1.0)}


def test_code_beside_a_case_is_not_run(folder: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    evil = folder / f"{IDS[0]}.pkl"
    evil.write_bytes(pickle.dumps({"class_locations": MakesFolder(victim)}))
    dataset = CropDataset([Case(folder, IDS[0])], (8, 8, 8), seed=0, with_label=True)
    dataset.check_channels(2)
    assert dataset[0]["image"].shape == (2, 8, 8, 8)
    with pytest.raises(
        UserError, match=rf"{IDS[0]}.pkl of the preprocessed case .* without running code .*mkdir"
    ) as error:
        without_code(nnUNetDatasetBlosc2)(str(folder), [IDS[0]]).load_case(IDS[0])
    assert "\n" not in str(error.value)
    assert not victim.exists()
    nnUNetDatasetBlosc2(str(folder), [IDS[0]]).load_case(IDS[0])
    assert victim.exists()  # it would have run


@pytest.mark.parametrize("name", ["eval", "exec", "getattr", "__import__", "open"])
def test_dangerous_builtins_are_not_let_in(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"cbuiltins\n" + name.encode() + b"\n.")
    with pytest.raises(UserError, match=f"builtins.{name}"):
        read_properties(tmp_path, "a")


def test_a_stored_computation_is_no_array(folder: Path) -> None:
    """blosc2 can store an expression or a function, which is computed when it is read."""
    operand = blosc2.asarray(np.ones((2, 12, 12, 12), np.float32), urlpath=str(folder.parent / "x.b2nd"), mode="w")

    def double(inputs: tuple, output: np.ndarray, offset: tuple) -> None:
        output[:] = inputs[0] * 2

    for lazy in (operand + 1, blosc2.lazyudf(double, (operand,), np.float32, shape=operand.shape)):
        (folder / f"{IDS[0]}.b2nd").unlink()
        lazy.save(urlpath=str(folder / f"{IDS[0]}.b2nd"))
        with pytest.raises(UserError, match=f"the preprocessed case {IDS[0]} cannot be read"):
            CropDataset([Case(folder, IDS[0])], (8, 8, 8), seed=0)[0]


# -------------------------------------------------------------------------------------------- the same data


def test_unchanged_cases_are_not_read_and_a_copied_folder_is_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = read_files(monkeypatch)
    before = digests(folder)
    assert list(before) == IDS
    assert len(set(before.values())) == len(IDS)
    assert read == []
    for file in folder.iterdir():
        os.utime(file, ns=(0, 0))  # as a copy that does not keep times
    assert digests(folder) == before
    assert len(read) == 2 * len(IDS)


def test_a_replaced_case_is_noticed_whatever_the_record_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, read = digests(folder), read_files(monkeypatch)
    shutil.copy(folder / f"{IDS[1]}_seg.b2nd", folder / f"{IDS[0]}_seg.b2nd")
    shutil.copy(folder / f"{IDS[1]}.b2nd", folder / f"{IDS[0]}.b2nd")
    assert digests(folder) == before | {IDS[0]: before[IDS[1]]}
    assert sorted(read) == [f"{IDS[0]}.b2nd", f"{IDS[0]}_seg.b2nd"]


def test_a_preparation_that_was_killed_before_the_record_is_noticed(folder: Path) -> None:
    before = digests(folder)
    shutil.rmtree(folder)
    write_cases(folder, len(IDS), 2, (10, 10, 10), 8)  # and dies
    now = digests(folder)
    assert now.keys() == before.keys()
    assert not set(now.values()) & set(before.values())


@pytest.mark.parametrize("content", [None, b"{", b"[1]", b'{"case00000.b2nd": 3}', b"\xff"])
def test_without_checksums_only_what_is_needed_is_read(
    content: bytes | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digests(folder)
    record_file(folder).unlink()
    if content is not None:
        record_file(folder).write_bytes(content)
    read = read_files(monkeypatch)
    cases = [Case(folder, identifier) for identifier in IDS]
    assert case_digests(cases) == {}
    assert read == []
    assert case_digests(cases, before) == before


def test_preparation_writes_checksums_beside_the_folder(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = prepared / "nnUNet_preprocessed" / DATASET
    labelled = dataset / f"{PLANS}_3d_fullres"
    read = read_files(monkeypatch)
    for folder in (labelled, unlabelled_folder(labelled)):
        cases = [Case(folder, identifier) for identifier in case_identifiers(folder)]
        assert len(case_digests(cases)) == len(cases) > 1
        assert record_file(folder).parent == dataset
    assert read == []
    with pytest.raises(UserError, match=f"has {PLANS}$"):  # the names of plans that are there
        read_plans(dataset, "Nowhere")


def test_a_folder_that_is_gone_takes_its_record_along(folder: Path) -> None:
    write_record(folder, [])
    assert not record_file(folder).exists()
    write_record(folder, [])


@pytest.mark.parametrize("how", ["edited", "replaced folder", "deleted"])
def test_data_that_change_meanwhile_end_the_command(how: str, folder: Path) -> None:
    dataset = CropDataset([Case(folder, identifier) for identifier in IDS], (8, 8, 8), seed=0)
    case = dataset.case_of(0).identifier
    assert dataset[0]["case"] == case
    if how == "edited":
        with (folder / f"{case}_seg.b2nd").open("ab") as file:
            file.write(b"x")
    else:
        folder.rename(folder.with_name("old"))
        if how == "replaced folder":
            write_cases(folder, len(IDS), 2, (12, 12, 12), 8)
    with pytest.raises(
        UserError, match=f"case {case} in .*/{folder.name} has changed since this command began"
    ) as error:
        dataset[0]
    assert "\n" not in str(error.value)
