"""A picture of a prepared session: slices of every scan and label map, as a PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..core import artifacts

SLICES = 7
"""Axial slices of a row, spread over the middle of the head."""
COLOURS = np.array(
    [[0, 0, 0], [220, 80, 40], [40, 120, 220], [40, 170, 90], [200, 170, 30], [150, 80, 200], [40, 180, 190], [230, 120, 170]],
    np.float32,
)
"""Of label values 0 to 7; larger ones go round."""


def draw(
    images: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    spacing_mm: tuple[float, float, float],
    path: Path,
    *,
    title: str = "",
) -> None:
    """Write the mosaic: a row a scan (grey, first to last percentile), then a row a label map over the first scan.

    Args:
        images: name -> (x, y, z), RAS+, at least one.
        labels: name -> (x, y, z) integers on the same grid.
        spacing_mm: of the grid, so that pixels are as wide as they are high.
        path: the PNG.
        title: shown above.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    first = next(iter(images.values()))
    places = np.unique(np.linspace(0.15, 0.85, SLICES) * (first.shape[2] - 1)).astype(int)
    rows = [(name, [_grey(image[:, :, z], image) for z in places]) for name, image in images.items()]
    for name, label in labels.items():
        grey = [_grey(first[:, :, z], first) for z in places]
        rows.append((name, [_coloured(g, label[:, :, z]) for g, z in zip(grey, places, strict=True)]))
    figure = Figure(figsize=(1.5 * len(places), 1.8 * len(rows) + 0.4), facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(places), squeeze=False)
    for line, (name, cells) in zip(axes, rows, strict=True):
        for axis, cell in zip(line, cells, strict=True):
            axis.imshow(np.rot90(cell), aspect=spacing_mm[1] / spacing_mm[0], interpolation="nearest")
            axis.set_axis_off()
        line[0].text(0.02, 0.98, name, color="white", fontsize=8, va="top", transform=line[0].transAxes)
    figure.suptitle(title, color="white", fontsize=9)
    figure.subplots_adjust(0, 0, 1, 1 - 0.35 / figure.get_figheight(), 0.02, 0.02)
    with artifacts.atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100, facecolor="black")


def _grey(plane: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """(x, y, 3) uint8."""
    low, high = np.percentile(whole[::3, ::3, ::3], (1, 99.5))
    scaled = np.clip((plane - low) / max(float(high - low), 1e-6), 0, 1)
    return np.repeat((255 * scaled).astype(np.uint8)[..., None], 3, axis=2)


def _coloured(grey: np.ndarray, label: np.ndarray) -> np.ndarray:
    shown = label != 0
    colours = COLOURS[np.where(shown, (label.astype(np.int64) - 1) % (len(COLOURS) - 1) + 1, 0)]
    return np.where(shown[..., None], 0.5 * grey + 0.5 * colours, grey).astype(np.uint8)
