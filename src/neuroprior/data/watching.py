"""What a pretraining run shows of itself for the health checks: fixed whole boxes, grouped by subject, with what is known of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..engine.health import Observation
    from .pairs import PairDataset
    from .records import PairBatch

FIT, READ = 24, 24
"""Most pairs that the online probes are fitted on, and that they read."""


def observer(fit: PairDataset, read: PairDataset | None, batch: int) -> Callable[[Any], Observation]:
    """``observe(module)`` for :func:`neuroprior.engine.training.train`.

    Args:
        fit: pairs of training subjects, not augmented.
        read: pairs of validation subjects, or None where there are none (then nothing is probed).
        batch: pairs encoded at once.
    """
    import torch

    from ..engine.device import moved
    from .pairs import collate_pairs

    def batches(dataset: PairDataset | None, most: int) -> list[PairBatch]:
        if dataset is None:
            return []
        numbers = range(min(most, len(dataset)))
        return [collate_pairs([dataset[n] for n in numbers[k : k + batch]]) for k in range(0, len(numbers), batch)]

    sides = [(batches(fit, FIT), True), (batches(read, READ), False)]
    shown = {name for many, _ in sides for one in many for name in one["subject"]}
    subjects = {
        name: dataset.subjects[place][-1]
        for dataset in (fit, read)
        if dataset is not None
        for place, name in enumerate(dataset.subjects.names)
        if name in shown
    }

    def observe(module: Any) -> Observation:
        from ..engine.health import Observation

        device = next(module.parameters()).device
        features: dict[str, list[torch.Tensor]] = {}
        variances: dict[str, list[float]] = {}
        told: list[tuple[torch.Tensor, torch.Tensor]] = []
        groups: list[str] = []
        contrasts: list[str] = []
        fitted: list[bool] = []
        for many, side in sides:
            for one in many:
                both = torch.cat([one["image_a"], one["image_b"]]).to(device)
                code = module.net.encode(both)
                for half in ("anatomy", "contrast"):
                    maps = getattr(code, f"{half}_mean")
                    maps = (getattr(code, half) if maps is None else maps).float()
                    if maps.shape[1]:
                        cells = torch.nn.functional.adaptive_avg_pool3d(maps, 2).flatten(1)
                        features.setdefault(half, []).append(cells.cpu())
                        logvar = getattr(code, f"{half}_logvar")
                        if logvar is not None:
                            spread = torch.nn.functional.adaptive_avg_pool3d(logvar.float().exp(), 2)
                            variances.setdefault(half, []).append(float(spread.mean()))
                groups += [*one["subject"], *one["subject"]]
                contrasts += [*one["contrast_a"], *one["contrast_b"]]
                fitted += [side] * len(both)
                if hasattr(module, "observe"):
                    seen = module.observe(moved(one, device))
                    if seen:
                        told.append((seen["anatomy_prediction"].float().cpu(), seen["anatomy_target"].float().cpu()))
        labels: dict[str, Sequence[Any]] = {"contrast": contrasts}
        for column in ("sex", "age", "site"):
            labels[column] = [_plain(subjects[name].value(column)) for name in groups]
        predictions = {}
        if told:
            direction = getattr(module.config, "distance", "cosine") == "cosine"
            guess, target = (torch.cat(part) for part in zip(*told, strict=True))
            predictions["anatomical vector"] = (guess, target, direction)
        return Observation(
            {name: torch.cat(rows) for name, rows in features.items()}, groups,
            posterior={name: sum(values) / len(values) for name, values in variances.items()}, predictions=predictions,
            labels=labels, fit=torch.tensor(fitted) if sides[1][0] else None, identify=frozenset({"anatomy"}),
        )  # fmt: skip

    return observe


def _plain(value: Any) -> Any:
    """A number, a name, or None where there is no value."""
    if value is None or value != value or str(value).strip().lower() in {"", "n/a", "nan"}:
        return None
    return float(value) if isinstance(value, (int, float)) else str(value)
