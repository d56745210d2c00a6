"""The one idea everything hangs on: a scan's representation, split into anatomy and contrast.

Torch is imported only when a function is called, so that importing this module costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Representation:
    """What a network makes of a batch of scans of one contrast.

    Attributes:
        anatomy: (B, Ca, x, y, z), what is the subject's: the same in every contrast and time point. The posterior mean,
            or a reparameterised sample while training a variational split.
        contrast: (B, Cc, x', y', z'), what only this image shows, pathology included; Cc may be 0 for a net with no split. Its
            grid is the anatomy's, or finer by a power of two.
        stages: the encoder's feature maps, finest first, each (B, C_i, x_i, y_i, z_i).
        anatomy_mean, anatomy_logvar, contrast_mean, contrast_logvar: the posteriors, where the split is variational.
        visible: (B, 1, x, y, z) bool on the halves' grid, where the net left hidden cells out; None where every cell is seen.
    """

    anatomy: Tensor
    contrast: Tensor
    stages: tuple[Tensor, ...]
    anatomy_mean: Tensor | None = None
    anatomy_logvar: Tensor | None = None
    contrast_mean: Tensor | None = None
    contrast_logvar: Tensor | None = None
    visible: Tensor | None = None


def of_batches(parts: Sequence[Representation]) -> Representation:
    """The representation of all scans from those of some batches, in order; without the stages, which would have to be copied."""
    import torch

    if len(parts) == 1:
        return parts[0]

    def together(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    rest = {name: together(name) for name in ("anatomy_mean", "anatomy_logvar", "contrast_mean", "contrast_logvar", "visible")}
    halves = torch.cat([part.anatomy for part in parts]), torch.cat([part.contrast for part in parts])
    return Representation(*halves, (), **rest)


@dataclass(frozen=True)
class Fused:
    """The representation of a session: one anatomy, and each contrast's half by name.

    Attributes:
        anatomy: (B, Ca, x, y, z), the mean of the anatomy halves of the contrasts that are present.
        contrasts: contrast name -> (B, Cc, x, y, z). A missing contrast is absent, never zeros.
    """

    anatomy: Tensor
    contrasts: Mapping[str, Tensor]


def fuse(representations: Mapping[str, Representation]) -> Fused:
    """Average the anatomy halves and keep each contrast half by name.

    Args:
        representations: contrast name -> its Representation, at least one; all on one grid.
    """
    import torch

    if not representations:
        raise ValueError("fuse needs the representation of at least one contrast")
    names = sorted(representations)  # a fixed order: the sum does not depend on the order of the inputs
    anatomy = torch.stack([representations[name].anatomy for name in names]).mean(0)
    return Fused(anatomy, {name: representations[name].contrast for name in names})


def both_halves(anatomy: Tensor, contrast: Tensor) -> Tensor:
    """(B, Ca + Cc, x, y, z), both halves on the anatomy's grid; a finer contrast half is averaged within each cell."""
    import torch

    grid = anatomy.shape[2:]
    if contrast.shape[2:] != grid:
        contrast = torch.nn.functional.adaptive_avg_pool3d(contrast, list(grid))
    return torch.cat([anatomy, contrast], 1)


def select(representation: Representation, rows: slice) -> Representation:
    """The same record for some rows of the batch."""

    def cut(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[rows]

    return replace(
        representation,
        anatomy=representation.anatomy[rows],
        contrast=representation.contrast[rows],
        stages=tuple(stage[rows] for stage in representation.stages),
        anatomy_mean=cut(representation.anatomy_mean),
        anatomy_logvar=cut(representation.anatomy_logvar),
        contrast_mean=cut(representation.contrast_mean),
        contrast_logvar=cut(representation.contrast_logvar),
        visible=cut(representation.visible),
    )
