"""A simulated tree of tiny NIfTI files, indexed cold, unchanged, and with one file changed: seconds, rate and peak memory.

``python benchmarks/data/index_tree.py --files 300000`` makes the tree in a temporary folder (a file is 200 bytes, but takes a block and an
inode), runs ``neuroprior index`` on it in processes of their own, writes a table, and removes the tree.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CONTRASTS = ("T1w", "T2w", "FLAIR")


def template() -> bytes:
    """A whole NIfTI-1 file of 4 x 4 x 4 voxels of 40 mm."""
    from nibabel.nifti1 import Nifti1Header

    made = Nifti1Header()
    made.set_data_shape((4, 4, 4))
    made.set_data_dtype(np.int16)
    affine = np.diag([40.0, 40.0, 40.0, 1.0])
    made.set_sform(affine, code=1)
    made.set_qform(affine, code=1)
    made["vox_offset"] = 352
    return bytes(made.structarr.tobytes()) + b"\0\0\0\0" + bytes(128)


def one(whole: bytes, number: int) -> bytes:
    """The file with a place and voxels of its own: no two are equal, in header or content."""
    content = bytearray(whole)
    shift = float(number % 100_003)
    struct.pack_into("<f", content, 268, shift)  # qoffset_x
    struct.pack_into("<f", content, 292, shift)  # srow_x[3]
    struct.pack_into("<16q", content, 352, *range(number, number + 16))
    return gzip.compress(bytes(content), compresslevel=1, mtime=0)


def make(root: Path, files: int, datasets: int) -> int:
    """The tree: datasets of subjects of two sessions of three contrasts; returns how many files."""
    subjects = max(1, round(files / datasets / 2 / len(CONTRASTS)))
    whole = template()
    made = 0
    for d in range(datasets):
        dataset = root / f"ds{d:06d}"
        dataset.mkdir(parents=True)
        (dataset / "dataset_description.json").write_text(
            json.dumps({"Name": f"simulated {d}", "BIDSVersion": "1.10.0", "License": "CC0"})
        )
        (dataset / "T1w.json").write_text(json.dumps({"MagneticFieldStrength": 3, "Manufacturer": "Nobody"}))
        rows = ["participant_id\tage\tsex\tgroup"]
        rows += [f"sub-{s:05d}\t{20 + (s * 7) % 60}\t{'FM'[s % 2]}\t{'control' if s % 3 else 'patient'}" for s in range(subjects)]
        (dataset / "participants.tsv").write_text("\n".join(rows) + "\n")
        for s in range(subjects):
            for session in ("01", "02"):
                folder = dataset / f"sub-{s:05d}/ses-{session}/anat"
                folder.mkdir(parents=True)
                for contrast in CONTRASTS:
                    with open(f"{folder}/sub-{s:05d}_ses-{session}_{contrast}.nii.gz", "wb", buffering=0) as file:
                        file.write(one(whole, made))
                    made += 1
    return made


def run(root: Path, out: Path, *options: str) -> dict[str, float | str]:
    """``neuroprior index`` in a process of its own: wall seconds, CPU seconds and peak MiB of its processes together."""
    import psutil

    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    child = subprocess.Popen(
        [sys.executable, "-m", "neuroprior", "index", str(root), "--out", str(out), "--checks", "header", *options],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    watched, peak = psutil.Process(child.pid), 0
    while child.poll() is None:
        total = 0
        try:
            for process in [watched, *watched.children(recursive=True)]:
                total += (
                    process.memory_full_info().pss if hasattr(process.memory_full_info(), "pss") else process.memory_info().rss
                )
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        peak = max(peak, total)
        time.sleep(0.2)
    if child.returncode:
        raise SystemExit(f"index failed: {child.returncode}")
    text = child.stdout.read().strip() if child.stdout else ""
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu": cpu, "seconds": time.perf_counter() - start, "peak_mib": peak / 2**20, "text": text}


def main() -> None:
    """Make, measure, tell, remove."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=300_000)
    parser.add_argument("--datasets", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="keep the tree here and use it again")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="neuroprior-tree-"))
    try:
        tree, out = folder / "tree", folder / "index.parquet"
        if not tree.is_dir():
            start = time.perf_counter()
            print(f"{make(tree, arguments.files, arguments.datasets)} files made in {time.perf_counter() - start:.0f} s")
        out.unlink(missing_ok=True)
        print("| run | seconds | CPU-seconds | peak MiB, all processes |\n|---|---|---|---|")
        for name in ("cold", "unchanged", "one file changed"):
            if name == "one file changed":
                os.utime(next(tree.glob("*/*/*/anat/*.nii.gz")))
            found = run(tree, out)
            print(f"| {name} | {found['seconds']:.1f} | {found['cpu']:.1f} | {found['peak_mib']:.0f} |", flush=True)
        print(found["text"])
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
