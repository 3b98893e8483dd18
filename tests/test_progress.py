"""Progress of long work, and memory that is counted once."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from emim_nnunet.planners.counting import MemoryCounts
from emim_nnunet.storage import progress
from emim_nnunet.storage.progress import Progress


def test_without_a_terminal_progress_goes_to_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO):
        assert list(Progress([1, 2], desc="Quick")) == [1, 2]
        assert caplog.text == ""  # nobody waits for it
        monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
        list(Progress([1, 2], desc="Slow"))
    assert "Slow: 1 of 2" in caplog.text
    assert "Slow: 2 of 2" in caplog.text
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    caplog.clear()
    list(Progress([1, 2], desc="Shown"))
    assert "Shown: 100%" in capsys.readouterr().err
    assert caplog.text == ""


def test_the_memory_of_equal_plans_is_counted_once_whatever_the_command(tmp_path: Path) -> None:
    asked: list[str] = []
    file = tmp_path / "data set" / "counts.json"

    def gigabytes(counts: MemoryCounts, what: str, **inputs: object) -> float:
        def count() -> float:
            asked.append(what)
            return 0.5 + len(asked)

        return counts.of(what, inputs, count)

    counts = MemoryCounts(file)
    assert gigabytes(counts, "a", patch_size=(8, 8)) == 1.5
    assert gigabytes(counts, "a", patch_size=[8, 8]) == 1.5
    assert gigabytes(counts, "b", patch_size=[8, 8]) == 2.5
    counts.save()
    again = MemoryCounts(file)
    assert gigabytes(again, "a", patch_size=(8, 8)) == 1.5
    assert gigabytes(again, "a", patch_size=(8, 16)) == 3.5
    assert asked == ["a", "b", "a"]
    file.write_text("{")
    assert gigabytes(MemoryCounts(file), "a", patch_size=(8, 8)) == 4.5
