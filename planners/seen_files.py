"""What was seen in the files of a raw data set, so that the next step, or the same one repeated, does not read them again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from emim_nnunet.datasets.background import Background
from emim_nnunet.datasets.shards import Shard
from emim_nnunet.storage.files import read_json_object, write_json

SEEN = "seen_files"
Entry = tuple[str, dict[int, Background]]


class SeenFiles:
    """Cases whose files were found to be whole, and the backgrounds of their images.

    Kept in ``seen_files.json`` of the preprocessed data set, and until ``--finish`` in a file of its own for each shard. A case
    counts as seen as long as its files have the names, sizes and times of change that they had.

    Args:
        preprocessed: ``nnUNet_preprocessed/DatasetXXX_NAME``, which need not exist.
        shard: The shard that this process does; None = everything.
        anew: Whether what is known is forgotten.
    """

    def __init__(self, preprocessed: Path, shard: Shard | None = None, *, anew: bool = False) -> None:
        self._folder, self._shard = preprocessed, shard
        own = "" if shard is None else f".shard_{shard.number}_of_{shard.of}"
        self._file = preprocessed / f"{SEEN}{own}.json"
        files = [] if anew else [preprocessed / f"{SEEN}.json", *self._parts()]
        self._known = {case: entry for file in files for case, entry in _entries(file).items()}
        self._new: dict[str, Entry] = {}

    def _parts(self) -> list[Path]:
        """The files of shards."""
        return sorted(self._folder.glob(f"{SEEN}.shard_*_of_*.json"))

    def backgrounds(self, case: str, files: Sequence[str]) -> dict[int, Background] | None:
        """What is known about a case.

        Args:
            case: Its id.
            files: Its images, and its label.

        Returns:
            Channel -> its background, of those where that is not 0; None where its files have to be read.
        """
        if case not in self._known:
            return None
        digest, backgrounds = self._known[case]
        return backgrounds if digest == _digest(files) else None

    def note(self, case: str, files: Sequence[str], backgrounds: Mapping[int, Background]) -> None:
        """Remember what a case was seen to be; :meth:`save` writes it."""
        self._new[case] = (_digest(files), dict(backgrounds))

    def save(self) -> None:
        """Write what is new; a process that does everything takes over what shards have written."""
        parts = self._parts() if self._shard is None else []
        if not self._new and not parts:
            return
        known = (_entries(self._file) if self._shard is not None else self._known) | self._new
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._file, {case: known[case] for case in sorted(known)}, indent=0)
        for part in parts:
            part.unlink(missing_ok=True)


def _entries(file: Path) -> dict[str, Entry]:
    """What a file says; without what cannot be understood."""
    found: dict[str, Entry] = {}
    for case, entry in read_json_object(file).items():
        try:
            digest, backgrounds = entry
            found[case] = (str(digest), {int(c): Background(*about) for c, about in backgrounds.items()})
        except (TypeError, ValueError, AttributeError):
            continue
    return found


def _digest(files: Sequence[str]) -> str:
    """Of names, sizes and times of change; empty where a file is missing."""
    try:
        states = [(os.path.basename(file), os.stat(file)) for file in files]
    except OSError:
        return ""
    text = " ".join(f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in states)
    return sha256(text.encode()).hexdigest()[:16]
