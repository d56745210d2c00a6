"""Every dataset of bids-standard/bids-examples through ``neuroprior index``, beside an independent walk written from the specification.

``python benchmarks/data/bids_examples.py FOLDER`` with a checkout of that repository (nothing of it is kept here). The walk counts, per dataset,
subjects, sessions and images of the ``anat`` datatype: names of the form ``sub-<label>[_ses-<label>][_key-value...]_<suffix>.nii[.gz]`` in
``sub-<label>/[ses-<label>/]anat``, without the suffix ``defacemask`` and without masks and segmentations. It shares no code with the package.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections import Counter
from pathlib import Path

NAME = re.compile(r"sub-[0-9A-Za-z+]+(_ses-[0-9A-Za-z+]+)?(_[a-z0-9]+-[^_]+)*_([A-Za-z0-9]+)\.nii(\.gz)?")
NOT_IMAGES = {"defacemask", "mask", "dseg", "probseg"}


def walk(root: str) -> tuple[int, int, int]:
    """(subjects, sessions, images) of the anat datatype."""
    subjects, sessions, images = set(), set(), 0
    for subject in sorted(os.listdir(root)):
        if not subject.startswith("sub-") or not os.path.isdir(f"{root}/{subject}"):
            continue
        visits = [name for name in os.listdir(f"{root}/{subject}") if name.startswith("ses-")]
        for visit in [*visits, ""]:
            folder = f"{root}/{subject}/{visit}/anat" if visit else f"{root}/{subject}/anat"
            if not os.path.isdir(folder):
                continue
            for name in os.listdir(folder):
                matched = NAME.fullmatch(name)
                if matched and matched[3] not in NOT_IMAGES:
                    images += 1
                    subjects.add(subject)
                    sessions.add((subject, visit))
    return len(subjects), len(sessions), images


def ours(root: Path, out: Path) -> tuple[tuple[int, int, int], Counter[str], str]:
    """The same counts from the index, the rows by status, and what came instead of an index, if anything."""
    from neuroprior.core.errors import NeuropriorError
    from neuroprior.data.index import read_index
    from neuroprior.stages.index import index

    try:
        index([root], out, checks="voxels", workers=1)
    except NeuropriorError as error:
        return (0, 0, 0), Counter(), error.what
    rows = read_index(out)
    orphan = "a label map or mask whose session has no scan"
    anatomical = [scan for scan in rows if "/anat/" in scan.path.removeprefix(str(root)) and orphan not in scan.reasons]
    counts = (len({s.subject for s in anatomical}), len({(s.subject, s.session) for s in anatomical}), len(anatomical))
    return counts, Counter(scan.status for scan in rows), ""


def main() -> None:
    """The table, and what differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve()
    totals, differing, empty, datasets = Counter(), [], Counter(), 0
    print("| dataset | subjects | sessions | anat images | rows ok / warning / bad |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for root in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
            if not (root / "dataset_description.json").is_file():
                continue
            datasets += 1
            theirs = walk(str(root))
            mine, status, error = ours(root, Path(scratch) / f"{root.name}.parquet")
            if error:
                empty[error] += 1
            if mine != theirs:
                differing.append((root.name, theirs, mine, error))
            totals += Counter(dict(zip(("subjects", "sessions", "images"), mine))) + Counter(status)
            if mine != (0, 0, 0) or theirs != (0, 0, 0):
                print(
                    f"| {root.name} | {mine[0]} | {mine[1]} | {mine[2]} | {status['ok']} / {status['warning']} / {status['bad']} |"
                )
    print(f"\n{datasets} datasets; {dict(totals)}; without an index: {dict(empty)}")
    print("differing from the walk:", differing or "none")


if __name__ == "__main__":
    main()
