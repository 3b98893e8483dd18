"""Random crops of preprocessed cases, reproducible by their number."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from torch import Tensor
from torch.utils.data import Dataset

from emim_nnunet.datasets.preprocessed import (
    OUTSIDE,
    Case,
    body_file,
    case_folders,
    case_stamp,
    open_body,
    open_case,
    readable,
)
from emim_nnunet.errors import UserError
from emim_nnunet.randomness import Stream, seeded_generator

MIN_FOREGROUND = 0.1
MAX_TRIES = 10


def crop_box(volume: Any, box: Sequence[Sequence[int]], outside: float) -> np.ndarray:
    """A box of a volume, read from the disk only where it is needed.

    Args:
        volume: (C, *shape), an array or an open file of nnU-Net's.
        box: [lower, upper) per axis; may reach beyond the volume.
        outside: Value beyond the volume.

    Returns:
        (C, *box).
    """
    return np.asarray(crop_and_pad_nd(volume, box, outside))


class _CaseFiles:
    """The files of a case, read box by box; names the case where they cannot be read.

    Attributes:
        shape: (C, *shape) of the image.
    """

    def __init__(self, case: Case) -> None:
        self._case = case
        with readable(case.identifier):
            self._image, self._seg = open_case(case.folder, case.identifier)
            self._body = open_body(case.folder, case.identifier, self._image.shape[1:])
        self.shape: tuple[int, ...] = self._image.shape

    def image(self, box: Sequence[Sequence[int]]) -> np.ndarray:
        """(C, *box), 0 beyond the volume."""
        with readable(self._case.identifier):
            return crop_box(self._image, box, 0)

    def labels(self, box: Sequence[Sequence[int]]) -> np.ndarray:
        """(1, *box), :data:`OUTSIDE` beyond the volume."""
        with readable(self._case.identifier):
            return crop_box(self._seg, box, OUTSIDE)

    def inside(self, box: Sequence[Sequence[int]]) -> Tensor:
        """(1, *box) bool, what nnU-Net takes for the body: all of an image whose background is not 0."""
        return torch.from_numpy(self.labels(box) != OUTSIDE)[:1]

    def foreground(self, box: Sequence[Sequence[int]]) -> Tensor:
        """(1, *box) bool, the body."""
        if self._body is None:
            return self.inside(box)
        with readable(self._case.identifier):
            return torch.from_numpy(crop_box(self._body, box, False))


def subject_number(identifier: str) -> int:
    """A number >= 0 that stands for a subject in every run on every machine: 62 bits of a digest of the identifier."""
    return int.from_bytes(sha256(identifier.encode()).digest()[:8], "big") >> 2


class CropDataset(Dataset):
    """Crop number ``i`` of an endless sequence: which case, where, and its voxels, all functions of (seed, i).

    Every case comes once per round of ``len(cases)`` crops, in an order that is shuffled anew each round. Cases of several
    origins are balanced: one crop of each origin in turn, and rounds within each. A crop is drawn again (up to ten times)
    while less than a tenth of it lies inside the body. Files that have changed since this object was made are refused: the
    sequence would be of two data sets.

    Args:
        cases: The cases to take crops of, at least one.
        patch_size: Voxels per axis, 2 or 3 axes; 2D patches are slices along the first axis.
        seed: Seed of the whole sequence.
        with_label: Give the labels as well.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        patch_size: Sequence[int],
        seed: int,
        *,
        with_label: bool = False,
    ) -> None:
        if not cases:
            raise ValueError("at least one case is needed")
        self.cases = list(cases)
        self.stamps = {case: case_stamp(case.folder, case.identifier) for case in self.cases}
        self._any_body = any(body_file(case.folder, case.identifier).is_file() for case in self.cases)
        self.is_2d = len(patch_size) == 2
        self.patch_size = (1, *patch_size) if self.is_2d else tuple(patch_size)
        self.seed = seed
        self.with_label = with_label
        origins = dict.fromkeys(case.origin for case in self.cases)
        self._groups = [[case for case in self.cases if case.origin == origin] for origin in origins]
        # of each group, the round that was asked for last and its order
        self._orders: dict[int, tuple[int, Tensor]] = {}

    def check_channels(self, number: int) -> None:
        """Look at the first case of each folder.

        Args:
            number: Number of channels that the images must have.

        Raises:
            UserError: Images have another number of channels, or cannot be read.
        """
        for folder in case_folders(self.cases):
            case = next(case for case in self.cases if case.folder == folder)
            found = _CaseFiles(case).shape[0]
            if found != number:
                raise UserError(
                    f"the preprocessed case {case.identifier} has {found} channels, dataset.json of {folder.parent.name} names "
                    f"{number}: preprocess it anew"
                )

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Crop ``index``.

        Returns:
            ``image`` (C, *P) float32, ``foreground`` (1, *P) bool, ``index`` int, ``case`` id, ``subject``, its number, and
            ``present`` (C,) bool, which modalities are not 0 everywhere; ``inside`` (1, *P) bool, what nnU-Net takes for the
            body, if that is another one for any of the cases; ``label`` (1, *P) int16, -1 outside of it, where asked for.

        Raises:
            UserError: The files of the case cannot be read, or have changed.
        """
        case = self.case_of(index)
        self._check_unchanged(case)
        item = self._read(case, seeded_generator(self.seed, Stream.CROP, index))
        image = item["image"]
        if self.is_2d:
            item = {key: value[:, 0] for key, value in item.items()}
        about = {"index": index, "case": case.identifier, "subject": subject_number(case.subject)}
        return item | about | {"present": present_channels(image)}

    def _check_unchanged(self, case: Case) -> None:
        if case_stamp(case.folder, case.identifier) == self.stamps[case]:
            return
        where = f"{case.folder.parent.name}/{case.folder.name}"
        raise UserError(
            f"the preprocessed case {case.identifier} in {where} has changed since this command began, or is gone: going on "
            f"would mix two states of the data. Put the old files back and continue, or start anew with the new ones"
        )

    def _read(self, case: Case, generator: torch.Generator) -> dict[str, Any]:
        """Image, foreground and, where needed, ``inside`` and label of a crop."""
        files = _CaseFiles(case)
        box, foreground = self._choose_box(files, generator)
        item = {"image": torch.from_numpy(files.image(box).astype(np.float32, copy=False)), "foreground": foreground}
        if self._any_body:
            item["inside"] = files.inside(box)
        if self.with_label:
            item["label"] = torch.from_numpy(files.labels(box).astype(np.int16, copy=False))[:1]
        return item

    def case_of(self, index: int) -> Case:
        """The case of crop ``index``."""
        turn, number = divmod(index, len(self._groups))
        group = self._groups[number]
        round_number, place = divmod(turn, len(group))
        known, order = self._orders.get(number, (-1, torch.empty(0)))
        if known != round_number:
            key = (round_number, number) if number else (round_number,)
            order = torch.randperm(len(group), generator=seeded_generator(self.seed, Stream.ORDER, *key))
            self._orders[number] = (round_number, order)
        return group[int(order[place])]

    def _choose_box(self, files: _CaseFiles, generator: torch.Generator) -> tuple[list[list[int]], Tensor]:
        """A bounding box and the foreground in it, (1, *P) bool; the best of the tries if none has enough."""
        best_share, best = -1.0, None
        for _ in range(MAX_TRIES):
            box = self._random_box(files.shape[1:], generator)
            foreground = files.foreground(box)
            share = int(foreground.count_nonzero()) / foreground.numel()
            if share > best_share:
                best_share, best = share, (box, foreground)
            if share >= MIN_FOREGROUND:
                break
        assert best is not None
        return best

    def _random_box(self, shape: Sequence[int], generator: torch.Generator) -> list[list[int]]:
        """[lower, upper) per axis; an axis shorter than the patch is centred and padded."""
        box = []
        for size, patch in zip(shape, self.patch_size, strict=True):
            centred = -((patch - size) // 2)
            lower = int(torch.randint(size - patch + 1, (), generator=generator)) if size >= patch else centred
            box.append([lower, lower + patch])
        return box


def present_channels(image: Tensor) -> Tensor:
    """Which channels are not 0 everywhere; nnU-Net's normalisation leaves an image of zeros at 0.

    Args:
        image: (C, *P).

    Returns:
        (C,) bool.
    """
    sparse = image[(slice(None), *[slice(None, None, 4)] * (image.ndim - 1))]  # nearly always decides
    present = (sparse != 0).flatten(1).any(1)
    for channel in (~present).nonzero()[:, 0].tolist():
        present[channel] = bool((image[channel] != 0).any())
    return present
