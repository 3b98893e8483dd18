"""emim_report: one self-contained page, from whatever a run left."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from emim_nnunet.cli import report as command
from emim_nnunet.cli._run import run
from emim_nnunet.compare import report as comparison
from emim_nnunet.diagnostics import reconstruction_scores, reconstruction_sums
from emim_nnunet.diagnostics.case_scores import CaseScores
from emim_nnunet.methods import method_classes
from emim_nnunet.prediction.report import markdown as subsets_page
from emim_nnunet.prediction.subsets import Measured
from emim_nnunet.report import REPORT, leave_report
from emim_nnunet.report.cases import modified_scores
from emim_nnunet.report.citations import cited_for, entries, identifiers
from emim_nnunet.report.files import Names
from emim_nnunet.report.pictures import STATES, panels
from emim_nnunet.report.results import markdown_sections
from emim_nnunet.training.plots import MASK_TINT, plot_reconstruction
from tests.pipeline import FINETUNE, PRETRAIN, log_of, train, trained

MEGABYTES = 1 << 20
VOID = ("meta", "link", "img", "input", "br")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """What a test looks at: headings, ids, addresses, alternative texts; and whether elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[int] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.alts: list[str] = []
        self.tags: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if "id" in known:
            self.ids.append(str(known["id"]))
        self.addresses += [str(known[name]) for name in ("src", "href") if name in known]
        if tag == "img":
            self.alts.append(known.get("alt") or "")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


def written(out: Path, *arguments: str | Path) -> str:
    """The text of a page that the command wrote."""
    assert run(command.main, [*map(str, arguments), "-o", str(out)]) == 0
    return out.read_text("utf-8")


@pytest.fixture
def stage(nnunet: Path) -> Path:
    """A finished SSL stage."""
    return trained(PRETRAIN)


