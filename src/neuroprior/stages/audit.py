"""Audit: before any training, what predicts the label without a brain, and who stands on both sides."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.places import Place

if TYPE_CHECKING:
    from ..assessments.contamination import Pair
    from ..assessments.shortcuts import Finding
    from ..core.records import Scan

logger = logging.getLogger(__name__)

VERSION = 1
"""Version of the audit's tables."""


@dataclass(frozen=True)
class Row:
    """A line about contamination.

    Attributes:
        kind: of the pairs (``assessments/contamination.py``), ``seen by the model``, or ``not read``.
        left, right: the sides.
        pairs: how many.
        found: scans or subjects of the right side.
        sure: whether it makes the audit fail.
        words: the same as a sentence.
    """

    kind: str
    left: str
    right: str
    pairs: int
    found: int
    sure: bool
    words: str


@dataclass(frozen=True)
class AuditSummary:
    """What an audit found.

    Attributes:
        out: the table; beside it lie ``.md``, ``.pairs.parquet`` and ``.fingerprints.parquet``.
        findings: of the shortcut probes.
        rows: of contamination.
        looked: what was compared and read, a sentence each.
        exit_code: 3 when a shortcut or contamination was found, else 0.
    """

    out: Path | None
    findings: tuple[Finding, ...]
    rows: tuple[Row, ...]
    looked: tuple[str, ...]
    exit_code: int = 0

    def __str__(self) -> str:
        lines = [*self.looked]
        for target in dict.fromkeys(finding.target for finding in self.findings):
            lines += ["", f"What predicts {target} without a brain?"]
            members = [finding for finding in self.findings if finding.target == target]
            told = [finding for finding in members if finding.verdict not in ("none seen", "constant")]
            lines += [
                f"  {finding.verdict.upper() if finding.verdict == 'shortcut' else finding.verdict}: {finding.words}"
                for finding in told
            ]
            quiet = [finding for finding in members if finding.verdict == "none seen"]
            if quiet:
                worst = max(finding.detectable or 0 for finding in quiet)
                lines.append(
                    f"  nothing seen from {', '.join(finding.probe.replace('_', ' ') for finding in quiet)} "
                    f"(a correlation above {worst:.2f} would have been)"
                )
            constant = [finding.probe.replace("_", " ") for finding in members if finding.verdict == "constant"]
            if constant:
                lines.append(f"  the same for all, or not in the index: {', '.join(constant)}")
        if self.out is not None:
            lines += ["", "Who or what stands on both sides?"]
            lines += [f"  {row.kind.upper() if row.sure else row.kind}: {row.words}" for row in self.rows] or [
                "  nobody and nothing was found"
            ]
            lines += ["", str(self.out)]
        return "\n".join(lines)


