"""Store: verify, repair, count or look at a prepared store."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ..data.store import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoreSummary:
    """What was found or done.

    Attributes:
        lines: to be shown.
        problems: session or table -> what is wrong with it (still, after a repair).
        out: the picture, where one was made.
    """

    lines: tuple[str, ...]
    problems: dict[str, list[str]] = field(default_factory=dict)
    out: Path | None = None

    @property
    def exit_code(self) -> int:
        """3 where something is wrong."""
        return 3 if self.problems else 0

    def __str__(self) -> str:
        return "\n".join(self.lines)


def store(
    action: Literal["verify", "repair", "stats", "view"],
    path: Path,
    case: str | None = None,
    picture: Path | None = None,
    workers: int | None = None,
) -> StoreSummary:
    """Verify a store against its checksums, repair what is damaged, count what is in it, or draw a case.

    Args:
        action: verify, repair, stats or view.
        path: the store.
        case: of view: a session's key (stats lists some); the first by default.
        picture: of view: the PNG to write; by default NAME.png beside the store.
        workers: of repair: processes.

    Returns:
        What was found; the exit code is 3 where something is wrong.

    Raises:
        ArtifactError: there is no store, it was never finished, or another version made it.
    """
    from ..data.building import damages

    if action == "stats":
        from ..data.store import Store

        return StoreSummary(tuple(_stats(Store.open(path))))
    if action == "view":
        return _view(path, case, picture)
    from rich.progress import Progress

    with Progress(transient=True) as bars:
        bar = bars.add_task("reading sessions", total=None)
        found = damages(path, progress=lambda done, total: bars.update(bar, completed=done, total=total))
    lines = [f"{name}: {what}" for name, many in found.items() for what in many]
    if action == "verify" or not found:
        return StoreSummary((*lines, f"{len(found)} damaged" if found else "every array is the one that was written"), found)
    from ..data.building import Where, repair

    built = repair(path, found, Where(workers), progress=lambda done, total: None)
    left = damages(path)
    told = f"{len(found)} repaired" if not left else f"{len(left)} of {len(found)} could not be repaired"
    lines.append(f"{told}: {built.sessions} sessions, {built.scans} scans [{built.store_hash[:12]}]")
    return StoreSummary((*lines, *(f"{name}: {what}" for name, many in left.items() for what in many)), left)


def _stats(opened: Store) -> list[str]:
    from collections import Counter

    from ..core import artifacts

    facts = artifacts.read_json(opened.path / artifacts.MARKER)
    sessions = opened.sessions
    contrasts = Counter(name for session in sessions for name in session.scans)
    table = opened.table
    left = table[table["name"].isna()]
    size = sum(session.file.stat().st_size for session in sessions)
    lines = [
        f"{len({s.subject for s in sessions})} subjects, {len(sessions)} sessions, {facts['scans']} scans, {size / 1e6:.0f} MB, "
        f"{size / 1e6 / max(1, facts['scans']):.2f} MB a scan",
        f"voxels: {opened.info['dtype']}, {opened.spec.spacing_mm} mm, largest rounding error {facts['largest_rounding_error']:.2g} "
        f"({opened.spec.normalise} units)",
        "datasets: " + _counted(Counter(session.dataset for session in sessions)),
        "contrasts: " + _counted(contrasts),
        "splits: " + _counted(Counter(session.split or "none" for session in sessions)),
        "labels: " + (_counted(Counter(name for session in sessions for name in session.labels)) or "none"),
        f"left out: {len(left)} scans" + (": " + _counted(Counter(left["reason"]), 5) if len(left) else ""),
        "some cases: " + ", ".join(session.key for session in sessions[:3]),
        f"hash: {facts['store_hash']}",
    ]
    return lines


def _counted(counts: dict[str, int], most: int = 12) -> str:
    shown = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(f"{name} {count}" for name, count in shown[:most]) + more


def _view(path: Path, case: str | None, picture: Path | None) -> StoreSummary:
    from ..core.errors import InputError
    from ..core.volume import spacing_mm
    from ..data.store import Store
    from ..reporting import mosaics

    opened = Store.open(path)
    if case is None:
        case = opened.sessions[0].key
    matches = [session.key for session in opened.sessions if session.key == case or session.key.endswith("/" + case)]
    if len(matches) != 1:
        some = ", ".join(session.key for session in opened.sessions[:3])
        raise InputError(f"the store has {len(matches) or 'no'} session {case!r}", file=path, expected=f"one of {some} ...")
    session = opened[matches[0]]
    rows = {name: opened.read(session.key, name) for name in session.scans}
    labels = {name: opened.read_label(session.key, name) for name in session.labels}
    out = picture or path.parent / f"{session.key.replace('/', '_')}.png"
    mosaics.draw(rows, labels, spacing_mm(session.affine), out, title=session.key)
    return StoreSummary((f"{session.key}: {', '.join(rows)} drawn in {out}",), out=out)
