"""How much work a prediction is worth: settings, and three words for the usual choices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ..core.config import Config, parse
from ..core.errors import ConfigError, suggestion

if TYPE_CHECKING:
    from torch import nn


class PredictConfig(Config):
    """Settings of a prediction; what does not change the result (devices, window batch on a ladder) is told apart in ``window_batch``."""

    overlap: float = Field(default=0.5, ge=0, lt=1)
    """Least overlap of neighbouring windows, as a share of the window."""
    mirror: bool = False
    """Also look at mirrored copies, along the axes that the model's task allows (left and right labels are exchanged back)."""
    precision: Literal["float32", "auto", "bfloat16", "int8"] = "float32"
    """``auto`` computes in bfloat16 on a GPU and in float32 on a CPU; ``bfloat16`` also on a CPU that is quick in it (AMX); ``int8`` is
    ``auto``, but takes a segmentation's convolutions in 8-bit integers on a CPU that is quick in them (VNNI)."""
    window_batch: int = Field(default=2, ge=1)
    """Windows at a time; it changes memory and speed, not the result."""
    samples: int = Field(default=0, ge=0)
    """Draws from the posterior of a variational split; 0 takes its mean."""
    seed: int = 0
    """Names the draws, together with the case."""
    probabilities: bool = False
    """Keep the foreground probability of every voxel."""
    uncertainty: bool = False
    """Keep the entropy of every voxel and, where there are several passes (members, samples, mirrored), what they disagree on."""


PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"overlap": 0.25, "mirror": False, "precision": "bfloat16", "window_batch": 4},
    "balanced": {"overlap": 0.5, "mirror": False, "precision": "auto", "window_batch": 2},
    "accurate": {"overlap": 0.625, "mirror": True, "precision": "float32", "window_batch": 2},
}
"""The three words; their cost is measured by ``benchmarks/predict.py``."""

ON_CPU: dict[str, dict[str, Any]] = {"fast": {"overlap": 0.5, "window_batch": 2}}
"""What presets take instead on a CPU: all windows of ``balanced``, in bfloat16 or 8-bit integers where these are quick. The answer is that
of ``balanced`` but for rounding; where neither is quick it is the same, since fewer windows would save time and change the answer."""


def require(name: str) -> None:
    """Raises a ConfigError where there is no such preset."""
    if name not in PRESETS:
        raise ConfigError(f"unknown --preset {name!r}", expected=", ".join(PRESETS), next_step=suggestion(name, list(PRESETS)))


def preset(name: str, net: nn.Module, **changes: Any) -> PredictConfig:
    """The settings of a preset, with what is not None in ``changes`` put in its place.

    Args:
        name: a key of :data:`PRESETS`.
        net: that will compute it, where it will do so.
        changes: fields of :class:`PredictConfig`.

    Raises:
        ConfigError: there is no such preset, or a value is impossible.
    """
    from ..core.precision import has_quick_bfloat16, has_quick_int8

    require(name)
    wanted = PRESETS[name]
    device = next(net.parameters()).device
    if name in ON_CPU and device.type == "cpu":
        wanted = wanted | ON_CPU[name]
        if hasattr(net, "eight_bits") and has_quick_int8(device) and not has_quick_bfloat16(device):
            wanted = wanted | {"precision": "int8"}
    return parse(PredictConfig, wanted | {key: value for key, value in changes.items() if value is not None})
