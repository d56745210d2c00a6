"""Report: runs, predictions and scores in, one offline page out."""

from __future__ import annotations

import json
import logging
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
) -> Path:
    """Write one offline page from any mix of runs, predictions and scores.

    Args:
        sources: run folders, predictions folders, and tables (.parquet) of scores, few-shot curves, stress tests, probes and audits.
        out: folder of the report: the page, scores.csv, scores.parquet and the viewers of its cases.
        title: of the page.
        format: html (a page for people), md (for a repository or an issue) or json (for programs).
        viewers: also write a slice viewer for each shown case (html only; a few megabytes each).

    Returns:
        The page.

    Raises:
        InputError: a source is not there or is none of these.
    """
    import jinja2
    import pandas as pd

    from .. import __version__
    from ..core import artifacts
    from ..core.errors import ConfigError, InputError
    from ..reporting import cases as case_part
    from ..reporting import figures
    from ..reporting import probes as probe_part
    from ..reporting import runs as run_part
    from ..reporting import scores as score_part
    from ..reporting import tables as table_part

    if format not in FORMATS:
        raise ConfigError(f"unknown --format {format!r}", expected=" or ".join(FORMATS))
    runs, folders, tables, probes, stressed, audits, curves = [], [], [], [], [], [], []
    rules: set[str] = set()
    references: dict[str, str] = {}
    dice: dict[tuple[str, str], float] = {}
    for source in map(Path, sources):
        if source.suffix == ".parquet" and source.is_file():
            frame, note = _read_table(source)
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
            tables.append(frame)
            rules.add(str(note.get("rule")))
            references |= note.get("references") or {}
            dice |= _dice(frame, str(note.get("predictions")))
        elif (source / "events.jsonl").is_file():
            runs.append(run_part.run(source))
        elif (source / "predictions.tsv").is_file():
            folders.append(source)
        else:
            raise InputError(
                "this is nothing a report is made from", file=source,
                expected="a run folder, a predictions folder or a table (.parquet) of scores, curves, stress tests, probes or an audit", got="nothing there" if not source.exists() else None,
            )  # fmt: skip
    scores = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    shown = []
    if format == "html":
        chosen = case_part.choose(folders, references, dice, MAX_CASES)
        shown = [case_part.show(item, out, number, viewers=viewers) for number, item in enumerate(_progress(chosen), start=1)]
    lead = ", ".join(
        part for part in (
            f"{len(runs)} runs" if runs else "", f"{len(folders)} prediction sets" if folders else "",
            f"{scores['case'].nunique() - 1} scored cases" if len(scores) else "", f"{len(probes)} tables of probes" if probes else "",
            f"{len(stressed)} stress tests" if stressed else "",
            f"{len(curves)} few-shot curves" if curves else "", f"{len(audits)} audits" if audits else "",
        ) if part
    )  # fmt: skip
    content: dict[str, Any] = {
        "title": title, "lead": lead, "tasks": score_part.tasks(scores) if len(scores) else [],
        "tables": score_part.conditions(scores) if len(scores) else [], "cases": shown, "runs": runs,
        "problems": [row for folder in folders for row in case_part.problems(folder)], "probes": probes, "stressed": stressed, "audits": audits, "curves": curves,
        "rule": " and ".join(sorted(rules)) or "none", "resamples": 2000, "version": __version__, "downloads": [],
    }  # fmt: skip
    if len(scores):
        artifacts.write_text(out / "scores.csv", scores.to_csv(index=False))
        with artifacts.atomic(out / "scores.parquet") as temporary:
            scores.to_parquet(temporary, index=False)
        content["downloads"] = ["scores.csv", "scores.parquet"]
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


def _progress(items: list[Any]) -> Any:
    from rich.progress import track

    return track(items, description="drawing cases", disable=len(items) < 2)


def _read_table(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A table and what the command that made it noted about it."""
    import pyarrow.parquet as pq

    from ..core.errors import ArtifactError

    table = pq.read_table(path)
    note = json.loads((table.schema.metadata or {}).get(b"neuroprior", b"{}"))
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
