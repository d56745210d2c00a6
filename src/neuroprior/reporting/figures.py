"""Figures of the report as inline PNG: curves, scatter, ROC, overlays. Each returns a ``data:`` address."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..assessments._seeds import name_and_seed

INK, BLUE, ORANGE, GREY = "#1f2933", "#2563a8", "#c2571a", "#8a94a0"
COLOURS = (BLUE, ORANGE, "#2f7d4f", "#7a4fa3", INK, "#b0487a", "#3d8f8f", "#8a6d1f")
"""Of models, in their order."""


def painted(names: Iterable[str]) -> dict[str, tuple[str, str, str | None]]:
    """Run -> (colour, line style, name in the legend): the runs of one model share a colour and a legend entry."""
    made: dict[str, tuple[str, str, str | None]] = {}
    models: list[str] = []
    for name in names:
        model = name_and_seed(name)[0]
        first = model not in models
        if first:
            models.append(model)
        place = models.index(model)
        made[name] = COLOURS[place % len(COLOURS)], ("-", "--", ":", "-.")[place // len(COLOURS) % 4], model if first else None
    return made


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
    figure.savefig(buffer, format="png", dpi=110, transparent=True)  # the page may be dark
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
    paint = painted(guesses)
    for name, values in guesses.items():
        axis.plot(truth, values, "o", color=paint[name][0], markersize=4, alpha=0.75, label=paint[name][2])
    axis.set_xlabel(f"true {target}", fontsize=8)
    axis.set_ylabel(f"predicted {target}", fontsize=8)
    axis.legend(fontsize=7, frameon=False)
    return _data(figure)


def roc(curves: Mapping[str, tuple[Sequence[bool], Sequence[float]]]) -> str:
    """ROC curves of one or more models; each is (truth, probability of the positive class)."""
    from sklearn.metrics import roc_curve

    figure, (axis,) = _new(4.2, 3.8)
    axis.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1)
    paint = painted(curves)
    for name, (truth, probability) in curves.items():
        false, true, _ = roc_curve(truth, probability)
        colour, style, label = paint[name]
        axis.plot(false, true, style, color=colour, label=label, linewidth=1.3)
    axis.set_xlabel("1 - specificity", fontsize=8)
    axis.set_ylabel("sensitivity", fontsize=8)
    axis.legend(fontsize=7, frameon=False)
    return _data(figure)


def bias(truth: Sequence[float], guesses: Mapping[str, Sequence[float]], target: str) -> str:
    """Signed error against the true value, with each model's least-squares line: age models pull towards the mean."""
    figure, (axis,) = _new(4.2, 3.8)
    x = np.asarray(truth, dtype=float)
    axis.axhline(0, linestyle="--", color=GREY, linewidth=1)
    for name, (colour, style, _) in painted(guesses).items():
        values = guesses[name]
        error = np.asarray(values, dtype=float) - x
        axis.plot(x, error, "o", color=colour, markersize=4, alpha=0.75)
        if len(x) > 2 and np.ptp(x) > 0:
            slope, intercept = np.polyfit(x, error, 1)
            ends = np.array([x.min(), x.max()])
            axis.plot(ends, slope * ends + intercept, style, color=colour, linewidth=1.2, label=f"{name}: slope {slope:+.2f}")
    axis.set_xlabel(f"true {target}", fontsize=8)
    axis.set_ylabel("predicted - true", fontsize=8)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7, frameon=False)
    return _data(figure)


