"""What a person looks at: the pictures and the table of an SSL stage."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from emim_nnunet.diagnosis import collapse_plots
from emim_nnunet.diagnosis.reference import Reference
from emim_nnunet.training import plots
from emim_nnunet.training.log import SSLLog
from emim_nnunet.training.plots import MASK_TINT, plot_overlay, plot_progress, plot_reconstruction

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def read_png(path: Path) -> np.ndarray:
    """(H, W, 3) in [0, 1], after checking that the file is a PNG of some size, not of one colour, and alone in its folder."""
    assert path.read_bytes()[:8] == PNG_SIGNATURE
    picture = imread(path)[..., :3]
    assert 200 < picture.shape[0] < 4000
    assert 200 < picture.shape[1] < 4000
    assert picture.std() > 0.02
    assert [p.name for p in path.parent.iterdir()] == [path.name], "a temporary file was left behind"
    return picture


def share_of_colour(picture: np.ndarray, colour: str | np.ndarray) -> float:
    """Fraction of the pixels that have a colour."""
    with matplotlib.style.context("default"):  # nnU-Net sets other colours for the whole process
        rgb = np.asarray(matplotlib.colors.to_rgb(colour if isinstance(colour, str) else tuple(colour)))
    return float((np.abs(picture - rgb).max(-1) < 0.02).mean())


def share_dominated_by(picture: np.ndarray, channel: int) -> float:
    """Fraction of the pixels that are clearly red (0), green (1) or blue (2); grey ones are none of these."""
    others = np.delete(picture, channel, axis=-1).max(-1)
    return float((picture[..., channel] - others > 0.1).mean())


def history(num_epochs: int, modalities: tuple[str, ...] = ("T1", "T2")) -> list[dict[str, float]]:
    """Rows as the trainer appends them."""
    rows = []
    for epoch in range(num_epochs):
        row: dict[str, float] = {"epoch": epoch, "lr": 1e-3 / (epoch + 1), "seconds": 10.0}
        for prefix in ("train", "val"):
            row |= {f"{prefix}/loss": 1 / (epoch + 1), f"{prefix}/barlow": 0.5, f"{prefix}/masked_fraction": 0.7}
        rows.append(row | {f"skill/{name}": 0.1 * epoch for name in (*modalities, "all")})
    return rows


def sample(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image with a border of zeros, reconstruction, and a mask of half of the voxels."""
    rng = np.random.default_rng(seed)
    image = rng.normal(2.0, 1.0, shape)
    inner = (slice(None), *(slice(2, -2) for _ in shape[1:]))
    framed = np.zeros_like(image)
    framed[inner] = image[inner]
    masked = np.zeros(shape, dtype=bool)
    masked[..., : shape[-1] // 2] = True
    return framed, framed * 0.5, masked


@pytest.mark.parametrize("num_epochs", [1, 2, 40])
def test_progress_shows_any_number_of_epochs(tmp_path: Path, num_epochs: int) -> None:
    plot_progress(history(num_epochs), tmp_path / "progress.png")
    read_png(tmp_path / "progress.png")


@pytest.mark.filterwarnings("error")
def test_progress_survives_nan_missing_keys_and_late_keys(tmp_path: Path) -> None:
    rows = [{"epoch": 0, "lr": nan}, *history(4)[1:]]
    for row in rows:
        row["train/loss"] = nan
    rows[2]["skill/T1"] = -50.0
    plot_progress(rows, tmp_path / "progress.png")
    read_png(tmp_path / "progress.png")


def test_progress_of_eight_modalities_has_a_line_for_each(tmp_path: Path) -> None:
    names = tuple(f"M{i}" for i in range(8))
    rows = history(5, names)
    for row in rows:
        row |= {f"skill/{name}": 0.05 * i for i, name in enumerate(names)}  # apart from each other
    plot_progress(rows, tmp_path / "progress.png")
    picture = read_png(tmp_path / "progress.png")
    upper_right = picture[: len(picture) // 2, picture.shape[1] // 2 :]
    for number in range(8):
        assert share_of_colour(upper_right, f"C{number}") > 1e-4


@pytest.mark.parametrize("shape", [(4, 12, 16, 16), (2, 24, 16), (1, 8, 16, 16), (8, 8, 16, 16)])
def test_reconstruction_has_a_row_per_modality(tmp_path: Path, shape: tuple[int, ...]) -> None:
    image, reconstruction, masked = sample(shape)
    path = tmp_path / "reconstruction.png"
    names = [f"M{i}" for i in range(shape[0])]
    plot_reconstruction(image, image * ~masked, reconstruction, masked, path, channel_names=names, title="case")
    picture = read_png(path)
    assert picture.shape[0] > 150 * shape[0]
    # half of one of five columns is masked; margins take some
    assert 0.05 < share_of_colour(picture, MASK_TINT) < 0.11


def test_nothing_masked_shows_no_tint(tmp_path: Path) -> None:
    image, reconstruction, masked = sample((2, 8, 16, 16))
    path = tmp_path / "reconstruction.png"
    plot_reconstruction(image, image, reconstruction, masked & False, path, channel_names=["T1", "T2"])
    assert share_of_colour(read_png(path), MASK_TINT) == 0


def test_the_slice_with_most_foreground_is_shown(tmp_path: Path) -> None:
    image, reconstruction, masked = sample((1, 8, 16, 16))
    foreground = np.zeros(image.shape[1:], dtype=bool)
    foreground[5] = True
    masked[:] = False
    masked[:, 5] = True  # only the right slice is tinted
    path = tmp_path / "reconstruction.png"
    plot_reconstruction(image, image, reconstruction, masked, path, channel_names=["T1"], foreground=foreground)
    assert share_of_colour(read_png(path), MASK_TINT) > 0.1


def texts_of(path: Path, draw: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> tuple[Figure, list[Any]]:
    """The figure that is drawn, and its texts (not those of ticks) with their places in pixels."""
    figures: list[Figure] = []

    def keep(figure: Figure, *_: object, **__: object) -> None:
        figures.append(figure)
        figure.draw(FigureCanvasAgg(figure).get_renderer())

    for module in (plots, collapse_plots):
        monkeypatch.setattr(module, "save_figure", keep)
    with matplotlib.rc_context({"font.size": 40, "axes.labelsize": 40, "xtick.labelsize": 40}):  # as nnU-Net leaves it
        draw()
    figure = figures[0]
    renderer = figure.canvas.get_renderer()
    titles = [t for ax in figure.axes for t in (ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label, *ax.texts)]
    titles += figure.texts
    return figure, [(t.get_text(), t.get_window_extent(renderer)) for t in titles if t.get_text() and t.get_visible()]


def overlaps(texts: Sequence[Any]) -> list[tuple[str, str]]:
    """Pairs of texts that cover each other."""
    return [(a, b) for i, (a, box) in enumerate(texts) for b, other in texts[:i] if box.overlaps(other)]


def stage(count: int, channels: int) -> dict[str, Any]:
    shares = np.geomspace(1, 1e-3, channels)
    return {
        "channels": channels,
        "count": count,
        "status": "insufficient",
        "effective_rank": 20.0,
        "spectrum": (shares / shares.sum()).tolist(),
    }


def test_titles_of_neighbouring_spectra_do_not_overlap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each stage with the longest title: too few rows."""
    numbers = ("foreground_skill", "outline_skill", "loss", "collapsed_loss")
    scores = {name: dict.fromkeys(numbers, 0.1) for name in ("all", "T1", "T2")}
    look = {"reconstruction": scores, "stages": [stage(634, 32 << number) for number in range(6)]}
    measured = [look | {"epoch": epoch} for epoch in range(3)]
    figure, texts = texts_of(
        tmp_path, lambda: collapse_plots.plot_collapse(measured, tmp_path / "a.png", title="ok"), monkeypatch
    )
    assert sum("too few rows (634)" in text for text, _ in texts) == 6
    assert overlaps(texts) == []
    assert not legend_covers_axes(figure.axes[6])


LOSSES = {"constant": 0.98, "sample_constant": 0.95, "outline": 0.97, "depth": 0.9}


@pytest.mark.parametrize("others", [{"baselines": {"all": LOSSES}}, {}], ids=["now", "of an earlier version"])
def test_the_loss_is_drawn_beside_baselines_and_reference(
    others: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    numbers = {"foreground_skill": 0.1, "outline_skill": 0.1, "collapsed_loss": 0.98}
    measured: list[dict[str, Any]] = [
        {"epoch": epoch, "reconstruction": {"all": numbers | {"loss": loss}}, "stages": [stage(634, 8)]}
        for epoch, loss in enumerate([40.0, 0.97, 0.92])
    ]
    measured[0] |= others
    reference = Reference("nnUNetTrainerMIMPretrain__p__c/fold_0", tuple(range(1, 31)), tuple(np.linspace(2, 1.1, 30)))
    figure, texts = texts_of(
        tmp_path,
        lambda: collapse_plots.plot_collapse(measured, tmp_path / "a.png", title="ok", reference=reference),
        monkeypatch,
    )
    assert overlaps(texts) == []
    ax = figure.axes[2]
    assert not legend_covers_axes(ax)
    lines = {line.get_label(): line for line in ax.lines}
    assert {"network: 0.920", "reference: 1.100"} <= lines.keys()
    drawn = {f"{name}: {loss:.3f}" for name, loss in (("depth", 0.9), ("sample constant", 0.95), ("constant", 0.98))}
    assert (drawn <= lines.keys()) == bool(others)
    low, high = ax.get_ylim()
    assert low < 0.9 + 0.02 * (not others)
    assert 1.1 < high < 1.3  # where the reference ended is seen, where the untrained network began is not
    assert ax.get_xlim() == (-0.5, 2.5)


def legend_covers_axes(ax: Any) -> bool:
    """Whether the legend lies over the curves."""
    return bool(ax.get_legend().get_window_extent().overlaps(ax.get_window_extent()))


@pytest.mark.parametrize("modalities", [2, 8])
def test_the_legends_of_progress_cover_no_curve(
    modalities: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = history(20, tuple(f"Modality{i}" for i in range(modalities)))
    figure, texts = texts_of(tmp_path, lambda: plots.plot_progress(rows, tmp_path / "a.png"), monkeypatch)
    assert overlaps(texts) == []
    for ax in figure.axes[:2]:
        assert not legend_covers_axes(ax)
        assert figure.bbox.width >= ax.get_legend().get_window_extent().x1
        assert not any(ax.get_legend().get_window_extent().overlaps(o.get_window_extent()) for o in figure.axes)


@pytest.mark.parametrize("orientation", ["SPL", ""])
def test_a_reconstruction_says_where_and_how_large_it_is(
    orientation: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image, reconstruction, masked = sample((3, 8, 32, 40))
    arguments = (image, image * ~masked, reconstruction, masked, tmp_path / "a.png")
    names = ["T1", "T1ce", "Flair"]
    figure, texts = texts_of(
        tmp_path,
        lambda: plots.plot_reconstruction(
            *arguments, channel_names=names, spacing=(3.0, 1.0, 0.5), orientation=orientation, title="case_17, epoch 3"
        ),
        monkeypatch,
    )
    written = [text for text, _ in texts]
    assert overlaps(texts) == []
    where = " (counted towards S)" if orientation else ""
    unknown = "" if orientation else "; orientation unknown"
    assert f"case_17, epoch 3, slice 3 of 8 of the crop{where}{unknown}" in written
    assert written.count("5 mm") == 3  # a third of 40 voxels of 0.5 mm is 6.7 mm
    assert [text.splitlines()[0] for text in written if "grey" in text] == names
    places = {text: box.get_points().mean(0) for text, box in texts if text in "APLR"}
    if not orientation:
        assert places == {}
    else:  # as a radiologist has it: the left of the patient is on the right
        assert places["R"][0] < places["A"][0] < places["L"][0]
        assert places["P"][1] < places["R"][1] < places["A"][1]
    picture, scale = figure.axes[0], figure.axes[15]
    assert picture.get_aspect() == 2.0
    low, high = (
        float(part) for part in next(t for t in written if t.startswith("T1\n")).split("grey ")[1].split(" to ")
    )
    assert scale.get_ylim() == pytest.approx((0, high - low), abs=0.02)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_images_without_foreground_can_be_drawn(tmp_path: Path, value: float) -> None:
    image = np.full((2, 4, 8, 8), value)
    masked = np.ones(image.shape, dtype=bool)
    path = tmp_path / "reconstruction.png"
    plot_reconstruction(
        image, image, image, masked, path, channel_names=["a", "b"], foreground=np.zeros((4, 8, 8), dtype=bool)
    )
    read_png(path)


def test_overlay_fills_each_label_and_cuts_through_the_reference(tmp_path: Path) -> None:
    image = sample((1, 20, 24, 28))[0][0]
    reference = np.zeros(image.shape, dtype=int)
    reference[4:9, 5:12, 6:14] = 1
    reference[5:8, 6:10, 7:12] = 3
    path = tmp_path / "overlay.png"
    plot_overlay(image, np.zeros_like(reference), path, reference=reference, label_names={1: "oedema"}, title="case")
    picture = read_png(path)
    third = len(picture) // 3
    predicted, referenced = picture[third : 2 * third], picture[2 * third : int(2.8 * third)]  # below: the legend
    for channel in (0, 1):  # the first label is orange, the second green
        assert share_dominated_by(predicted, channel) == 0
        assert share_dominated_by(referenced, channel) > 1e-3


@pytest.mark.filterwarnings("error")
def test_overlay_without_labels_and_without_reference(tmp_path: Path) -> None:
    image = sample((1, 8, 12, 10))[0][0]
    path = tmp_path / "overlay.png"
    plot_overlay(image, np.zeros(image.shape, dtype=int), path)
    read_png(path)


def test_plotting_leaves_matplotlib_alone(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    plot_progress(history(3), tmp_path / "progress.png")
    assert dict(matplotlib.rcParams) == before
    from matplotlib import pyplot

    assert pyplot.get_fignums() == []


def test_log_csv_has_epoch_first_and_the_union_of_all_keys(tmp_path: Path) -> None:
    log = SSLLog()
    log.append({"lr": 0.1, "epoch": 0, "train/loss": 1.5})
    log.append({"epoch": 1, "val/loss": nan, "train/loss": 1.25})
    log.write(tmp_path / "ssl_log.csv")
    with open(tmp_path / "ssl_log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", "lr", "train/loss", "val/loss"]
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert rows[0]["val/loss"] == rows[1]["lr"] == ""
    assert float(rows[1]["train/loss"]) == 1.25
    assert isnan(float(rows[1]["val/loss"]))
    assert [p.name for p in tmp_path.iterdir()] == ["ssl_log.csv"]


def test_log_continues_from_its_state() -> None:
    log, other = SSLLog(), SSLLog()
    log.append({"epoch": 0, "train/loss": 1.0})
    other.load_state(log.state())
    other.append({"epoch": 1, "train/loss": 0.5})
    assert log.state() == [{"epoch": 0, "train/loss": 1.0}]
    assert [row["epoch"] for row in other.state()] == [0, 1]
    other.state()[0]["train/loss"] = 99.0
    assert other.state()[0]["train/loss"] == 1.0


def test_log_refuses_a_row_without_epoch() -> None:
    with pytest.raises(ValueError, match="epoch"):
        SSLLog().append({"train/loss": 1.0})
