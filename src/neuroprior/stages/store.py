"""Store: verify, repair, count or look at a prepared store; publish it at an address, or fetch it from one."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..core.places import Place, folder_at, is_address, on_disk

if TYPE_CHECKING:
    from ..data.store import SessionView, Store

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
    action: Literal["verify", "repair", "stats", "view", "publish", "fetch"],
    path: Place,
    case: str | None = None,
    picture: Path | None = None,
    workers: int | None = None,
    url: str | None = None,
    again: bool = False,
) -> StoreSummary:
    """Verify a store against its checksums, repair what is damaged, count what is in it, draw a case, or copy it to or from an object store.

    Args:
        action: verify, repair, stats, view, publish or fetch.
        path: the store; of fetch: the folder that it comes to; of stats and view it may be an address.
        case: of view: a session's key (stats lists some); the first by default.
        picture: of view: the PNG to write; by default NAME.png beside the store, or here where that lies at an address.
        workers: of repair: processes.
        url: of publish and fetch: an address such as s3://bucket/folder.
        again: of publish: send the sessions too that are there already in the right size, since one of them may be damaged.

    Returns:
        What was found; the exit code is 3 where something is wrong.

    Raises:
        ArtifactError: there is no store, it was never finished, or another version made it; or it does not arrive whole.
        InputError: no address, or one that nobody knows.
        MissingDependency: the address needs a driver that is not installed.
    """
    from ..data.building import damages

    if action == "stats":
        from ..data.store import Store

        return StoreSummary(tuple(_stats(Store.open(path), path)))
    if action == "view":
        return _view(path, case, picture)
    path = on_disk(path, "the store", "fetch it first: neuroprior store fetch FOLDER --url ...")
    if action in ("publish", "fetch"):
        return _copy(action, path, url, again)
    from rich.progress import Progress

    with Progress(transient=True) as bars:
        bar = bars.add_task("reading sessions", total=None)
        found = damages(path, progress=lambda done, total: bars.update(bar, completed=done, total=total))
    lines = [f"{name}: {what}" for name, many in found.items() for what in many]
    if action == "verify" or not found:
        return StoreSummary((*lines, f"{len(found)} damaged" if found else "every array is the one that was written"), found)
    from ..data.building import repair
    from ..engine.pools import Where

    with Progress(transient=True) as bars:
        bar = bars.add_task("making sessions again", total=None)
        done = repair(path, found, Where(workers), progress=lambda done, total: bars.update(bar, completed=done, total=total))
    left = dict(done.left)
    told = f"{len(found)} repaired" if not left else f"{len(left)} of {len(found)} could not be repaired"
    lines.append(f"{told}: {done.sessions} sessions, {done.scans} scans [{done.store_hash[:12]}]")
    return StoreSummary((*lines, *(f"{name}: {what}" for name, many in left.items() for what in many)), left)


def _copy(action: Literal["publish", "fetch"], path: Path, url: str | None, again: bool) -> StoreSummary:
    from rich.progress import Progress

    from ..core.errors import InputError
    from ..data import remote

    if url is None:
        raise InputError(
            f"store {action} needs an address", expected="--url s3://bucket/folder, or any address that fsspec knows"
        )
    with Progress(transient=True) as bars:
        bar = bars.add_task("copying sessions", total=None)

        def progress(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total)

        if action == "publish":
            sent = remote.publish(path, url, again=again, progress=progress)
        else:
            sent = remote.fetch(url, path, progress=progress)
    there = f"published at {url}" if action == "publish" else f"fetched to {path}"
    told = f"{sent.copied} of {sent.sessions} sessions copied, {sent.megabytes:.0f} MB; {there} [{sent.store_hash[:12]}]"
    return StoreSummary((told,), out=None if action == "publish" else path)


def _stats(opened: Store, place: Place) -> list[str]:
    from collections import Counter

    from ..core import artifacts

    facts = artifacts.read_json(opened.path / artifacts.MARKER)
    sessions = opened.sessions
    contrasts = Counter(name for session in sessions for name in session.scans)
    table = opened.table
    left = table[table["name"].isna()]
    elsewhere = is_address(place)
    size = sum(folder_at(str(place)).sizes("sessions").values() if elsewhere else (one.file.stat().st_size for one in sessions))
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
        *(["notes of preparing: in the session files; fetch the store to see them"] if elsewhere else _noted(sessions)),
        "some cases: " + ", ".join(session.key for session in sessions[:3]),
        f"hash: {facts['store_hash']}",
    ]
    return lines


def _noted(sessions: Iterable[SessionView]) -> list[str]:
    """What preparing told, the same sentences with other numbers together: how many sessions, and one of them."""
    import re
    from collections import Counter

    from ..data.sessions import read

    counts: Counter[str] = Counter()
    shown: dict[str, str] = {}
    for session in sessions:
        kinds = set()
        for note in json.loads(read(session.file)[0])["notes"]:
            kind = re.sub(r"(\d+ \(N\), )*\d+ \(N\)", "N (N)", re.sub(r"\d+\.\d+", "N", note))
            kind = re.sub(r"\d+", "N", kind)
            kinds.add(kind)
            shown.setdefault(kind, f"{session.key}: {note}")
        counts.update(kinds)
    lines = [f"  {number} sessions, such as {shown[kind]}" for kind, number in counts.most_common()]
    return [f"notes of preparing: {counts.total()}" + (" in these kinds" if lines else ""), *lines]


def _counted(counts: dict[str, int], most: int = 12) -> str:
    shown = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(f"{name} {count}" for name, count in shown[:most]) + more


def _view(path: Place, case: str | None, picture: Path | None) -> StoreSummary:
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
        raise InputError(f"the store has {len(matches) or 'no'} session {case!r}", file=str(path), expected=f"one of {some} ...")
    session = opened[matches[0]]
    rows = {name: opened.read(session.key, name) for name in session.scans}
    labels = {name: opened.read_label(session.key, name) for name in session.labels}
    beside = Path() if is_address(path) else Path(path).parent
    out = picture or beside / f"{session.key.replace('/', '_')}.png"
    mosaics.draw(rows, labels, spacing_mm(session.affine), out, title=session.key)
    return StoreSummary((f"{session.key}: {', '.join(rows)} drawn in {out}",), out=out)
