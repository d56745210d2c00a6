"""Mutated headers, tables, JSON, DICOM and file trees through every reader, the index and ``prepare``: our errors or a row, no other crash, no hang, no
file outside.

``python benchmarks/data/fuzz.py --examples 10000 --seed 0``; the tests run the same functions with few examples, drawn by hypothesis. Every case is a
function of (seed, number): a finding is repeated with ``--only NUMBER``.

Each write of the process is seen by an audit hook, and each file around the case is hashed before and after (a converter is a process of its own).
"""

from __future__ import annotations

import argparse
import copy
import gzip
import hashlib
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 20
"""A case that takes longer hangs."""
NASTY = (
    b"", b"\0", b"\xff\xfe", b"NaN", b"-1", b"1e400", b"../../../outside", b"/etc/passwd", b"$X/../..", b"[" * 3000, b"{" * 3000, b'"', b"\t" * 50, b"\n" * 50,
    b"\xc3", b"9" * 400, b"null", b"sub-", b"\r", b"%s%n", b"\x7fELF", b"=HYPERLINK(1)",
)  # fmt: skip


def nifti(rng: random.Random) -> bytes:
    """A small whole NIfTI file."""
    import nibabel
    import numpy as np

    header = nibabel.Nifti1Header(endianness=rng.choice("<>"))
    header.set_data_shape((6, 5, 4))
    dtype = np.dtype(rng.choice(["u1", "i2", "f4", "f8"])).newbyteorder(header.endianness)
    header.set_data_dtype(dtype)
    header.set_zooms((30, 30, 30))
    header.set_sform(np.diag([30.0, 30, 30, 1]), 1)
    header.set_qform(np.diag([30.0, 30, 30, 1]), 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    voxels = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 250, (6, 5, 4)).astype(dtype)
    return header.structarr.tobytes() + bytes(4) + voxels.tobytes(order="F")


def other(rng: random.Random, ending: str) -> bytes:
    """A small volume of another format."""
    import numpy as np

    if ending == ".mgz":
        import nibabel

        image = nibabel.MGHImage(np.arange(120, dtype=np.float32).reshape(6, 5, 4), np.diag([30.0, 30, 30, 1]))
        return gzip.compress(image.to_bytes(), 1)
    data = bytes(rng.randrange(256) for _ in range(120))
    if ending == ".mha":
        text = "ObjectType = Image\nNDims = 3\nBinaryData = True\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 30 30 30\n"
        return (text + "DimSize = 6 5 4\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n").encode() + data
    text = "NRRD0004\ntype: uchar\ndimension: 3\nspace: left-posterior-superior\nsizes: 6 5 4\nspace directions: (30,0,0) (0,30,0) (0,0,30)\n"
    return (text + "kinds: domain domain domain\nencoding: raw\nspace origin: (0,0,0)\n\n").encode() + data


