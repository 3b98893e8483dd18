"""Folders of preprocessed cases: nnU-Net's own, and beside it one of cases without label. Reading them runs no code.

nnU-Net wants all files of its cases in one folder. It never sees the cases without label, of which there may be many more: from
:data:`MANY_CASES` on they lie in subfolders, see :func:`subfolder`. Only this module knows where the files of a case are.
"""

from __future__ import annotations

import json
import os
import pickle
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import blosc2
import numpy as np

from emim_nnunet.errors import UserError
from emim_nnunet.nnunet.cases import infer_dataset_class, nnUNetDatasetBlosc2, nnUNetDatasetNumpy

OUTSIDE = -1  # nnU-Net's preprocessing marks voxels outside the body with this label
BODY = "body"
MANY_CASES = 1000  # without label: more of them lie in subfolders
SUBFOLDERS, NUM_SUBFOLDERS = "[0-9a-f][0-9a-f]", 256
Stamp = tuple[tuple[str, int, int], ...]
MMAP = {} if os.name == "nt" else {"mmap_mode": "r"}  # as nnU-Net
UNREADABLE = (  # errors of reading files that are missing, damaged or of another kind
    OSError,  # missing, not permitted, a disk that fails
    EOFError,  # numpy: an empty file
    RuntimeError,  # blosc2: whatever its library reports
    ValueError,  # numpy: no header, or fewer voxels than it states; both: a header that is no text; ours
    SyntaxError,  # both: a header, which is text of Python, that is none
    TokenError,  # numpy: the same
    OverflowError,  # blosc2: impossible numbers in the header
    KeyError,  # numpy: an archive without the array
    BadZipFile,
    zlib.error,
)
PLAIN: tuple[str, ...] = ("set", "frozenset", "slice", "range", "complex", "bytearray", "bytes", "int", "float", "bool")
PLAIN += ("str", "list", "tuple", "dict")
NUMPY = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}  # the last one: bytes in old protocols
NUMPY |= {
    (f"numpy.{core}.{module}", name)
    for core in ("core", "_core")
    for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
}


@dataclass(frozen=True)
class Case:
    """A preprocessed case.

    Attributes:
        folder: The folder of the preprocessed files.
        identifier: The case id.
        patient: The patient, where a patient may have several cases; empty = each case has a patient of its own.
        origin: The name of the data set that it comes from, where several were pooled; otherwise empty.
    """

    folder: Path
    identifier: str
    patient: str = ""
    origin: str = ""

    @property
    def subject(self) -> str:
        """The patient; the case id where each case has a patient of its own."""
        return self.patient or self.identifier


def case_folders(cases: Sequence[Case]) -> list[Path]:
    """The different folders of the cases, in order of first appearance."""
    return list(dict.fromkeys(case.folder for case in cases))


def orientations_file(data_folder: Path) -> Path:
    """Path of the orientations of preprocessed cases: not in their folder, because nnU-Net accepts no other files there."""
    return data_folder.parent / "orientations" / f"{data_folder.name}.json"


def read_orientations(folder: Path, transpose: Sequence[int]) -> dict[str, str]:
    """Read to which side of the patient the axes of preprocessed cases lead, where preparation could tell.

    Args:
        folder: Folder of preprocessed cases.
        transpose: ``transpose_forward`` of the plans.

    Returns:
        Case id -> a letter per axis, such as ``SPL``; empty where no orientations are stored.
    """
    try:
        content = json.loads(orientations_file(folder).read_text())
        return {case: "".join(letters[axis] for axis in transpose) for case, letters in content.items()}
    except (OSError, ValueError, AttributeError, TypeError, LookupError):  # made by nnU-Net or an earlier version
        return {}


def body_folder(data_folder: Path) -> Path:
    """Where the bodies of preprocessed cases are whose background is not 0: not among them, as :func:`orientations_file`."""
    return data_folder.parent / BODY / data_folder.name


def body_file(folder: Path, identifier: str) -> Path:
    """Where the body of a preprocessed case is, if its background is not 0 and preparation has found it."""
    case = case_path(folder, identifier)
    return body_folder(folder) / case.relative_to(folder).with_name(f"{identifier}.b2nd")


