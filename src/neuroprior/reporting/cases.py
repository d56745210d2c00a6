"""The cases part of a report: which failed and why, pictures of masks on their native image, and a viewer of each shown case."""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from ..core import artifacts, nifti
from ..core.errors import InputError
from ..core.grids import Grid, canonical_grid, grid_of
from ..core.resampling import resample, resample_labels
from ..core.volume import Volume
from . import figures

VIEWER_VOXELS = 1_200_000
"""A viewer's volume is resampled so that it holds at most about this many voxels: a few megabytes a case in the page's folder."""
MISSED, EXTRA, BOTH = 1, 2, 3
"""Values of the agreement map: reference only, prediction only, and both."""


@dataclass(frozen=True)
class Shown:
    """A case that the page shows.

    Attributes:
        folder: the predictions it is of.
        row: its row of ``predictions.tsv``.
        reference: path of its reference mask, or None.
        score: its per-case score, or None.
    """

    folder: Path
    row: Mapping[str, str]
    reference: str | None
    score: float | None


def read_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of a predictions folder."""
    with open(folder / "predictions.tsv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def problems(folder: Path) -> list[dict[str, str]]:
    """The cases of a predictions folder that have no answer, each with its reason."""
    return [
        {"where": folder.name, "case": row["case"], "reason": f"{row['status']}: {row['reason']}"}
        for row in read_rows(folder)
        if row["status"] != "ok"
    ]


def choose(
    folders: Sequence[Path], references: Mapping[str, str], scores: Mapping[tuple[str, str], float], limit: int
) -> list[Shown]:
    """The cases worth a picture: of each folder in turn its worst, its best, its next worst ...; unscored ones come last.

    Args:
        folders: predictions folders.
        references: case -> path of its reference mask.
        scores: (folder's resolved path, case) -> per-case score, more is better.
        limit: how many at the most, over all folders.
    """
    queues = []
    for folder in folders:
        masks = [row for row in read_rows(folder) if row["status"] == "ok" and row["output"] != "n/a"]
        found = [
            Shown(folder, row, references.get(row["case"]), scores.get((str(folder.resolve()), row["case"]))) for row in masks
        ]
        ranked = sorted((shown for shown in found if shown.score is not None), key=lambda shown: (shown.score, shown.row["case"]))
        turns = []
        while ranked:
            turns.append(ranked.pop(0 if len(turns) % 2 == 0 else -1))
        queues.append(turns + [shown for shown in found if shown.score is None])
    chosen: list[Shown] = []
    while len(chosen) < limit and any(queues):
        for queue in queues:
            if queue and len(chosen) < limit:
                chosen.append(queue.pop(0))
    return chosen


def show(shown: Shown, out: Path, number: int, *, viewers: bool = True) -> dict[str, Any]:
    """Pictures of one case, and its viewers written beside the page.

    Args:
        shown: the case.
        out: the report's folder; viewers go to ``viewer/`` in it.
        number: of the case on the page, for file names that name nobody.
        viewers: also write the viewers.

    Returns:
        ``title``, ``score``, ``src`` (a picture) and ``viewers`` (title and relative address); a case whose files are gone
        gives ``missing``, a sentence, instead of pictures.
    """
    row = shown.row
    title = f"{row['case']}: {row['target']} by {shown.folder.name}"
    try:
        image, _ = nifti.read_scan(row["input"])
        mask, _ = nifti.read_labels(shown.folder / row["output"])
        truth = None if shown.reference is None else nifti.read_labels(shown.reference)[0]
    except InputError as error:
        return {"title": title, "score": shown.score, "src": None, "viewers": [], "missing": error.reason}
    grid = canonical_grid(grid_of(image), None)
    reference = None if truth is None else resample_labels(truth, grid)
    source = figures.overlay(resample(image, grid), resample_labels(mask, grid), reference, grid.spacing_mm)
    found = _viewers(shown, out, number, image, mask, truth) if viewers else []
    return {"title": title, "score": shown.score, "src": source, "viewers": found, "missing": None}


def _viewers(shown: Shown, out: Path, number: int, image: Volume, mask: Volume, truth: Volume | None) -> list[dict[str, str]]:
    """The viewers of a case, written: agreement of prediction and reference, and uncertainty where there is a map of it."""
    small = viewer_grid(image)
    background = resample(image, small)
    agreement = agreement_map(resample_labels(mask, small), None if truth is None else resample_labels(truth, small))
    pages = [_write_viewer(out, f"case-{number:02d}-mask", background, agreement, small, colours=True)]
    made = [{"title": "prediction and reference" if truth is not None else "prediction", "href": pages[0]}]
    uncertainty = _uncertainty(shown)
    if uncertainty is not None:
        values = resample(uncertainty, small)
        made.append({
            "title": "uncertainty (entropy)", "href": _write_viewer(out, f"case-{number:02d}-entropy", background, values, small, colours=False),
        })  # fmt: skip
    return made


def agreement_map(prediction: np.ndarray, reference: np.ndarray | None) -> np.ndarray:
    """uint8 (x, y, z): 0, ``MISSED``, ``EXTRA`` or ``BOTH``; two different labels in a voxel count as missed.

    Args:
        prediction: label map.
        reference: label map on the same grid, or None: everything predicted is then ``EXTRA``.
    """
    said = prediction > 0
    if reference is None:
        return (said * EXTRA).astype(np.uint8)
    true = reference > 0
    out = np.zeros(prediction.shape, dtype=np.uint8)
    out[said & ~true] = EXTRA
    out[true & (prediction != reference)] = MISSED
    out[true & (prediction == reference)] = BOTH
    return out


def viewer_grid(image: Volume) -> Grid:
    """The RAS+ grid of a viewer: isotropic, coarse enough for ``VIEWER_VOXELS``, never finer than the scan's finest axis."""
    native = grid_of(image)
    extent = np.asarray(native.shape) * native.spacing_mm
    spacing = max(min(native.spacing_mm), float(np.prod(extent) / VIEWER_VOXELS) ** (1 / 3))
    return canonical_grid(native, spacing)


def _uncertainty(shown: Shown) -> Volume | None:
    """The uncertainty map beside a mask, where predict was asked for one."""
    output = shown.folder / shown.row["output"]
    subject = output.name.split("_label-")[0].split("_desc-")[0]
    for path in sorted(output.parent.glob(f"{subject}_*_entropy.nii.gz")):
        return nifti.read_scan(path)[0]
    return None


def _write_viewer(out: Path, name: str, background: np.ndarray, layer: np.ndarray, grid: Grid, *, colours: bool) -> str:
    """A page of its own with nilearn's slice viewer, which carries its scripts with it; returns its relative address."""
    import nibabel
    from matplotlib.colors import ListedColormap
    from nilearn.plotting import view_img

    scan = nibabel.Nifti1Image(background.astype(np.float32), grid.affine)
    overlay = nibabel.Nifti1Image(layer.astype(np.float32), grid.affine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nilearn warns of empty overlays and of casts
        view = view_img(
            overlay, bg_img=scan, black_bg=True, dim=0, vmax=BOTH if colours else max(float(layer.max()), 1e-6), vmin=0,
            threshold=0.5 if colours else 0.02, symmetric_cmap=False, colorbar=not colours, opacity=0.55, resampling_interpolation="nearest",
            cmap=ListedColormap(["#000000", "#4da3ff", "#ff8c42", "#57d163"]) if colours else "inferno", annotate=True,
            cut_coords=_centre(layer, grid),
        )  # fmt: skip
    page = view.get_standalone()
    page = re.sub(r"<link\b[^>]*icon[^>]*>", "", page)  # nilearn points at an address for its icon
    path = out / "viewer" / f"{name}.html"
    artifacts.write_text(path, page.replace("<head>", '<head>\n<link rel="icon" href="data:,">', 1))
    return path.relative_to(out).as_posix()


def _centre(layer: np.ndarray, grid: Grid) -> list[float]:
    """Millimetres of the voxel in the midst of the overlay's largest piece, or of the grid's centre where it is empty."""
    parts, n_parts = ndimage.label(layer >= 0.5 * max(float(layer.max()), 1e-6))  # pyright: ignore[reportGeneralTypeIssues]
    voxel = (np.asarray(grid.shape) - 1) / 2
    if n_parts:
        largest = 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
        inside = np.argwhere(parts == largest)
        voxel = inside[np.argmin(((inside - inside.mean(0)) ** 2).sum(1))]
    return [float(v) for v in grid.affine[:3, :3] @ voxel + grid.affine[:3, 3]]