def strips(values: Mapping[str, Sequence[float]], what: str) -> str:
    """Every case's value as a dot, a column a model, with the median as a bar."""
    figure, (axis,) = _new(max(3.0, 1.3 * len(values) + 1.4), 3.4)
    for place, (numbers, (colour, _, _)) in enumerate(zip(values.values(), painted(values).values(), strict=True)):
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
    for name, (colour, style, label) in painted(curves).items():
        truth, probability = curves[name]
        order = np.argsort(probability, kind="stable")
        parts = [part for part in np.array_split(order, min(bins, max(1, len(order) // 3))) if len(part)]
        said = [float(probability[part].mean()) for part in parts]
        seen = [float(truth[part].mean()) for part in parts]
        axis.plot(said, seen, style, color=colour, linewidth=1, label=label)
        axis.scatter(said, seen, s=[8 + 3 * len(part) for part in parts], color=colour, alpha=0.8)
    axis.set_xlabel("predicted probability", fontsize=8)
    axis.set_ylabel("observed share", fontsize=8)
    axis.legend(fontsize=7, frameon=False)
    return _data(figure)


def risk_coverage(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Error rate among the k surest cases (largest probability of the class said), for every k."""
    figure, (axis,) = _new(4.2, 3.8)
    for name, (colour, style, label) in painted(curves).items():
        truth, probability = curves[name]
        sure = np.maximum(probability, 1 - probability)
        wrong = (probability >= 0.5) != truth.astype(bool)
        order = np.argsort(-sure, kind="stable")
        risk = np.cumsum(wrong[order]) / np.arange(1, len(order) + 1)
        axis.plot(np.arange(1, len(order) + 1) / len(order), risk, style, color=colour, label=label, linewidth=1.3)
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
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.01, top=0.88, wspace=0.03)
    path.parent.mkdir(parents=True, exist_ok=True)
    with artifacts.atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90, facecolor="black")


def severities(curves: Mapping[str, Mapping[int, float]], metric: str) -> str:
    """A metric against severity (0 is clean), a line an artefact, labelled at its end."""
    figure, (axis,) = _new(4.4, 4.2)
    for place, (name, values) in enumerate(curves.items()):
        x = sorted(values)
        axis.plot(x, [values[k] for k in x], marker="o", markersize=3, color=COLOURS[place % len(COLOURS)],
                  linestyle=("-", "--")[place // len(COLOURS) % 2], linewidth=1.2, label=name)  # fmt: skip
    axis.set_xlabel("severity (0: as scanned)", fontsize=8)
    axis.set_ylabel(metric, fontsize=8)
    axis.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.45, -0.16), ncol=3)
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


def rank_intervals(panels: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> str:
    """Ranks with intervals: a panel a task, a line a model.

    Args:
        panels: title -> model -> (rank, low, high), first to last.
    """
    m = max(len(models) for models in panels.values())
    figure, axes = _grid(len(panels), _columns(len(panels)), 3.2, 0.9 + 0.34 * m)
    names = list(next(iter(panels.values())))
    for axis, (title, models) in zip(axes, panels.items(), strict=False):
        for row, (name, (rank, low, high)) in enumerate(models.items()):
            colour = COLOURS[names.index(name) % len(COLOURS)]
            axis.plot([low, high], [row, row], color=colour, linewidth=2.4, alpha=0.5, solid_capstyle="round")
            axis.plot([rank], [row], "o", color=colour, markersize=7)
        axis.set_yticks(range(len(models)), list(models), fontsize=8)
        axis.set_ylim(len(models) - 0.5, -0.5)
        axis.set_xlim(0.6, m + 0.4)
        axis.set_xticks(range(1, m + 1))
        axis.grid(axis="x", color="#e3e7eb", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("rank (1 is best)", fontsize=8)
    return _data(figure)


def blobs(panels: Mapping[str, tuple[Sequence[str], np.ndarray]]) -> str:
    """Blob plot of ranks over bootstrap draws (Wiesenfarth et al. 2021): the area at (model, rank) is the share of the draws.

    Args:
        panels: title -> (models, (draws, m) ranks).
    """
    m = max(len(models) for models, _ in panels.values())
    figure, axes = _grid(len(panels), _columns(len(panels)), 3.2, 1.2 + 0.45 * m)
    names = list(next(iter(panels.values()))[0])
    for axis, (title, (models, drawn)) in zip(axes, panels.items(), strict=False):
        for column, name in enumerate(models):
            places, counts = np.unique(drawn[:, column], return_counts=True)
            share = counts / len(drawn)
            axis.scatter(
                [column] * len(places),
                places,
                s=620 * share,
                color=COLOURS[names.index(name) % len(COLOURS)],
                alpha=0.75,
                linewidths=0,
            )
            axis.plot(column, np.median(drawn[:, column]), "x", color=INK, markersize=6)
        axis.set_xticks(range(len(models)), list(models), fontsize=8, rotation=20 if m > 4 else 0)
        axis.set_xlim(-0.6, len(models) - 0.4)
        axis.set_yticks(range(1, m + 1))
        axis.set_ylim(m + 0.6, 0.4)
        axis.grid(axis="y", color="#e3e7eb", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.set_title(title, fontsize=9)
        axis.set_ylabel("rank (cross: median)", fontsize=8)
    return _data(figure)


def significance_map(models: Sequence[str], p: np.ndarray, level: float) -> str:
    """Adjusted p-values of all pairs, the models from best to worst; cells below the level are coloured.

    Args:
        models: (m,) names.
        p: (m, m) symmetric; NaN is not defined.
        level: below it two models are told apart.
    """
    m = len(models)
    figure, (axis,) = _new(1.9 + 0.62 * m, 1.2 + 0.5 * m)
    told = np.where(np.isfinite(p) & (p < level), 1.0, 0.0)
    np.fill_diagonal(told, np.nan)
    from matplotlib.colors import ListedColormap

    axis.imshow(told, cmap=ListedColormap(["#e8edf2", BLUE]), vmin=0, vmax=1, aspect="auto")
    for row in range(m):
        for column in range(m):
            if row != column:
                value = p[row, column]
                text = "–" if not np.isfinite(value) else "<.001" if value < 0.001 else f"{value:.3f}".lstrip("0")
                axis.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if told[row, column] else INK)
    axis.set_xticks(range(m), list(models), fontsize=8, rotation=25, ha="right")
    axis.set_yticks(range(m), list(models), fontsize=8)
    axis.spines[:].set_visible(False)
    return _data(figure)


def _columns(count: int) -> int:
    """Up to four panels stand in one row."""
    return count if count <= 4 else 3


def _grid(count: int, columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure of panels in rows; the axes of empty places are switched off."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows))
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(colors=INK, labelsize=8)
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes


def confusion(tables: Mapping[str, tuple[Sequence[str], np.ndarray]]) -> str:
    """Confusion matrices, a panel a model: counts, shaded by their share of the true class.

    Args:
        tables: model -> (classes, (c, c) counts, a row a true class).
    """
    c = max(len(names) for names, _ in tables.values())
    figure, axes = _grid(len(tables), min(3, len(tables)), 1.3 + 0.75 * c, 1.1 + 0.6 * c)
    for axis, (model, (names, table)) in zip(axes, tables.items(), strict=False):
        share = table / np.maximum(table.sum(1, keepdims=True), 1)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for row in range(len(names)):
            for column in range(len(names)):
                axis.text(
                    column, row, str(table[row, column]), ha="center", va="center", fontsize=9,
                    color="white" if share[row, column] > 0.55 else INK,
                )  # fmt: skip
        axis.set_xticks(range(len(names)), list(names), fontsize=8, rotation=20, ha="right")
        axis.set_yticks(range(len(names)), list(names), fontsize=8)
        axis.set_xlabel("said", fontsize=8)
        axis.set_ylabel("true", fontsize=8)
        axis.set_title(model, fontsize=9)
    return _data(figure)


def forest(groups: Sequence[tuple[str, Mapping[str, tuple[float, float | None, float | None, int]]]], metric: str) -> str:
    """Forest plot: a line a group, beside one another for each model, with the value of all cases as a dashed line.

    Args:
        groups: (group, model -> (value, low, high, subjects)), the first of all cases.
        metric: on the axis.
    """
    models = list(dict.fromkeys(name for _, found in groups for name in found))
    figure, (axis,) = _new(6.6, 0.9 + (0.16 + 0.15 * len(models)) * len(groups))
    paint = painted(models)
    for row, (_, found) in enumerate(groups):
        for place, model in enumerate(models):
            if model not in found:
                continue
            value, low, high, _ = found[model]
            y = row + (place - (len(models) - 1) / 2) * 0.7 / max(len(models), 2)
            if low is not None and high is not None:
                axis.plot([low, high], [y, y], color=paint[model][0], linewidth=1.8, alpha=0.6)
            axis.plot([value], [y], "s", color=paint[model][0], markersize=4.5, label=model if row == 0 else None)
            if row == 0:
                axis.axvline(value, color=paint[model][0], linewidth=0.8, linestyle="--", alpha=0.6)
    counts = [max((n for *_, n in found.values()), default=0) for _, found in groups]
    axis.set_yticks(range(len(groups)), [f"{name} (n={n})" for (name, _), n in zip(groups, counts, strict=True)], fontsize=8)
    axis.set_ylim(len(groups) - 0.5, -0.5)
    axis.set_xlabel(metric, fontsize=8)
    if len(models) > 1:
        axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _data(figure)


def pareto(points: Mapping[str, tuple[float, float]], best: Sequence[str], metric: str, cost: str) -> str:
    """A metric against a cost, a dot a model, the models that no other beats in both joined by a line.

    Args:
        points: model -> (cost, metric).
        best: the models on the front.
        metric, cost: on the axes.
    """
    figure, (axis,) = _new(4.2, 3.6)
    paint = painted(points)
    line = sorted(points[name] for name in best)
    axis.plot([x for x, _ in line], [y for _, y in line], "-", color=GREY, linewidth=1, zorder=1)
    for name, (x, y) in points.items():
        axis.plot(x, y, "o" if name in best else "x", color=paint[name][0], markersize=7)
        axis.annotate(name, (x, y), textcoords="offset points", xytext=(6, 5), fontsize=8, color=INK)
    prices = [x for x, _ in points.values()]
    if min(prices) > 0 and max(prices) > 3 * min(prices):
        axis.set_xscale("log")
    else:
        axis.locator_params(axis="x", nbins=4)
    axis.margins(x=0.18, y=0.12)
    axis.set_xlabel(cost, fontsize=8)
    axis.set_ylabel(metric, fontsize=8)
    return _data(figure)


def shots(curves: Mapping[str, Sequence[tuple[str, float, float | None, float | None]]], metric: str) -> str:
    """A metric against labelled subjects (as they are named, in order), a line a starting point, with intervals."""
    figure, (axis,) = _new(4.6, 3.6)
    names = sorted(
        {k for points in curves.values() for k, *_ in points}, key=lambda k: (not k.isdigit(), int(k) if k.isdigit() else 0)
    )
    for place, (model, (colour, style, _)) in enumerate(painted(curves).items()):
        points = sorted(curves[model], key=lambda point: names.index(point[0]))
        x = [names.index(k) + 0.06 * place for k, *_ in points]
        axis.plot(x, [value for _, value, *_ in points], style, marker="o", markersize=4, color=colour, label=model)
        for at, (_, _, low, high) in zip(x, points, strict=True):
            if low is not None and high is not None:
                axis.plot([at, at], [low, high], color=colour, linewidth=1.2, alpha=0.6)
    axis.set_xticks(range(len(names)), names, fontsize=8)
    axis.set_xlabel("labelled subjects", fontsize=8)
    axis.set_ylabel(metric, fontsize=8)
    axis.legend(fontsize=7, frameon=False)
    return _data(figure)


def risks(curves: Mapping[str, np.ndarray], risk: str) -> str:
    """Mean loss among the k surest cases, for every k; each curve is (n,)."""
    figure, (axis,) = _new(4.2, 3.8)
    for name, (colour, style, label) in painted(curves).items():
        values = curves[name]
        axis.plot(np.arange(1, len(values) + 1) / len(values), values, style, color=colour, label=label, linewidth=1.3)
    axis.set_xlabel("share of cases answered", fontsize=8)
    axis.set_ylabel(risk, fontsize=8)
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=7, frameon=False)
    return _data(figure)
