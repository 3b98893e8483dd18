"""Collections without segmentations: IXI, OpenMind and other nnssl collections, FOMO60K."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emim_nnunet.dataset_conversion.family import BACKGROUND_ONLY, ENDING, DatasetFamily, FileRule, suffix_rules
from emim_nnunet.dataset_conversion.source_cases import SourceCase, SourceFile
from emim_nnunet.errors import UserError

DESCRIPTION = "pretrain_data.json"


def fomo_family(channels: dict[str, str]) -> DatasetFamily:
    """FOMO60K: ``SITE/sub_X/ses_Y/SEQUENCE.nii.gz``, co-registered within a session.

    Args:
        channels: Channel -> name of the sequence.
    """
    meaning = {sequence.lower(): channel for channel, sequence in channels.items()}
    folders = r"(?:.*/)?(?P<site>[^/]+)/(?P<subject>sub_[^/]+)/(?P<session>ses_[^/]+)"
    return DatasetFamily(
        name="fomo60k",
        title="FOMO60K (co-registered sessions; --channel NAME=SEQUENCE, default T1=t1 T2=t2 Flair=flair)",
        default_dataset_name="FOMO60K",
        channels=tuple(channels),
        rules=(FileRule(rf"{folders}/(?P<what>{'|'.join(meaning)}){ENDING}", meaning),),
        label_map={},
        labels=BACKGROUND_ONLY,
        case_format="{site}_{subject}_{session}",
        patient_pattern=r"(.+)_ses_[^_]+$",
        overlaps="the collections that it is made of (IXI, OASIS, ...)",
        advice="sessions differ in their sequences: --skip_incomplete leaves out those that lack a channel",
        licence="CC BY-NC-SA 4.0",
        citation="arXiv:2506.14432",
    )


def nnssl_family(channels: dict[str, str]) -> DatasetFamily:
    """OpenMind, or any collection with nnssl's ``pretrain_data.json``; a session is a case.

    Args:
        channels: Channel -> modality in the file.
    """
    return DatasetFamily(
        name="nnssl",
        title="OpenMind / nnssl pretrain_data.json (--channel NAME=MODALITY, default T1=T1w T2=T2w Flair=FLAIR)",
        default_dataset_name="OpenMind",
        channels=tuple(channels),
        rules=tuple(FileRule(modality, channel) for channel, modality in channels.items()),
        label_map={},
        labels=BACKGROUND_ONLY,
        patient_pattern=r"(.+)__[^_]+$",
        advice="images of a session are not registered to each other: --resample-to puts them on one grid, no more",
        licence="OpenMind: CC BY 4.0; see the collection",
        citation="arXiv:2412.17041",
        finder=find_nnssl_cases,
    )


def find_nnssl_cases(family: DatasetFamily, source: Path) -> list[SourceCase]:
    """The sessions that ``pretrain_data.json`` lists; of several images of one modality the first.

    Args:
        family: Of :func:`nnssl_family`.
        source: Folder with the file, or the file.

    Returns:
        Cases by id.

    Raises:
        UserError: The file is missing or not as nnssl writes it, or a path leaves the folder.
    """
    file = source / DESCRIPTION if source.is_dir() else source
    try:
        sessions = list(_sessions(json.loads(file.read_text())))
    except OSError as error:
        raise UserError(f"SOURCE {source}: expected a folder with {DESCRIPTION} ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is not as nnssl writes it ({type(error).__name__}: {error})") from error
    root = file.parent.resolve()
    channel_of = {rule.pattern.lower(): str(rule.meaning) for rule in family.rules}
    cases = []
    for identifier, images in sessions:
        case = SourceCase(identifier)
        for image in images:
            channel = channel_of.get(str(image["modality"]).lower())
            if channel is None or channel in case.files:
                continue
            path = (root / image["image_path"].removeprefix("$nnssl_raw").lstrip("/")).resolve()
            if not path.is_relative_to(root):
                raise UserError(f"{file}: the path {image['image_path']} leads out of {root.name}")
            case.files[channel] = SourceFile(path)
        if case.files:
            cases.append(case)
    if not cases:
        raise UserError(f"{file} lists no image of {', '.join(r.pattern for r in family.rules)}")
    return sorted(cases, key=lambda case: case.identifier)


def _sessions(content: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for dataset, about in content["datasets"].items():
        for subject, person in about["subjects"].items():
            for session, visit in person["sessions"].items():
                yield f"{dataset}_{subject}__{session}", visit["images"]


IXI = DatasetFamily(
    name="ixi",
    title="IXI (T1, T2, PD; T1 on a grid of its own: --resample-to T2)",
    default_dataset_name="IXI",
    channels=("T1", "T2", "PD"),
    rules=suffix_rules(r"IXI\d+-[A-Za-z]+-\d+", {"T1": ["T1"], "T2": ["T2"], "PD": ["PD"]}),
    label_map={},
    labels=BACKGROUND_ONLY,
    patient_pattern=r"(IXI\d+)",
    advice="some subjects lack a modality (--skip_incomplete); not skull-stripped",
    licence="CC BY-SA 3.0",
    citation="https://brain-development.org/ixi-dataset",
)
DEFAULT_FOMO = {"T1": "t1", "T2": "t2", "Flair": "flair"}
DEFAULT_NNSSL = {"T1": "T1w", "T2": "T2w", "Flair": "FLAIR"}
FAMILIES = (IXI, fomo_family(DEFAULT_FOMO), nnssl_family(DEFAULT_NNSSL))
