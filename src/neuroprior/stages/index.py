"""Index: datasets where they lie in, one table of scans out."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.places import Place, is_address

if TYPE_CHECKING:
    import pyarrow as pa

    from ..data import indexing
    from ..data.where import Condition

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
        to_name: the list of those spellings, to be filled in and given back as a contrast map; None where there is none.
        issues: the table of reasons, or None where every row is ok.
        licences: dataset -> licence, or "not stated"; several with commas between them.
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
    to_name: Path | None = None

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
            where = self.to_name or f"a YAML such as '{most[0][0]}: T1w'"
            lines.append(f"    name those you want in {where}, and give it: --contrast-map FILE")
        silent = [name for name, licence in self.licences.items() if "not stated" in licence]
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
    roots: list[Place],
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
        roots: datasets, folders of datasets, or indexes to merge; or addresses of datasets, such as s3://bucket/ds1.
        out: the table; what has not changed keeps its row when it is there already. Beside it: OUT.issues.tsv (what is not ok, and why) and
            OUT.contrasts.yaml (spellings of contrasts that nobody knows).
        reader: name on the readers shelf, or "auto" to let the readers recognise each folder.
        checks: "voxels" reads every scan once, "header" only headers.
        split: shares of subjects.
        split_file: TSV with the columns participant_id (with or without dataset and sub-) and split, taken as it is; other subjects keep the
            split that their dataset states (the column split of its participants.tsv), or are split by shares.
        contrast_map: YAML from a dataset's spelling of a contrast to a canonical name, such as OUT.contrasts.yaml filled in.
        column: of a table with other names, as in path=filename or subject=ID; may be given several times.
        where: rows to keep, as in "contrast == 'FLAIR' and age > 60"; others are left out.
        policy: what to do about what a check finds, as in intensity=fix or faces=skip; may be given several times.
        licence: of a dataset (or of a source_dataset) that states none or a wrong one, as in ds000001=CC0; may be given several times.
        variable: folder that $NAME stands for in a pretrain_data.json, as in openmind=/data/OpenMind; may be given several times.
        stratify: columns whose values every split shall hold in equal shares.
        together: table of pairs of subjects that must not be parted, such as the audit's OUT.pairs.parquet.
        pretrain_json: also write the usable scans as a pretrain_data.json for nnssl.
        seed: of the splits.
        workers: processes; by default as many as cores are granted.

    Returns:
        The counts. Scans that cannot be used are rows with a reason, also listed in OUT.issues.tsv.

    Raises:
        InputError: a root is not there, holds no dataset or no scan, the split file names nobody, or a check with the policy "fail" found something.
        ConfigError: an option cannot be understood, or asks for what no row has or nobody looks at.
        LeakageError: a subject stands in two splits.
    """
    from ..core.errors import ConfigError, InputError
    from ..core.processes import require_workers
    from ..data import assigning, contrast_list, datasets, indexing, mirror
    from ..data import index as tables
    from ..data import where as conditions

    started = time.monotonic()
    if checks not in indexing.BATCH:
        raise ConfigError(f"unknown --checks {checks!r}", expected="voxels or header")
    fractions = assigning.parse_split(split)
    policies = tables.parse_policies(policy or [])
    for name in ("faces", "intensity", "label"):
        if checks != "voxels" and policies[name] != tables.POLICIES[name][0]:
            raise ConfigError(
                f"{name}: this is seen in the voxels only", expected=f"--checks voxels with --policy {name}={policies[name]}", got=f"--checks {checks}"
            )  # fmt: skip
    require_workers(workers)
    condition = conditions.parse(where) if where else None
    mapping = contrast_list.read(contrast_map) if contrast_map else {}
    options = indexing.Options(
        reader, mapping, _assigned(column, "--column", "path=filename"), _assigned(licence, "--licence", "ds000001=CC0"),
        _assigned(variable, "--variable", "openmind=/data/OpenMind"), condition, checks, policies, out.with_name(out.stem + ".converted"),
        workers or len(os.sched_getaffinity(0)),
    )  # fmt: skip
    earlier = indexing.Earlier(out, options)
    with indexing.Line() as line, indexing.Pool(options) as pool:
        mirrors = out.with_name(out.stem + mirror.ENDING)
        here = [mirror.mirror(root, mirrors) if is_address(root) else Path(root) for root in roots]
        sources = datasets.sources_of(here, reader)
        made = [indexing.rows_of_source(source, options, earlier, pool, line) for source in sources]
        whole = earlier.whole(made)
        late = condition is not None and condition.needs_files  # it asks for what is known when all files were read
        if late and not whole:  # what it left out may fulfil it now that others have changed
            made = [
                indexing.rows_of_source(piece.source, options, earlier, pool, line, anew=True) if piece.untouched else piece
                for piece in made
            ]
    if condition is not None and not any(piece.untouched for piece in made):
        condition.known(set().union(*(piece.columns for piece in made)))
    table, renames = _merged(made)
    left_out = {piece.note["root"]: piece.left_out for piece in made}
    copies = earlier.together() if whole else []
    if table.num_rows and not whole:
        table = tables.replaced(table, check_geometry=tables.session_grids(table))
        table, copies = _duplicates(table, policies["duplicates"])
        if condition is not None and late:
            table = _fulfilling(table, condition, left_out)
    if not table.num_rows:
        count = sum(left_out.values())
        raise InputError(
            "no scan was found" if not count else f"--where leaves none of {count} scans", file=str(roots[0]),
            expected="sub-*/**/*.nii.gz" if not count else None, got=where if count else None,
            next_step="check the path, or use --reader table" if not count else "ask for less",
        )  # fmt: skip
    _tell_unused(table, options, made, pretrain_json is not None)
    _fail(table, policies, out)
    aliases: dict[str, list[str]] = {}
    for old, new in (item for names in renames for item in names.items()):
        aliases.setdefault(old, []).append(new)
    names = assigning.Names(table.column("subject").to_pylist(), aliases)
    pairs = assigning.read_pairs(together, names) if together else []
    given = assigning.read_splits(split_file, names) if split_file else {}
    given = {**assigning.stated(table, but=given), **given}
    strata = assigning.strata_of(table, [part.strip() for part in stratify.split(",") if part.strip()])
    groups = [*copies, *pairs, *_patients(table, made)]
    chosen = assigning.plan_splits(strata, fractions, seed=seed, given=given, together=groups)
    table = tables.replaced(table, split=[chosen[subject] for subject in table.column("subject").to_pylist()])
    table = mirror.with_addresses(table, mirrors)
    tables.write_table(table, out, settings=options.key(), together=copies, inseparable=groups, **_notes(made, renames, left_out))
    earlier.done()
    issues = _write_issues(table, out)
    summary = _summary(table, out, made, issues, sum(left_out.values()))
    listed = contrast_list.write(out.with_name(out.stem + ".contrasts.yaml"), summary.unknown, mapping, out)
    if pretrain_json is not None:
        from ..readers import openmind

        usable = (scan for start in range(0, table.num_rows, 10_000) for scan in tables.scans_of(table.slice(start, 10_000)))
        count = openmind.write(usable, pretrain_json, collection=out.stem, variables=options.variables)
        logger.info("%d images written to %s", count, pretrain_json)
    return replace(summary, to_name=listed, seconds=time.monotonic() - started)


