"""What a synthetic dataset is to be like."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from ...core.config import Config
from ...core.contrasts import canonical
from ...core.errors import ConfigError, suggestion

CONTRASTS = ("T1w", "T1ce", "T2w", "FLAIR", "PDw", "DWI", "ADC", "SWI")
"""The contrasts that the family can show."""

LESIONS = ("wmh", "infarct", "tumour")
"""White-matter hyperintensities, an acute infarct, a tumour with mass effect."""

SHORTCUTS = ("site", "order", "fov", "header", "spacing", "background", "skull", "name")


class Options(Config):
    """The settings of a family; a subject depends on them, on the seed and on its number, and on nothing else."""

    seed: int = 0
    """Seed of every draw."""
    spacing_mm: float = Field(2.0, ge=0.7, le=8.0)
    """Isotropic spacing of each session's reference scan; 2-D contrasts have thicker slices."""
    contrasts: tuple[str, ...] = ("T1w", "T2w", "FLAIR")
    """Canonical names of the contrasts that every session has."""
    sessions: int = Field(1, ge=1, le=20)
    """Time points of each subject, one to three years apart."""
    travelling: bool = False
    """Whether every time point is scanned on every scanner."""
    skull: bool = True
    """Whether scans keep skull, scalp and face; otherwise each is stripped along its own outline."""
    age_range: tuple[float, float] = (20.0, 85.0)
    """Youngest and oldest age at the first session, in years."""
    healthy: float = Field(0.5, ge=0, le=1)
    """Fraction of subjects without a lesion."""
    lesions: tuple[str, ...] = LESIONS
    """The kinds of lesion that the other subjects have, one kind each."""
    shortcut: Literal["site", "order", "fov", "header", "spacing", "background", "skull", "name"] | None = None
    """A confound built in on purpose: health goes with the scanner (``site``), the field of view (``fov``), the stored
    orientation and data type (``header``), the voxel size (``spacing``), noise in the air (``background``), stripping
    (``skull``: the ill are stripped) or the subject's name (``name``); or age rises with the subject number (``order``)."""
    subjects_for_order: int | None = None
    """Number of subjects over which age rises; only with the shortcut ``order``."""

    @field_validator("age_range")
    @classmethod
    def _ordered_ages(cls, ages: tuple[float, float]) -> tuple[float, float]:
        if not 18 <= ages[0] <= ages[1] <= 100:
            raise ConfigError("the youngest age lies above the oldest, or out of range", expected="18 to 100 years", got=ages)
        return ages

    @field_validator("contrasts")
    @classmethod
    def _known_contrasts(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        found = tuple(dict.fromkeys(canonical(name) for name in names))
        for name in found:
            if name not in CONTRASTS:
                raise ConfigError(f"synthetic heads have no contrast {name!r}", next_step=suggestion(name, CONTRASTS))
        if not found:
            raise ConfigError("a session needs at least one contrast", next_step=suggestion("", CONTRASTS))
        return found

    @field_validator("lesions")
    @classmethod
    def _known_lesions(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if name not in LESIONS:
                raise ConfigError(f"synthetic heads have no lesion {name!r}", next_step=suggestion(name, LESIONS))
        return names