def are_many(num_cases: int) -> bool:
    """Whether so many cases without label lie in subfolders. Readers need not ask: they find the cases in both."""
    return num_cases > MANY_CASES


def subfolder(identifier: str) -> str:
    """In which of 256 subfolders a case lies, where a folder is divided; it does not depend on the other cases.

    Args:
        identifier: The case id.

    Returns:
        Two hexadecimal digits, the first of the SHA-256 of the id.
    """
    return sha256(identifier.encode()).hexdigest()[:2]


def case_path(folder: Path, identifier: str) -> Path:
    """Path of the files of a case without ending: in its subfolder or, where that has none, in the folder itself."""
    divided = os.path.join(folder, subfolder(identifier), identifier)  # a text: this is called for each of many cases
    return Path(divided) if os.path.isfile(f"{divided}.pkl") else folder / identifier


def unlabelled_folder(data_folder: Path) -> Path:
    """Folder of the preprocessed cases without label, beside the folder of the labelled ones."""
    return data_folder.with_name(data_folder.name + "_unlabelled")


def case_identifiers(folder: Path) -> list[str]:
    """Sorted ids of the preprocessed cases in a folder; empty where it is missing or empty, which nnU-Net does not accept."""
    filled = [place for place in (folder, *folder.glob(SUBFOLDERS)) if any(place.glob("*.pkl"))]
    return sorted(i for place in filled for i in infer_dataset_class(str(place)).get_identifiers(str(place)))


def properties_file(folder: Path, identifier: str) -> Path:
    """Where nnU-Net's preprocessing has pickled the properties of a case."""
    return case_path(folder, identifier).with_name(f"{identifier}.pkl")


def case_stamp(folder: Path, identifier: str) -> Stamp:
    """Name, size in bytes and time of change in ns of each file that holds voxels of a case; empty where there is none.

    Where they are: :func:`stamped_file`. The last one is the body, where it has a file.
    """
    case = case_path(folder, identifier)
    for names in ((f"{identifier}.b2nd", f"{identifier}_seg.b2nd"), (f"{identifier}.npz",)):
        try:
            stamp = [_stamp(case.with_name(name), name) for name in names]
        except (FileNotFoundError, NotADirectoryError):
            continue
        with suppress(FileNotFoundError, NotADirectoryError):
            stamp.append(_stamp(body_file(folder, identifier), f"{BODY}/{identifier}.b2nd"))
        return tuple(stamp)
    return ()


def stamped_file(folder: Path, identifier: str, name: str) -> Path:
    """The file that a name in :func:`case_stamp` stands for; folders may be renamed or divided, so the name holds none."""
    if name.startswith(f"{BODY}/"):
        return body_file(folder, identifier)
    return case_path(folder, identifier).with_name(name)


def _stamp(file: Path, name: str) -> tuple[str, int, int]:
    state = os.stat(file)
    return name, state.st_size, state.st_mtime_ns


def open_case(folder: Path, identifier: str) -> tuple[Any, Any]:
    """Open image and segmentation as nnU-Net does, without the pickled properties beside them.

    Args:
        folder: Folder of preprocessed cases.
        identifier: The case id.

    Returns:
        Image (C, *shape) float and segmentation (1, *shape) int: arrays, or open files that read only the voxels asked for.

    Raises:
        Exception: One of :data:`UNREADABLE`, where files are missing, damaged or do not belong together.
    """
    case = case_path(folder, identifier)
    image, seg = _open(case, "", "data"), _open(case, "_seg", "seg")
    if image.ndim != 4 or image.shape[1:] != seg.shape[1:] or 0 in (*image.shape, *seg.shape):
        raise ValueError(f"an image of shape {image.shape} and a segmentation of shape {seg.shape}")
    return image, seg