def mutate(content: bytes, rng: random.Random, head: int = 400) -> bytes:
    """The content with one to four changes: bytes flipped or set, pieces cut, doubled, or replaced by something nasty."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(max(1, min(len(data), head if rng.random() < 0.7 else 1 << 20)))
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + rng.choice((1, 2, 4))] = bytes(rng.choice((0, 255, 127, 128)) for _ in range(rng.choice((1, 2, 4))))
        elif kind == 2:
            del data[at : at + rng.randint(1, 60)]
        elif kind == 3:
            data[at:at] = rng.choice(NASTY)
        elif kind == 4:
            del data[rng.randrange(len(data) + 1) :]
        else:
            data[at:at] = data[at : at + rng.randint(1, 40)]
    return bytes(data)


TABLE = "participant_id\tage\tsex\tgroup\tsplit\nsub-01\t30\tF\tcontrol\ttrain\nsub-02\t41\tM\tms\ttest\n"
SIDECAR = '{"Manufacturer": "A", "ManufacturersModelName": "B", "MagneticFieldStrength": 3, "InstitutionName": "C"}'
DESCRIPTION = '{"Name": "x", "BIDSVersion": "1.10.0", "License": "CC0", "DatasetType": "raw"}'
NAMES = ("sub-01_T1w", "sub-02_ses-1_T2w", "sub-01_acq-x_FLAIR", "sub-01_desc-brain_mask", "sub-01_label-lesion_mask", "sub-01_dseg", "sub-02_space-T1w_dseg",
         "sub-01_part-phase_T1w", "sub-", "_", "sub-01_sub-02_T1w", "sub-\u00e9_T1w", "sub-01__T1w", "sub-01_run-01_inv-1_MP2RAGE")  # fmt: skip


def put(path: Path, content: bytes) -> None:
    """Write a file, its folders with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def bids_tree(root: Path, rng: random.Random) -> Path:
    """A BIDS dataset in which some files are mutated, and names and links are odd."""
    texts = {"participants.tsv": TABLE, "dataset_description.json": DESCRIPTION, "participants.json": '{"sex": {"Levels": {"0": "M"}}, "age": {"Units": "years"}}',
             "T1w.json": SIDECAR, "sub-01/sub-01_scans.tsv": "filename\tacq_time\nanat/sub-01_T1w.nii.gz\tx\n",
             "derivatives/x/participants.tsv": TABLE, "sub-02/sub-02_sessions.tsv": "session_id\tage\nses-1\t30\n"}  # fmt: skip
    for name, text in texts.items():
        if rng.random() < 0.7:
            put(root / name, mutate(text.encode(), rng) if rng.random() < 0.5 else text.encode())
    for _ in range(rng.randint(1, 4)):
        name = rng.choice(NAMES)
        ending = rng.choice((".nii.gz", ".nii", ".nii", ".mgz", ".mha", ".nrrd", ".NII"))
        content = other(rng, ending) if ending in (".mgz", ".mha", ".nrrd") else nifti(rng)
        content = mutate(content, rng) if rng.random() < 0.8 else content
        if ending == ".nii.gz":
            content = gzip.compress(content, 1)
            content = mutate(content, rng) if rng.random() < 0.3 else content
        folder = root / rng.choice(
            ("sub-01", "sub-02/ses-1", "sub-01/ses-2", "derivatives/x/sub-01", "derivatives/sub-02", "odd")
        )
        put(folder / rng.choice(("anat", "dwi", ".")) / f"{name}{ending}", content)
    if rng.random() < 0.2:
        link = root / "sub-01/anat/sub-01_T2w.nii.gz"
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(rng.choice(("/nonexistent", "..", "../..", "sub-01_T2w.nii.gz", "/dev/null")))
    return root


def openmind_file(root: Path, rng: random.Random) -> Path:
    """A pretrain_data.json, mutated as text or as a value."""
    put(root / "a.nii", nifti(rng))
    image: dict[str, Any] = {
        "name": "a",
        "modality": "T1w",
        "image_path": "a.nii",
        "image_info": {"manufacturer": "A"},
        "associated_masks": {"anatomy_mask": "a.nii"},
    }
    odd: tuple[Any, ...] = (
        None,
        5,
        -1e308,
        [],
        {},
        "",
        "../../x",
        "/etc/passwd",
        "$Y/x",
        "a\0b",
        "\ud800",
        True,
        [[]],
        {"a": {"b": []}},
    )
    session: dict[str, Any] = {"session_info": {"x": 1}, "images": [image]}
    subject: dict[str, Any] = {"subject_info": {"age": 30, "sex": "F"}, "sessions": {"1": session}}
    value: dict[str, Any] = {
        "collection_index": 0,
        "collection_name": "c",
        "datasets": {"d": {"dataset_info": {}, "subjects": {"s": subject}}},
    }
    for _ in range(rng.randint(0, 3)):
        level = rng.choice(
            (image, session, subject, value, value["datasets"] if isinstance(value.get("datasets"), dict) else value)
        )
        level[rng.choice([*level, "new"])] = copy.deepcopy(rng.choice(odd))
    text = json.dumps(value).encode()
    put(root / "pretrain_data.json", mutate(text, rng, len(text)) if rng.random() < 0.5 else text)
    return root


def fomo_tree(root: Path, rng: random.Random) -> Path:
    """A FOMO folder with mutated tables."""
    for name, text in (("participants.tsv", TABLE.replace("participant_id", "participant_id\tdataset")), ("mapping.tsv", "participant_id\tdataset\nsub_1\tX\n"),
                       ("mri_info.tsv", "participant_id\tfilename\tManufacturer\nsub_1\tt1.nii.gz\tA\n")):  # fmt: skip
        put(root / name, mutate(text.encode(), rng) if rng.random() < 0.6 else text.encode())
    for name in rng.sample(("t1", "t1_2", "scan", "flair", "_", "a b", "sub-01_ses-1_T1w"), 3):
        put(
            root / rng.choice(("sub_1/ses_1", "PT001_A/sub-01/ses-01/anat", "P/Q/sub-01/ses-1")) / f"{name}.nii.gz",
            gzip.compress(mutate(nifti(rng), rng), 1),
        )
    return root


