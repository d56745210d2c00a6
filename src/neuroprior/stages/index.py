"""Index: datasets where they lie in, one table of scans out."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from ..data import indexing

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexSummary:
    """What an index holds.

    Attributes:
        out: the table.
        ok, warning, bad: scans by status.
        reused: rows taken from an earlier index because nothing had changed.
        datasets, subjects, contrasts: counts by name.
        unknown: contrast spellings that nobody knows, with counts.
        issues: the table of reasons, or None where every row is ok.
        licences: dataset -> licence, or "not stated".
        left_out: rows that ``where`` left out.
        faces: scans that show a face.
        readers: root of a dataset -> reader, and why it was chosen.
        seconds: how long it took.
    """

    out: Path
    ok: int
    warning: int
    bad: int
    reused: int
    datasets: dict[str, int]
    subjects: int
    contrasts: dict[str, int]
    unknown: dict[str, int]
    issues: Path | None
    licences: dict[str, str] = field(default_factory=dict)
    left_out: int = 0
    faces: int = 0
    readers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def __str__(self) -> str:
        total = self.ok + self.warning + self.bad
        lines = [
            f"{total} scans of {self.subjects} subjects in {len(self.datasets)} datasets: {self.out}",
            "  contrasts: " + ", ".join(f"{name} {n}" for name, n in sorted(self.contrasts.items())),
        ]
        if self.reused:
            lines.append(f"  {self.reused} rows kept from the earlier index")
        if self.left_out:
            lines.append(f"  {self.left_out} left out by --where")
        if self.unknown:
            most = sorted(self.unknown.items(), key=lambda item: -item[1])
            lines.append(
                "  unknown contrasts: " + ", ".join(f"{name} ({n})" for name, n in most[:12]) + " ..." * (len(most) > 12)
            )
            lines.append(f"    name those you want in a YAML such as '{most[0][0]}: T1w', and give it: --contrast-map FILE")
        silent = [name for name, licence in self.licences.items() if licence == "not stated"]
        if silent:
            lines.append(
                f"  {len(silent)} datasets state no licence, for example {silent[0]}: --licence {silent[0]}=CC-BY-4.0 if you know it"
            )
        if self.faces:
            lines.append(
                f"  {self.faces} scans show a face: deface them before sharing, or leave them out with --policy faces=skip"
            )
        if self.warning or self.bad:
            lines.append(f"  {self.warning} with a warning, {self.bad} not usable: reasons in {self.issues}")
        return "\n".join(lines)


def index(
    roots: list[Path],
    out: Path = Path("index.parquet"),
    reader: str = "auto",
    checks: str = "voxels",
    split: str = "train=0.8,val=0.1,test=0.1",
    split_file: Path | None = None,
    contrast_map: Path | None = None,
    column: list[str] | None = None,
    where: str | None = None,
    policy: list[str] | None = None,
    licence: list[str] | None = None,
    variable: list[str] | None = None,
    stratify: str = "dataset,health",
    together: Path | None = None,
    pretrain_json: Path | None = None,
    seed: int = 0,
    workers: int | None = None,
) -> IndexSummary:
    """Index datasets where they lie: nothing is copied or renamed (DICOM is converted, beside the index).

    Args:
        roots: datasets, folders of datasets, or indexes to merge.
        out: the table; what has not changed keeps its row when it is there already.
        reader: name on the readers shelf, or "auto" to let the readers recognise each folder.
        checks: "voxels" reads every scan once, "header" only headers.
        split: shares of subjects.
        split_file: TSV with the columns participant_id and split, taken as it is; other subjects are split by shares.
        contrast_map: YAML from a dataset's spelling of a contrast to a canonical name.
        column: of a table with other names, as in path=filename or subject=ID; may be given several times.
        where: rows to keep, as in "contrast == 'FLAIR' and age > 60"; others are left out.
        policy: what to do about what a check finds, as in intensity=fix or faces=skip; may be given several times.
        licence: of a dataset that states none or a wrong one, as in ds000001=CC0; may be given several times.
        variable: folder that $NAME stands for in a pretrain_data.json, as in openmind=/data/OpenMind; may be given several times.
        stratify: columns whose values every split shall hold in equal shares.
        together: table of pairs of subjects that must not be parted, such as the audit's OUT.pairs.parquet.
        pretrain_json: also write the usable scans as a pretrain_data.json for nnssl.
        seed: of the splits.
        workers: processes; by default as many as cores are granted.

    Returns:
        The counts. Scans that cannot be used are rows with a reason, also listed in OUT.issues.tsv.

    Raises:
        InputError: a root is not there, holds no dataset or no scan, or a check with the policy "fail" found something.
        LeakageError: a subject stands in two splits.
    """
    from ..core.config import read_yaml
    from ..core.contrasts import canonical
    from ..core.errors import ConfigError, InputError
    from ..data import index as tables
    from ..data import indexing
    from ..data import where as conditions

    started = time.monotonic()
    if checks not in indexing.BATCH:
        raise ConfigError(f"unknown --checks {checks!r}", expected="voxels or header")
    fractions = tables.parse_split(split)
    policies = tables.parse_policies(policy or [])
    if policies["faces"] != "keep" and checks != "voxels":
        raise ConfigError(
            "faces are seen in the voxels only", expected="--checks voxels with --policy faces=skip", got=f"--checks {checks}"
        )
    condition = conditions.parse(where) if where else None
    mapping = {str(k): canonical(str(v)) for k, v in read_yaml(contrast_map).items()} if contrast_map else {}
    given = _given(split_file) if split_file else {}
    pairs = _pairs(together) if together else []
    options = indexing.Options(
        reader, mapping, _assigned(column, "--column", "path=filename"), _assigned(licence, "--licence", "ds000001=CC0"),
        _assigned(variable, "--variable", "openmind=/data/OpenMind"), condition, checks, policies, out.with_name(out.stem + ".converted"),
        workers or len(os.sched_getaffinity(0)),
    )  # fmt: skip
    earlier = indexing.Earlier(out, options)
    with indexing.Line() as line, indexing.Pool(options) as pool:
        sources = indexing.sources_of([Path(root) for root in roots], reader)
        made = [indexing.rows_of_source(source, options, earlier, pool, line) for source in sources]
    import pyarrow as pa

    table = pa.concat_tables([piece.table for piece in made])
    left_out = sum(piece.left_out for piece in made)
    if condition is not None and not any(piece.untouched for piece in made):
        condition.known(set().union(*(piece.columns for piece in made)))
    if not table.num_rows:
        raise InputError(
            "no scan was found" if not left_out else f"--where leaves none of {left_out} scans", file=roots[0],
            expected="sub-*/**/*.nii.gz" if not left_out else None, got=where if left_out else None,
            next_step="check the path, or use --reader table" if not left_out else "ask for less",
        )  # fmt: skip
    table = table.take(_order(table))
    if not earlier.whole(made):
        table = _replace(table, check_geometry=tables.session_grids(table))
    table, groups = _duplicates(table, policies["duplicates"], unchanged=earlier.whole(made))
    _fail(table, policies, out)
    for piece in made:  # a merged index keeps its splits
        if piece.source.module is None:
            given = {**dict(zip(*(piece.table.column(name).to_pylist() for name in ("subject", "split")))), **given}
    table = _split(
        table,
        fractions,
        seed,
        given,
        [part.strip() for part in stratify.split(",") if part.strip()],
        [*groups, *pairs, *_patients(table, made)],
    )
    tables.write_table(table, out, settings=options.key(), sources=[{**piece.note, "left_out": piece.left_out} for piece in made])
    earlier.done()
    issues = _write_issues(table, out)
    if pretrain_json is not None:
        from ..readers import openmind

        usable = (
            scan for batch in table.to_batches(max_chunksize=10_000) for scan in tables.scans_of(pa.Table.from_batches([batch]))
        )
        count = openmind.write(usable, pretrain_json, collection=out.stem, variables=options.variables)
        logger.info("%d images written to %s", count, pretrain_json)
    return _summary(table, out, made, issues, left_out, time.monotonic() - started)


def _assigned(texts: list[str] | None, option: str, example: str) -> dict[str, str]:
    from ..core.errors import ConfigError

    found = dict(part.split("=", 1) for part in texts or [] if "=" in part)
    if len(found) != len(texts or []):
        raise ConfigError(
            f"{option} needs NAME=VALUE, each name once", expected=f"{option} {example}", got=", ".join(texts or [])
        )
    return found


def _given(path: Path) -> dict[str, str]:
    """Subject -> split from a TSV.

    Raises:
        InputError: a column is missing or a split is none of train, val, test.
        LeakageError: a subject is listed with two splits.
    """
    import pandas as pd

    from ..core.errors import InputError, LeakageError

    table = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", dtype=str)
    if not {"participant_id", "split"} <= set(table.columns):
        raise InputError(
            "the split file lacks a column", file=path, expected="participant_id, split", got=", ".join(table.columns)
        )
    wrong = sorted(set(table["split"].dropna()) - {"train", "val", "test"})
    if wrong:
        raise InputError("the split file names unknown splits", file=path, expected="train, val, test", got=", ".join(wrong))
    counts = table.drop_duplicates().groupby("participant_id")["split"].nunique()
    both = sorted(counts[counts > 1].index)
    if both:
        raise LeakageError("a subject is listed in two splits", file=path, got=", ".join(both[:5]))
    return dict(zip(table["participant_id"], table["split"], strict=True))


def _pairs(path: Path) -> list[tuple[str, str]]:
    """Subjects that belong together, from the audit's pairs or any table with two columns of subjects.

    Raises:
        InputError: the table cannot be read or lacks the columns.
    """
    import pandas as pd

    from ..core.errors import InputError

    try:
        table = (
            pd.read_parquet(path)
            if path.suffix == ".parquet"
            else pd.read_csv(path, sep="," if path.suffix == ".csv" else "\t", dtype=str)
        )
    except (OSError, ValueError) as error:
        raise InputError("the table of pairs cannot be read", file=path, got=(str(error).splitlines() or [""])[0]) from None
    if not {"left_subject", "right_subject"} <= set(table.columns):
        raise InputError("the table of pairs lacks a column", file=path, expected="left_subject, right_subject",
                         got=", ".join(map(str, table.columns)))  # fmt: skip
    return [
        (str(a), str(b))
        for a, b in zip(table["left_subject"], table["right_subject"])
        if isinstance(a, str) and isinstance(b, str)
    ]


def _patients(table: pa.Table, made: list[indexing.Piece]) -> list[list[str]]:
    """Groups of subjects of several DICOM datasets that are one patient: the keyed hash of the identifier is the same."""
    roots = {piece.note["root"] for piece in made if piece.note["reader"] == "dicom"}
    same: dict[str, set[str]] = {}
    for subject, root in zip(table.column("subject").to_pylist(), table.column("source").to_pylist()):
        if root in roots and "/sub-" in subject:
            same.setdefault(subject.rsplit("/", 1)[-1], set()).add(subject)
    return [sorted(subjects) for subjects in same.values() if len(subjects) > 1]


def _order(table: pa.Table) -> Any:
    import pyarrow.compute as pc

    return pc.sort_indices(table, sort_keys=[("scan", "ascending"), ("path", "ascending")])


def _replace(table: pa.Table, **columns: list[Any]) -> pa.Table:
    import pyarrow as pa

    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
    return table


def _duplicates(table: pa.Table, policy: str, unchanged: bool) -> tuple[pa.Table, list[list[str]]]:
    """The table with its duplicates told, and the groups of subjects that share a scan."""
    from ..core.records import BAD, OK, WARNING
    from ..data.index import duplicates

    if unchanged:  # the rows say it already
        found = table.column("check_duplicates").to_pylist()
        subjects, scans = table.column("subject").to_pylist(), table.column("scan").to_pylist()
        where = dict(zip(scans, subjects))
        told = ((text, subject) for text, subject in zip(found, subjects) if text and text.startswith("equals "))
        return table, [
            [subject, where[text.removeprefix("equals ")]] for text, subject in told if text.removeprefix("equals ") in where
        ]
    groups = duplicates(table)
    checks = ["ok" if key is not None else None for key in table.column("content").to_pylist()]
    reasons, status = table.column("reasons").to_pylist(), table.column("status").to_pylist()
    for row, text in enumerate(table.column("check_duplicates").to_pylist()):
        if text and text.startswith("equals "):  # what an earlier index said; only rows that were usable had a key
            reasons[row] = [reason for reason in reasons[row] or () if not reason.startswith("the same image as ")]
            status[row] = WARNING if reasons[row] else OK
    if not groups:
        return _replace(table, check_duplicates=checks, reasons=reasons, status=status), []
    subjects, scans = table.column("subject").to_pylist(), table.column("scan").to_pylist()
    for group in groups:
        for row in group[1:]:
            checks[row] = f"equals {scans[group[0]]}"
            reasons[row] = [*reasons[row], f"the same image as {scans[group[0]]}"]
            status[row] = BAD if policy == "skip" else WARNING if status[row] == OK else status[row]
    return _replace(table, check_duplicates=checks, reasons=reasons, status=status), [
        [subjects[row] for row in group] for group in groups
    ]


def _fail(table: pa.Table, policies: dict[str, str], out: Path) -> None:
    """Stop where a check with the policy ``fail`` found something.

    Raises:
        InputError: naming the first scans.
    """
    from ..core.errors import InputError

    for name, policy in policies.items():
        if policy != "fail":
            continue
        found = zip(table.column("scan").to_pylist(), table.column(f"check_{name}").to_pylist())
        wrong = [
            (scan, text)
            for scan, text in found
            if text not in (None, "ok") and not (name == "faces" and not text.startswith("face"))
        ]
        if wrong:
            raise InputError(
                f"{len(wrong)} scans fail the check {name!r}", file=out, expected="none (--policy was fail); the index is not written",
                got="; ".join(f"{scan}: {text}" for scan, text in wrong[:3]), next_step=f"mend them, or use --policy {name}=skip",
            )  # fmt: skip


def _split(
    table: pa.Table, fractions: dict[str, float], seed: int, given: dict[str, str], by: list[str], together: list[Any]
) -> pa.Table:
    """The table with every row's split."""
    from ..data.index import plan_splits, scans_of
    from ..data.splits import strata

    subjects = table.column("subject").to_pylist()
    named = [name for name in by if name in table.column_names]
    values: list[list[Any]] = [table.column(name).to_pylist() for name in named]
    if len(named) < len(by):  # other columns of the participants' tables
        rows = scans_of(table.select(["scan", "dataset", "subject", "session", "contrast", "contrast_raw", "path", "columns"]))
        values += [[scan.columns.get(name) for scan in rows] for name in by if name not in named]
    per_column: list[dict[str, str]] = []
    for column in values:
        first: dict[str, Any] = {}
        for subject, value in zip(subjects, column):
            first.setdefault(subject, value)
        per_column.append(
            strata(first)
            if any(isinstance(value, float) for value in first.values())
            else {s: str(v or "") for s, v in first.items()}
        )
    of = {subject: tuple(column.get(subject, "") for column in per_column) for subject in dict.fromkeys(subjects)}
    chosen = plan_splits(of, fractions, seed=seed, given=given, together=together)
    return _replace(table, split=[chosen[subject] for subject in subjects])


