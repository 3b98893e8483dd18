"""Several raw data sets as one without labels, for a common SSL stage: channels by name, balanced over the data sets."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import SimpleITK as sitk
from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json
from nnunetv2.paths import nnUNet_raw

from emim_nnunet.checkpoints.channels import channel_names, standard_name
from emim_nnunet.checkpoints.io import left_work_folders, new_work_folder, write_json
from emim_nnunet.checkpoints.locate import read_dataset_json
from emim_nnunet.dataloading.splits import ORIGINS, PATIENTS, read_patients
from emim_nnunet.dataset_conversion.converter import dataset_lock, target_folder, zeros_like
from emim_nnunet.dataset_conversion.family import BACKGROUND_ONLY
from emim_nnunet.errors import UserError
from emim_nnunet.imageio import save_image
from emim_nnunet.locks import Lock
from emim_nnunet.planners.raw_dataset import UNLABELLED, dataset_name, images_of_cases
from emim_nnunet.training.provenance import versions


def pool(dataset_ids: Sequence[int], target_id: int, name: str, channels: Sequence[str] | None = None) -> Path:
    """Write a data set whose unlabelled cases are links to the images of others.

    Args:
        dataset_ids: Raw data sets, at least two.
        target_id: Id of the new one.
        name: NAME in DatasetXXX_NAME.
        channels: Of the new one; None = all that occur, in the order of the first data set that has them. A case that lacks one
            gets zeros in its place; a case that has none of them is left out.

    Returns:
        The new folder.

    Raises:
        UserError: Data sets are missing, have different file endings, or none of the channels, or another process writes the
            new id; nothing is written then.
    """
    if len(set(dataset_ids)) < max(2, len(dataset_ids)):
        raise UserError("pooling needs at least two different data sets")
    with dataset_lock(target_id, name) as lock:
        return _pool(dataset_ids, target_folder(target_id, name), channels, lock)


def _pool(dataset_ids: Sequence[int], target: Path, channels: Sequence[str] | None, lock: Lock) -> Path:
    folders = [Path(nnUNet_raw) / dataset_name(i) for i in dataset_ids]
    descriptions = [read_dataset_json(folder) for folder in folders]
    endings = sorted({d["file_ending"] for d in descriptions})
    if len(endings) > 1:
        raise UserError(f"data sets of different file endings cannot be pooled: {', '.join(endings)}")
    present = {standard_name(n): n for d in reversed(descriptions) for n in reversed(channel_names(d))}
    wanted = list(channels or dict.fromkeys(present[standard_name(n)] for d in descriptions for n in channel_names(d)))
    unknown = [n for n in wanted if standard_name(n) not in present]
    if unknown:
        raise UserError(f"--channels {', '.join(unknown)}: the data sets have {', '.join(present.values())}")
    for left in left_work_folders(target.parent, target.name.split("_")[0] + "_"):
        shutil.rmtree(left, ignore_errors=True)
    partial = new_work_folder(target)
    try:
        _write(partial, target.name, folders, descriptions, wanted, endings[0])
        lock.check()
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target


def _write(
    folder: Path,
    name: str,
    sources: Sequence[Path],
    descriptions: Sequence[dict[str, Any]],
    wanted: list[str],
    ending: str,
) -> None:
    for sub in ("imagesTr", "labelsTr", UNLABELLED):
        (folder / sub).mkdir(parents=True)
    origins, patients, missing, counts = {}, {}, {}, {}
    for source, description in zip(sources, descriptions, strict=True):
        number = source.name.split("_")[0].removeprefix("Dataset")
        places = {standard_name(n): place for place, n in enumerate(channel_names(description))}
        whose = read_patients(source)
        cases = {
            case: images
            for sub in ("imagesTr", UNLABELLED)
            for case, images in images_of_cases(source / sub, description).items()
        }
        for case, images in sorted(cases.items()):
            identifier = f"{number}_{case}"
            files = [images[places[key]] if (key := standard_name(n)) in places else None for n in wanted]
            if not any(files):
                continue
            _link(folder / UNLABELLED / identifier, files, ending)
            origins[identifier] = source.name
            patients[identifier] = f"{number}_{whose.get(case, case)}"
            lacks = [n for n, file in zip(wanted, files, strict=True) if file is None]
            if lacks:
                missing[identifier] = lacks
        counts[source.name] = sum(origin == source.name for origin in origins.values())
    empty = [name for name, count in counts.items() if not count]
    if empty:
        raise UserError(f"{', '.join(empty)} has no case with one of the channels {', '.join(wanted)}")
    generate_dataset_json(
        str(folder),
        channel_names=dict(enumerate(wanted)),
        labels=BACKGROUND_ONLY,
        num_training_cases=0,
        file_ending=ending,
        dataset_name=name,
        reference="; ".join(dict.fromkeys(str(d.get("citation") or d.get("reference")) for d in descriptions)),
        license="; ".join(dict.fromkeys(str(d.get("licence") or d.get("license")) for d in descriptions)),
        description=f"Pool of {', '.join(counts)}",
        converted_by=f"emim_nnunet {versions()['emim_nnunet']}",
    )
    facts = {ORIGINS: origins, PATIENTS: patients, "missing_channels.json": missing}
    facts["provenance.json"] = {"pool_of": counts, "channels": wanted, "versions": versions()}
    for file, content in facts.items():
        write_json(folder / file, content)


def _link(stem: Path, files: Sequence[str | None], ending: str) -> None:
    """Link the images of a case; zeros where there is none."""
    reference = next(file for file in files if file is not None)
    for channel, file in enumerate(files):
        image = stem.with_name(f"{stem.name}_{channel:04d}{ending}")
        if file is None:
            save_image(zeros_like(sitk.ReadImage(reference)), image)
        else:
            os.symlink(Path(file).resolve(), image)
