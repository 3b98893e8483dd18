"""PreprocessedDataset: which cases there are, and its two refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from measure.data import write_cases, write_plans

from emim_nnunet.datasets.dataset import PreprocessedDataset, configuration_manager
from emim_nnunet.datasets.splits import ORIGINS, PATIENTS
from emim_nnunet.errors import UserError
from emim_nnunet.nnunet.cases import infer_dataset_class
from emim_nnunet.nnunet.plans import PlansManager
from tests.pipeline import DATASET, PLANS

LABELLED = [f"BraTS-GLI-{number:05d}-000" for number in range(1, 6)]
UNLABELLED = [f"BraTS-GLI-{number:05d}-000" for number in (6, 7)]


@pytest.fixture
def small(tmp_path: Path) -> PreprocessedDataset:
    """Three labelled cases, made of what a trainer has."""
    folder = tmp_path / "Dataset902_Bench"
    write_plans(folder, 2, [], batch_size=2)
    write_cases(folder / "tiny", 3, 2, (8, 8, 8), 8)
    plans, dataset_json = (json.loads((folder / f"{name}.json").read_text()) for name in ("nnUNetEMIMPlans", "dataset"))
    return PreprocessedDataset(folder, plans, dataset_json, "tiny")


@pytest.mark.parametrize("dataset", [1, "1", DATASET])
def test_id_and_name_find_the_same(dataset: int | str, nnunet: Path) -> None:
    data = PreprocessedDataset.find(dataset, PLANS, "toy")
    assert data.folder == nnunet / "nnUNet_preprocessed" / DATASET
    assert data.name == DATASET
    assert data.plans["plans_name"] == PLANS
    assert data.channel_names == ["T1", "T1ce", "T2", "Flair"]


def test_it_says_what_nnunet_says_and_adds_the_unlabelled_cases(nnunet: Path) -> None:
    data = PreprocessedDataset.find(1, PLANS, "toy")  # inherits the folder of 3d_fullres
    theirs = PlansManager(data.plans).get_configuration("toy")
    assert data.manager.configuration == theirs.configuration
    assert data.labelled_folder == data.folder / theirs.data_identifier
    place = str(data.labelled_folder)
    assert data.labelled_ids == sorted(infer_dataset_class(place).get_identifiers(place)) == LABELLED
    assert data.unlabelled_ids == UNLABELLED
    assert list(data.cases) == LABELLED + UNLABELLED
    for identifier, case in data.cases.items():
        assert case.identifier == identifier
        assert (case.folder / f"{identifier}.pkl").is_file()
    assert data.splits == json.loads((data.folder / "splits_final.json").read_text())
    data.require_cases(labelled=True)


def test_patients_and_origins_are_those_of_the_files(small: PreprocessedDataset) -> None:
    (small.folder / PATIENTS).write_text('{"a": "p"}')
    (small.folder / ORIGINS).write_text('{"a": "Dataset001"}')
    assert small.patients == {"a": "p"}
    assert small.origins == {"a": "Dataset001"}
    (small.folder / PATIENTS).write_text("[]")
    assert small.patients == {"a": "p"}  # remembered
    with pytest.raises(UserError, match=r"patients.json must be a JSON object"):
        _ = replace(small).patients
    assert small.splits == []  # there is no file


def test_an_unknown_configuration_is_refused_in_one_wording(small: PreprocessedDataset) -> None:
    for ask in (
        lambda: replace(small, configuration="9d"),
        lambda: configuration_manager(small.plans, "9d"),
    ):
        with pytest.raises(UserError, match=r"^plans 'nnUNetEMIMPlans' have no configuration '9d'; they have: tiny$"):
            ask()


def test_a_folder_without_cases_is_refused_in_one_wording(small: PreprocessedDataset) -> None:
    small.require_cases(labelled=True)
    (small.folder / "tiny").rename(small.folder / "tiny_unlabelled")
    moved = replace(small)
    moved.require_cases()
    assert moved.labelled == []
    assert list(moved.cases) == moved.unlabelled_ids
    assert len(moved.cases) == 3
    message = rf"^no preprocessed case in {small.folder / 'tiny'}: run emim_plan_and_preprocess first$"
    with pytest.raises(UserError, match=message):
        moved.require_cases(labelled=True)
    (small.folder / "tiny_unlabelled").rename(small.folder / "elsewhere")
    with pytest.raises(UserError, match=message):
        replace(small).require_cases()


def test_a_configuration_without_a_folder_is_refused(small: PreprocessedDataset) -> None:
    del small.plans["configurations"]["tiny"]["data_identifier"]
    with pytest.raises(UserError, match=r"configuration 'tiny' of the plans cannot be used .*data_identifier"):
        _ = replace(small).labelled


def test_nothing_is_read_before_it_is_asked_for(small: PreprocessedDataset, tmp_path: Path) -> None:
    gone = replace(small, folder=tmp_path / "nowhere")
    assert gone.channel_names == ["channel0", "channel1"]
    assert gone.manager.patch_size == small.manager.patch_size
    assert gone.cases == {}


@pytest.mark.parametrize("name", ["7", 7, "Dataset007_None", "../Dataset001_Toy"])
def test_a_data_set_that_is_not_there_is_named(name: int | str, nnunet: Path) -> None:
    with pytest.raises(UserError, match=r"expected one folder Dataset007_NAME|neither a number nor the name"):
        PreprocessedDataset.find(name, PLANS, "toy")
