"""What preparing a session takes is not more than what is foreseen from its headers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from neuroprior.core import nifti
from neuroprior.core.volume import Volume

TAKEN = """
import json, sys
from pathlib import Path
import blosc2, scipy.ndimage
from neuroprior.core.conforming import ConformSpec
from neuroprior.core.records import Scan
from neuroprior.data.index import check_scan
from neuroprior.data.preparing import PrepareConfig, memory_mb, prepare_session
from neuroprior.engine.memory import WORKER_MB

def most():
    told = Path("/proc/self/status").read_text()  # ru_maxrss begins with what the parent had
    return int(told.split("VmHWM:")[1].split()[0]) * 1024 / 1e6

folder = Path(sys.argv[1])
scan = check_scan(Scan("d/a", "d", "d/a", "", "T1w", "T1w", str(folder / "a.nii.gz"), labels={"dseg": str(folder / "l.nii.gz")}), voxels=False)
spec = ConformSpec(spacing_mm=sys.argv[2] if sys.argv[2] == "native" else float(sys.argv[2]), order=3)
before = most()
assert prepare_session(folder / "store", "d/a", [scan], spec, PrepareConfig()) is None
print(json.dumps([before, most(), memory_mb([scan], spec), WORKER_MB]))
"""


@pytest.mark.parametrize("spacing", ["native", "0.8"])
def test_a_session_takes_no_more_than_foreseen(tmp_path: Path, spacing: str) -> None:
    n = 160
    away = np.linalg.norm(np.indices((n, n, n), dtype=np.float32) - (n - 1) / 2, axis=0)
    noise = np.random.default_rng(0).standard_normal(away.shape, dtype=np.float32)
    intensity = 100 + 20 * np.sin(away / 5) + 5 * noise
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    nifti.write(tmp_path / "a.nii.gz", Volume((intensity * (away < n * 0.49)).astype(np.int16), affine))
    nifti.write(tmp_path / "l.nii.gz", Volume(((away < n * 0.45) * (1 + away // 4 % 30)).astype(np.int16), affine))
    done = subprocess.run([sys.executable, "-c", TAKEN, str(tmp_path), spacing], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, most, foreseen, worker = json.loads(done.stdout.splitlines()[-1])
    assert most - before > 50, "nothing was measured"
    assert most - before <= foreseen
    assert most <= foreseen + worker
