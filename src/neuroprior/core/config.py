"""Settings: frozen pydantic models beside the code they configure, YAML recipes and ``key=value`` overrides."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import ConfigError, suggestion


class Config(BaseModel):
    """Base of every settings model: frozen, unknown keys refused, field docstrings become descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


C = TypeVar("C", bound=BaseModel)


def parse(
    model: type[C], values: Mapping[str, Any], *, where: str | Path | None = None, within: str = "", assigned: Iterable[str] = ()
) -> C:
    """``values`` as a validated ``model``.

    Args:
        model: the settings class.
        values: nested plain data, as read from YAML or JSON.
        where: the file the values came from, named in errors.
        within: the part of that file that they are, which their names begin with (``training``).
        assigned: ``key=value`` settings that were applied to the file; the file is not named where only these are wrong.

    Raises:
        ConfigError: an unknown key (with the nearest known one) or an impossible value, in the user's spelling
            (``objective.mask.ratio``).
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        lines, in_file, given = [], False, {assignment.partition("=")[0].strip() for assignment in assigned}
        for item in error.errors():
            key = ".".join([*([within] if within else []), *(str(part) for part in item["loc"])])
            in_file = in_file or not any(key == name or key.startswith(f"{name}.") for name in given)
            if item["type"] == "extra_forbidden":
                known = _fields_at(model, item["loc"][:-1])
                hint = suggestion(str(item["loc"][-1]), known) if known else "remove it"
                lines.append(f"unknown key {key!r}: {hint}")
            else:
                lines.append(f"{key or model.__name__}: {item['msg']} (got {item['input']!r})")
        raise ConfigError(
            "these settings cannot be used:\n    " + "\n    ".join(lines), file=where if in_file else None
        ) from None


def _fields_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    current: Any = model
    for part in loc:
        field = getattr(current, "model_fields", {}).get(part)
        annotation = getattr(field, "annotation", None)
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        current = annotation
    return sorted(current.model_fields)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file is absent, is no YAML, or holds no mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError("the settings file cannot be read", file=path, got=error.strerror) from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError("the settings file is not valid YAML", file=path, got=str(error)) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError("the settings file holds no mapping", file=path, expected="key: value lines", got=type(values).__name__)
    return values


def override(values: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """``values`` with ``a.b=c`` assignments applied; the right-hand side is read as YAML (``3``, ``true``, ``[1, 2]``).

    The input is left untouched.

    Raises:
        ConfigError: an assignment without ``=``, or one that reaches into something that is no mapping.
    """
    result: dict[str, Any] = json.loads(json.dumps(dict(values)))
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"cannot read the setting {assignment!r}", expected="key=value, as in training.steps=500")
        *parents, last = key.strip().split(".")
        spot = result
        for parent in parents:
            spot = spot.setdefault(parent, {})
            if not isinstance(spot, dict):
                raise ConfigError(f"{assignment!r} reaches into {parent!r}, which is a single value")
        spot[last] = yaml.safe_load(text)
    return result