def audit(
    indexes: list[Path],
    out: Path = Path("audit.parquet"),
    target: list[str] | None = None,
    against: list[Path] | None = None,
    model: list[Place] | None = None,
    voxels: int = 200,
    duplicates: bool = True,
    contrast: str | None = None,
    within: str | None = None,
    permutations: int = 4999,
    seed: int = 0,
    workers: int | None = None,
    dry_run: bool = False,
    progress: bool = True,
) -> AuditSummary:
    """Look for shortcuts and contamination in indexes alone, before any training. Exit code 3 when something is found.

    Args:
        indexes: tables made by neuroprior index, to be trained or evaluated on; their splits are compared with one another.
        out: the table of findings (Parquet); a page for reading (.md), the pairs and a cache of fingerprints lie beside it.
        target: column that will be predicted, such as age or health; comma-separated or given several times. NAME:class or
            NAME:number where the kind should not be guessed.
        against: index of the pretraining data; may be given several times.
        model: model or run folder whose training subjects must not be evaluated on; may be given several times.
        voxels: scans whose air, units and outline are looked at, one a subject; 0 reads no voxel for the probes.
        duplicates: read every scan once to find copies; otherwise only names are compared.
        contrast: the contrast of the voxel probes; the most frequent one by default.
        within: column such as dataset or site: only what predicts the label within its groups counts.
        permutations: shuffles of the label.
        seed: of every draw.
        workers: processes that read voxels; by default as many as cores are granted.
        dry_run: only say what would be read, and about how long it takes.
        progress: show progress bars.

    Returns:
        What was found.

    Raises:
        ArtifactError: an index, a model or the cache is missing, damaged or of another version.
        InputError: no row has a target column, or there is no usable row.
    """
    import os

    from ..assessments import contamination, shortcuts
    from ..core.config import parse
    from ..core.contrasts import canonical
    from ..core.errors import InputError
    from ..core.records import BAD
    from ..data import fingerprint
    from ..data.index import read_index

    targets = [part.strip() for text in target or [] for part in text.split(",") if part.strip()]
    config = parse(shortcuts.Config, {"permutations": permutations, "within": within, "seed": seed})
    tables = {name: read_index(path) for name, path in _named(indexes).items()}
    others = {f"{name} (pretraining)": read_index(path) for name, path in _named(against or []).items()}
    known = {str(path): _training_hashes(path) for path in model or []}
    scans = [scan for rows in tables.values() for scan in rows]
    usable = [scan for scan in scans if scan.status != BAD]
    if not usable:
        raise InputError("no row of the index can be used", file=indexes[0], next_step="look at the reasons in its .issues.tsv")
    for one in targets:
        shortcuts.label_of(usable, one, config)  # refuses a column that is not there before anything is read
    groups, sides = _sides(tables, others)
    paths = sorted({scan.path for rows in groups.values() for scan in rows}) if duplicates else []
    cores = workers or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    cache = out.with_name(out.stem + ".fingerprints.parquet")
    looked = [_inventory(tables, others, targets)]
    if dry_run:
        todo = fingerprint.missing(paths, cache) if duplicates else []
        looked.append(_estimate(todo, len(paths), min(voxels, len({s.subject for s in usable})) if targets else 0, cores))
        return AuditSummary(None, (), (), tuple(looked))

    wanted = canonical(contrast) if contrast else None
    findings: list[Any] = []
    if targets:
        findings = shortcuts.audit(
            scans, targets, voxels=voxels, contrast=wanted, config=config, workers=cores, progress=progress
        )  # fmt: skip
    prints = fingerprint.gather(paths, cache, workers=cores, progress=progress) if duplicates else None
    pairs = contamination.compare(groups, sides, fingerprints=prints)
    rows = [
        Row(kind, a, b, n, found, kind in contamination.SURE, words)
        for kind, a, b, n, found, words in contamination.summary(pairs, groups)
    ]
    rows += [row for path, hashes in known.items() for row in _seen(path, contamination.seen_by_model(hashes, usable), tables)]
    if prints is not None:
        rows += _unread(groups, prints)
        looked.append(f"compared by content: {len(paths)} scans; by name: {len(groups)} groups ({', '.join(groups)})")
    else:
        looked.append(f"compared by name only: {len(groups)} groups ({', '.join(groups)})")
    found = any(finding.verdict == shortcuts.SHORTCUT for finding in findings) or any(row.sure for row in rows)
    summary = AuditSummary(out, tuple(findings), tuple(rows), tuple(looked), 3 if found else 0)
    _write(
        summary, pairs, out, {**config.model_dump(mode="json"), "voxels": voxels, "duplicates": duplicates, "targets": targets}
    )
    return summary


def _named(paths: list[Path]) -> dict[str, Path]:
    """The files by a short name each; files of one name are told apart by their folder."""
    from collections import Counter

    stems = Counter(Path(path).stem for path in paths)
    return {Path(path).stem if stems[Path(path).stem] == 1 else str(path): Path(path) for path in paths}