def open_body(folder: Path, identifier: str, shape: Sequence[int]) -> Any | None:
    """The body of a case whose background is not 0.

    Args:
        folder: Of preprocessed cases.
        identifier: Case id.
        shape: Voxels of the case per axis.

    Returns:
        (1, *shape) bool, an open file; None where there is none, so that what nnU-Net takes for the body is the body.

    Raises:
        Exception: One of :data:`UNREADABLE`: the file is damaged, or belongs to another case.
    """
    file = body_file(folder, identifier)
    if not file.is_file():
        return None
    body = _open(file.with_name(identifier), "", BODY)
    if body.shape != (1, *shape) or body.dtype != bool:
        raise ValueError(f"a body of shape {body.shape} and type {body.dtype} of an image of shape {tuple(shape)}")
    return body


def _open(case: Path, suffix: str, key: str) -> Any:
    name = case.name + suffix
    file = case.with_name(f"{name}.b2nd")
    if file.is_file():
        array = blosc2.open(urlpath=str(file), mode="r", dparams={"nthreads": 1}, **MMAP)
        if not isinstance(array, blosc2.NDArray):  # a stored expression would be computed, with code from the file
            raise ValueError(f"{file.name} holds a {type(array).__name__} instead of an array")
        return array
    if (file := case.with_name(f"{name}.npy")).is_file():  # unpacked by nnU-Net
        return np.load(file, mmap_mode="r", allow_pickle=False)
    with np.load(case.with_name(f"{case.name}.npz"), allow_pickle=False) as arrays:
        return arrays[key]


@contextmanager
def readable(identifier: str) -> Iterator[None]:
    """Turn the errors of reading a case into a message that names it. Put only reading into the block, no other work.

    Args:
        identifier: The case id.

    Raises:
        UserError: One of :data:`UNREADABLE` was raised in the block; all other errors pass unchanged.
    """
    try:
        yield
    except UNREADABLE as error:
        reason = " ".join(str(error).split()) or "no reason given"
        raise UserError(
            f"the preprocessed case {identifier} cannot be read ({type(error).__name__}: {reason}): preprocess it anew"
        ) from error


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in NUMPY or (module == "builtins" and name in PLAIN):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is neither of numpy nor a plain value")


def read_properties(folder: Path, identifier: str) -> dict[str, Any]:
    """Read what nnU-Net's preprocessing stores about a case: numbers, texts and arrays; anything else is refused.

    Args:
        folder: Folder of preprocessed cases.
        identifier: The case id.

    Raises:
        UserError: The file is missing or damaged, or restoring it would run code.
    """
    file = properties_file(folder, identifier)
    try:
        with file.open("rb") as stream:
            return _PlainUnpickler(stream).load()
    except Exception as error:  # pickle raises what it likes on a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{file.name} of the preprocessed case {identifier} cannot be read without running code in it ({reason}): "
            f"preprocess it anew"
        ) from error


class _WithoutCode:
    """Gives nnU-Net's classes a ``load_case`` that runs no code in the files."""

    source_folder: str
    folder_with_segs_from_previous_stage: str | None

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Load image, segmentation, segmentation of the stage before (None where there is none) and properties."""
        folder, previous = Path(self.source_folder), self.folder_with_segs_from_previous_stage
        earlier = None if previous is None else _open(Path(previous) / identifier, "", "seg")
        return *open_case(folder, identifier), earlier, read_properties(folder, identifier)


class Blosc2WithoutCode(_WithoutCode, nnUNetDatasetBlosc2):
    """nnU-Net's reader of ``.b2nd`` files, without running code in pickles."""


class NumpyWithoutCode(_WithoutCode, nnUNetDatasetNumpy):
    """nnU-Net's reader of ``.npz`` files, without running code in pickles."""


def without_code(dataset_class: type[Any]) -> type[Any]:
    """Find the class that reads the same files as one of nnU-Net's classes, but pickles with :func:`read_properties`.

    Args:
        dataset_class: A class that nnU-Net's ``infer_dataset_class`` returns.

    Returns:
        A subclass of the same kind that runs no code; ``dataset_class`` itself if it is one already.
    """
    if issubclass(dataset_class, _WithoutCode):
        return dataset_class
    return Blosc2WithoutCode if issubclass(dataset_class, nnUNetDatasetBlosc2) else NumpyWithoutCode
