"""Which of a tool's results belongs to which scan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..core.records import Scan
from . import MISSING, Candidate, rank


def candidate(scan: Scan, path: str | None = None, *, reason: str = "", **more: object) -> Candidate:
    """A candidate with a scan's names; without a path it is missing, for ``reason``."""
    status = {} if path is not None or "status" in more else {"status": MISSING}
    return Candidate(
        scan.dataset, scan.subject, scan.session, scan.scan, scan.contrast, scan.contrast_raw, path, reason=reason, **status, **more
    )  # fmt: skip


def stem(path: str | Path) -> str:
    """A file's name without ``.nii`` and ``.nii.gz``."""
    return Path(path).name.removesuffix(".gz").removesuffix(".nii")


def first_of_each_session(scans: Iterable[Scan]) -> dict[str, Scan]:
    """Scan name -> the scan of its session that a tool is most likely to have been run on (by preference of contrast)."""
    best: dict[tuple[str, str], Scan] = {}
    rows = list(scans)
    for scan in sorted(rows, key=lambda scan: (rank(scan.contrast, scan.contrast_raw), scan.scan)):
        best.setdefault((scan.subject, scan.session), scan)
    return {scan.scan: best[scan.subject, scan.session] for scan in rows}


def session_names(scan: Scan, only_session: bool) -> list[str]:
    """What tools call a scan's session in folders and tables, the most particular name first.

    Args:
        scan: a row of the index.
        only_session: whether the subject has no other session; else its bare name could mean any of them.
    """
    subject = scan.subject.rsplit("/", 1)[-1]
    bare = subject.removeprefix("sub-")
    names = []
    if scan.session:
        names += [f"{subject}_{scan.session}", f"{bare}_{scan.session.removeprefix('ses-')}"]
    if only_session:
        names += [subject, bare]
    return names


def lone_sessions(scans: Sequence[Scan]) -> dict[str, bool]:
    """Subject -> whether all its scans are of one session."""
    sessions: dict[str, set[str]] = {}
    for scan in scans:
        sessions.setdefault(scan.subject, set()).add(scan.session)
    return {subject: len(names) == 1 for subject, names in sessions.items()}
