"""What a model takes over from the one it started from: whose weights, which subjects, what licences, at what cost, prepared how."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..core import artifacts
from ..core.conforming import ConformSpec
from ..core.errors import ConfigError
from .model import Model

logger = logging.getLogger(__name__)

OPTIONS = ("spacing_mm", "crop", "normalise", "order", "antialias")
"""Settings of a preparation that ``neuroprior prepare`` has an option for."""


def inherited(model: Model) -> list[dict[str, Any]]:
    """The lineage of a model that starts from this one, oldest first; the ledger of its run tells what the weights cost."""
    info = model.info
    return [*info["lineage"], {
        "weights_sha256": info["weights_sha256"], "method": info["method"], "data": info["data"], "licences": info["licences"],
        "cost": _cost(model.folder),
    }]  # fmt: skip


def subject_hashes(info: Mapping[str, Any]) -> frozenset[str]:
    """The hashes of all subjects that a model, or one that it came from, has learned from; empty where none tells."""
    sources = [info.get("data", {}), *(step.get("data", {}) for step in info.get("lineage", ()))]
    return frozenset(one for source in sources for one in source.get("subject_hashes", ()))


def tell_overlap(info: Mapping[str, Any], subjects: Iterable[str], source: object) -> None:
    """A word where test subjects (by namespaced name) were among those that a model has learned from, labels or not."""
    seen = subject_hashes(info)
    both = sorted(name for name in set(subjects) if artifacts.sha256_json(name)[:12] in seen) if seen else []
    if both:
        logger.warning(
            "%d test subjects were in the pretraining data of %s (without labels), for example %s", len(both), source, both[0]
        )


def require_preparation(model: Model, spec: ConformSpec, steps: Mapping[str, Any], store: object) -> None:
    """Nothing where a store holds what the model expects; a word where other steps went before.

    Args:
        model: with its own spec and steps.
        spec, steps: those of the store.
        store: named in errors.

    Raises:
        ConfigError: scans were conformed otherwise; the message gives the options of ``prepare`` that differ.
    """
    if model.spec != spec:
        other = [name for name in ConformSpec.model_fields if getattr(model.spec, name) != getattr(spec, name)]
        flags = [_option(name, getattr(model.spec, name)) for name in other if name in OPTIONS]
        raise ConfigError(
            "the store was prepared otherwise than the model expects", file=store,
            expected=", ".join(f"{name} {getattr(model.spec, name)}" for name in other),
            got=", ".join(f"{name} {getattr(spec, name)}" for name in other),
            next_step=f"prepare the index again with {' '.join(flags) or 'the same settings, which prepare has no option for'}",
        )  # fmt: skip
    for name, wanted in model.steps.items():
        found = steps.get(name)
        if name in ("bias", "mask") and found != wanted:
            logger.warning(
                "the model learned from a store prepared with --%s %s, this one was prepared with --%s %s: its intensities differ",
                name,
                wanted,
                name,
                found,
            )


def prepared_with(spec: ConformSpec) -> str:
    """The options of ``neuroprior prepare`` that make such scans."""
    return " ".join(_option(name, getattr(spec, name)) for name in OPTIONS if name != "antialias" or not spec.antialias)


def _option(name: str, value: Any) -> str:
    """What ``neuroprior prepare`` calls a setting of a preparation."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name.removesuffix('_mm')} {value}"


def _cost(folder: Path) -> dict[str, Any] | None:
    """What the run of an earlier model cost, to be carried on; None where it does not lie in its run."""
    book = folder.parent / "ledger.json"
    if folder.name != "model" or not book.is_file():
        return None
    found = artifacts.read_json(book)
    return {key: found.get(key) for key in ("device", "device_hours", "flops_total", "energy_kwh")}
