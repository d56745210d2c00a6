"""Report: runs, predictions and scores in, one offline page out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LOWER_IS_BETTER = {"hd95_mm", "mae", "rmse", "absolute_error", "ece", "brier"}
ORDER = (
    "dice", "nsd", "hd95_mm", "lesion_f1", "lesion_recall", "empty_specificity", "volume_difference_ml", "auroc", "auprc",
    "balanced_accuracy", "f1", "sensitivity", "specificity", "ece", "brier", "mae", "rmse", "pearson_r",
)  # fmt: skip
PER_CASE = {"segmentation": "dice", "regression": "absolute_error", "classification": "correct"}
MAX_OVERLAYS, MAX_CASE_ROWS = 8, 400


def report(sources: list[Path], out: Path = Path("report"), title: str = "Neuroprior report") -> Path:
    """Write one offline HTML page from any mix of runs, predictions and scores.

    Args:
        sources: run folders, predictions folders, and tables of scores or probes (.parquet).
        out: folder of the report: report.html and scores.csv.
        title: of the page.

    Returns:
        The page.

    Raises:
        InputError: a source is not there or is none of these.
    """
    import jinja2
    import pandas as pd

    from .. import __version__
    from ..core import artifacts
    from ..core.errors import InputError

    runs, predictions, tables, probes = [], [], [], []
    rules: set[str] = set()
    references: dict[str, str] = {}
    for source in map(Path, sources):
        if source.suffix == ".parquet" and source.is_file():
            frame, note = _read_scores(source)
            if note.get("assessment") == "disentanglement":
                probes.append(_probes(source, frame, note))
                continue
            tables.append(frame)
            rules.add(str(note.get("rule")))
            references |= note.get("references") or {}
        elif (source / "events.jsonl").is_file():
            runs.append(_run(source))
        elif (source / "predictions.tsv").is_file():
            predictions.append(source)
        else:
            raise InputError(
                "this is nothing a report is made from", file=source,
                expected="a run folder, a predictions folder or a table of scores or probes (.parquet)", got="nothing there" if not source.exists() else None,
            )  # fmt: skip
    scores = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    problems: list[dict[str, Any]] = []
    overlays: list[dict[str, Any]] = []
    for folder in predictions:
        _look(folder, references, problems, overlays)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((Path(__file__).parent / "report.html.j2").read_text(encoding="utf-8"))
    lead = ", ".join(
        part for part in (
            f"{len(runs)} runs" if runs else "", f"{len(predictions)} prediction sets" if predictions else "",
            f"{scores['case'].nunique() - 1} scored cases" if len(scores) else "",
            f"{len(probes)} tables of probes" if probes else "",
        ) if part
    )  # fmt: skip
    page = template.render(
        title=title, lead=lead, tasks=_tasks(scores) if len(scores) else [], overlays=overlays, runs=runs, problems=problems, probes=probes,
        rule=" and ".join(sorted(rules)) or "none", resamples=2000, version=__version__,
    )  # fmt: skip
    artifacts.write_text(out / "report.html", page)
    if len(scores):
        artifacts.write_text(out / "scores.csv", scores.to_csv(index=False))
    return out / "report.html"


def _read_scores(path: Path) -> tuple[Any, dict[str, Any]]:
    """The table and what evaluate noted about it."""
    import pyarrow.parquet as pq

    from ..core.errors import ArtifactError

    table = pq.read_table(path)
    note = json.loads((table.schema.metadata or {}).get(b"neuroprior", b"{}"))
    if note.get("artifact") != "scores":
        raise ArtifactError(
            "this table holds no scores", file=path, expected="made by neuroprior evaluate or probe", got=note.get("artifact")
        )
    return table.to_pandas(), note


def _probes(path: Path, frame: Any, note: dict[str, Any]) -> dict[str, Any]:
    """What the section of a table of probes shows: a row for each half and kind of features, a column for each question."""
    from ..assessments import _figures as figures

    columns = list(dict.fromkeys(zip(frame["target"], frame["metric"], strict=True)))
    blocks = []
    for condition, part in frame.groupby("condition", sort=False):
        here = [pair for pair in columns if ((part["target"] == pair[0]) & (part["metric"] == pair[1])).any()]
        rows = []
        for (model, half), cells in part.groupby(["model", "region"], sort=False):
            found = {(row["target"], row["metric"]): row for row in cells.to_dict("records")}
            shown = [
                {"text": _cell(found[pair]), "note": found[pair]["note"]} if pair in found else {"text": "", "note": ""}
                for pair in here
            ]
            rows.append(
                {"model": model, "half": half, "cells": shown, "floor": model in ("outline", "raw_pixels", "random_weights")}
            )
        blocks.append({
            "condition": condition, "rows": rows,
            "heads": [f"{target}: {metric}".replace("_", " ") for target, metric in here],
        })  # fmt: skip
    pictures = [path.parent / name for name in note.get("pictures", [])]
    return {
        "name": path.stem, "blocks": blocks, "fit": ", ".join(note.get("fit", [])), "evaluate": ", ".join(note.get("evaluate", [])),
        "subjects": note.get("subjects_evaluated"), "resamples": note.get("config", {}).get("resamples"),
        "pictures": [{"title": picture.stem, "src": figures.embed(picture)} for picture in pictures if picture.is_file()],
    }  # fmt: skip


def _number(value: Any) -> str:
    return "–" if value is None or value != value else f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def _tasks(scores: Any) -> list[dict[str, Any]]:
    """What the scores section shows of each task."""
    tasks = []
    for (task, target), frame in scores.groupby(["task", "target"], sort=False):
        whole = frame[frame["case"] == "all"]
        columns = sorted(
            {(m, r) for m, r in zip(whole["metric"], whole["region"], strict=True)},
            key=lambda pair: (ORDER.index(pair[0]) if pair[0] in ORDER else len(ORDER), pair[1]),
        )
        models = list(dict.fromkeys(frame["model"]))
        models.sort(key=lambda name: name.startswith("floor"))
        rows = []
        for model in models:
            cells = []
            for metric, region in columns:
                found = whole[(whole["model"] == model) & (whole["metric"] == metric) & (whole["region"] == region)]
                cells.append(_cell(found.iloc[0]) if len(found) else "")
            rows.append({"model": model, "cells": cells, "floor": model.startswith("floor")})
        several = len({region for _, region in columns}) > 1
        heads = [m.replace("_", " ") + (f" ({r})" if several and r not in ("all", target) else "") for m, r in columns]
        cases = frame[(frame["case"] != "all") & ~frame["model"].str.startswith("floor")]
        tasks.append({
            "name": f"{task} of {target}", "metrics": heads, "rows": rows, "differences": _differences(frame, models, task),
            "figures": _figures(frame, task, target),
            "cases": [
                {"case": r.case, "model": r.model, "metric": r.metric, "region": r.region, "value": _number(r.value), "note": r.note}
                for r in cases.head(MAX_CASE_ROWS).itertuples()
            ],
        })  # fmt: skip
    return tasks


def _cell(row: Any) -> str:
    if row["value"] != row["value"] or row["value"] is None:
        return "not defined"
    between = "" if row["low"] != row["low"] or row["low"] is None else f" [{_number(row['low'])}, {_number(row['high'])}]"
    return f"{_number(row['value'])}{between} n={row['n']}"


def _differences(frame: Any, models: list[str], task: str) -> list[dict[str, Any]]:
    """Each model against the one from scratch (or the last one named), over the same cases."""
    from itertools import combinations

    from ..assessments.accuracy import paired_difference
    from ..core.records import Score

    real = [name for name in models if not name.startswith("floor")]
    made = []
    metric = PER_CASE.get(task)
    for first, second in combinations(real, 2):
        if metric is None:
            continue
        rows = {
            name: [
                Score(**{k: (None if v != v else v) for k, v in row.items()})
                for row in frame[frame["model"] == name].to_dict("records")
            ]
            for name in (first, second)
        }
        for region in sorted(set(frame[frame["metric"] == metric]["region"])):
            found = paired_difference(rows[first], rows[second], metric, region)
            if found is None:
                continue
            better = (found["difference"] < 0) == (metric in LOWER_IS_BETTER)
            clear = found["low"] is not None and (found["low"] > 0 or found["high"] < 0)
            made.append({
                "pair": f"{first} – {second}", "metric": f"{metric.replace('_', ' ')} ({region})", "value": f"{found['difference']:+.3f}",
                "interval": "too few cases" if found["low"] is None else f"[{found['low']:+.3f}, {found['high']:+.3f}]", "n": found["n"],
                "verdict": f"{first if better else second} better" if clear else "no clear difference",
            })  # fmt: skip
    return made


def _figures(frame: Any, task: str, target: str) -> list[str]:
    from ..assessments import _figures as figures

    cases = frame[(frame["case"] != "all") & ~frame["model"].str.startswith("floor")]
    if task == "regression":
        wide = {
            name: cases[cases["metric"] == name].pivot_table(index="case", columns="model", values="value")
            for name in ("truth", "predicted")
        }
        shared = wide["predicted"].dropna()
        if len(shared) < 2:
            return []
        truth = wide["truth"].loc[shared.index].iloc[:, 0]
        return [figures.scatter(list(truth), {str(m): list(shared[m]) for m in shared}, target)]
    if task == "classification":
        rows = cases[cases["metric"] == "probability"]
        notes = frame[(frame["case"] == "all") & (frame["metric"] == "auroc")]["note"]
        positive = notes.iloc[0].removeprefix("positive class ").rsplit(",", 1)[0] if len(notes) else ""
        truth = rows["note"].str.removeprefix("truth ") == positive
        if truth.nunique() < 2:
            return []
        return [figures.roc({str(m): (list(truth[g.index]), list(g["value"])) for m, g in rows.groupby("model")})]
    return []


def _run(folder: Path) -> dict[str, Any]:
    """What a run's section shows."""
    from ..assessments import _figures as figures
    from ..core import artifacts

    events = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    ledger = artifacts.read_json(folder / "ledger.json") if (folder / "ledger.json").is_file() else {}
    model = artifacts.read_json(folder / "model" / "model.json") if (folder / "model" / "model.json").is_file() else {}
    panels = sorted((folder / "panels").glob("step-*.png"))
    data = model.get("data", {})
    facts = [
        ("status", "complete" if (folder / artifacts.MARKER).is_file() else "not finished"),
        ("steps", ledger.get("steps", len([e for e in events if e["event"] == "step"]))),
    ]
    if model:
        method = model["method"]
        facts += [
            ("network", f"{model['net']['name']}, {model['parameters']['net'] / 1e6:.2f} M parameters"),
            ("objective" if model["kind"] == "pretrained" else "task",
             method.get("objective") or f"{model['task']['name']} of {model['task']['target']}, from {method['initialised_from']}, "
             f"{method['training_subjects']} training subjects"),
            ("contrasts", ", ".join(model["contrasts"])),
            ("data", f"{data.get('subjects')} subjects, {data.get('sessions')} sessions, {data.get('scans')} scans of {', '.join(data.get('datasets', []))}"),
            ("licences of the data", "; ".join(model["licences"]) or "not stated"),
        ]  # fmt: skip
    validation = [e for e in events if e["event"] == "validation"]
    if validation:
        facts.append(
            ("last validation", ", ".join(f"{k} {_number(v)}" for k, v in validation[-1].items() if k not in ("event", "step")))
        )
    read = [e for e in events if e["event"] == "probe"]
    if read:
        facts.append(
            ("last linear probes", ", ".join(f"{k} {_number(v)}" for k, v in read[-1].items() if k not in ("event", "step")))
        )
    return {
        "name": folder.name, "facts": facts, "curves": figures.curves(events), "health": figures.health(events),
        "alarms": [event for event in events if event["event"] == "alarm"],
        "rollbacks": [event for event in events if event["event"] == "rollback"],
        "panels": figures.embed(panels[-1]) if panels else None, "panels_title": panels[-1].stem if panels else "",
        "ledger": _ledger(ledger), "recipe": (folder / "recipe.yaml").read_text(encoding="utf-8"),
        "environment": json.dumps(artifacts.read_json(folder / "environment.json"), indent=1),
    }  # fmt: skip


