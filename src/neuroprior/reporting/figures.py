"""Figures of the report as inline PNG: curves, scatter, ROC, overlays. Each returns a ``data:`` address."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

INK, BLUE, ORANGE, GREY = "#1f2933", "#2563a8", "#c2571a", "#8a94a0"
COLOURS = (BLUE, ORANGE, "#2f7d4f", "#7a4fa3", INK)
"""Of models, in their order."""


def embed(path: Path) -> str:
    """A PNG file as a ``data:`` address."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _new(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(colors=INK, labelsize=8)
    return figure, axes


def _data(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.tight_layout()
    figure.savefig(buffer, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def curves(events: Sequence[Mapping[str, Any]]) -> str | None:
    """Training loss (dots, and its running mean) with validation on top, and the learning rate; None without steps."""
    steps = [event for event in events if event["event"] == "step"]
    if not steps:
        return None
    figure, (left, right) = _new(9, 2.8, 2)
    x, y = np.array([e["step"] for e in steps]), np.array([e["loss"] for e in steps])
    left.plot(x, y, ".", color=GREY, markersize=2, label="training, each step")
    width = max(1, len(y) // 20)
    if len(y) > 3:
        left.plot(x[width - 1 :], np.convolve(y, np.ones(width) / width, "valid"), color=BLUE, label=f"mean of {width} steps")
    validation = [e for e in events if e["event"] == "validation" and "loss" in e]
    if validation:
        left.plot(
            [e["step"] for e in validation], [e["loss"] for e in validation], "o-", color=ORANGE, markersize=4, label="validation"
        )
    left.set_xlabel("step", fontsize=8)
    left.set_ylabel("loss", fontsize=8)
    left.legend(fontsize=7, frameon=False)
    right.plot(x, [e["lr"] for e in steps], color=INK)
    right.set_xlabel("step", fontsize=8)
    right.set_ylabel("learning rate", fontsize=8)
    right.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    return _data(figure)


def health(events: Sequence[Mapping[str, Any]]) -> str | None:
    """Spread between subjects and effective rank of each named feature over the run, alarms as lines; None where nobody looked."""
    looks = [event for event in events if event["event"] == "health"]
    if len(looks) < 2:
        return None
    figure, axes = _new(9, 2.6, 2)
    x = [look["step"] for look in looks]
    for axis, what, title in zip(
        axes, ("spread", "rank"), ("spread between subjects (1 - cosine)", "effective rank (RankMe)"), strict=True
    ):
        names = [key.rpartition("/")[0] for key in looks[-1] if key.endswith(f"/{what}")]
        for name, colour in zip(names, (BLUE, ORANGE, GREY), strict=False):
            axis.plot(x, [look.get(f"{name}/{what}", np.nan) for look in looks], color=colour, label=name)
        for alarm in (event for event in events if event["event"] in ("alarm", "rollback")):
            axis.axvline(alarm["step"], color="#b3261e", linewidth=0.8, linestyle=":")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step (dotted: alarm)", fontsize=8)
        axis.legend(fontsize=8, frameon=False)
    return _data(figure)


def scatter(truth: Sequence[float], guesses: Mapping[str, Sequence[float]], target: str) -> str:
    """Predicted against true values of one or more models, with the line of identity."""
    figure, (axis,) = _new(4.2, 3.8)
    everything = [*truth, *(v for values in guesses.values() for v in values)]
    low, high = min(everything), max(everything)
    axis.plot([low, high], [low, high], "--", color=GREY, linewidth=1)
    for (name, values), colour in zip(guesses.items(), COLOURS, strict=False):
        axis.plot(truth, values, "o", color=colour, markersize=4, alpha=0.75, label=name)
    axis.set_xlabel(f"true {target}", fontsize=8)
    axis.set_ylabel(f"predicted {target}", fontsize=8)
    axis.legend(fontsize=7, frameon=False)
    return _data(figure)


def roc(curves: Mapping[str, tuple[Sequence[bool], Sequence[float]]]) -> str:
    """ROC curves of one or more models; each is (truth, probability of the positive class)."""
    from sklearn.metrics import roc_curve

    figure, (axis,) = _new(4.2, 3.8)
    axis.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
    for (name, (truth, probability)), colour in zip(curves.items(), COLOURS, strict=False):
        false, true, _ = roc_curve(truth, probability)
        axis.plot(false, true, color=colour, label=name)
    axis.set_xlabel("1 - specificity", fontsize=8)
    axis.set_ylabel("sensitivity", fontsize=8)
    axis.legend(fontsize=7, frameon=False)
    return _data(figure)


def bias(truth: Sequence[float], guesses: Mapping[str, Sequence[float]], target: str) -> str:
    """Signed error against the true value, with each model's least-squares line: age models pull towards the mean."""
    figure, (axis,) = _new(4.2, 3.8)
    x = np.asarray(truth, dtype=float)
    axis.axhline(0, linestyle="--", color=GREY, linewidth=1)
    for (name, values), colour in zip(guesses.items(), COLOURS, strict=False):
        error = np.asarray(values, dtype=float) - x
        axis.plot(x, error, "o", color=colour, markersize=4, alpha=0.75)
        if len(x) > 2 and np.ptp(x) > 0:
            slope, intercept = np.polyfit(x, error, 1)
            ends = np.array([x.min(), x.max()])
            axis.plot(ends, slope * ends + intercept, color=colour, linewidth=1.2, label=f"{name}: slope {slope:+.2f}")
    axis.set_xlabel(f"true {target}", fontsize=8)
    axis.set_ylabel("predicted - true", fontsize=8)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7, frameon=False)
    return _data(figure)


def strips(values: Mapping[str, Sequence[float]], what: str) -> str:
    """Every case's value as a dot, a column a model, with the median as a bar."""
    figure, (axis,) = _new(max(3.0, 1.3 * len(values) + 1.4), 3.4)
    for place, ((_, numbers), colour) in enumerate(zip(values.items(), COLOURS * 4, strict=False)):
        y = np.sort(np.asarray(numbers, dtype=float))
        spread = 0.25 * np.sin(np.arange(len(y)) * 2.4)  # a fixed sway keeps dots apart
        axis.plot(place + spread, y, "o", color=colour, markersize=4, alpha=0.7)
        if len(y):
            axis.plot([place - 0.32, place + 0.32], [np.median(y)] * 2, color=INK, linewidth=1.6)
    axis.set_xticks(range(len(values)), list(values), fontsize=8)
    axis.set_ylabel(f"{what} (bar: median)", fontsize=8)
    return _data(figure)


def reliability(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], bins: int = 8) -> str:
    """Observed share of positives against the predicted probability, in bins of equal count; dot size is the bin's count."""
    figure, (axis,) = _new(4.2, 3.8)
    axis.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
    for (name, (truth, probability)), colour in zip(curves.items(), COLOURS, strict=False):
        order = np.argsort(probability, kind="stable")
        parts = [part for part in np.array_split(order, min(bins, max(1, len(order) // 3))) if len(part)]
        said = [float(probability[part].mean()) for part in parts]
        seen = [float(truth[part].mean()) for part in parts]
        axis.plot(said, seen, "-", color=colour, linewidth=1, label=name)
        axis.scatter(said, seen, s=[8 + 3 * len(part) for part in parts], color=colour, alpha=0.8)
    axis.set_xlabel("predicted probability", fontsize=8)
    axis.set_ylabel("observed share", fontsize=8)
    axis.legend(fontsize=7, frameon=False)
    return _data(figure)


def risk_coverage(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Error rate among the k surest cases (largest probability of the class said), for every k."""
    figure, (axis,) = _new(4.2, 3.8)
    for (name, (truth, probability)), colour in zip(curves.items(), COLOURS, strict=False):
        sure = np.maximum(probability, 1 - probability)
        wrong = (probability >= 0.5) != truth.astype(bool)
        order = np.argsort(-sure, kind="stable")
        risk = np.cumsum(wrong[order]) / np.arange(1, len(order) + 1)
        axis.plot(np.arange(1, len(order) + 1) / len(order), risk, color=colour, label=name)
    axis.set_xlabel("share of cases answered", fontsize=8)
    axis.set_ylabel("share of these that are wrong", fontsize=8)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=7, frameon=False)
    return _data(figure)


def strip(slices: Mapping[str, np.ndarray], spacing_mm: Sequence[float], path: Path) -> None:
    """A row of slices (x, y) in one window of grey, that of the first, written as a PNG file."""
    from ..core import artifacts

    figure, axes = _new(1.75 * len(slices), 2.3, len(slices))
    figure.set_facecolor("black")
    low, high = np.percentile(next(iter(slices.values())), (1, 99.5))
    for axis, (title, image) in zip(axes, slices.items(), strict=True):
        axis.imshow(
            image.T, cmap="gray", origin="lower", vmin=low, vmax=max(high, low + 1e-6), aspect=spacing_mm[1] / spacing_mm[0]
        )
        axis.set_title(title, color="white", fontsize=8)
        axis.set_axis_off()
    figure.tight_layout(pad=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    with artifacts.atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90, facecolor="black")


def severities(curves: Mapping[str, Mapping[int, float]], metric: str) -> str:
    """A metric against severity (0 is clean), a line an artefact, labelled at its end."""
    figure, (axis,) = _new(6.4, 3.6)
    for place, (name, values) in enumerate(curves.items()):
        x = sorted(values)
        axis.plot(x, [values[k] for k in x], marker="o", markersize=3, color=COLOURS[place % len(COLOURS)],
                  linestyle=("-", "--")[place // len(COLOURS) % 2], linewidth=1.2, label=name)  # fmt: skip
    axis.set_xlabel("severity (0: as scanned)", fontsize=8)
    axis.set_ylabel(metric, fontsize=8)
    axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _data(figure)


def overlay(
    image: np.ndarray, prediction: np.ndarray, reference: np.ndarray | None, spacing_mm: tuple[float, float, float]
) -> str:
    """Three slices through the middle of the reference (or of the prediction), outlines on the image, in RAS+ order.

    Args:
        image: (x, y, z) intensities.
        prediction, reference: (x, y, z) label maps on the same grid; drawn in orange and blue.
        spacing_mm: of the grid.
    """
    import warnings

    figure, axes = _new(9, 3.3, 3)
    figure.set_facecolor("black")
    focus = reference if reference is not None and reference.any() else prediction
    if focus.any():
        centre = [int(np.bincount(where).argmax()) for where in np.nonzero(focus)]
    else:
        centre = [n // 2 for n in image.shape]
    low, high = np.percentile(image[:: max(1, image.shape[0] // 64)], (1, 99.5))
    for axis, panel, title in zip((0, 1, 2), axes, ("sagittal", "coronal", "axial"), strict=True):
        others = [a for a in range(3) if a != axis]
        slices = tuple(centre[axis] if a == axis else slice(None) for a in range(3))
        aspect = spacing_mm[others[1]] / spacing_mm[others[0]]
        panel.imshow(image[slices].T, cmap="gray", origin="lower", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a slice without a contour is fine
            if reference is not None:
                panel.contour(reference[slices].T > 0, levels=[0.5], colors=["#4da3ff"], linewidths=1.1)
            panel.contour(prediction[slices].T > 0, levels=[0.5], colors=["#ff8c42"], linewidths=1.1)
        panel.set_title(title, color="white", fontsize=8)
        panel.set_axis_off()
    buffer = io.BytesIO()
    figure.tight_layout(pad=0.4)
    figure.savefig(buffer, format="png", dpi=95, facecolor="black")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