def _notes(made: list[indexing.Piece], renames: list[dict[str, str]], left_out: dict[str, int]) -> dict[str, Any]:
    """What an index remembers of its sources, and where each dataset came from."""
    origins: dict[str, set[str]] = {}
    sources = []
    for piece, names in zip(made, renames):
        for name, places in piece.origins.items():
            origins.setdefault(names.get(name, name), set()).update(places)
        sources.append({
            **piece.note, "left_out": left_out[piece.note["root"]], "used": sorted(piece.used), "origins": piece.origins,
            "renamed": names,
        })  # fmt: skip
    return {"sources": sources, "origins": {name: sorted(places) for name, places in origins.items()}}


def _assigned(texts: list[str] | None, option: str, example: str) -> dict[str, str]:
    from ..core.errors import ConfigError

    found = dict(part.split("=", 1) for part in texts or [] if "=" in part)
    if len(found) != len(texts or []):
        raise ConfigError(
            f"{option} needs NAME=VALUE, each name once", expected=f"{option} {example}", got=", ".join(texts or [])
        )
    return found


def _merged(made: list[indexing.Piece]) -> tuple[pa.Table, list[dict[str, str]]]:
    """The rows of all sources by name, and for each source the datasets that took another name; a source whose rows were changed on the way is
    asked again next time."""
    import pyarrow as pa

    from ..data import merging

    renames = merging.told_apart([piece.origins for piece in made])
    table = pa.concat_tables([merging.renamed(piece.table, names) for piece, names in zip(made, renames)])
    if not table.num_rows:
        return table, renames
    table, changed = merging.named_once(table.take(_order(table)))
    for piece in made:
        if piece.note["root"] in changed:
            piece.note["digest"] = ""
    return table.take(_order(table)) if changed else table, renames


def _fulfilling(table: pa.Table, condition: Condition, left_out: dict[str, int]) -> pa.Table:
    """The rows that fulfil a condition; those that do not are counted by their source."""
    import pyarrow as pa

    from ..data.index import scans_of

    parts = (table.slice(start, 10_000) for start in range(0, table.num_rows, 10_000))
    kept = [condition.test(scan) for part in parts for scan in scans_of(part)]
    for root, keep in zip(table.column("source").to_pylist(), kept):
        left_out[root] += not keep
    return table.filter(pa.array(kept, pa.bool_()))


