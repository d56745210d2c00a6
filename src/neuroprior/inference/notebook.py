"""Three lines in a notebook: ``model = neuroprior.load(folder); model.predict(scan, contrast="FLAIR")``.

A scan is a NIfTI path, a nibabel image, or an array with its affine. What comes back lies on the scan's own grid, with its header.
No environment variable is read, no process started and no socket opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from ..core import contrasts as vocabulary
from ..core import headers, nifti
from ..core.errors import InputError
from ..core.volume import Volume
from . import presets
from .inputs import contrast_of_file
from .model import Model, require_head
from .predictor import compute
from .reading import prepare, usable

ScanLike: TypeAlias = str | Path | np.ndarray | Any
"""A NIfTI path, a nibabel image, or an (x, y, z) array."""


@dataclass(frozen=True)
class Prediction:
    """What a model says of one case.

    Attributes:
        mask: nibabel image of label values on the reference scan's grid with its header, or None.
        probabilities: nibabel image of the foreground probability, where ``probabilities=True`` was asked for.
        uncertainty: nibabel image of the entropy in [0, 1], where ``uncertainty=True`` was asked for.
        disagreement: nibabel image in [0, 1], what members, samples or mirrored copies disagree on, where there are several.
        volumes_ml: label value -> ml.
        volume_intervals_ml: label value -> (low, high), for a calibrated model.
        value: the predicted number or the most probable class; None for a segmentation.
        std: spread of a number over members and samples, or the head's own.
        interval: (low, high) of a number, for a calibrated model.
        classes: class name -> calibrated probability.
        confidence: in [0, 1], or None for a number.
        reference: contrast whose grid the images lie on.
        missing: contrasts that the model knows and the case has not.
        flags, notes: what to look at, and what was assumed.
    """

    mask: Any
    probabilities: Any
    uncertainty: Any
    disagreement: Any
    volumes_ml: Mapping[int, float]
    volume_intervals_ml: Mapping[int, tuple[float, float]]
    value: float | str | None
    std: float | None
    interval: tuple[float, float] | None
    classes: Mapping[str, float]
    confidence: float | None
    reference: str
    missing: tuple[str, ...]
    flags: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Features:
    """The representation of one case.

    Attributes:
        anatomy: (Ca, x, y, z) float32, the mean over the contrasts that are there.
        contrasts: contrast name -> (Cc, x, y, z) float32.
        notes: what was assumed.
    """

    anatomy: np.ndarray
    contrasts: Mapping[str, np.ndarray]
    notes: tuple[str, ...]

    def vector(self) -> np.ndarray:
        """(Ca + Cc,) float32: the halves averaged over the head's cells, the contrasts' mean last."""
        pooled = [self.anatomy.mean((1, 2, 3))]
        pooled.append(np.mean([half.mean((1, 2, 3)) for _, half in sorted(self.contrasts.items())], axis=0))
        return np.concatenate(pooled).astype(np.float32)


@dataclass(frozen=True)
class _Native:
    volume: Volume
    image: Any
    """A nibabel image or a path whose header answers take, or None."""
    notes: tuple[str, ...]


def predict(
    model: Model, scans: ScanLike | Mapping[str, ScanLike], *, contrast: str | None, affine: np.ndarray | None, preset: str,
    reference: str | None, covariates: Mapping[str, Any] | None, **settings: Any,
) -> Prediction:  # fmt: skip
    """See :meth:`Model.predict`."""
    require_head(model)
    config = presets.preset(preset, model.net, **settings)
    natives = _read(model, scans, contrast, affine)
    wanted = vocabulary.canonical(reference) if reference else None
    prepared = prepare(
        model, {name: one.volume for name, one in natives.items()}, reference=wanted,
        notes=[f"{name}: {note}" for name, one in natives.items() for note in one.notes], covariates=covariates,
    )  # fmt: skip
    output, _ = compute(model, prepared, config)
    base = natives[output.reference]

    def image(array: np.ndarray | None) -> Any:
        return None if array is None else _image_like(array, base)

    value: float | str | None = output.value
    if output.classes:
        value = max(output.classes, key=lambda name: output.classes[name])
    return Prediction(
        image(output.mask), image(output.foreground), image(output.entropy), image(output.mutual),
        {v: ml for v, (ml, _, _) in output.volumes_ml.items()},
        {v: (low, high) for v, (_, low, high) in output.volumes_ml.items() if low is not None and high is not None},
        value, output.std, None if output.low is None or output.high is None else (output.low, output.high), dict(output.classes),
        output.confidence, output.reference, output.missing, output.flags, output.notes,
    )  # fmt: skip


def encode(
    model: Model, scans: ScanLike | Mapping[str, ScanLike], *, contrast: str | None, affine: np.ndarray | None, reference: str | None
) -> Features:  # fmt: skip
    """See :meth:`Model.encode_scans`."""
    natives = _read(model, scans, contrast, affine)
    prepared = prepare(
        model, {name: one.volume for name, one in natives.items()}, reference=vocabulary.canonical(reference) if reference else None,
        notes=[f"{name}: {note}" for name, one in natives.items() for note in one.notes],
    )  # fmt: skip
    device = next(model.net.parameters()).device
    images = torch.from_numpy(prepared.images).to(device)
    fused, _ = model.encode({name: images[k][None, None] for k, name in enumerate(prepared.contrasts)})
    halves = {name: half[0].float().cpu().numpy() for name, half in fused.contrasts.items()}
    return Features(fused.anatomy[0].float().cpu().numpy(), halves, prepared.notes)


def _read(
    model: Model, scans: ScanLike | Mapping[str, ScanLike], contrast: str | None, affine: np.ndarray | None
) -> dict[str, _Native]:
    """The scans by canonical contrast name, those that the model knows."""
    if isinstance(scans, Mapping):
        if contrast is not None:
            raise InputError("contrast names a single scan", expected="a path, an image or an array", got="scans by contrast")
        named: dict[str, ScanLike] = {}
        for name, scan in scans.items():
            accepted = vocabulary.accepts(str(name))
            chosen = next((one for one in accepted if one in model.contrasts), accepted[0])
            if chosen in named:
                raise InputError(f"two scans are given for {chosen}", got=", ".join(map(str, scans)))
            named[chosen] = scan
    else:
        named = {_contrast(model, scans, contrast): scans}
    known = usable(model, named)
    natives = {name: _native(known[name], affine) for name in sorted(known)}
    left = sorted(set(named) - set(known))
    if left:
        first = next(iter(natives))
        told = (*natives[first].notes, f"not used, unknown to the model: {', '.join(left)}")
        natives[first] = _Native(natives[first].volume, natives[first].image, told)
    return natives


def _contrast(model: Model, scan: ScanLike, contrast: str | None) -> str:
    if contrast is not None:
        accepted = vocabulary.accepts(contrast)
        return next((name for name in accepted if name in model.contrasts), accepted[0])
    if isinstance(scan, (str, Path)):
        found = contrast_of_file(Path(scan))
        if found is not None:
            return found
    if len(model.contrasts) == 1:
        return model.contrasts[0]
    raise InputError(
        "the contrast of this scan is not known", expected=f"one of {', '.join(model.contrasts)}",
        next_step=f'say it: contrast="{model.contrasts[0]}"',
    )  # fmt: skip


def _native(scan: ScanLike, affine: np.ndarray | None) -> _Native:
    if isinstance(scan, (str, Path)):
        path = Path(scan).expanduser()
        volume, notes = nifti.read_scan(path)
        return _Native(volume, path, notes)
    if isinstance(scan, (np.ndarray, torch.Tensor)):
        array = scan.detach().cpu().numpy() if isinstance(scan, torch.Tensor) else scan
        if affine is None:
            raise InputError(
                "an array needs its place in the world", expected="affine=: 4 x 4, voxel to RAS+ millimetres",
                next_step="model.predict(array, affine=image.affine, contrast=...)",
            )  # fmt: skip
        place, image = np.asarray(affine, dtype=np.float64), None
    elif hasattr(scan, "dataobj") and hasattr(scan, "affine"):
        array, place, image = np.asarray(scan.dataobj), np.asarray(scan.affine, dtype=np.float64), scan
    else:
        raise InputError("this is no scan", expected="a NIfTI path, a nibabel image or an array", got=type(scan).__name__)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        raise InputError("a scan has three axes", got=f"shape {array.shape}")
    if place.shape != (4, 4) or not np.isfinite(place).all() or abs(np.linalg.det(place[:3, :3])) < 1e-9:
        raise InputError(
            "the affine does not place voxels in the world", expected="an invertible 4 x 4 matrix", got=place.tolist()
        )
    voxels = np.asarray(array, dtype=np.float32)
    x, y, z = voxels.shape
    repaired, moved = headers.orthonormal(place, (x, y, z))
    notes: tuple[str, ...] = ()
    if moved > headers.SILENT_VOXELS * float(np.linalg.norm(place[:3, :3], axis=0).min()):
        notes = (f"the axes of the affine are not at right angles; they were turned by up to {moved:.2g} mm at the corners",)
        place = repaired
    return _Native(Volume(voxels, place), image, notes)


def _image_like(array: np.ndarray, base: _Native) -> Any:
    """A nibabel image of an array on a scan's grid, with that scan's header."""
    import nibabel

    given = nibabel.load(base.image) if isinstance(base.image, Path) else base.image
    if not isinstance(given, (nibabel.Nifti1Image, nibabel.Nifti2Image)):
        return nibabel.Nifti1Image(array, base.volume.affine)
    header = given.header.copy()
    header.set_data_dtype(array.dtype)
    header["scl_slope"], header["scl_inter"], header["cal_min"], header["cal_max"] = np.nan, np.nan, 0, 0
    return type(given)(array.reshape(given.shape), given.affine, header)
