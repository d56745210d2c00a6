"""Bench: what a recipe costs on this machine, in about one minute."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.places import Place

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bench:
    """What was measured.

    Attributes:
        record: the JSON line: commit, machine, medians, spread.
        out: the file it was added to.
    """

    record: dict[str, Any]
    out: Path

    def __str__(self) -> str:
        r = self.record
        low, high = r["step_s_spread"]
        steps = (
            "of the recipe"
            if r["eta_of"] is None
            else f"of the recipe with {r['eta_of']} training subjects (--subjects for another number)"
        )
        energy = "not known (no GPU whose energy counter can be read)"
        if r["energy_wh_per_step"] is not None:
            energy = f"{r['energy_wh_per_step']:.4f} Wh a step"
        return "\n".join([
            f"{r['recipe']} on {r['device']}, precision {r['precision']}, batch {r['batch']} x {r['accumulate']}, {r['steps']} steps measured",
            f"steps      {r['steps_per_s']:.3f} a second; a step {r['step_s']:.3f} s ({low:.3f} to {high:.3f})",
            f"pairs      {r['pairs_per_s']:.2f} a second, {r['scans_per_s']:.2f} boxes",
            f"data wait  {100 * r['data_wait_share']:.1f} %",
            f"memory     {r['peak_memory_mb']:.0f} MB at the peak ({r['memory_of']})",
            f"ETA        {r['eta_hours']:.2f} h for {r['eta_steps']} steps {steps}",
            f"energy     {energy}",
            f"added to {self.out}",
        ])  # fmt: skip


@dataclass(frozen=True)
class Cards:
    """How a recipe's step fits into the memory of the cards that people have.

    Attributes:
        record: the JSON line; ``cards`` has GB -> the way, or None where nothing fits.
        out: the file it was added to.
    """

    record: dict[str, Any]
    out: Path

    def __str__(self) -> str:
        r = self.record
        lines = [
            f"{r['recipe']}: {r['effective']} samples a step, by {r['by']} at {r['precision']}",
            "card     a step          MiB     settings",
        ]
        for gb, way in r["cards"].items():
            told = "nothing fits: a smaller data.patch, training.batch or net"
            if way is not None:
                shape = f"{way['batch']} x {way['accumulate']}, r{way['recompute']}"
                told = f"{shape:<14}  {way['peak_mb']:6.0f}  " + " ".join(f"--set {setting}" for setting in way["settings"])
            lines.append(f"{gb + ' GB':<7}  {told}")
        lines += [
            "r: finest levels whose maps are computed again. neuroprior pretrain --vram 24 chooses for itself.",
            f"added to {self.out}",
        ]
        return "\n".join(lines)


def bench(
    recipe: str = "fomo25",
    store: Place | None = None,
    seconds: float = 40.0,
    subjects: int | None = None,
    cards: bool = False,
    out: Path = Path("bench.jsonl"),
    set: list[str] | None = None,
) -> Bench | Cards:
    """Measure steps, data wait, memory and energy of a recipe here, and say how long its schedule would take.

    The net is trained from scratch on real batches of the store and thrown away. Medians are of whole steps, the wait for data
    included. Nothing is compiled, and one process is measured.

    Args:
        recipe: name on the recipes shelf, or a YAML file.
        store: prepared store, or the address of one; without one, four synthetic heads are made in a temporary folder.
        seconds: of measuring, after two steps that do not count; at least three steps are measured.
        subjects: training subjects that the ETA is for, where the recipe counts epochs; by default those of the store.
        cards: say instead how a step fits into GPUs of 8, 12, 24, 40 and 80 GB: measured on a GPU; without one, live tensors are counted.
        out: JSON-lines file that the result is added to.
        set: settings such as training.batch=2 or data.patch=96.

    Returns:
        The measured figures.

    Raises:
        ConfigError: a setting or a number is unknown or impossible.
        InputError: the store has nothing to train on.
    """
    import json
    import tempfile

    from ..core.errors import ConfigError
    from ..objectives._recipe import read_recipe

    if subjects is not None and subjects < 1:
        raise ConfigError("--subjects is a number of training subjects", expected="1 or more", got=subjects)
    settings = read_recipe(recipe, set or [])
    with tempfile.TemporaryDirectory(prefix="neuroprior-bench-") as folder:
        made = store is None
        store = store or _synthetic(Path(folder), max(settings.data.size))
        record = _cards(settings, store) if cards else _measured(settings, store, seconds, subjects)
    kind = "cards" if cards else "recipe"
    record = {"benchmark": kind, "recipe": recipe, "settings": list(set or []), "synthetic_store": made, **record}
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    return Cards(record, out) if cards else Bench(record, out)


def _ready(settings: Any, store: Place) -> tuple[Any, Any, Any]:
    """The settings fitted to a store, its training pairs, and the objective around a net from scratch."""
    import numpy as np
    import torch

    from ..core import seeds
    from ..data.pairs import PairDataset
    from ..data.store import Store
    from ..inference import model as models

    opened, config = Store.open(store), settings.training
    vectors: dict[str, Any] = {}
    if settings.wants_vectors():  # the cost does not depend on what they say
        random = np.random.default_rng(0)
        vectors = {name: random.standard_normal(102).astype(np.float32) for name in {s.subject for s in opened.sessions}}
    settings = settings.fitted(dimension=102 if vectors else 0, contrasts=tuple(opened.data_summary()["contrasts"]))
    dataset = PairDataset(opened, ("train",), settings.data, seed=config.seed, anatomy=vectors, batch=config.batch)
    torch.manual_seed(seeds.entropy(config.seed, "initialisation") % 2**63)
    return settings, dataset, settings.build_objective(models.build_net(settings.net_name, settings.net))


def _cards(settings: Any, store: Place) -> dict[str, Any]:
    from dataclasses import asdict

    import torch

    from ..core import artifacts
    from ..data.pairs import collate_pairs
    from ..engine import vram
    from ..engine.device import device_of

    settings, dataset, objective = _ready(settings, store)
    config, device = settings.training, device_of(settings.training)

    def draw(n: int) -> Any:
        return collate_pairs([dataset[number] for number in range(n)])

    ladder = vram.ladder(objective, config, draw, couples=settings.together(objective), precision="gpu")
    ways = {str(gb): ladder.fitting(vram.limit_of(str(gb), config)) for gb in vram.CARDS_GB}
    on_gpu = f"measuring on {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return {
        "commit": _commit(), "made_by": artifacts.provenance("bench"), "by": on_gpu or "counting live tensors on the CPU",
        "precision": "32" if config.precision == "32" else "bf16", "effective": config.batch * config.accumulate, "patch": list(settings.data.size),
        "cards": {gb: None if way is None else asdict(way) | {"settings": way.settings()} for gb, way in ways.items()},
    }  # fmt: skip


def _measured(settings: Any, store: Place, seconds: float, subjects: int | None) -> dict[str, Any]:
    import os
    import platform
    import statistics

    import torch

    from ..core import artifacts
    from ..data.loading import make_loader
    from ..data.pairs import collate_pairs
    from ..engine import pace

    settings, dataset, objective = _ready(settings, store)
    config = settings.training
    planned = config.resolved(subjects or len(dataset))
    batches = make_loader(
        dataset, batch=config.batch, start_sample=0, n_samples=10**9 // config.batch * config.batch, collate=collate_pairs, workers=config.workers,
        pin_memory=torch.cuda.is_available(), timeout_s=config.data_timeout_s,
    )  # fmt: skip
    found = pace.take(objective, config, batches, seconds)
    per_step = config.batch * config.accumulate
    cuda = not found.device.startswith("cpu")
    return {
        "commit": _commit(), "made_by": artifacts.provenance("bench"), "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "device": found.device, "precision": found.precision, "batch": config.batch, "accumulate": config.accumulate,
        "workers": config.workers, "patch": list(settings.data.size), "parameters": sum(p.numel() for p in objective.net.parameters()),
        "steps": len(found.step_s), "step_s": found.median_s, "step_s_spread": list(found.spread),
        "processor_s": statistics.median(found.processor_s), "steps_per_s": 1 / found.median_s, "pairs_per_s": per_step / found.median_s,
        "scans_per_s": 2 * per_step / found.median_s, "data_wait_share": found.wait_share, "peak_memory_mb": found.peak_memory_mb,
        "memory_of": "allocated on the GPU" if cuda else "resident", "eta_steps": planned.steps, "eta_of": None if config.steps else subjects or len(dataset),
        "eta_hours": (planned.steps or 0) * found.median_s / 3600,
        "energy_wh_per_step": None if found.energy_kwh is None else 1000 * found.energy_kwh / len(found.step_s),
    }  # fmt: skip


def _commit() -> str | None:
    """The commit of the code, where it lies in a git checkout."""
    import subprocess

    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )  # fmt: skip
    except OSError:
        return None
    return done.stdout.strip() or None


def _synthetic(folder: Path, patch: int) -> Path:
    """A store of four synthetic heads, at 4 mm for small boxes, else 2 mm, by the commands that a user would type.

    Raises:
        ArtifactError: one of them failed.
    """
    import subprocess
    import sys

    from ..core.errors import ArtifactError

    spacing = "4" if patch <= 32 else "2"
    logger.info("no --store: making four synthetic heads at %s mm", spacing)
    heads, index, store = (str(folder / name) for name in ("heads", "index.parquet", "store"))
    for command in (
        ["synthesise", "--out", heads, "--subjects", "4", "--spacing", spacing, "--contrasts", "T1w,T2w", "--no-progress"],
        ["index", heads, "--out", index, "--split", "train=1"],
        ["prepare", index, "--out", store, "--spacing", spacing],
    ):
        done = subprocess.run([sys.executable, "-m", "neuroprior", "-q", *command], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ArtifactError(
                f"no synthetic store: neuroprior {command[0]} ended with exit code {done.returncode}",
                got=(done.stderr.strip().splitlines() or ["nothing said"])[-1], next_step="give a store of your own: --store STORE",
            )  # fmt: skip
    return Path(store)