def _tell_unused(table: pa.Table, options: indexing.Options, made: list[indexing.Piece], exported: bool) -> None:
    """A word for every name in an option that met nothing: most are misspelt."""
    from ..core.errors import suggestion

    used = frozenset().union(*(piece.used for piece in made))
    datasets = sorted({name for piece in made for name in piece.origins} | set(table.column("dataset").unique().to_pylist()))
    spelled = sorted({text for text in table.column("contrast_raw").unique().to_pylist() if text})
    for option, names, known in (("--licence", options.licence, datasets), ("--contrast-map", options.mapping, spelled)):
        for name in names:
            if f"{option} {name}" not in used:
                what = "no dataset is called so" if option == "--licence" else "no scan's contrast is spelled so"
                logger.warning("%s %s: %s; %s", option, name, what, suggestion(name, known[:50]))
    paths = table.column("path").to_pylist() if options.variables else []
    for name, folder in options.variables.items():
        inside = os.path.join(os.path.abspath(folder), "")
        if not any(path.startswith(inside) for path in paths):
            logger.warning(
                "--variable %s: no scan lies in %s%s", name, folder, "" if exported else f", and no list asks for ${name}"
            )


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


def _duplicates(table: pa.Table, policy: str) -> tuple[pa.Table, list[list[str]]]:
    """The table with its duplicates told, and the groups of subjects that share a scan."""
    from ..core.records import BAD, OK, WARNING
    from ..data.index import duplicates, replaced

    groups = duplicates(table)
    checks = ["ok" if key is not None else None for key in table.column("content").to_pylist()]
    reasons, status = table.column("reasons").to_pylist(), table.column("status").to_pylist()
    for row, text in enumerate(table.column("check_duplicates").to_pylist()):
        if text and text.startswith("equals "):  # what an earlier index said; only rows that were usable had a key
            reasons[row] = [reason for reason in reasons[row] or () if not reason.startswith("the same image as ")]
            status[row] = WARNING if reasons[row] else OK
    if not groups:
        return replaced(table, check_duplicates=checks, reasons=reasons, status=status), []
    subjects, scans = table.column("subject").to_pylist(), table.column("scan").to_pylist()
    for group in groups:
        for row in group[1:]:
            checks[row] = f"equals {scans[group[0]]}"
            reasons[row] = [*reasons[row], f"the same image as {scans[group[0]]}"]
            status[row] = BAD if policy == "skip" else WARNING if status[row] == OK else status[row]
    return replaced(table, check_duplicates=checks, reasons=reasons, status=status), [
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
            if text is not None and (text.startswith("face") if name == "faces" else not text.startswith("ok"))
        ]
        if wrong:
            raise InputError(
                f"{len(wrong)} scans fail the check {name!r}", file=out, expected="none (--policy was fail); the index is not written",
                got="; ".join(f"{scan}: {text}" for scan, text in wrong[:3]), next_step=f"mend them, or use --policy {name}=skip",
            )  # fmt: skip


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


def _summary(table: pa.Table, out: Path, made: list[indexing.Piece], issues: Path | None, left_out: int) -> IndexSummary:
    import pyarrow.compute as pc

    from ..core.contrasts import UNKNOWN
    from ..core.records import BAD, OK, WARNING

    def counts(column: Any) -> dict[str, int]:
        return {item["values"]: item["counts"] for item in pc.value_counts(column).to_pylist()}

    status = counts(table.column("status"))
    unknown = table.filter(pc.equal(table.column("contrast"), UNKNOWN)).column("contrast_raw")
    licences: dict[str, str] = {}
    for row in table.select(["dataset", "licence"]).group_by(["dataset", "licence"]).aggregate([]).sort_by("licence").to_pylist():
        found = [licences[row["dataset"]]] if row["dataset"] in licences else []
        licences[row["dataset"]] = ", ".join([*found, row["licence"] or "not stated"])
    faces = [text for text in pc.unique(table.column("check_faces")).to_pylist() if text and text.startswith("face")]
    return IndexSummary(
        out, status.get(OK, 0), status.get(WARNING, 0), status.get(BAD, 0), sum(piece.reused for piece in made), counts(table.column("dataset")),
        len(pc.unique(table.column("subject"))), counts(table.column("contrast")), {k: n for k, n in counts(unknown).items() if k}, issues,
        dict(sorted(licences.items())), left_out, sum(counts(table.column("check_faces")).get(text, 0) for text in faces),
        {piece.note["root"]: f"{piece.note['reader']}: {piece.source.why}" for piece in made},
    )  # fmt: skip