def _sides(tables: dict[str, list[Scan]], others: dict[str, list[Scan]]) -> tuple[dict[str, list[Scan]], list[tuple[str, str]]]:
    """The groups to compare: splits over all indexes where there are splits, else the indexes; each pretraining index."""
    from itertools import combinations

    from ..core.records import BAD

    rows = [(name, scan) for name, scans in tables.items() for scan in scans if scan.status != BAD]
    by_split = len({scan.split for _, scan in rows}) > 1
    groups: dict[str, list[Scan]] = {}
    for name, scan in rows:
        groups.setdefault((scan.split or "no split") if by_split else name, []).append(scan)
    ours = list(groups)
    theirs = {name: [scan for scan in scans if scan.status != BAD] for name, scans in others.items()}
    sides = [*combinations(ours, 2), *((name, name) for name in ours), *((other, name) for other in theirs for name in ours)]
    return {**groups, **theirs}, sides


def _inventory(tables: dict[str, list[Scan]], others: dict[str, list[Scan]], targets: list[str]) -> str:
    def count(group: dict[str, list[Scan]]) -> str:
        return ", ".join(
            f"{name}: {len(rows)} scans of {len({s.subject for s in rows})} subjects" for name, rows in group.items()
        )

    against = f"; against {count(others)}" if others else ""
    return f"audit of {count(tables)}{against}; labels: {', '.join(targets) or 'none given (--target NAME looks for shortcuts)'}"


