"""Whole volumes through a net that was trained on boxes: overlapping windows, blended (:mod:`.layout`) and streamed row by row.

Every window may be looked at several times (:class:`Passes`): by the members of an ensemble, mirrored, with samples of the
posterior. Probabilities are averaged, never logits.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from ..core import seeds
from ..core.errors import ConfigError
from ..core.precision import has_quick_bfloat16, has_quick_int8
from .layout import Layout, Ring, centring, lay
from .model import Model

HALF_FROM_BYTES = 2 << 30
"""From this size on, rows in the making are summed in float16 (their weights sum to one: the error stays below 2e-3)."""

# ------------------------------------------------------------------------------------------------- looking at a window


@dataclass(frozen=True)
class Passes:
    """How a window is looked at; the answer is the mean over members x mirrored axes x samples.

    Attributes:
        mirror: the sets of axes that are flipped, ``((),)`` for none; every set is one pass.
        swap: class number -> class number of the other side, for passes mirrored along axis 0; None leaves classes as they are.
        samples: draws from a variational split's posterior; 0 takes its mean.
        key: names the draws: (seed, case).
        precision: ``auto`` is bfloat16 on a GPU and float32 elsewhere; ``bfloat16`` also on a CPU that is quick in it; ``int8`` is
            ``auto`` with convolutions of 8-bit integers on a CPU that is quick in them.
    """

    mirror: tuple[tuple[int, ...], ...] = ((),)
    swap: tuple[int, ...] | None = None
    samples: int = 0
    key: tuple[seeds.Key, ...] = (0, "")
    precision: Literal["float32", "auto", "bfloat16", "int8"] = "float32"

    def __len__(self) -> int:
        return len(self.mirror) * max(self.samples, 1)


def mirrored(axes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Every set of the axes, the empty one first: the passes of mirrored prediction."""
    return tuple(part for n in range(len(axes) + 1) for part in itertools.combinations(sorted(axes), n))


