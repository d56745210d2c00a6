"""Anatomy split: masked autoencoding whose bottleneck is divided into anatomy, pathology and free channels.

The SSL3D winner's pretraining (Gordaliza, Banus et al., arXiv 2601.13166). Blocks of 16^3 are hidden at 75 %, the squared
error counts on hidden voxels. Of the bottleneck's channels the first half is anatomy, the next 30 % pathology, the rest free;
all go to the decoder. From the anatomy channels a head tells the subject's anatomical vector, the same for every contrast and
time point (minus the mean cosine similarity); from the pathology channels another head tells healthy or not
(cross-entropy). Weights 0.7, 0.15, 0.15. A scan without a vector or a health label carries no such term.

Departures, each a value that is off in the paper's form or stands in for what is not public:

- ``view="whole"``: the terms on the halves see the scans without a mask, as every later use of the net does.
- ``distance="smooth_l1"``, ``centre``: a head that cannot be satisfied by one constant direction.
- ``target="map"``: instead of the vector, the share of each anatomical label in each cell of the code's grid
  (cross-entropy with soft labels from a 1x1x1 convolution).
- a net with ``net.summary``: the vector is read from those channels by one linear layer, and agreement and blindness are asked of the
  others: two terms that compete for one set of channels leave the vector out.
- ``lesions``: the pathology part must tell which cells hold a made-up lesion (see ``_lesions``).
- ``refine``: a linear map fitted in closed form to the anatomy half when training is over (see ``_refine``).
- ``agreement``: a term between the anatomy halves of the two scans of a pair (see ``_agreement``), ``cross``: each scan
  decoded from the pair's mean anatomy and its own remainder, ``blind``: a classifier of the contrast on the anatomy half
  whose gradient is reversed (Ganin et al. 2016, arXiv 1505.07818), or a discrepancy (see ``_moments``).
- Missing labels are left out a sample at a time: a term is the mean over the samples that have the label.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from ..core.config import Config as BaseConfig
from ..core.representation import Representation, select
from ..data.records import PairBatch
from ._adversary import Adversary
from ._agreement import Agreement, agreement
from ._lesions import LesionHead, lesion_error, with_lesions
from ._masking import masks
from ._moments import contrast_gap
from ._pooling import pooled
from ._refine import fit_refinement
from ._vector_head import Centre, VectorHead


class Config(BaseConfig):
    """Settings of the anatomy split; the defaults are the paper's."""

    block: int = Field(default=16, ge=1)
    """Edge of a hidden block in voxels."""
    ratio: float = Field(default=0.75, gt=0, lt=1)
    """Share of blocks hidden, each scan its own mask."""
    both: bool = True
    """Whether the second scan of a pair is learned from too."""
    reconstruction: float = Field(default=0.7, ge=0)
    """Weight of the squared error on hidden voxels."""
    anatomy: float = Field(default=0.15, ge=0)
    """Weight of the anatomy term."""
    pathology: float = Field(default=0.15, ge=0)
    """Weight of the pathology term; 0 is the two-way split."""
    pathology_share: float = Field(default=0.3, gt=0, lt=1)
    """Share of all code channels that are pathology, the first ones after anatomy."""
    lesions: float = Field(default=0.0, ge=0)
    """Weight of telling from the pathology part which cells hold a made-up lesion, in a pass of its own whose gradient stops at the
    encoder: terms that pull at one encoder from two sides leave each other less. The paper has none."""
    lesion_radii: tuple[float, float] = (0.75, 3.0)
    """Their smallest and largest half-axis in voxels."""
    lesion_strength: tuple[float, float] = (2.0, 5.0)
    """Their smallest and largest difference to the surroundings in standard deviations of the scan."""
    lesion_voxels: float = Field(default=4.0, gt=0)
    """From this many voxels a cell holds a lesion; with fewer, but some, it is left out."""
    cells: int = Field(default=2, ge=1)
    """Edge of the pooled grid before both heads."""
    target: Literal["vector", "map"] = "vector"
    """What the anatomy channels must tell."""
    dimension: int = Field(default=0, ge=0)
    """Length of the anatomical vector; the pretrain stage sets it from the table."""
    map_labels: tuple[int, ...] = ()
    """Label ids of the map target, the background left out."""
    distance: Literal["cosine", "smooth_l1"] = "cosine"
    """How far a vector is from its target."""
    centre: Centre = "none"
    """What is done to the anatomy head's input."""
    view: Literal["masked", "whole"] = "masked"
    """What the anatomy, pathology, agreement and blind terms look at: the masked scans (the paper's), or the whole ones, which a
    fine-tuned model will see, at the price of a second pass through the encoder."""
    agreement_form: Agreement = "cosine"
    """Form of the agreement term."""
    agreement: float = Field(default=0.0, ge=0)
    """Weight of the agreement term between the pair's anatomy halves; the paper has none."""
    temperature: float = Field(default=0.1, gt=0)
    """Of the dense contrastive form."""
    cross: float = Field(default=0.0, ge=0)
    """Weight of decoding each scan from the pair's mean anatomy and its own remainder; the paper has none."""
    blind: float = Field(default=0.0, ge=0)
    """Weight of the term that makes the anatomy half forget the contrast; the paper has none."""
    blind_form: Literal["adversary", "moments"] = "adversary"
    """A classifier of the contrast whose gradient is reversed, or the discrepancy between the contrasts' features in the batch."""
    refine: int = Field(default=0, ge=0)
    """Directions of the anatomy half (its summary left out) that are kept by the closed-form map after training; 0 leaves it as trained.
    Needs ``net.refined``."""
    refine_summary: int = Field(default=0, ge=0)
    """Directions of the summary that are kept; 0 leaves it as trained."""
    refine_contrast: float = Field(default=10.0, ge=0)
    """How much the differences between the contrasts' means weigh, beside those within pairs, when directions are chosen."""
    refine_pairs: int = Field(default=1000, ge=2)
    """Pairs that the map is fitted on."""
    contrasts: tuple[str, ...] = ()
    """Contrasts that the reversed classifier tells apart; the pretrain stage sets them from the data."""

    @model_validator(mode="after")
    def _possible(self) -> Config:
        if self.target == "map" and self.anatomy and not self.map_labels:
            raise ValueError("target=map needs objective.map_labels, the ids of the label map")
        return self