def nnunet_tree(root: Path, rng: random.Random) -> Path:
    """A raw nnU-Net dataset with a mutated dataset.json."""
    facts: dict[str, Any] = {
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, "x": 1},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    if rng.random() < 0.5:
        facts[rng.choice([*facts, "modality"])] = rng.choice(
            (None, 5, [], {}, "x", {"a": "b"}, {"0": {}}, {"x": [1, "a"]}, "\ud800")
        )
    text = json.dumps(facts).encode()
    put(root / "dataset.json", mutate(text, rng) if rng.random() < 0.6 else text)
    put(root / "imagesTr/A_0000.nii.gz", gzip.compress(nifti(rng), 1))
    put(root / "labelsTr/A.nii.gz", gzip.compress(mutate(nifti(rng), rng), 1))
    return root


def table_file(root: Path, rng: random.Random) -> Path:
    """A table of scans, mutated."""
    put(root / "a.nii", nifti(rng))
    text = b"path,subject,contrast,session,age,label_x\na.nii,1,T1w,1,30,a.nii\n../../etc/passwd,2,T1w,,x,\n"
    put(root / "scans.csv", mutate(text, rng) if rng.random() < 0.9 else text)
    return root / "scans.csv"


def dicom_tree(root: Path, rng: random.Random) -> Path:
    """Twelve slices, some of them mutated."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    for k in range(10):
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.MediaStorageSOPClassUID, data.file_meta.TransferSyntaxUID = MRImageStorage, ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"1.2.{k + 1}"
        data.SOPClassUID, data.Modality, data.SeriesInstanceUID, data.StudyInstanceUID = MRImageStorage, "MR", "1.2.3", "1.2"
        data.PatientID, data.InstanceNumber, data.RepetitionTime, data.EchoTime, data.ScanningSequence = "x", k, 500, 10, "SE"
        data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 3 * k]
        data.PixelSpacing, data.SliceThickness, data.Rows, data.Columns = [10, 10], 3, 8, 8
        data.SamplesPerPixel, data.PhotometricInterpretation, data.BitsAllocated, data.BitsStored, data.HighBit = (
            1,
            "MONOCHROME2",
            16,
            16,
            15,
        )
        data.PixelRepresentation, data.PixelData = 0, bytes(128)
        path = root / f"{k}"
        path.parent.mkdir(parents=True, exist_ok=True)
        data.save_as(path, enforce_file_format=True)
        if rng.random() < 0.3:
            path.write_bytes(mutate(path.read_bytes(), rng, 1 << 20))
    return root


KINDS: dict[str, Callable[[Path, random.Random], Path]] = {
    "bids": bids_tree, "openmind": openmind_file, "fomo": fomo_tree, "nnunet": nnunet_tree, "table": table_file, "dicom": dicom_tree,
}  # fmt: skip
WEIGHTS = (10, 5, 4, 3, 4, 0.3)
"""How often each kind comes; a DICOM case runs a converter and takes a hundred times longer."""


WRITES: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.mkdir": ((0, 2),), "os.rename": ((0, 2), (1, 3)), "os.remove": ((0, 1),), "os.rmdir": ((0, 1),), "os.link": ((1, 3),), "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),), "os.chmod": ((0, 2),), "os.utime": ((0, 3),),
}  # fmt: skip
"""What Python tells of before it happens: which of the arguments is a path that is changed by it, and which the folder that it is relative to."""
_WATCH: dict[str, Any] = {"inside": None, "seen": [], "hooked": False}


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _WATCH["inside"] is None:
        return
    places = WRITES.get(event, ())
    if event == "open":
        flags = arguments[2] if isinstance(arguments[2], int) else 0
        places = ((0, None),) if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND) else ()
    for place, folder in places:
        if isinstance(arguments[place], str | bytes | os.PathLike):
            start = "" if folder is None or arguments[folder] < 0 else os.readlink(f"/proc/self/fd/{arguments[folder]}")
            path = os.path.abspath(os.path.join(start, os.fsdecode(arguments[place])))
            if not any(path == root or path.startswith(root + os.sep) for root in _WATCH["inside"]):
                _WATCH["seen"].append(f"{event} {path}")


@contextmanager
def watched(*inside: Path) -> Iterator[list[str]]:
    """Every file and folder outside some folders that this process writes, makes, moves or removes, told as it happens."""
    if not _WATCH["hooked"]:
        sys.addaudithook(_hook)
        _WATCH["hooked"] = True
    seen: list[str] = []
    allowed = (*map(str, inside), os.devnull, "/dev/shm")
    _WATCH["seen"], _WATCH["inside"] = seen, [os.path.abspath(root) for root in allowed]
    try:
        yield seen
    finally:
        _WATCH["inside"] = None


def _around(folder: Path, out: Path) -> dict[bytes, str]:
    """Every file, link and folder of a folder, but for the output's, with a hash of what it holds."""
    found = {}
    for path in folder.rglob("*"):
        if path == out or out in path.parents:
            continue
        if path.is_symlink():
            told = os.fsdecode(os.readlink(path))
        else:
            told = hashlib.blake2b(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        found[os.fsencode(path)] = told
    return found


def case(folder: Path, rng: random.Random, kind: str | None = None) -> str:
    """Run one case in an empty folder; returns what came of it.

    Raises:
        Exception: whatever is no error of ours: a finding.
    """
    from neuroprior.core.errors import NeuropriorError
    from neuroprior.data.index import read_index
    from neuroprior.stages.index import index
    from neuroprior.stages.prepare import prepare

    kind = kind or rng.choices(list(KINDS), WEIGHTS)[0]
    work = folder / "a/b/c/d"  # so that ../../../outside is still seen
    put(work / "neighbour.txt", b"of somebody else")
    put(folder / "outside", b"not ours")
    root = KINDS[kind](work / "in", rng)
    out = work / "out"
    temporary, before = tempfile.tempdir, _around(folder, out)
    tempfile.tempdir = str(folder.parent / f"{folder.name}-temporary")
    os.makedirs(tempfile.tempdir, exist_ok=True)
    outcome = "index"
    try:
        with watched(out, Path(tempfile.tempdir)) as written:
            try:
                index(
                    [root],
                    out / "index.parquet",
                    reader=rng.choice((kind, "auto")),
                    checks=rng.choice(("header", "voxels")),
                    variable=["X=/nowhere"],
                    workers=1,
                )
                rows = read_index(out / "index.parquet")
                if any(row.status == "bad" and not row.reasons for row in rows):
                    raise AssertionError("a bad row without a reason")
                if rng.random() < 0.2:
                    outcome = "store"
                    prepare(out / "index.parquet", out / "store", spacing="30.0", workers=1, timeout=0)
            except NeuropriorError as error:
                outcome = f"{type(error).__name__} of {outcome}"
    finally:
        shutil.rmtree(tempfile.tempdir, ignore_errors=True)
        tempfile.tempdir = temporary
    if written:
        raise AssertionError(f"written outside the output folder: {written[:5]}")
    if (after := _around(folder, out)) != before:
        changed = [name for name in after.keys() | before.keys() if after.get(name) != before.get(name)]
        raise AssertionError(f"changed outside the output folder: {changed[:5]}")
    return f"{kind}: {outcome}"


def main() -> None:
    """Run many cases, tell what came of them; findings end with an exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long")
    parser.add_argument("--kind", choices=list(KINDS))
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    found: Counter[str] = Counter()
    findings: list[tuple[int, str]] = []

    def late(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    started, slowest = time.monotonic(), 0.0
    for number in [arguments.only] if arguments.only is not None else range(arguments.examples):
        if time.monotonic() - started > 60 * arguments.minutes:
            break
        folder = Path(tempfile.mkdtemp(prefix="neuroprior-fuzz-"))
        begun = time.monotonic()
        signal.alarm(SECONDS)
        try:
            found[case(folder, random.Random(arguments.seed * 1_000_003 + number), arguments.kind)] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) or arguments.only is not None:
                raise
            findings.append((number, f"{type(error).__name__}: {str(error)[:300]}"))
            print(f"--only {number}: {findings[-1][1]}", flush=True)
        finally:
            signal.alarm(0)
            shutil.rmtree(folder, ignore_errors=True)
        slowest = max(slowest, time.monotonic() - begun)
    print(
        f"{sum(found.values())} cases in {time.monotonic() - started:.0f} s, the slowest {slowest:.1f} s: {dict(sorted(found.items()))}"
    )
    print(f"{len(findings)} findings")
    raise SystemExit(bool(findings))


if __name__ == "__main__":
    main()
