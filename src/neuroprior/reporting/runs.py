"""The runs part of a report: what was trained, how it went, and what it cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..core import artifacts
from . import figures
from ._rows import number


def run(folder: Path) -> dict[str, Any]:
    """What the page shows of a run folder: facts, curves, health, alarms, rollbacks, the last panel, ledger, recipe."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    ledger = artifacts.read_json(folder / "ledger.json") if (folder / "ledger.json").is_file() else {}
    model = artifacts.read_json(folder / "model" / "model.json") if (folder / "model" / "model.json").is_file() else {}
    panels = sorted((folder / "panels").glob("step-*.png"))
    return {
        "name": folder.name, "facts": _facts(folder, events, ledger, model), "curves": figures.curves(events), "health": figures.health(events),
        "alarms": [event for event in events if event["event"] == "alarm"],
        "rollbacks": [event for event in events if event["event"] == "rollback"],
        "panels": figures.embed(panels[-1]) if panels else None, "panels_title": panels[-1].stem if panels else "",
        "ledger": _ledger(ledger), "cost": _cost(ledger), "recipe": (folder / "recipe.yaml").read_text(encoding="utf-8"),
        "environment": json.dumps(artifacts.read_json(folder / "environment.json"), indent=1),
    }  # fmt: skip


def _facts(folder: Path, events: list[dict[str, Any]], ledger: dict[str, Any], model: dict[str, Any]) -> list[tuple[str, Any]]:
    facts: list[tuple[str, Any]] = [
        ("status", "complete" if (folder / artifacts.MARKER).is_file() else "not finished"),
        ("steps", ledger.get("steps", len([e for e in events if e["event"] == "step"]))),
    ]
    if model:
        method, data = model["method"], model.get("data", {})
        facts += [
            ("network", f"{model['net']['name']}, {model['parameters']['net'] / 1e6:.2f} M parameters"),
            ("objective" if model["kind"] == "pretrained" else "task",
             method.get("objective") or f"{model['task']['name']} of {model['task']['target']}, from {method['initialised_from']}, "
             f"{method['training_subjects']} training subjects"),
            ("contrasts", ", ".join(model["contrasts"])),
            ("data", f"{data.get('subjects')} subjects, {data.get('sessions')} sessions, {data.get('scans')} scans of {', '.join(data.get('datasets', []))}"),
            ("licences of the data", "; ".join(model["licences"]) or "not stated"),
        ]  # fmt: skip
    for kind, title in (("validation", "last validation"), ("probe", "last linear probes")):
        found = [e for e in events if e["event"] == kind]
        if found:
            facts.append((title, ", ".join(f"{k} {number(v)}" for k, v in found[-1].items() if k not in ("event", "step"))))
    return facts


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


COST = ("device", "seconds", "device-hours", "TFLOP", "peak MB", "kWh")
"""Heads of the table of all ledgers."""


def _cost(ledger: dict[str, Any]) -> list[str]:
    """One line of the table of all ledgers; a dash is not counted, not zero."""
    if not ledger:
        return ["not written yet", *["–"] * (len(COST) - 1)]
    flops = ledger.get("flops_total")
    return [
        str(ledger["device"]), f"{ledger['wall_seconds']:.0f}", f"{ledger['device_hours']:.3f}", "–" if not flops else f"{flops / 1e12:.2f}",
        f"{ledger['peak_memory_mb']:.0f}", "–" if ledger.get("energy_kwh") is None else f"{ledger['energy_kwh']:.4f}",
    ]  # fmt: skip


def ledgers(runs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What all runs cost, side by side; None for fewer than two."""
    if len(runs) < 2:
        return None
    return {"heads": ["run", *COST], "rows": [[run["name"], *run["cost"]] for run in runs]}