class AnatomySplit(nn.Module):
    """The objective around a net with a split."""

    def __init__(self, net: nn.Module, config: Config) -> None:
        super().__init__()
        n: Any = net
        if n.contrast_channels == 0:
            raise ValueError("anatomy_split needs a net with a split: set net.split=channels (the paper's) or variational")
        self.net, self.config = net, config
        self.code_stride: int = n.stage_strides[-1]
        self.pathology_channels = round(config.pathology_share * (n.anatomy_channels + n.contrast_channels))
        if config.pathology and self.pathology_channels > n.contrast_channels:
            raise ValueError(
                f"the pathology part of {self.pathology_channels} channels does not fit into the {n.contrast_channels} channels "
                "that are not anatomy: lower objective.pathology_share"
            )
        if config.lesions and n.latent is None:
            raise ValueError("objective.lesions needs halves that are read from all stages: set net.split=stages or variational")
        if config.refine and not getattr(n.config, "refined", False):
            raise ValueError("objective.refine needs net.refined=true")
        if config.refine > n.anatomy_channels:
            raise ValueError(
                f"objective.refine={config.refine} is more than the {n.anatomy_channels} channels of the anatomy half"
            )
        self.summary: int = getattr(n.config, "summary", 0)
        self.local: int = n.anatomy_channels - self.summary
        self.refines = bool(config.refine or config.refine_summary)
        self.couples_samples = (
            bool(self.summary)
            or config.centre != "none"
            or bool(config.blind)
            or (bool(config.agreement) and config.agreement_form != "cosine")
        )
        cells = config.cells**3
        self.anatomy_head: nn.Module | None = None
        if config.anatomy and config.target == "map":
            self.anatomy_head = nn.Conv3d(n.anatomy_channels, len(config.map_labels) + 1, 1)
        elif config.anatomy and config.dimension and self.summary:
            self.anatomy_head = nn.Linear(self.summary, config.dimension)
        elif config.anatomy and config.dimension:
            self.anatomy_head = VectorHead(
                n.anatomy_channels * cells, config.dimension, centre=config.centre, final_norm=config.distance == "cosine"
            )
        self.pathology_head: nn.Module | None = None
        if config.pathology:
            self.pathology_head = VectorHead(self.pathology_channels * cells, 2, centre="none", final_norm=True)
        self.lesion_head = LesionHead(self.pathology_channels) if config.lesions else None
        adversary = config.blind and config.blind_form == "adversary" and len(config.contrasts) > 1
        self.adversary = Adversary(self.local, config.contrasts) if adversary else None

    def forward(self, batch: PairBatch, *, epoch: float = 0.0, seed: int = 0) -> dict[str, Tensor]:
        """``loss`` and its unweighted parts; a part whose labels nobody in the batch has is 0."""
        c = self.config
        image, hidden = self._inputs(batch, seed)
        code = self.net.encode(image, hidden=hidden)
        guess = self.net.reconstruct(code, image.shape[2:])
        parts = {"reconstruction": _hidden_error(guess, image, hidden).mean()}
        loss = c.reconstruction * parts["reconstruction"]
        n = batch["image_a"].shape[0]
        copies = image.shape[0] // n
        if c.view == "whole":
            code = self.net.encode(image)
        for name, weight in (("anatomy", c.anatomy), ("pathology", c.pathology)):
            if weight:
                parts[name] = self._anatomy(code, batch, copies) if name == "anatomy" else self._pathology(code, batch, copies)
                loss = loss + weight * parts[name]
        if c.lesions:
            parts["lesions"] = self._lesions(batch, seed)
            loss = loss + c.lesions * parts["lesions"]
        paired = torch.tensor(batch["paired"]).to(image.device, non_blocking=True)
        if copies == 2 and c.agreement:
            a, b = select(code, slice(0, n)), select(code, slice(n, 2 * n))
            parts["agreement"] = agreement(
                c.agreement_form,
                a.anatomy[:, : self.local],
                b.anatomy[:, : self.local],
                batch["paired"],
                batch["subject"],
                temperature=c.temperature,
            )
            loss = loss + c.agreement * parts["agreement"]
        if copies == 2 and c.cross:
            shared = (code.anatomy[:n] + code.anatomy[n:]) / 2
            crossed = self.net.decode(torch.cat([shared, shared]), code.contrast, image.shape[2:])
            error = _hidden_error(crossed, image, hidden) * torch.cat([paired, paired])
            parts["cross"] = error.mean()
            loss = loss + c.cross * parts["cross"]
        names = [*batch["contrast_a"], *(batch["contrast_b"] if copies == 2 else [])]
        if self.adversary is not None:
            parts["blind"] = self.adversary(code.anatomy[:, : self.local], names)
        elif c.blind and c.blind_form == "moments":
            parts["blind"] = contrast_gap(code.anatomy[:, : self.local], names, [*batch["subject"]] * copies)
        if "blind" in parts:
            loss = loss + c.blind * parts["blind"]
        return {"loss": loss, **{name: value.detach() for name, value in parts.items()}}

    def _inputs(self, batch: PairBatch, seed: int) -> tuple[Tensor, Tensor]:
        """(2B or B, 1, x, y, z) scans, A before B, and which voxels are hidden."""
        images = [batch["image_a"], batch["image_b"]] if self.config.both else [batch["image_a"]]
        return torch.cat(images), masks(images, batch["sample"], self.config.block, self.config.ratio, seed=seed)

    def _lesions(self, batch: PairBatch, seed: int) -> Tensor:
        """How well the pathology part tells which cells of scans A hold a made-up lesion. The encoder is asked and not taught."""
        c, net, head = self.config, self.net, self.lesion_head
        n: Any = net
        assert head is not None
        image, levels = with_lesions(
            batch["image_a"], batch["sample"], c.lesion_radii, c.lesion_strength, seed=seed, purpose="lesions"
        )
        with torch.no_grad():
            stages = n.encode(image, hidden=torch.zeros_like(image, dtype=torch.bool)).stages
        part = n.halves(stages).contrast[:, : self.pathology_channels]
        return lesion_error(head(part), levels, self.code_stride >> n.config.contrast_finer, c.lesion_voxels)

    def predict_anatomy(self, code: Representation) -> Tensor:
        """(B, dimension) vectors, or (B, labels + 1, x, y, z) logits of the label shares with ``target=map``."""
        assert self.anatomy_head is not None
        if self.config.target == "map":
            return self.anatomy_head(code.anatomy)
        if self.summary:
            return self.anatomy_head(code.anatomy[:, self.local :].mean((2, 3, 4)))
        return self.anatomy_head(pooled(code.anatomy, code.visible, self.config.cells))

    def _anatomy(self, code: Representation, batch: PairBatch, copies: int) -> Tensor:
        c, device = self.config, code.anatomy.device
        if self.anatomy_head is None:
            return code.anatomy.sum() * 0.0
        if c.target == "map":
            found = [batch.get("label_a"), batch.get("label_b")][:copies]
            has = torch.cat([batch["has_label"]] * copies).to(device)
            maps = torch.cat([label for label in found if label is not None]).to(device)
            logits = self.predict_anatomy(code)
            share = label_shares(maps, c.map_labels, self.code_stride)
            each = -(share * functional.log_softmax(logits.float(), 1)).sum(1)
            seen = torch.ones_like(each) if code.visible is None else code.visible[:, 0].to(each.dtype)
            each = (each * seen).sum((1, 2, 3)) / seen.sum((1, 2, 3)).clamp(min=1)
        else:
            has = torch.cat([batch["has_anatomy"]] * copies).to(device)
            target = torch.cat([batch["anatomy"]] * copies).to(device, torch.float32)
            guess = self.predict_anatomy(code).float()
            if c.distance == "cosine":
                each = -functional.cosine_similarity(guess, target, dim=1)
            else:
                each = functional.smooth_l1_loss(guess, target, reduction="none").mean(1)
        return _mean_where(each, has)

    def _pathology(self, code: Representation, batch: PairBatch, copies: int) -> Tensor:
        assert self.pathology_head is not None
        health = torch.cat([batch["health"]] * copies).to(code.contrast.device)
        part = code.contrast[:, : self.pathology_channels]
        logits = self.pathology_head(pooled(part, code.visible, self.config.cells)).float()
        each = functional.cross_entropy(logits, health.clamp(min=0), reduction="none")
        return _mean_where(each, health >= 0)

    def finished(self, batches: Iterable[PairBatch]) -> nn.Module:
        """A copy of the net whose anatomy half has been refined on pairs; the net itself where nothing is to be refined.

        The summary and the other channels have each their own map.

        Args:
            batches: pairs of training subjects, as they are seen while training.
        """
        c = self.config
        if not self.refines:
            return self.net
        blocks = [(slice(0, self.local), c.refine), (slice(self.local, self.local + self.summary), c.refine_summary)]
        net: Any = copy.deepcopy(self.net).eval()
        device = next(net.parameters()).device
        found: list[Tensor] = []
        names: list[tuple[str, str]] = []
        with torch.no_grad():
            for batch in batches:
                rows = [n for n, other in enumerate(batch["paired"]) if other]
                a, b = (net.encode(batch[name][rows].to(device)).anatomy for name in ("image_a", "image_b"))
                found.append(torch.stack([a, b], 1).flatten(3).cpu())
                names += [(batch["contrast_a"][k], batch["contrast_b"][k]) for k in rows]
        pairs = torch.cat(found).double()
        for block, keep in blocks:
            if keep:
                made = fit_refinement(pairs[:, :, block], names, keep, c.refine_contrast)
                for name, weight, offset in (("refine", made.weight, made.offset), ("restore", made.inverse, made.mean)):
                    linear = net.latent[name]
                    linear.weight[block, block] = weight.to(linear.weight)
                    linear.offset[block] = offset.to(linear.offset)
        return net.train(self.net.training)

    @torch.no_grad()
    def observe(self, batch: PairBatch) -> dict[str, Tensor]:
        """What the anatomy head tells of whole scans A, and what it should: ``anatomy_prediction``, ``anatomy_target``, (B, D) each."""
        if self.anatomy_head is None or self.config.target == "map":
            return {}
        has = batch["has_anatomy"]
        code = self.net.encode(batch["image_a"])
        return {"anatomy_prediction": self.predict_anatomy(code)[has], "anatomy_target": batch["anatomy"][has]}

    @torch.no_grad()
    def panels(self, batch: PairBatch, *, seed: int = 0) -> Mapping[str, Tensor]:
        """Scan, masked scan and reconstruction of A and B; and each from the pair's mean anatomy (no skips), each (B, x, y, z)."""
        image, hidden = self._inputs(batch, seed)
        n = batch["image_a"].shape[0]
        was_training = self.training
        self.eval()
        code = self.net.encode(image, hidden=hidden)
        guess = self.net.reconstruct(code, image.shape[2:]).float()
        self.train(was_training)
        masked = image.masked_fill(hidden, 0.0)
        return {
            f"{what} {name}": tensor[rows, 0]
            for name, rows in (("A", slice(0, n)), ("B", slice(n, 2 * n)))[: image.shape[0] // n]
            for what, tensor in (("scan", image), ("masked", masked), ("reconstruction", guess))
        }


def label_shares(maps: Tensor, labels: tuple[int, ...], edge: int) -> Tensor:
    """(B, 1 + L, x', y', z') share of each cell that is none of the labels (first) or each label; sums to 1 over channels.

    Args:
        maps: (B, x, y, z) label ids. Zeros are added at the far ends up to a multiple of ``edge``.
        labels: ids, in the order of the channels after the first.
        edge: of a cell in voxels.
    """
    end = [(-extent) % edge for extent in maps.shape[1:]]
    maps = functional.pad(maps, (0, end[2], 0, end[1], 0, end[0]))
    found = torch.stack([functional.avg_pool3d((maps == label).float()[:, None], edge)[:, 0] for label in labels], 1)
    return torch.cat([1 - found.sum(1, keepdim=True), found], 1)


def _hidden_error(guess: Tensor, image: Tensor, hidden: Tensor) -> Tensor:
    """(B,) squared error over each sample's hidden voxels."""
    return ((guess.float() - image) ** 2 * hidden).sum((1, 2, 3, 4)) / hidden.sum((1, 2, 3, 4))


def _mean_where(each: Tensor, has: Tensor) -> Tensor:
    """The mean of the (B,) values that count; 0, with a gradient of 0, where none does."""
    return (each * has).sum() / has.sum().clamp(min=1)


def build(net: nn.Module, config: Config) -> AnatomySplit:
    """The objective around a net."""
    return AnatomySplit(net, config)