def test_a_stage_is_shown_as_one_accessible_file_that_loads_nothing(stage: Path, tmp_path: Path) -> None:
    text = written(tmp_path / "report.html", stage)
    page = Page(text)
    assert len(text) < 2 * MEGABYTES
    assert "script" not in page.tags
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert {a[1:] for a in page.addresses if a.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert all(page.alts)
    assert page.headings[0] == 1
    assert all(below <= above + 1 for above, below in zip(page.headings, page.headings[1:], strict=False))
    words = re.sub(r"base64,[\w+/=]+", "", text)
    assert not re.search(r"url\(|@import|https?://", words)
    names = ("Training", "Reconstructions", "Error per modality", "Spectra of the features", "Cases")
    for name in (*names, "Methods, for a paper", "Settings", "Problems, and what is not here"):
        assert f"<h3>{name}</h3>" in text, name
    assert "cannot be read" not in text
    assert "is not there" not in text
    assert str(tmp_path.parent) not in words
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", words)


def test_a_stage_is_told_in_numbers_and_sentences(stage: Path, tmp_path: Path) -> None:
    text = written(tmp_path / "report.html", stage)
    facts = dict(re.findall(r"<div><dt>([^<]+)</dt><dd>([^<]+)</dd></div>", text))
    assert facts["learnt from"] == "6 cases, 2 of them without label"
    assert facts["data set"] == "5 labelled, 2 unlabelled"
    assert facts["measured on"] == "1 held-out case"
    assert facts["channels"] == "T1, T1ce, T2, Flair"
    assert facts["lacking a channel"] == "none"
    assert facts["body mask"] == "where the images are not 0"
    assert facts["epochs"] == "3 of 3"
    report = json.loads((stage / "collapse_report.json").read_text())
    assert f'class="badge {report["verdict"]}"' in text
    assert all(finding["message"].replace("'", "&#39;") in text for finding in report["findings"])
    skill = report["now"]["reconstruction"]["all"]["foreground_skill"]
    assert facts["skill in the body"] == f"{skill:.3f}"
    assert "@misc{han2024emim," in text
    assert r"EMIM~\cite{han2024emim}" in text
    assert "for 3 epochs of 3 steps with batches of 2 patches and AdamW" in text
    assert '<th scope="row">pyramid_levels</th><td>[1, 2]</td>' in text
    (held_out,) = {p.name[11:-4] for p in (stage / "reconstructions").iterdir()}
    assert f"<legend>{held_out}</legend>" in text
    assert text.count('class="state s0"') == 4
    assert text.count('class="state s4"') == 4


def test_cases_may_be_numbered(stage: Path, tmp_path: Path) -> None:
    text = written(tmp_path / "report.html", stage)
    anonymous = written(tmp_path / "numbered.html", stage, "--anonymous")
    found = set(re.findall(r"BraTS-GLI-\d+-\d+", text))
    assert len(found) == 7
    assert not re.search(r"BraTS-GLI-\d", anonymous)
    assert set(re.findall(r"<h4>(case \d+)</h4>", anonymous)) == {f"case {n}" for n in range(1, 8)}


def test_an_old_run_is_shown_without_what_it_lacks(stage: Path, tmp_path: Path, monkeypatch: Any) -> None:
    for name in ("case_scores.csv", "collapse_report.json"):
        (stage / name).unlink()
    shutil.rmtree(stage / "reconstructions")
    monkeypatch.setattr("emim_nnunet.report.cases.nnUNet_preprocessed", tmp_path)
    monkeypatch.setattr(Path, "is_set", lambda self: True, raising=False)
    text = written(tmp_path / "report.html", stage)
    absent = re.findall(r"<li>([^<]+)</li>", text.split('<ul class="absent">')[1])
    assert [line.split()[0].rstrip(":") for line in absent] == [
        "collapse_report.json",
        "case_scores.csv",
        "no",
        "reconstructions",
        "cases",
    ]
    assert "the preprocessed cases are not on this machine" in absent[-1]
    assert "<h3>Training</h3>" in text


@pytest.mark.parametrize("part", ["ssl_log.csv", "collapse.csv", "collapse_report.json", "checkpoint_final.pth"])
def test_a_damaged_file_costs_its_part_only(part: str, tmp_path: Path) -> None:
    folder = tmp_path / "fold_0"
    folder.mkdir()
    (folder / "ssl_log.csv").write_text("epoch,train/loss,val/loss,seconds\n0,1.0,1.0,60\n1,0.5,0.6,60\n")
    (folder / part).write_bytes(b"\xff\xfe\x80")
    text = written(tmp_path / "report.html", folder)
    assert f"<li>{part.removesuffix('_final.pth')}: " in text
    assert ("2.0 minutes" in text) == (part != "ssl_log.csv")


def test_a_stage_leaves_its_report_and_a_broken_one_is_a_line(nnunet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emim_nnunet.training.ssl_trainer.leave_report", leave_report)
    monkeypatch.setattr("emim_nnunet.training.finetune_trainer.leave_report", leave_report)
    folder = train(PRETRAIN)
    assert "report.html: the whole run on one page" in log_of(folder)
    text = (folder / REPORT).read_text("utf-8")
    assert "3 of 3</dd>" in text
    assert "not finished" not in text

    def broken(report: object) -> str:
        raise RuntimeError("no ink")

    monkeypatch.setattr("emim_nnunet.report.html_of", broken)
    tuned = train(FINETUNE)
    assert (tuned / "checkpoint_final.pth").is_file()
    assert "No report.html was written (RuntimeError: no ink); emim_report can be tried again" in log_of(tuned)
    assert not (tuned / REPORT).exists()


def test_a_segmentation_is_shown_with_its_dice_and_its_encoder(stage: Path, tmp_path: Path) -> None:
    folder = trained(FINETUNE)
    text = written(tmp_path / "report.html", folder, stage)
    assert len(re.findall("<article", text)) == 2
    summary = json.loads((folder / "validation" / "summary.json").read_text())
    (row,) = summary["metric_per_case"]
    values = [metrics["Dice"] for metrics in row["metrics"].values()]
    for name, value in zip(("whole_tumour", "tumour_core", "enhancing_tumour"), values, strict=True):
        assert re.search(rf'<th scope="row">[\w ]+</th><td>{value:.3f}</td><td>too few cases', text), name
    assert "It was pretrained on 6 cases" in text
    assert "Every filter of the stem went to the channel of the same name" in text


def test_a_segmentation_shows_what_its_modalities_are_worth_once_that_was_measured(
    nnunet: Path, tmp_path: Path
) -> None:
    folder = trained(FINETUNE)
    assert "Dice by modalities" not in written(tmp_path / "before.html", folder)
    channels = ["T1", "T1ce", "T2", "Flair"]
    model = SimpleNamespace(
        folder=folder.parent, folds=["0"], channels=channels, was_trained_for=lambda seen: len(seen) == 4
    )
    rows = [
        Measured(
            modalities=seen,
            num_cases=1,
            dice=dice,
            dice_per_label={},
            surface_distance=2.0,
            num_distances=1,
            change=0.0,
        )
        for seen, dice in ((tuple(channels), 0.815), (("T1", "Flair"), 0.372))
    ]
    (folder.parent / "modality_subsets.md").write_text("\n".join(subsets_page(model, rows)) + "\n")
    text = written(tmp_path / "report.html", folder)
    assert "Dice by modalities" in text
    assert re.search(r"<td>0\.372</td>", text)
    assert "0 stands for the others" in text


def test_dice_has_intervals_where_there_are_enough_cases(tmp_path: Path) -> None:
    dice = np.linspace(0.2, 0.8, 13)
    rows = [
        {"prediction_file": f"/data/x/case{n}.nii.gz", "metrics": {"1": {"Dice": value}, "2": {"Dice": None}}}
        for n, value in enumerate(dice)
    ]
    (tmp_path / "metrics_arm.json").write_text(json.dumps({"metric_per_case": rows}))
    text = written(tmp_path / "report.html", tmp_path / "metrics_arm.json")
    low, high = re.findall(
        r'<th scope="row">label 1</th><td>0\.500</td><td>([\d.]+) to ([\d.]+)</td><td>0\.200</td><td>13', text
    )[0]
    assert float(low) == pytest.approx(0.5 - 1.96 * dice.std() / 13**0.5, abs=0.02)
    assert float(high) == pytest.approx(0.5 + 1.96 * dice.std() / 13**0.5, abs=0.02)
    assert text.index("case0<") < text.index("case12<")
    assert "/data/x" not in text


def test_a_comparison_is_shown_with_its_tables_and_pictures(tmp_path: Path) -> None:
    text = written(tmp_path / "report.html", write_comparison(tmp_path / "cmp"))
    assert "<strong>What was found:</strong>" in text
    assert "<h3>Worth in labelled cases from scratch</h3>" in text
    assert '<th scope="row">emim</th>' in text
    assert "Label efficiency: Dice against the number of labelled cases" in text
    assert "spectra.png is not there" in text
    assert "@misc{han2024emim," in text
    assert "results.json" not in text  # a part that cannot be read would be named


def write_comparison(folder: Path) -> Path:
    """The results of a comparison that was not run: equal arms, but for 0.02."""
    folder.mkdir()
    rows = [
        {
            "evaluation": "finetune",
            "arm": arm,
            "labelled": labelled,
            "seed": seed,
            "draw": seed,
            "case": f"c{case}",
            "dice": {"1": value},
            "mean": value,
        }
        for arm, gain in (("scratch", 0.0), ("emim", 0.02))
        for labelled in (2, 4)
        for seed in (0, 1)
        for case in range(6)
        for value in [0.5 + 0.03 * case + 0.01 * seed + gain + 0.02 * labelled]
    ]
    budget = {"finetune_num_epochs": 10, "finetune_num_iterations_per_epoch": 200, "finetune_initial_lr": 1e-3}
    compute = {"method": "EMIM", "gflops_per_step": 1.0, "steps_per_epoch": 3, "steps": 9, "exaflops": 1e-9}
    results: dict[str, Any] = {
        "dataset": "Dataset001_D",
        "configuration": "c",
        "cases": {"unlabelled": 5, "labelled_pool": 4, "test": 6},
        "test_cases": [f"c{n}" for n in range(6)],
        "seeds": [0, 1],
        "draws": [0, 1],
        "num_draws": 2,
        "labelled": [2, 4],
        "labelled_sets": {2: 2, 4: 2},
        "compute": {"emim": compute},
        "files": {},
        "budget": budget | {"finetune_scratch_lr": 1e-2},
        "until": None,
        "scores": rows,
        "curves": [],
        "spectra": [],
    }
    comparison.write_results(results, folder, None)
    return folder


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_shows_it_without_an_error_or_a_request(stage: Path, tmp_path: Path) -> None:
    page, picture = tmp_path / "report.html", tmp_path / "page.png"
    text = written(page, stage, write_comparison(tmp_path / "cmp"))
    assert page.stat().st_size < 10 * MEGABYTES
    _, errors = browsed(page, "--window-size=390,2000", f"--screenshot={picture}")
    assert "CONSOLE" not in errors
    assert imread(picture)[..., :3].std() > 0.05
    asking, measured = tmp_path / "asking.html", tmp_path / "measured.html"
    # what the page may not do is seen: with its policy a picture of the network is an error in the console
    asking.write_text(
        text.replace("</body>", '<img src="http://example.invalid/x.png" alt="x"></body>'), encoding="utf-8"
    )
    assert "CONSOLE" in browsed(asking, f"--screenshot={picture}")[1]
    script = "<script>document.title = document.documentElement.scrollWidth</script>"
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    measured.write_text(free.replace("</body>", f"{script}</body>"), encoding="utf-8")
    document, _ = browsed(measured, "--window-size=390,800", "--dump-dom")
    match = re.search(r"<title>(\d+)</title>", document)
    assert match is not None
    assert int(match[1]) <= 500, "wider than the narrowest window of a browser"


def browsed(page: Path, *options: str) -> tuple[str, str]:
    """What a browser without network prints about a page: the document, where asked for, and errors."""
    assert CHROMIUM is not None
    line = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.with_suffix('.profile')}"]
    line += ["--enable-logging=stderr", "--virtual-time-budget=1000", "--host-resolver-rules=MAP * ~NOTFOUND"]
    ended = subprocess.run([*line, *options, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout, ended.stderr


def test_panels_are_cut_out_of_the_pictures_of_a_stage(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(3, 8, 24, 20))
    masked = np.zeros(image.shape, dtype=bool)
    masked[:, :, :, :10] = True
    names = ["T1", "T2", "Flair"]
    file = tmp_path / "p.png"
    plot_reconstruction(
        image, image * ~masked, image * 0, masked, file, channel_names=names, spacing=(1, 1, 1), title="x"
    )
    rows = panels(imread(file)[..., :3])
    assert [len(row) for row in rows] == [len(STATES)] * 3
    assert len({panel.shape for row in rows for panel in row}) == 1
    height, width, _ = rows[0][0].shape
    assert height / width == pytest.approx(24 / 20, rel=0.03)
    for row in rows:
        tinted = np.abs(row[1] - MASK_TINT).max(-1) < 0.02
        assert tinted[:, : width // 2 - 2].all()
        assert not tinted[:, width // 2 + 2 :].any()
    assert panels(np.zeros((50, 60, 3))) == []


def test_outliers_are_those_of_the_modified_z_score() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 30.0, float("nan")]
    scores = modified_scores(values)
    assert scores[5][0] == pytest.approx(0.6745 * (30 - 3.5) / 1.5)  # median 3.5; deviations 2.5 1.5 .5 .5 1.5 26.5
    assert np.isnan(scores[6][0])
    assert np.isnan(modified_scores([1.0, 2.0, 50.0])[0][0])
    assert max(score for score, _ in modified_scores([0.1, 0.1, 0.1, 0.1, 0.11], 0.02)) < 1


def test_every_paper_of_a_method_has_its_entry() -> None:
    known = entries()
    for method in method_classes():
        cited = identifiers([method.paper])
        assert cited, method
        assert set(cited) <= known.keys(), method
        assert len(cited_for(method.__name__)) == len(cited) + 2
    keys = [key for key, _ in known.values()]
    assert len(keys) == len(set(keys))
    assert all(text.count("{") == text.count("}") for _, text in known.values())


def test_case_scores_are_those_of_the_case_alone_whatever_the_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    target, prediction = (torch.randn((4, 2, 6, 6), generator=generator) for _ in range(2))
    counted = torch.rand((4, 2, 6, 6), generator=generator) > 0.5
    body = torch.rand((4, 1, 6, 6), generator=generator) > 0.2
    whole, parts = CaseScores(["T1", "T2"]), CaseScores(["T1", "T2"])
    cases = ["b", "a", "b", "c"]
    whole.add(cases, prediction, target, counted, body)
    for n in (2, 0, 3, 1):
        one = slice(n, n + 1)
        parts.add(cases[one], prediction[one], target[one], counted[one], body[one])
    for row, other in zip(whole.rows(), parts.rows(), strict=True):
        assert row == pytest.approx(other)
    mine = torch.tensor([0, 2])
    expected = reconstruction_scores(
        reconstruction_sums(prediction[mine], target[mine], counted[mine], body[mine]), ["T1", "T2"]
    )
    (found,) = [row for row in whole.rows() if (row["case"], row["modality"]) == ("b", "T2")]
    assert found["foreground_skill"] == pytest.approx(expected["T2"]["foreground_skill"])


def test_the_pages_of_our_commands_become_sections() -> None:
    text = "# T\n\nOne **bold**\nline.\n\n## A\n\n| x | y |\n|---|---|\n| 1 | 2 |\n\n## B\n\n- one\n- two `c`\n"
    protocol, a, b = markdown_sections(text)
    assert protocol.text == ["One bold line."]
    assert (a.tables[0].header, a.tables[0].rows) == (["x", "y"], [["1", "2"]])
    assert b.points == ["one", "two c"]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("see $nnUNet_results/D/x.pth", "see $nnUNet_results/D/x.pth"),
        ("cannot read /data/home/me/x.pth: damaged", "cannot read x.pth: damaged"),
        ("C:\\Users\\me\\x.pth is gone", "x.pth is gone"),
        ("rate 3/4 of s1 and s10", "rate 3/4 of case 1 and case 2"),
    ],
)
def test_lines_of_a_log_name_no_folder_and_no_case(line: str, shown: str) -> None:
    names = Names(anonymous=True)
    names.know(["s10", "s1"])
    assert names.text(line) == shown


def test_the_command_is_refused_in_one_line(tmp_path: Path, capsys: Any) -> None:
    refused: list[tuple[Callable[[], list[str]], str]] = [
        (lambda: [str(tmp_path / "no"), "-o", "r.html"], "does not exist"),
        (lambda: [str(tmp_path), "-o", str(tmp_path / "r.html")], "holds no run"),
        (lambda: [str(tmp_path), "-o", str(tmp_path)], "is a folder: name the file to write"),
    ]
    for arguments, message in refused:
        assert run(command.main, arguments()) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
