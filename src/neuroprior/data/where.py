"""Conditions on index rows, as people write them: ``contrast == 'FLAIR' and age > 60``. Parsed, never evaluated as code."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..core.errors import ConfigError, suggestion
from ..core.records import CHECKS, Scan

LONGEST = 2000
"""Characters of a condition; longer ones are refused before they are parsed."""
DEEPEST = 60
"""Levels of brackets and nots."""
_CHECKS = frozenset(f"check_{name}" for name in CHECKS)
FROM_FILES = _CHECKS | {
    "shape",
    "spacing_mm",
    "affine",
    "orientation",
    "dtype",
    "size_bytes",
    "mtime_ns",
    "status",
    "reasons",
    "checks",
}
"""What a row gets when its file is read, and when copies of it were looked for."""

_FIELDS = (frozenset(item.name for item in fields(Scan)) - {"split"}) | _CHECKS
_ORDER: dict[type, Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_EXPECTED = "names of columns, numbers, 'texts', == != < <= > >= in, not in, is None, and, or, not, brackets"


@dataclass(frozen=True)
class Condition:
    """A parsed condition.

    Attributes:
        text: as written.
        names: the fields and columns that it asks for.
        test: whether a row fulfils it.
    """

    text: str
    names: frozenset[str]
    test: Callable[[Scan], bool]

    @property
    def needs_files(self) -> bool:
        """Whether it asks for what only the file says (``shape``)."""
        return bool(self.names & FROM_FILES)

    def known(self, columns: Mapping[str, Any] | set[str]) -> None:
        """Refuses names that are no field and no column of any row.

        Raises:
            ConfigError: with the nearest name.
        """
        for name in sorted(self.names - _FIELDS):
            if name not in columns:
                near = suggestion(name, sorted({*_FIELDS, *columns}))
                raise ConfigError(f"no row has {name!r}, which --where asks for", got=self.text, next_step=near)


def parse(text: str) -> Condition:
    """A condition from its text.

    Names are fields of a row (``contrast``, ``age``, ``licence``, ``check_intensity`` ...) or other columns of the dataset's tables (``EDSS``; with
    odd letters ``columns['EDSS score']``). ``split`` is none: subjects are split after rows were left out. A row that lacks a value fulfils no comparison with it, save ``!= value``, ``not in`` and ``is None``; a text
    compared with a number by order is not fulfilled. Texts are compared exactly.

    Raises:
        ConfigError: it is no condition, holds anything else than the above (calls, attributes, arithmetic), or asks for the split.
    """
    if len(text) > LONGEST:
        raise ConfigError("the condition is too long", expected=f"at most {LONGEST} characters", got=len(text))
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"cannot read the condition {text!r}", expected=_EXPECTED, got=type(error).__name__) from None
    level: list[ast.AST] = [tree.body]
    for _ in range(DEEPEST):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    if level:
        raise ConfigError(f"cannot read the condition {text!r}", expected="fewer brackets")
    names: set[str] = set()
    test = _condition(tree.body, names, text)
    if "split" in names:
        raise ConfigError(
            "a condition cannot ask for the split: subjects are split after rows were left out", got=text,
            next_step="index everything, and choose splits where they are used, or give --split train=1 and --split-file",
        )  # fmt: skip
    return Condition(text, frozenset(names), lambda scan: bool(test(scan)))


Value = Callable[[Scan], Any]


def _refused(node: ast.AST, text: str) -> ConfigError:
    what = {"Call": "a call", "Attribute": "an attribute", "BinOp": "arithmetic", "Lambda": "a function"}.get(
        type(node).__name__, "this"
    )
    return ConfigError(f"{what} has no place in a condition", expected=_EXPECTED, got=text)


def _condition(node: ast.expr, names: set[str], text: str) -> Value:
    if isinstance(node, ast.BoolOp):
        parts = [_condition(part, names, text) for part in node.values]
        if isinstance(node.op, ast.And):
            return lambda scan: all(part(scan) for part in parts)
        return lambda scan: any(part(scan) for part in parts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        inner = _condition(node.operand, names, text)
        return lambda scan: not inner(scan)
    if isinstance(node, ast.Compare):
        sides = [_value(side, names, text) for side in (node.left, *node.comparators)]
        tests = [_compare(op, node, text) for op in node.ops]
        return lambda scan: all(test(left(scan), right(scan)) for test, left, right in zip(tests, sides, sides[1:]))
    return _value(node, names, text)


def _value(node: ast.expr, names: set[str], text: str) -> Value:
    if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, (str, int, float, bool))):
        constant = node.value
        return lambda scan: constant
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        number = node.operand.value
        if isinstance(number, (int, float)):
            return lambda scan: -number
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        items = [_value(item, names, text) for item in node.elts]
        return lambda scan: [item(scan) for item in items]
    if isinstance(node, ast.Name):
        name = node.id
        names.add(name)
        if name in _CHECKS:
            return lambda scan: scan.checks.get(name.removeprefix("check_"))
        return lambda scan: scan.value(name)
    if (
        isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "columns"
        and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str)
    ):  # fmt: skip
        column = node.slice.value
        names.add(column)
        return lambda scan: scan.columns.get(column)
    raise _refused(node, text)


def _compare(op: ast.cmpop, node: ast.AST, text: str) -> Callable[[Any, Any], bool]:
    if isinstance(op, (ast.Eq, ast.Is)):
        return lambda a, b: a == b
    if isinstance(op, (ast.NotEq, ast.IsNot)):
        return lambda a, b: a != b
    if isinstance(op, ast.In):
        return _within
    if isinstance(op, ast.NotIn):
        return lambda a, b: not _within(a, b)
    order = _ORDER[type(op)]

    def ordered(a: Any, b: Any) -> bool:
        same = (isinstance(a, str) and isinstance(b, str)) or all(isinstance(x, (int, float)) for x in (a, b))
        return same and order(a, b)

    return ordered


def _within(a: Any, b: Any) -> bool:
    if isinstance(b, str):
        return isinstance(a, str) and a in b
    try:
        return a in b
    except TypeError:
        return False
