"""What a model's description says, for all that does not need its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.config import parse
from ..core.conforming import ConformSpec


class Described:
    """Something with the content of ``model.json`` or ``ensemble.json``.

    Attributes:
        info: that content.
        folder: where it was read from.
    """

    info: Mapping[str, Any]
    folder: Path

    @property
    def spec(self) -> ConformSpec:
        """The preprocessing that every input must go through."""
        return parse(ConformSpec, self.info["preprocessing"], where=self.folder)

    @property
    def steps(self) -> dict[str, Any]:
        """What was done to the scans it learned from before they were conformed: ``bias`` (none, n4) and ``mask`` (what the intensities were normalised
        over: head, or another tool's brain masks); empty where the model does not tell."""
        return dict(self.info.get("data", {}).get("steps", {}))

    @property
    def contrasts(self) -> tuple[str, ...]:
        """Canonical names of the contrasts the model was trained on; their order numbers the head's contrasts."""
        return tuple(self.info["contrasts"])

    @property
    def task(self) -> Mapping[str, Any]:
        """What the head predicts: ``name``, ``target``, ``classes`` ... Empty for a pretrained model."""
        return self.info.get("task") or {}
