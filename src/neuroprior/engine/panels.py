"""Pictures of volumes: a row an example, a column a kind of image, the middle slice across the last axis."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..core import artifacts


def draw(images: Mapping[str, np.ndarray], path: Path, *, rows: int = 3) -> Path:
    """Write a PNG of some volumes.

    Args:
        images: column name -> (B, x, y, z); the first column sets each row's grey range (1st to 99th percentile).
        path: the PNG file, written atomically.
        rows: examples shown.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(images)
    n = min(rows, len(images[names[0]]))
    figure = Figure(figsize=(1.7 * len(names), 1.8 * n + 0.3), facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(n, len(names), squeeze=False)
    for row in range(n):
        first = images[names[0]][row]
        low, high = np.percentile(first, (1, 99))
        for column, name in enumerate(names):
            volume = images[name][row]
            axis = axes[row, column]
            axis.imshow(volume[:, :, volume.shape[2] // 2].T, cmap="gray", origin="lower", vmin=low, vmax=max(high, low + 1e-6))
            axis.set_axis_off()
            if row == 0:
                axis.set_title(name, color="white", fontsize=8)
    figure.tight_layout(pad=0.3)
    with artifacts.atomic(path) as temporary:
        figure.savefig(temporary, dpi=90, facecolor="black")
    return path
