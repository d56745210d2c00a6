"""A pretraining recipe: net, objective, data and training, each checked by the Config beside its code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..core import shelf
from ..core.config import override, parse, read_yaml
from ..core.errors import ConfigError, suggestion
from ..data.pairs import PairConfig
from ..engine.settings import TrainingConfig

PARTS = ("net", "objective", "data", "training")


@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    Attributes:
        net_name, net: the net's name and settings.
        objective_name, objective: the objective's name and settings.
        data: how pairs are drawn.
        training: how long, with what.
    """

    net_name: str
    net: dict[str, Any]
    objective_name: str
    objective: dict[str, Any]
    data: PairConfig
    training: TrainingConfig

    def build_objective(self, net: nn.Module) -> nn.Module:
        """The objective around a net.

        Raises:
            ConfigError: the objective cannot work with that net.
        """
        module = shelf.load("objectives", self.objective_name)
        try:
            return module.build(net, parse(module.Config, self.objective))
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def around(self, name: str, config: Mapping[str, Any]) -> Recipe:
        """The recipe with another net than its own: that of a model that it goes on from."""
        return replace(self, net_name=name, net=dict(config))

    def fitted(self, **found: Any) -> Recipe:
        """The recipe with what the data say (``dimension``, ``contrasts``) where the objective has such a setting and it is not given."""
        fields = shelf.load("objectives", self.objective_name).Config.model_fields
        missing = {name: value for name, value in found.items() if name in fields and name not in self.objective}
        return replace(self, objective=self.objective | missing)

    def wants_vectors(self) -> bool:
        """Whether the objective has a term on anatomical vectors."""
        module = shelf.load("objectives", self.objective_name)
        settings = parse(module.Config, self.objective)
        return bool(getattr(settings, "anatomy", 0.0)) and getattr(settings, "target", None) == "vector"

    @property
    def full_weight_epoch(self) -> float:
        """An epoch at which every ramp of the objective has ended: validation is scored there."""
        return float(self.objective.get("kl_epochs", 10.0)) + 1e6

    def together(self, objective: Any) -> int | None:
        """Samples that must stay in one micro-batch, since the objective compares them or their boxes share a place; None where each is for itself."""
        return self.training.batch if objective.couples_samples or self.data.place == "shared" else None

    def plain(self) -> dict[str, Any]:
        """The recipe as plain data, defaults filled in (without ``training``, which the engine adds resolved)."""
        module = shelf.load("objectives", self.objective_name)
        net = shelf.load("nets", self.net_name)
        return {
            "net": {"name": self.net_name, **parse(net.Config, self.net).model_dump(mode="json")},
            "objective": {"name": self.objective_name, **parse(module.Config, self.objective).model_dump(mode="json")},
            "data": self.data.model_dump(mode="json"),
        }


def read_recipe(name: str, assignments: Sequence[str] = ()) -> Recipe:
    """A recipe by name or YAML file, with ``key=value`` settings applied and everything checked.

    Raises:
        ConfigError: an unknown name, key or objective (with suggestions), or an impossible value.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else shelf.path_of("recipes", name)
    values = override(read_yaml(path), assignments)
    unknown = sorted(values.keys() - set(PARTS))
    if unknown:
        raise ConfigError(f"unknown key {unknown[0]!r} in the recipe", file=path, next_step=suggestion(unknown[0], PARTS))
    parts = {part: dict(values.get(part) or {}) for part in PARTS}
    for part in ("net", "objective"):
        if "name" not in parts[part]:
            raise ConfigError(f"the recipe names no {part}", file=path, expected=f"{part}: {{name: ...}}")
    net_name, objective_name = str(parts["net"].pop("name")), str(parts["objective"].pop("name"))
    named: dict[str, Any] = {
        "net": shelf.load("nets", net_name).Config,
        "objective": shelf.load("objectives", objective_name).Config,
    }
    made = {
        part: parse(model, parts[part], where=path, within=part, assigned=assignments)
        for part, model in ({"data": PairConfig, "training": TrainingConfig} | named).items()
    }
    recipe = Recipe(net_name, parts["net"], objective_name, parts["objective"], made["data"], made["training"])
    if getattr(made["objective"], "target", None) == "map" and made["objective"].anatomy and recipe.data.label is None:
        raise ConfigError(
            "objective.target=map learns from label maps, and the recipe names none", file=path,
            expected="data.label=dseg, or another label of the store", next_step="neuroprior store stats STORE names the labels of a store",
        )  # fmt: skip
    return recipe
