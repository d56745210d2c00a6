"""Probe: models and a store in, a table of what each half of their representation says out."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.places import Place

if TYPE_CHECKING:
    from ..core.records import Score

logger = logging.getLogger(__name__)

HEADLINES = (
    ("subject across contrasts", "retrieval_top1"), ("subject across scanners", "retrieval_top1"), ("subject across time", "retrieval_top1"),
    ("scanners", "icc_pc1"), ("contrast", "knn_balanced_accuracy"), ("contrast", "linear_balanced_accuracy"),
    ("scanner", "linear_balanced_accuracy"), ("age", "linear_r2"), ("volumes", "linear_r2"), ("lesion", "linear_auroc_same_place"),
    ("halves", "cross_covariance"), ("reconstruction", "swap_cost"),
)  # fmt: skip


@dataclass(frozen=True)
class ProbeSummary:
    """The table's main rows.

    Attributes:
        out: the table.
        headlines: the rows that people look at first.
        pictures: swapped reconstructions.
    """

    out: Path
    headlines: tuple[Score, ...]
    pictures: tuple[Path, ...]

    def __str__(self) -> str:
        lines = []
        for question in HEADLINES:
            rows = [row for row in self.headlines if (row.target, row.metric) == question]
            if not rows:
                continue
            lines.append(f"{question[0]}, {question[1].replace('_', ' ')}:")
            for row in rows:
                between = "" if row.low is None else f" [{row.low:.3f}, {row.high:.3f}]"
                value = f"{row.value:.3f}{between}, n = {row.n}" if row.value is not None else f"– ({row.note})"
                lines.append(f"  {row.model:<16} {row.region:<24} {row.condition:<12} {value}")
        return "\n".join([*lines, *map(str, self.pictures), str(self.out)])


def probe(
    models: list[Place],
    store_: Place,
    out: Path = Path("probes.parquet"),
    split: str = "test",
    fit_split: str = "train",
    contrasts: str | None = None,
    outline_free: bool = True,
    misalignment_mm: float = 2.5,
    stages: bool = False,
    trivial: bool = True,
    resamples: int = 1000,
    seed: int = 0,
    device: str = "auto",
) -> ProbeSummary:
    """Ask frozen models who, what and which contrast their halves tell, beside rows that know nothing.

    Args:
        models: model folders, run folders that hold one, or addresses of them (hf://ORG/NAME).
        store_: store of the scans, or its address, prepared as the models want it.
        out: the table (Parquet); its draws and pictures are written beside it.
        split: subjects that are asked about.
        fit_split: subjects that the probes are fitted on; comma-separated for several splits.
        contrasts: comma-separated; all by default.
        outline_free: look only at a box inside the head, shifted for every scan.
        misalignment_mm: largest shift of a scan's box along each axis.
        stages: also probe the encoder's stages, concatenated.
        trivial: add the rows outline, raw_pixels and random_weights (of the first model's architecture).
        resamples: of the bootstrap over subjects.
        seed: of shifts, untrained weights and resamples.
        device: cpu, cuda, or auto.

    Returns:
        The main rows; all are in the table, those without a value with a reason.

    Raises:
        InputError: a split is empty, or two models have one name.
        LeakageError: the two splits share subjects.
        ConfigError: the store was not prepared as a model wants it.
        ArtifactError: a model folder or the store is damaged.
    """
    from dataclasses import replace

    from ..assessments import disentanglement as assessment
    from ..core.config import parse
    from ..core.contrasts import canonical
    from ..core.errors import InputError
    from ..data.store import Store
    from ..engine.device import predicting_device
    from ..inference.elsewhere import name_of
    from ..inference.lineage import require_preparation
    from ..inference.model import load

    names = [name_of(path) for path in models]
    if len(set(names)) < len(names):
        raise InputError("two models have one name", got=", ".join(sorted({name for name in names if names.count(name) > 1})))
    opened = Store.open(store_)
    nets = {}
    for name, path in zip(names, models, strict=True):
        model = load(path, device=predicting_device(device))
        require_preparation(model, opened.spec, opened.info["steps"], opened.path)
        nets[name] = model.net
    wanted = [canonical(part.strip()) for part in contrasts.split(",") if part.strip()] if contrasts else None
    config = parse(
        assessment.Config,
        {
            "views": {"outline_free": outline_free, "misalignment_mm": misalignment_mm, "contrasts": wanted, "stages": stages, "seed": seed},
            "probes": {"seed": seed}, "resamples": resamples, "seed": seed,
        },
    )  # fmt: skip
    folder = out.with_name(out.stem + ".swaps")
    made = assessment.assess_nets(
        nets, opened, fit=_parts(fit_split), evaluate=_parts(split), config=config, trivial=assessment.TRIVIAL if trivial else (),
        pictures=folder,
    )  # fmt: skip
    pictures = tuple(path for name in (*names, "random_weights") if (path := folder / f"swaps-{name}.png").is_file())
    made = replace(made, facts={**made.facts, "pictures": [path.relative_to(out.parent).as_posix() for path in pictures]})
    assessment.write(made, out)
    headlines = tuple(row for row in made.scores if (row.target, row.metric) in HEADLINES)
    return ProbeSummary(out, headlines, pictures)


def _parts(splits: str) -> list[str]:
    return [part.strip() for part in splits.split(",") if part.strip()]
