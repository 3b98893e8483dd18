"""What shards find out about their cases, until all of it makes the fingerprint."""

from __future__ import annotations

import json
import logging
import shutil
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from emim_nnunet.datasets.records import Source, same_sources, sources_of
from emim_nnunet.errors import UserError, listed
from emim_nnunet.planners.fingerprint import (
    Analysis,
    CaseFingerprint,
    fingerprint_of,
    how_to_look,
    is_json,
    look_at_cases,
    looked_at,
)
from emim_nnunet.planners.options import Options
from emim_nnunet.planners.raw_data import RawDataset
from emim_nnunet.storage.files import atomic_write, write_json

logger = logging.getLogger(__name__)
UNREADABLE = (OSError, ValueError, KeyError, EOFError, BadZipFile)


def look_at_shard(raw: RawDataset, path: Path, options: Options) -> dict[str, str]:
    """Look at the cases of a shard; those that were looked at already are not read again.

    Args:
        raw: The cases of the shard that can be used.
        path: ``dataset_fingerprint.json``, beside which the results are kept in a hidden folder.
        options: ``clean``, ``num_processes_fingerprint`` and ``keep_going`` of them are used.

    Returns:
        Case -> what is wrong with it, where ``keep_going`` leaves it out.

    Raises:
        UserError: A case cannot be used; the message says why.
    """
    if is_json(path) and not options.clean:
        logger.info("%s is there already: --clean extracts it anew", path.name)
        return raw.failed
    analysis, files = how_to_look(raw)
    folder = _folder(path)
    folder.mkdir(parents=True, exist_ok=True)
    for case, reason in raw.failed.items():
        _write(folder, case, {"failed": reason}, [])
    done = {} if options.clean else {case for case in files if _read(folder, case, files[case], analysis) is not None}
    if done:
        logger.info("%d of %d cases were looked at already", len(done), len(files))
    waiting = {case: paths for case, paths in files.items() if case not in done}
    _, failed = look_at_cases(partial(_keep, folder, analysis), waiting, options)
    for case, reason in failed.items():
        _write(folder, case, {"failed": reason}, [])
    return raw.failed | failed


def gather_fingerprint(raw: RawDataset, path: Path, *, keep_going: bool) -> dict[str, str]:
    """Write the fingerprint of what all shards have found.

    Args:
        raw: All cases.
        path: ``dataset_fingerprint.json``; without results of shards, the one that is there stays.
        keep_going: Whether cases that could not be used are left out.

    Returns:
        Case -> what is wrong with it, of those that are left out.

    Raises:
        UserError: Results are missing.
    """
    folder = _folder(path)
    if not folder.is_dir():
        if not is_json(path):
            raise UserError(
                f"there is no {path.name}, nor what shards have found: run emim_plan_and_preprocess --no_pp first"
            )
        return {}
    analysis, files = how_to_look(raw)
    failed = {case: reason for case in raw.files if (reason := _failure(folder, case))} if keep_going else {}
    found = {case: _read(folder, case, files[case], analysis) for case in files if case not in failed}
    missing = sorted(case for case, content in found.items() if content is None)
    if missing:
        why = next((f"; {reason}" for case in missing if (reason := _failure(folder, case))), "")
        raise UserError(
            f"the fingerprint is not complete, {len(missing)} of {len(files)} cases were not looked at, or have changed since "
            f"({listed(missing)}): repeat --no_pp --shard for all{why}"
        )
    if not found:
        raise UserError(next(iter(failed.values())))
    write_json(path, fingerprint_of({case: content for case, content in found.items() if content}), indent=4)
    shutil.rmtree(folder, ignore_errors=True)
    return failed


def _folder(path: Path) -> Path:
    return path.with_name(f".{path.stem}.preparing")


def _keep(folder: Path, analysis: Analysis, case: str, files: list[str]) -> CaseFingerprint | str:
    """As :func:`.looked_at`, and what was found is written. It is not returned as well: it may be large."""
    sources = sources_of(files)
    result = looked_at(analysis, case, files)
    if isinstance(result, str):
        return result
    about = {"sources": sources, "analysis": _about(analysis)} | result._asdict()
    _write(folder, case, {key: value for key, value in about.items() if key != "intensities"}, result.intensities)
    return result._replace(intensities=[])


def _about(analysis: Analysis) -> dict[str, Any]:
    return analysis._asdict() | {"reader": analysis.reader.__name__}


def _write(folder: Path, case: str, about: dict[str, Any], intensities: list[np.ndarray]) -> None:
    arrays: dict[str, Any] = {f"channel_{number}": values for number, values in enumerate(intensities)}
    arrays["about"] = np.array(json.dumps(about | {"num_channels": len(intensities)}))
    content = BytesIO()  # numpy wants to seek
    np.savez(content, **arrays)
    atomic_write(folder / f"{case}.npz", lambda file: file.write(content.getbuffer()))


def _read(folder: Path, case: str, files: list[str], analysis: Analysis) -> CaseFingerprint | None:
    """What was found in a case; None where there is nothing, or it is of other files."""
    try:
        with np.load(folder / f"{case}.npz", allow_pickle=False) as arrays:
            about = json.loads(str(arrays["about"]))
            sources: list[Source] = [tuple(source) for source in about.get("sources", [])]
            if about.get("analysis") != _about(analysis) or not same_sources(sources, files):
                return None
            intensities = [arrays[f"channel_{number}"] for number in range(about["num_channels"])]
    except UNREADABLE:
        return None
    return CaseFingerprint(about["shape"], about["spacing"], about["relative_size"], intensities)


def _failure(folder: Path, case: str) -> str:
    """Why a case could not be used; empty where it could, or nobody has looked."""
    try:
        with np.load(folder / f"{case}.npz", allow_pickle=False) as arrays:
            return str(json.loads(str(arrays["about"])).get("failed", ""))
    except UNREADABLE:
        return ""