def swapped_classes(values: Sequence[int], pairs: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Class number -> class number after left and right are exchanged; class 0 is background.

    Args:
        values: label values of the classes 1, 2, ...
        pairs: (left value, right value).

    Raises:
        ConfigError: a pair names a value that is no class, or a value stands in two pairs.
    """
    number = {value: place for place, value in enumerate(values, start=1)}
    order = list(range(len(values) + 1))
    for left, right in pairs:
        if (
            left not in number
            or right not in number
            or order[number[left]] != number[left]
            or order[number[right]] != number[right]
        ):
            raise ConfigError(
                "the label pairs do not fit the label values", expected=f"pairs of {', '.join(map(str, values))}, each once",
                got=str([list(pair) for pair in pairs]),
            )  # fmt: skip
        order[number[left]], order[number[right]] = number[right], number[left]
    return tuple(order)


def require_variational(model: Model) -> None:
    """Raises a ConfigError where the net has no posterior to draw from."""
    split = getattr(getattr(model.net, "config", None), "split", None)
    if split != "variational":
        raise ConfigError(
            "this model has no posterior to draw samples from", file=model.folder, expected="a net with split: variational",
            got=f"split: {split}", next_step="leave out --samples; an ensemble of folds tells its spread too",
        )  # fmt: skip


def _noise(
    model: Model, shape: Sequence[int], keys: Sequence[tuple[seeds.Key, ...]], device: torch.device
) -> tuple[Tensor, Tensor]:
    """One standard normal draw a row for both halves, each a function of its key."""
    grid = model.net.code_grid(shape)
    halves = []
    for half, channels in (("anatomy", model.net.anatomy_channels), ("contrast", model.net.contrast_channels)):
        rows = [torch.randn((channels, *grid), generator=seeds.torch_generator(*key, half)) for key in keys]
        halves.append(torch.stack(rows).to(device))
    return halves[0], halves[1]


def raw_outputs(
    model: Model, boxes: Tensor, contrasts: Sequence[str], *, precision: str = "float32", draws: Sequence[tuple[seeds.Key, ...]] = (),
    covariates: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The head's outputs for boxes that each hold all contrasts.

    Args:
        model: one net and head.
        boxes: (n, K, x, y, z) float32 on the net's device.
        contrasts: the K canonical names.
        precision: see :class:`Passes`.
        draws: keys of the n draws from the posterior; empty takes the mean.
        covariates: (n, F) for a head that takes some.

    Returns:
        (n, ...) float32.
    """
    n, k = boxes.shape[:2]
    device = boxes.device
    numbers = torch.tensor([model.contrasts.index(name) for name in contrasts], device=device)
    case = torch.arange(n, device=device).repeat_interleave(k)
    rows = boxes.reshape(n * k, 1, *boxes.shape[2:])
    noise = None
    if draws:
        noise = _noise(model, boxes.shape[2:], [(*draw, name) for draw in draws for name in contrasts], device)
    with _precisely(model, precision, device):
        representation = model.net.encode(rows) if noise is None else model.net.encode(rows, noise=noise)
        extra: dict[str, Any] = {} if covariates is None else {"covariates": covariates}
        assert model.head is not None
        out = model.head(model.net, representation, case, numbers.repeat(n), n, **extra)
    if out.ndim == 5:  # the net pads odd boxes at their far end
        x, y, z = boxes.shape[2:]
        out = out[..., :x, :y, :z]
    return out.float()


def _precisely(model: Model, precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Where a precision of :class:`Passes` holds; float32 where the device or the net is not quick in what is wanted."""
    if precision == "int8" and hasattr(model.net, "eight_bits") and has_quick_int8(device):
        return model.net.eight_bits()
    wanted = precision == "bfloat16" or (precision in ("auto", "int8") and device.type == "cuda")
    if wanted and has_quick_bfloat16(device):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def look(
    members: Sequence[Model],
    boxes: Tensor,
    contrasts: Sequence[str],
    passes: Passes,
    windows: Sequence[int],
    *,
    spread: bool = False,
) -> Tensor:
    """Class probabilities of some windows, averaged over all passes.

    Args:
        members: the models of an ensemble, or one.
        boxes: (n, K, x, y, z) float32.
        contrasts: the K canonical names.
        passes: how often and how each window is looked at.
        windows: the windows' numbers, which name the random draws.
        spread: add a channel with the mean over the passes of each pass' entropy (nats).

    Returns:
        (n, classes [+ 1], x, y, z) float32.
    """
    total: Tensor | None = None
    doubt: Tensor | None = None
    for number, member in enumerate(members):
        for axes in passes.mirror:
            dims = [axis + 2 for axis in axes]
            turned = boxes.flip(dims) if dims else boxes
            for sample in range(max(passes.samples, 1)):
                draws = [(*passes.key, "posterior", number, sample, *axes, w) for w in windows] if passes.samples else []
                p = raw_outputs(member, turned, contrasts, precision=passes.precision, draws=draws).softmax(1)
                if dims:
                    p = p.flip(dims)
                if 0 in axes and passes.swap is not None:
                    p = p[:, list(passes.swap)]
                if spread:
                    here = entropy(p, 1)[:, None]
                    doubt = here if doubt is None else doubt.add_(here)
                total = p if total is None else total.add_(p)
    assert total is not None
    count = len(members) * len(passes)
    if count > 1:
        total /= count
    if doubt is not None:
        return torch.cat([total, doubt / count], 1)
    return total


def entropy(p: Tensor, axis: int) -> Tensor:
    """Shannon entropy in nats along ``axis``, which is removed; 0 log 0 is 0."""
    return -torch.special.xlogy(p, p).sum(axis)


# ---------------------------------------------------------------------------------------------------------- the stream


@torch.inference_mode()
def stream(
    members: Sequence[Model],
    images: Tensor,
    contrasts: Sequence[str],
    layout: Layout,
    *,
    passes: Passes | None = None,
    batch: int = 2,
    device: str | torch.device = "cpu",
    stitch: str | torch.device = "cpu",
    spread: bool = False,
) -> Iterator[tuple[int, Tensor]]:
    """Class probabilities of a volume, block of rows by block of rows.

    Args:
        members: the models of an ensemble, or one; on ``device``.
        images: (K, x, y, z) float32, conformed, one a contrast.
        contrasts: the K canonical names, each known to the models.
        layout: of the windows, for the images' shape.
        passes: how a window is looked at.
        batch: windows a step.
        device: where the net computes.
        stitch: where windows are put together.
        spread: add a last channel with the mean entropy of single passes (:func:`look`).

    Yields:
        (first row, (classes [+ 1], rows, y, z) float32 on ``stitch``): consecutive rows along x, from the first to the last.
    """
    passes = passes or Passes()
    padding = layout.padding
    if any(a or b for a, b in padding):
        images = functional.pad(images, (*padding[2], *padding[1], *padding[0]))
    images = images.to(stitch if torch.device(device).type == torch.device(stitch).type else "cpu")
    weights = [[torch.from_numpy(weight).to(device) for weight in axis] for axis in layout.weights]
    cells = [(j, k) for j in range(len(layout.starts[1])) for k in range(len(layout.starts[2]))]
    ring: Ring | None = None
    for i in range(len(layout.starts[0])):
        for first in range(0, len(cells), batch):
            chosen = [(i, j, k) for j, k in cells[first : first + batch]]
            boxes = torch.stack([images[(slice(None), *layout.box(place))] for place in chosen]).to(device)
            numbers = [i * len(cells) + first + n for n in range(len(chosen))]
            answers = look(members, boxes, contrasts, passes, numbers, spread=spread)
            if ring is None:
                size = (answers.shape[1], layout.window[0], layout.shape[1], layout.shape[2])
                half = math.prod(size) * 4 > HALF_FROM_BYTES
                ring = Ring(layout, torch.zeros(size, dtype=torch.float16 if half else torch.float32, device=stitch))
            for p, (_, j, k) in zip(answers, chosen, strict=True):
                p = p.mul_(weights[0][i][:, None, None]).mul_(weights[1][j][:, None]).mul_(weights[2][k])
                ring.add(p.to(ring.rows), (i, j, k))
            del answers, boxes
        assert ring is not None
        for row, block in ring.finished(i):
            yield row, block.float() if block.dtype == torch.float16 else block.clone()


@torch.inference_mode()
def segment(
    model: Model,
    images: Tensor,
    contrasts: Sequence[str],
    *,
    window: Sequence[int],
    overlap: float = 0.5,
    batch: int | None = None,
    precision: Literal["float32", "auto"] = "float32",
) -> Tensor:
    """Class probabilities of one case, all at once (for small volumes, as in validation; :func:`stream` bounds the memory).

    Args:
        model: with a segmentation head.
        images: (K, x, y, z) float32, conformed, one a contrast, on the model's device.
        contrasts: the K canonical names, each known to the model.
        window: box size in voxels; a smaller volume is padded with zeros.
        overlap: of neighbouring windows, in [0, 1).
        batch: windows a step; by default as many as have the voxels of two windows of 64^3, and at most 16.
        precision: see :class:`Passes`.

    Returns:
        (classes, x, y, z) float32 probabilities on the images' device.
    """
    layout = lay(images.shape[1:], window, overlap)
    device = images.device
    batch = batch or min(16, max(1, 2 * 64**3 // math.prod(window)))
    blocks = stream(
        [model], images, contrasts, layout, passes=Passes(precision=precision), batch=batch, device=device, stitch=device
    )
    return torch.cat([block for _, block in blocks], 1)


# ------------------------------------------------------------------------------------------------------- seen whole


def centred(images: Tensor, window: Sequence[int]) -> Tensor:
    """(K, x, y, z) images centred in a box of ``window`` voxels, cropped or padded with zeros."""
    boxed = images.new_zeros((images.shape[0], *window))
    source, target = centring(images.shape[1:], window)
    boxed[(slice(None), *target)] = images[(slice(None), *source)]
    return boxed


@torch.inference_mode()
def pool(model: Model, images: Tensor, contrasts: Sequence[str], *, window: Sequence[int]) -> Tensor:
    """The pooled head's raw outputs for one case seen whole.

    Args:
        model: with a pooled head.
        images: (K, x, y, z) float32, conformed.
        contrasts: the K canonical names.
        window: the box the head was trained on; the volume is centred in it, cropped or padded with zeros.

    Returns:
        (outputs,) float32.
    """
    return raw_outputs(model, centred(images, window)[None], contrasts)[0]


@torch.inference_mode()
def pool_passes(
    model: Model, images: Tensor, contrasts: Sequence[str], *, window: Sequence[int], passes: Passes, member: int = 0,
    covariates: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The pooled head's raw outputs, one row a pass: (passes, outputs) float32; arguments as :func:`pool`."""
    box = centred(images, window)[None]
    rows = []
    for axes in passes.mirror:
        turned = box.flip([axis + 2 for axis in axes]) if axes else box
        for sample in range(max(passes.samples, 1)):
            draws = [(*passes.key, "posterior", member, sample, *axes, 0)] if passes.samples else []
            rows.append(raw_outputs(model, turned, contrasts, precision=passes.precision, draws=draws, covariates=covariates)[0])
    return torch.stack(rows)