def _ledger(ledger: dict[str, Any]) -> list[tuple[str, str]]:
    if not ledger:
        return [("not written yet", "")]
    flops, rate = ledger.get("flops_total"), ledger.get("flops_per_second")
    return [
        ("device", str(ledger["device"])),
        ("time", f"{ledger['wall_seconds']:.0f} s, {ledger['device_hours']:.3f} device-hours, {ledger['cpu_seconds'] / 3600:.3f} CPU-hours"),
        ("of it", f"{ledger['data_wait_share'] or 0:.1%} waiting for data, {ledger['validation_seconds']:.0f} s validation, {ledger['checkpoint_seconds']:.1f} s saving"),
        ("speed", f"{ledger['steps_per_second'] or 0:.2f} steps/s" + (f", {rate / 1e9:.1f} GFLOP/s" if rate else "")),
        ("operations", f"{flops / 1e12:.2f} TFLOP ({ledger['flops_note']})" if flops else "not counted"),
        ("peak memory", f"{ledger['peak_memory_mb']:.0f} MB"),
        ("energy", f"{ledger['energy_kwh']:.4f} kWh" if ledger.get("energy_kwh") is not None else str(ledger["energy_note"])),
    ]  # fmt: skip


def _look(folder: Path, references: dict[str, str], problems: list[dict[str, Any]], overlays: list[dict[str, Any]]) -> None:
    """The failed cases of a predictions folder, and pictures of the first masks."""
    import csv

    with open(folder / "predictions.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for row in rows:
        if row["status"] != "ok":
            problems.append({"where": folder.name, "case": row["case"], "reason": row["reason"]})
    masks = [row for row in rows if row["status"] == "ok" and row["output"] != "n/a"]
    for row in masks[: max(0, MAX_OVERLAYS - len(overlays))]:
        overlays.append(_overlay(folder, row, references.get(row["case"])))


def _overlay(folder: Path, row: dict[str, str], reference_path: str | None) -> dict[str, Any]:
    from ..assessments import _figures as figures
    from ..core import nifti
    from ..core.geometry import canonical_grid, grid_of, resample, resample_labels

    image, _ = nifti.read_scan(row["input"])
    mask, _ = nifti.read_labels(folder / row["output"])
    grid = canonical_grid(grid_of(image), None)
    reference = None
    if reference_path is not None:
        truth, _ = nifti.read_labels(reference_path)
        reference = resample_labels(truth, grid)
    title = f"{row['case']}: {row['target']} by {folder.name}"
    source = figures.overlay(resample(image, grid), resample_labels(mask, grid), reference, grid.spacing_mm)
    return {"title": title, "src": source}