def _write_issues(table: pa.Table, out: Path) -> Path | None:
    """The rows that are not ok, with their reasons, as a table people can read; None where there is none."""
    import pyarrow.compute as pc

    from ..core import artifacts
    from ..core.records import OK

    path = out.with_name(out.stem + ".issues.tsv")
    rows = table.select(["status", "scan", "reasons", "path"]).filter(pc.not_equal(table.column("status"), OK)).to_pylist()
    if not rows:
        path.unlink(missing_ok=True)
        return None
    lines = ["status\tscan\treason\tpath"] + [
        f"{row['status']}\t{row['scan']}\t{'; '.join(row['reasons'])}\t{row['path']}" for row in rows
    ]
    artifacts.write_text(path, "\n".join(" ".join(line.split("\n")) for line in lines) + "\n")
    return path


def _summary(
    table: pa.Table, out: Path, made: list[indexing.Piece], issues: Path | None, left_out: int, seconds: float
) -> IndexSummary:
    import pyarrow.compute as pc

    from ..core.contrasts import UNKNOWN
    from ..core.records import BAD, OK, WARNING

    def counts(column: Any) -> dict[str, int]:
        return {item["values"]: item["counts"] for item in pc.value_counts(column).to_pylist()}

    status = counts(table.column("status"))
    unknown = table.filter(pc.equal(table.column("contrast"), UNKNOWN)).column("contrast_raw")
    licences = {
        row["dataset"]: row["licence"] or "not stated"
        for row in table.select(["dataset", "licence"]).group_by(["dataset", "licence"]).aggregate([]).to_pylist()
    }
    faces = [text for text in pc.unique(table.column("check_faces")).to_pylist() if text and text.startswith("face")]
    return IndexSummary(
        out, status.get(OK, 0), status.get(WARNING, 0), status.get(BAD, 0), sum(piece.reused for piece in made), counts(table.column("dataset")),
        len(pc.unique(table.column("subject"))), counts(table.column("contrast")), {k: n for k, n in counts(unknown).items() if k}, issues,
        dict(sorted(licences.items())), left_out, sum(counts(table.column("check_faces")).get(text, 0) for text in faces),
        {piece.note["root"]: f"{piece.note['reader']}: {piece.source.why}" for piece in made}, seconds,
    )  # fmt: skip
