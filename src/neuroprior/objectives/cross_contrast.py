"""Cross-contrast: two contrasts of one session share their anatomy and differ in the rest.

The FOMO25 winner's pretraining (Gordaliza, Banus et al., arXiv 2601.13166). Both scans A and B are masked and encoded;
s is the mean of their anatomy halves. Decoded are A from (sA, cA), B from (sB, cB), and two cross reconstructions:

- wiring ``own``: A from (s, cA), B from (s, cB), the paper's wording;
- wiring ``other``: A from (s, cB), B from (s, cA), what the released code does.

Loss: 3 (rec A + rec B) + 1 (cross A + cross B) + k (four KL terms, means over elements) + 0.5 (1 - cos(sA, sB))
+ 0.5 cos(cA, cB), with smooth L1 (beta 0.1) over the whole volume and k rising linearly to 0.001 over 10 epochs.

Departures: a session with one scan is not paired with its copy; it carries the reconstruction and KL terms of that
scan alone. The cosines are those of the flattened posterior means. A split by channels has no posterior: no noise, no KL. Each sample's loss is computed first and
averaged then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ..core.config import Config as BaseConfig
from ..core.representation import Representation, of_batches, select
from ..data.records import PairBatch
from ._agreement import Agreement, agreement, flat_cosine
from ._masking import masks, noise
from ._piecewise import pieces, weighted_sum


class Config(BaseConfig):
    """Settings of the cross-contrast objective; the defaults are the paper's."""

    wiring: Literal["own", "other"] = "own"
    """Whose contrast half a cross reconstruction takes."""
    block: int = Field(default=4, ge=1)
    """Edge of a hidden block in voxels."""
    ratio: float = Field(default=0.6, ge=0, lt=1)
    """Share of blocks hidden, in both scans, each its own mask."""
    beta: float = Field(default=0.1, gt=0)
    """Where smooth L1 turns from square to absolute."""
    region: Literal["volume", "hidden"] = "volume"
    """Where reconstructions are scored."""
    reconstruction: float = Field(default=3.0, ge=0)
    """Weight of the two plain reconstructions."""
    cross: float = Field(default=1.0, ge=0)
    """Weight of the two cross reconstructions."""
    kl: float = Field(default=0.001, ge=0)
    """Final weight of the four KL terms."""
    kl_epochs: float = Field(default=10.0, ge=0)
    """Epochs over which the KL weight rises linearly from 0."""
    agreement: float = Field(default=0.5, ge=0)
    """Weight of the agreement of sA and sB: 1 - cos(sA, sB) in the paper's form."""
    agreement_form: Agreement = "cosine"
    """Form of the agreement term (see ``_agreement``)."""
    temperature: float = Field(default=0.1, gt=0)
    """Of the dense contrastive form."""
    separation: float = Field(default=0.5, ge=0)
    """Weight of cos(cA, cB)."""


