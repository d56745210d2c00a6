"""Small made sessions whose files a test may harm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from neuroprior.core import nifti
from neuroprior.core.records import Scan
from neuroprior.core.volume import Volume
from neuroprior.data.index import check_scan, write_index

AFFINE = np.diag([3.0, 3.0, 3.0, 1.0])


@pytest.fixture
def balls(tmp_path: Path) -> Callable[..., Path]:
    """Write an index of balls of noise in ``raw``, each with a label and a brain mask; a file that is there is left as it is."""

    def make(
        subjects: int = 2, contrasts: tuple[str, ...] = ("T1w", "FLAIR"), *, out: str = "index.parquet", **more: object
    ) -> Path:
        raw = tmp_path / "raw"
        raw.mkdir(exist_ok=True)
        distance = np.linalg.norm(np.indices((24, 24, 24)) - 11.5, axis=0)
        scans = []
        for number in range(subjects):
            name = f"sub-{number}"
            for part, voxels in (("label", distance < 5), ("mask", distance < 8)):
                if not (raw / f"{name}_{part}.nii.gz").exists():
                    nifti.write(raw / f"{name}_{part}.nii.gz", Volume(voxels.astype(np.uint8), AFFINE))
            for contrast in contrasts:
                path = raw / f"{name}_{contrast}.nii.gz"
                if not path.exists():
                    noise = np.random.default_rng([number, len(contrast)]).random(distance.shape)
                    nifti.write(path, Volume(((distance < 10) * (100 + 10 * noise)).astype(np.float32), AFFINE))
                scan = Scan(
                    f"d/{name}_{contrast}", "d", f"d/{name}", "", contrast, contrast, str(path), brain_mask=str(raw / f"{name}_mask.nii.gz"),
                    labels={"lesion": str(raw / f"{name}_label.nii.gz")}, **{"age": 30.0 + number, "split": "train" if number else "test", **more},  # type: ignore[arg-type]
                )  # fmt: skip
                scans.append(check_scan(scan, voxels=True))
        return write_index(scans, tmp_path / out)

    return make
