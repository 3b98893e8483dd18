"""Collections without segmentations: IXI, OpenMind and other nnssl collections, FOMO60K."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from emim_nnunet.dataset_conversion.case import SourceCase, SourceFile
from emim_nnunet.dataset_conversion.family import BACKGROUND_ONLY, ENDING, DatasetFamily, FileRule, suffix_rules
from emim_nnunet.errors import UserError

DESCRIPTION = "pretrain_data.json"


def fomo_family(channels: dict[str, str]) -> DatasetFamily:
    """FOMO60K: ``SITE/sub_X/ses_Y/SEQUENCE.nii.gz``, co-registered within a session.

    Args:
        channels: Channel -> name of its sequence, as the files are called.
    """
    meaning = {sequence.lower(): channel for channel, sequence in channels.items()}
    folders = r"(?:.*/)?(?P<site>[^/]+)/(?P<subject>sub_[^/]+)/(?P<session>ses_[^/]+)"
    return DatasetFamily(
        name="fomo60k",
        title="FOMO60K (co-registered sessions; --channel NAME=SEQUENCE, default T1=t1 T2=t2 Flair=flair)",
        default_dataset_name="FOMO60K",
        channels=tuple(channels),
        rules=(
            FileRule(
                rf"{folders}/(?P<what>{'|'.join(map(re.escape, meaning))}){ENDING}",
                meaning,
                f"PT001_OASIS1/sub_1/ses_1/{next(iter(meaning))}.nii.gz",
            ),
        ),
        label_map={},
        labels=BACKGROUND_ONLY,
        case_format="{site}_{subject}_{session}",
        patient_format="{site}_{subject}",
        overlaps="the collections that it is made of (IXI, OASIS, ...)",
        advice="sessions differ in their sequences: --skip_incomplete leaves out those that lack a channel",
        licence="CC BY-NC-SA 4.0",
        citation="arXiv:2506.14432",
    )


def nnssl_family(channels: dict[str, str]) -> DatasetFamily:
    """OpenMind, or any collection with nnssl's ``pretrain_data.json``; a session is a case.

    Args:
        channels: Channel -> its modality in ``pretrain_data.json``, in upper or lower case.
    """
    return DatasetFamily(
        name="nnssl",
        title="OpenMind / nnssl pretrain_data.json (--channel NAME=MODALITY, default T1=T1w T2=T2w Flair=FLAIR)",
        default_dataset_name="OpenMind",
        channels=tuple(channels),
        rules=(),
        label_map={},
        labels=BACKGROUND_ONLY,
        advice="images of a session are not registered to each other: --resample-to puts them on one grid, no more",
        licence="OpenMind: CC BY 4.0; see the collection",
        citation="arXiv:2412.17041",
        finder=partial(find_nnssl_cases, channels),
    )


def find_nnssl_cases(channels: Mapping[str, str], source: Path) -> list[SourceCase]:
    """The sessions that ``pretrain_data.json`` lists; of several images of one modality the first.

    Args:
        channels: Channel -> modality in the file, in upper or lower case.
        source: Folder with the file, or the file.

    Returns:
        Cases by id.

    Raises:
        UserError: The file is missing or not as nnssl writes it, or a path leaves the folder.
    """
    file = source / DESCRIPTION if source.is_dir() else source
    root = file.parent.resolve()
    channel_of = {modality.lower(): channel for channel, modality in channels.items()}
    try:
        text = file.read_text()
    except OSError as error:
        raise UserError(f"SOURCE {source}: expected a folder with {DESCRIPTION} ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{file} is not as nnssl writes it ({error})") from error
    try:
        cases = [case for case in _sessions(json.loads(text), root, channel_of) if case.files]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is not as nnssl writes it ({type(error).__name__}: {error})") from error
    if not cases:
        raise UserError(f"{file} lists no image of {', '.join(channels.values())}")
    for case in cases:
        for image in case.files.values():
            if not image.path.is_relative_to(root):
                raise UserError(
                    f"{file}: case {case.identifier} has the path {image.path}, which leads out of {root.name}"
                )
    return sorted(cases, key=lambda case: case.identifier)


def _sessions(content: dict[str, Any], root: Path, channel_of: dict[str, str]) -> Iterator[SourceCase]:
    """A case per session; exceptions where the content is of another form."""
    for dataset, about in content["datasets"].items():
        for subject, person in about["subjects"].items():
            for session, visit in person["sessions"].items():
                patient = f"{dataset}_{subject}"
                case = SourceCase(f"{patient}__{session}", patient)
                for image in visit["images"]:
                    channel = channel_of.get(str(image["modality"]).lower())
                    if channel is not None and channel not in case.files:
                        place = image["image_path"].removeprefix("$nnssl_raw").lstrip("/")
                        case.files[channel] = SourceFile((root / place).resolve())
                yield case


IXI = DatasetFamily(
    name="ixi",
    title="IXI (T1, T2, PD; T1 on a grid of its own: --resample-to T2)",
    default_dataset_name="IXI",
    channels=("T1", "T2", "PD"),
    rules=suffix_rules(
        r"(?P<patient>IXI\d+)-[A-Za-z]+-\d+",
        {"T1": ["T1"], "T2": ["T2"], "PD": ["PD"]},
        "IXI002-Guys-0828-T1.nii.gz",
    ),
    label_map={},
    labels=BACKGROUND_ONLY,
    advice="some subjects lack a modality (--skip_incomplete); not skull-stripped",
    licence="CC BY-SA 3.0",
    citation="https://brain-development.org/ixi-dataset",
)
DEFAULT_FOMO = {"T1": "t1", "T2": "t2", "Flair": "flair"}
DEFAULT_NNSSL = {"T1": "T1w", "T2": "T2w", "Flair": "FLAIR"}
FAMILIES = (IXI, fomo_family(DEFAULT_FOMO), nnssl_family(DEFAULT_NNSSL))