def _estimate(todo: list[str], whole: int, sampled: int, cores: int) -> str:
    """What reading would cost, from one file read now."""
    import time

    from ..data import fingerprint

    if not todo:
        return f"dry run: {whole} fingerprints are there already; voxels of at most {sampled} scans would be read for the probes"
    start = time.perf_counter()
    fingerprint.of_file(todo[len(todo) // 2])
    seconds = (time.perf_counter() - start) * (len(todo) + sampled) / cores
    return (
        f"dry run: {len(todo)} of {whole} scans would be read once to find copies, and at most {sampled} for the probes: "
        f"{'less than a minute' if seconds < 60 else f'about {seconds / 60:.0f} minutes'} on {cores} cores (--no-duplicates compares names only, --voxels 0 reads none for the probes)"
    )


def _training_hashes(path: Place) -> frozenset[str]:
    """The hashes of the subjects that a model and those it came from were trained on."""
    from ..core import artifacts
    from ..core.errors import ArtifactError
    from ..inference.elsewhere import at_hand
    from ..inference.lineage import subject_hashes
    from ..inference.model import DESCRIPTION, resolve

    file = resolve(at_hand(path)) / DESCRIPTION
    info = artifacts.read_json(file)
    hashes = subject_hashes(info)
    if not hashes:
        raise ArtifactError(
            "the model does not say which subjects it was trained on", file=file, expected="data.subject_hashes",
            next_step="give the index of its training data: --against INDEX",
        )  # fmt: skip
    return hashes


def _seen(path: str, seen: dict[str, list[str]], tables: dict[str, list[Scan]]) -> list[Row]:
    subjects = {scan.subject: scan.split for rows in tables.values() for scan in rows}
    made = []
    for split, names in seen.items():
        whole = sum(one == split for one in subjects.values())
        place = split or "the index"
        sure = split != "train"
        advice = "do not evaluate this model on them" if sure else "fine for training, not for evaluation"
        words = (
            f"{len(names)} of {whole} subjects of {place} were in the training data of {path} (for example {names[0]}): {advice}"
        )
        made.append(Row("seen by the model", path, place, len(names), len(names), sure, words))
    return made


def _unread(groups: dict[str, list[Scan]], prints: Any) -> list[Row]:
    """A line for each group in which scans could not be compared by content."""
    made = []
    for name, rows in groups.items():
        bad = [scan for scan in rows if prints[scan.path].vector is None]
        if bad:
            words = f"{len(bad)} of {len(rows)} scans of {name} could not be compared by content (for example {bad[0].scan}: {prints[bad[0].path].reason})"
            made.append(Row("not compared", name, name, 0, len(bad), False, words))
    return made


def _write(summary: AuditSummary, pairs: list[Pair], out: Path, settings: dict[str, Any]) -> None:
    import json

    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ..assessments.contamination import Pair
    from ..assessments.shortcuts import Finding
    from ..core import artifacts

    note = {"artifact": "audit", "version": VERSION, "settings": settings, **artifacts.provenance("audit")}
    empty = {
        **dict.fromkeys(Finding.__dataclass_fields__),
        "kind": None,
        "left": None,
        "right": None,
        "pairs": None,
        "found": None,
    }
    lines = [{**empty, "section": "shortcuts", **vars(finding)} for finding in summary.findings]
    lines += [
        {**empty, "section": "contamination", "verdict": "contamination" if row.sure else "note", **{k: v for k, v in vars(row).items() if k != "sure"}}
        for row in summary.rows
    ]  # fmt: skip
    whole = ["subjects", "pairs", "found"]
    numbers = ["value", "low", "high", "second", "statistic", "p", "p_holm", "detectable"]
    names = [
        "section",
        "target",
        "probe",
        "verdict",
        "words",
        "sample",
        "metric",
        "second_metric",
        "kind",
        "left",
        "right",
        *whole,
        *numbers,
    ]
    frame = pd.DataFrame(lines, columns=names)
    schema = pa.schema([(n, pa.int64() if n in whole else pa.float64() if n in numbers else pa.string()) for n in names])
    meta = {b"neuroprior": json.dumps(note).encode()}
    table = pa.table(
        {n: pa.array([None if v is None or v != v else v for v in frame[n]], schema.field(n).type) for n in names}, schema
    )
    with artifacts.atomic(out) as temporary:
        pq.write_table(table.replace_schema_metadata(meta), temporary)
    fields = {name: pa.float64() if name == "similarity" else pa.string() for name in Pair.__dataclass_fields__}
    listed = pa.table({name: pa.array([getattr(pair, name) for pair in pairs], kind) for name, kind in fields.items()})
    with artifacts.atomic(out.with_name(out.stem + ".pairs.parquet")) as temporary:
        pq.write_table(
            listed.replace_schema_metadata({b"neuroprior": json.dumps({**note, "artifact": "audit pairs"}).encode()}), temporary
        )
    artifacts.write_text(out.with_suffix(".md"), _page(summary))


def _page(summary: AuditSummary) -> str:
    """The findings as Markdown."""

    def cell(value: float | None, form: str = ".2f") -> str:
        return "" if value is None else format(value, form)

    lines = ["# Audit", "", *(f"{text}." for text in summary.looked), ""]
    lines.append(
        "**Something was found: mend it, or report it, before training.**"
        if summary.exit_code
        else "Nothing was found that must be mended."
    )
    for target in dict.fromkeys(finding.target for finding in summary.findings):
        members = sorted(
            (f for f in summary.findings if f.target == target), key=lambda f: (f.p_holm is None, f.p_holm or 0, f.probe)
        )
        lines += ["", f"## What predicts {target} without a brain", ""]
        lines += [
            "| probe | verdict | on held-out subjects | 95 % | adjusted p | would have been seen | subjects |",
            "|---|---|---|---|---|---|---|",
        ]
        for f in members:
            size = (
                ""
                if f.value is None
                else f"{'AUROC' if f.metric == 'auroc' else 'r'} {f.value:.2f}, {'balanced accuracy' if f.metric == 'auroc' else 'R2'} {f.second:.2f}"
            )
            between = "" if f.low is None else f"{f.low:.2f} to {f.high:.2f}"
            verdict = f"**{f.verdict}**" if f.verdict == "shortcut" else f.verdict
            seen = "" if f.detectable is None else f"above {f.detectable:.2f}"
            lines.append(
                f"| {f.probe.replace('_', ' ')} | {verdict} | {size} | {between} | {cell(f.p_holm, '.2g')} | {seen} | {f.subjects}{'; ' + f.sample if f.sample else ''} |"
            )
        lines += ["", *(f"- {f.words}" for f in members if f.verdict not in ("none seen", "constant"))]
    lines += ["", "## Who or what stands on both sides", ""]
    lines += [f"- {'**' + row.kind + '**' if row.sure else row.kind}: {row.words}" for row in summary.rows] or [
        "Nobody and nothing was found."
    ]
    return "\n".join(lines) + "\n"