class CrossContrast(nn.Module):
    """The objective around a net with a split."""

    def __init__(self, net: nn.Module, config: Config) -> None:
        super().__init__()
        if net.contrast_channels == 0:
            raise ValueError("cross_contrast needs a net with a split: set net.split=variational (the paper's) or channels")
        self.net, self.config = net, config
        self.variational = net.config.split == "variational"
        self.couples_samples = bool(config.agreement) and config.agreement_form != "cosine"

    def forward(self, batch: PairBatch, *, epoch: float = 0.0, seed: int = 0) -> dict[str, Tensor]:
        """``loss`` and its unweighted parts, each a mean over samples (pair terms: over all samples, 0 where unpaired)."""
        c = self.config
        image, hidden = self._inputs(batch, seed)
        n = batch["image_a"].shape[0]
        code = self._encode(image, hidden, batch["sample"], seed)
        paired = torch.tensor(batch["paired"]).to(image.device, image.dtype, non_blocking=True)
        both = torch.cat([paired.new_ones(n), paired])  # the copy of an unpaired scan is left out
        count = torch.cat([both, paired, paired])
        shares = torch.cat([(c.reconstruction / n) * both, (c.cross / n) * count[2 * n :]])
        decoded, errors = self._reconstructed(code, image, hidden, shares)
        errors = errors * count
        a, b = select(code, slice(0, n)), select(code, slice(n, 2 * n))
        agree = agreement(
            c.agreement_form, *self._means(a, b, "anatomy"), batch["paired"], batch["subject"], temperature=c.temperature
        )  # fmt: skip
        separation = flat_cosine(*self._means(a, b, "contrast")) * paired
        kl = both.new_zeros(2 * n)
        if self.variational:
            kl = (_kl(code.anatomy_mean, code.anatomy_logvar) + _kl(code.contrast_mean, code.contrast_logvar)) * both
        weight = c.kl * (min(1.0, epoch / c.kl_epochs) if c.kl_epochs else 1.0)
        parts = {
            "reconstruction": errors[: 2 * n].sum() / n, "cross": errors[2 * n :].sum() / n, "kl": kl.sum() / n,
            "agreement": agree, "separation": separation.sum() / n,
        }  # fmt: skip
        loss = (
            decoded + weight * parts["kl"] + c.agreement * parts["agreement"] + c.separation * parts["separation"]
        )  # fmt: skip
        return {"loss": loss, **{name: value.detach() for name, value in parts.items()}}

    def _means(self, a: Representation, b: Representation, half: str) -> tuple[Tensor, Tensor]:
        """Both scans' posterior means of a half; the half itself where the split is not variational."""
        name = f"{half}_mean" if self.variational else half
        return getattr(a, name), getattr(b, name)

    def _inputs(self, batch: PairBatch, seed: int) -> tuple[Tensor, Tensor]:
        """(2B, 1, x, y, z) scans, A before B, and which voxels are hidden."""
        images = [batch["image_a"], batch["image_b"]]
        return torch.cat(images), masks(images, batch["sample"], self.config.block, self.config.ratio, seed=seed)

    def _encode(self, image: Tensor, hidden: Tensor, sample: Sequence[int], seed: int) -> Representation:
        """A and B, with reparameterised samples while training."""
        epsilon = None
        if self.training and self.variational:
            shape = (self.net.anatomy_channels, *self.net.code_grid(image.shape[2:]))
            halves = [
                torch.cat([noise(sample, shape, seed=seed, purpose=f"noise {half} {name}") for name in ("a", "b")])
                for half in ("anatomy", "contrast")
            ]
            epsilon = (halves[0].to(image.device, non_blocking=True), halves[1].to(image.device, non_blocking=True))
        if self.net.config.summary:  # its BatchNorm wants to see all scans at once
            return self.net.encode(image, epsilon, hidden)
        parts = [
            self.net.encode(image[rows], epsilon and (epsilon[0][rows], epsilon[1][rows]), hidden[rows])
            for rows in pieces(len(image), image.shape[2:].numel(), image.device)
        ]
        return of_batches(parts)

    def _wired(self, code: Representation, n: int) -> tuple[Tensor, Tensor]:
        """The anatomy and the contrast halves (4B, ...) of the four reconstructions: A, B, crossed A, crossed B."""
        shared = (code.anatomy[:n] + code.anatomy[n:]) / 2
        contrast = code.contrast
        crossed = contrast if self.config.wiring == "own" else torch.cat([contrast[n:], contrast[:n]])
        return torch.cat([code.anatomy, shared, shared]), torch.cat([contrast, crossed])

    def _reconstructed(self, code: Representation, image: Tensor, hidden: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of all four reconstructions' errors times their shares, and the (4B,) errors."""
        size = image.shape[2:]
        target, scored = torch.cat([image, image]), torch.cat([hidden, hidden])

        def errors(rows: slice, halves: Sequence[Tensor]) -> Tensor:
            guess = self.net.decode(halves[0], halves[1], size)
            return self._error(guess, target[rows], scored[rows] if self.config.region == "hidden" else None)

        return weighted_sum(errors, self._wired(code, len(image) // 2), shares, self.net, size.numel())

    def _error(self, guess: Tensor, image: Tensor, scored: Tensor | None) -> Tensor:
        """(rows,) smooth L1 of each reconstruction."""
        error = functional.smooth_l1_loss(guess.float(), image, beta=self.config.beta, reduction="none")
        if scored is None:
            return error.mean((1, 2, 3, 4))
        return (error * scored).sum((1, 2, 3, 4)) / scored.sum((1, 2, 3, 4)).clamp(min=1)

    @torch.no_grad()
    def panels(self, batch: PairBatch, *, seed: int = 0) -> Mapping[str, Tensor]:
        """Scan A, scan B, both masked, both reconstructions and both cross reconstructions, each (B, x, y, z)."""
        image, hidden = self._inputs(batch, seed)
        n = batch["image_a"].shape[0]
        was_training = self.training
        self.eval()
        code = self._encode(image, hidden, batch["sample"], seed)
        out = self.net.decode(*self._wired(code, n), image.shape[2:]).float()
        plain, crossed = out[: 2 * n], out[2 * n :]
        self.train(was_training)
        masked = image.masked_fill(hidden, 0.0)
        return {
            f"{what} {name}": tensor[rows, 0]
            for name, rows in (("A", slice(0, n)), ("B", slice(n, 2 * n)))
            for what, tensor in (("scan", image), ("masked", masked), ("reconstruction", plain), ("cross", crossed))
        }


def _kl(mean: Tensor | None, logvar: Tensor | None) -> Tensor:
    """(B,) divergence of the posterior from a standard normal, the mean over its elements."""
    assert mean is not None and logvar is not None
    mean, logvar = mean.float(), logvar.float()
    return -0.5 * (1 + logvar - mean**2 - logvar.exp()).mean((1, 2, 3, 4))


def build(net: nn.Module, config: Config) -> CrossContrast:
    """The objective around a net."""
    return CrossContrast(net, config)
