"""Report: runs, predictions and scores in, one offline page out."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

FORMATS = ("html", "md", "json")
MAX_CASES = 10


def report(
    sources: list[Path],
    out: Path = Path("report"),
    title: str = "Neuroprior report",
    format: str = "html",
    viewers: bool = True,
    protocol: str | None = None,
    index: Path | None = None,
    groups: str = "sex,age,site,scanner",
) -> Path:
    """Write one offline page from any mix of runs, predictions and scores; the scores of several models are also ranked.

    Args:
        sources: run folders, predictions folders, tables (.parquet) of scores, few-shot curves, stress tests, probes and audits, and folders
            that hold such tables. Models whose names end in "seed 0", "seed 1" ... are ranked as one, over their seeds.
        out: folder of the report: the page, its tables as CSV and Parquet, and the viewers of its cases.
        title: of the page.
        format: html (a page for people), md (for a repository or an issue) or json (for programs).
        viewers: also write a slice viewer for each shown case (html only; a few megabytes each).
        protocol: challenge whose metrics and weights rank the models, such as fomo26; without it every task counts the same.
        index: index of the scored subjects, to also show the scores by group.
        groups: comma-separated columns of that index to group by.

    Returns:
        The page.

    Raises:
        InputError: a source is not there or is none of these, or two tables name one model on the same cases.
        ConfigError: an unknown format or protocol, or a protocol that the tasks do not fit.
    """
    import jinja2
    import pandas as pd

    from .. import __version__
    from ..assessments.accuracy import EMPTY_RULES, printed_rule
    from ..core import artifacts
    from ..core.errors import ConfigError, InputError
    from ..protocols import read as read_protocol
    from ..reporting import cases as case_part
    from ..reporting import figures
    from ..reporting import groups as group_part
    from ..reporting import probes as probe_part
    from ..reporting import ranking as rank_part
    from ..reporting import runs as run_part
    from ..reporting import scores as score_part
    from ..reporting import tables as table_part

    if format not in FORMATS:
        raise ConfigError(f"unknown --format {format!r}", expected=" or ".join(FORMATS))
    rules_of = None if protocol is None else read_protocol(protocol)
    runs, folders, tables, probes, stressed, audits, curves = [], [], [], [], [], [], []
    others: dict[str, pd.DataFrame] = {}
    rules: set[str] = set()
    references: dict[str, str] = {}
    dice: dict[tuple[str, str], float] = {}
    for source in _expanded(sources):
        if source.suffix == ".parquet" and source.is_file():
            frame, note = _read_table(source)
            if (
                note["artifact"] == "audit"
                or note.get("stage") == "fewshot"
                or note.get("assessment") in ("disentanglement", "robustness")
            ):
                others[_unused(f"{source.parent.name}-{source.stem}", others)] = frame
            if note["artifact"] == "audit":
                audits.append(table_part.audit(source, frame))
                continue
            if note.get("stage") == "fewshot":
                curves.append(table_part.curve(source, note))
                continue
            if note.get("assessment") == "disentanglement":
                probes.append(probe_part.probes(source, frame, note))
                continue
            if note.get("assessment") == "robustness":
                pictures = [source.parent / name for name in note.get("pictures", [])]
                shown_pictures = [{"title": p.stem, "src": figures.embed(p)} for p in pictures if p.is_file()]
                stressed.append(score_part.robustness(frame, note, source.parent.name) | {"pictures": shown_pictures})
                continue
            _distinct(source, frame, tables)
            tables.append((source, frame))
            if note.get("rule"):
                rules.add(str(note["rule"]))
            references |= note.get("references") or {}
            dice |= _dice(frame, str(note.get("predictions")))
        elif (source / "events.jsonl").is_file():
            runs.append(run_part.run(source))
        elif (source / "predictions.tsv").is_file():
            folders.append(source)
        else:
            raise InputError(
                "this is nothing a report is made from", file=source,
                expected="a run folder, a predictions folder, or a table (.parquet) of scores, curves, stress tests, probes or an audit or a folder that holds some", got="nothing there" if not source.exists() else None,
            )  # fmt: skip
    scores = pd.concat([frame for _, frame in tables], ignore_index=True) if tables else pd.DataFrame()
    ranking = rank_part.ranking(scores, rules_of) if len(scores) else None
    if ranking:
        logger.info("%s", ranking["sentence"])
    columns = [name.strip() for name in groups.split(",") if name.strip()]
    known = {} if index is None else group_part.of_cases(_columns(index, columns), columns)
    forests = group_part.forests(scores, known) if len(scores) else []
    shown = []
    if format == "html":
        chosen = case_part.choose(folders, references, dice, MAX_CASES)
        shown = [case_part.show(item, out, number, viewers=viewers) for number, item in enumerate(_progress(chosen), start=1)]
    counted = {
        "run": len(runs), "prediction set": len(folders), "scored case": int((scores["case"].unique() != "all").sum()) if len(scores) else 0,
        "table of probes": len(probes), "stress test": len(stressed), "few-shot curve": len(curves), "audit": len(audits),
    }  # fmt: skip
    lead = ", ".join(f"{n} {name if n == 1 else _plural(name)}" for name, n in counted.items() if n)
    content: dict[str, Any] = {
        "title": title, "lead": lead, "ranking": ranking, "forests": forests, "tasks": score_part.tasks(scores) if len(scores) else [],
        "tables": score_part.conditions(scores) if len(scores) else [], "cases": shown, "runs": runs,
        "problems": [row for folder in folders for row in case_part.problems(folder)], "probes": probes, "stressed": stressed, "audits": audits, "curves": curves,
        "rule": " and ".join(sorted(rules)) or "not stated", "rules": [line for rule in sorted(rules) if rule in EMPTY_RULES for line in printed_rule(rule).splitlines()],
        "ledgers": run_part.ledgers(runs), "version": __version__, "downloads": [],
    }  # fmt: skip
    for name, frame in (({"scores": scores} if len(scores) else {}) | others).items():
        artifacts.write_text(out / f"{name}.csv", frame.to_csv(index=False))
        with artifacts.atomic(out / f"{name}.parquet") as temporary:
            frame.to_parquet(temporary, index=False)
        content["downloads"] += [f"{name}.csv", f"{name}.parquet"]
    page = out / f"report.{format}"
    if format == "json":
        artifacts.write_json(page, _without_pictures(content))
        return page
    templates = Path(score_part.__file__).parent
    environment = jinja2.Environment(
        autoescape=format == "html", trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string((templates / f"page.{format}.j2").read_text(encoding="utf-8"))
    artifacts.write_text(page, template.render(content))
    return page


def _expanded(sources: Iterable[Path]) -> list[Path]:
    """The sources with each folder of tables replaced by its tables, and a run of several seeds by its runs; every file once."""
    from ..core.errors import ArtifactError

    made: dict[Path, Path] = {}
    for source in map(Path, sources):
        found = [source]
        if source.is_dir() and not (source / "events.jsonl").is_file() and not (source / "predictions.tsv").is_file():
            found = []
            for path in sorted(source.glob("*.parquet")):
                try:
                    _read_table(path)
                except ArtifactError:
                    continue  # an index beside the scores
                found.append(path)
            found = found or sorted(path.parent for path in source.glob("seed-*/events.jsonl"))
        for path in found or [source]:
            made.setdefault(path.resolve(), path)
    return list(made.values())


def _distinct(source: Path, frame: pd.DataFrame, tables: list[tuple[Path, pd.DataFrame]]) -> None:
    """Two models of one name would be mixed up.

    Raises:
        InputError: a table before this one has rows of the same model, case, metric, region and condition.
    """
    from ..core.errors import InputError

    key = ["model", "task", "target", "case", "metric", "region", "condition"]
    mine = frame[~frame["model"].str.startswith("floor")][key].drop_duplicates()
    for other, before in tables:
        if not set(mine["model"]) & set(before["model"]):
            continue
        same = mine.merge(before[key].drop_duplicates(), on=key)
        if len(same):
            raise InputError(
                f"two tables score a model named {same['model'].iloc[0]!r} on the same cases", file=source, got=f"also in {other}",
                next_step="score one of them again with neuroprior evaluate --name (several seeds: --name 'NAME seed 0', 'NAME seed 1' ...)",
            )  # fmt: skip


def _plural(name: str) -> str:
    return name.replace("table", "tables") if " of " in name else f"{name}s"


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    """A file name that is not taken yet."""
    return next(found for found in (name, *(f"{name}-{k}" for k in range(2, 1000))) if found not in taken)


def _columns(index: Path, columns: list[str]) -> dict[str, dict[str, Any]]:
    """Case -> column -> value, as cases are called in score tables."""
    from ..core.records import BAD
    from ..data.index import read_index

    made: dict[str, dict[str, Any]] = {}
    for scan in read_index(index):
        if scan.status != BAD:
            known = made.setdefault(f"{scan.subject}/{scan.session}" if scan.session else scan.subject, dict.fromkeys(columns))
            for column in columns:
                if known[column] is None:
                    known[column] = scan.value(column)
    return made


def _progress(items: list[Any]) -> Any:
    from rich.progress import track

    return track(items, description="drawing cases", disable=len(items) < 2)


def _read_table(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A table and what the command that made it noted about it."""
    import pyarrow.parquet as pq

    from ..core.errors import ArtifactError, InputError

    try:
        table = pq.read_table(path)
    except (OSError, ValueError) as error:  # what pyarrow raises is one of these
        raise InputError(
            "the table cannot be read", file=path, expected="a Parquet file", got=str(error).splitlines()[0]
        ) from None
    try:
        note = json.loads((table.schema.metadata or {}).get(b"neuroprior", b"{}"))
    except ValueError:  # a table of ours that tells something else there
        note = {}
    if note.get("artifact") not in ("scores", "audit"):
        raise ArtifactError(
            "this table holds nothing that a report shows", file=path,
            expected="made by neuroprior evaluate, crossvalidate, fewshot, stress, probe or audit", got=note.get("artifact"),
        )  # fmt: skip
    return table.to_pandas(), note


def _dice(frame: pd.DataFrame, predictions: str) -> dict[tuple[str, str], float]:
    """(predictions folder, case) -> Dice, the mean over regions."""
    rows = frame[
        (frame["metric"] == "dice") & (frame["case"] != "all") & (frame["condition"] == "clean") & frame["value"].notna()
    ]
    rows = rows[~rows["model"].str.startswith("floor")]
    folder = str(Path(predictions).resolve())
    return {(folder, str(case)): float(value) for case, value in rows.groupby("case")["value"].mean().items()}


def _without_pictures(value: Any) -> Any:
    """The content with pictures left out, for programs."""
    if isinstance(value, dict):
        return {
            key: _without_pictures(item)
            for key, item in value.items()
            if not (isinstance(item, str) and item.startswith("data:image"))
        }
    if isinstance(value, list | tuple):
        return [_without_pictures(item) for item in value]
    return value
