"""What tables say about people: values from text, and age, sex, health, site and scanner from freely named columns."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ._identifying import identifying

MISSING = frozenset({"", "n/a", "na", "nan", "none", "null"})
"""Texts that stand for "not known", compared without case."""

SYNONYMS: dict[str, tuple[str, ...]] = {
    "age": (
        "age",
        "age_at_scan",
        "age_years",
        "age_at_visit",
        "age_at_session",
        "age_in_years",
        "age_months",
        "age_in_months",
        "age_weeks",
        "age_in_weeks",
        "age_days",
        "age_in_days",
    ),
    "sex": ("sex", "gender"),
    "health": ("health", "diagnosis", "group", "dx", "health_status", "pathology"),
    "site": ("site", "centre", "center", "site_id", "institution"),
    "scanner": ("scanner", "scanner_model"),
}
"""Field of a scan -> names of table columns that may hold it, in order of preference, compared without case."""

_YEARS = {"year": 1.0, "month": 1 / 12, "week": 7 / 365.25, "day": 1 / 365.25}
_UNITS = {name: years for unit, years in _YEARS.items() for name in (unit, f"{unit}s")} | {
    "mo": 1 / 12, "mos": 1 / 12, "mth": 1 / 12, "wk": 7 / 365.25, "wks": 7 / 365.25, "d": 1 / 365.25, "m": 1 / 12, "w": 7 / 365.25,
}  # fmt: skip
UNTOLD = "untold, and not years"
"""The unit of an age column that cannot be years and states no other."""
_SEX = {"f": "F", "female": "F", "woman": "F", "girl": "F", "m": "M", "male": "M", "man": "M", "boy": "M"}
_OURS = frozenset((*SYNONYMS, "split"))


def once(tell: Callable[[str], None]) -> Callable[[str], None]:
    """``tell``, which says everything once."""
    said: set[str] = set()

    def tell_once(text: str) -> None:
        if text not in said:
            said.add(text)
            tell(text)

    return tell_once


def value(text: object) -> Any:
    """A cell as None (``n/a``, empty), int, float or text. Numbers with leading zeros, and whole ones of more than 18 digits, are text: they are codes."""
    if text is None or (isinstance(text, float) and math.isnan(text)):
        return None
    if not isinstance(text, str):
        plain = text.item() if hasattr(text, "item") else text  # NumPy scalars of a Parquet table
        return str(plain) if isinstance(plain, int) and abs(plain) >= 10**18 else plain
    text = text.strip()
    if text.casefold() in MISSING:
        return None
    if re.fullmatch(r"[+-]?(0|[1-9]\d*)", text):
        return int(text) if len(text.lstrip("+-")) <= 18 else text
    if re.fullmatch(r"[+-]?(0|[1-9]\d*)?\.\d+([eE][+-]?\d+)?|[+-]?[1-9]\d*(\.\d*)?[eE][+-]?\d+", text):
        return float(text)
    return text


LARGEST_TABLE = 1 << 30
"""A table of more bytes is no table of people."""


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a TSV (or, by its suffix, CSV) file as text; a byte-order mark is dropped.

    Raises:
        InputError: the file cannot be read, is not UTF-8, or a row is longer than the header.
    """
    try:
        if path.stat().st_size > LARGEST_TABLE:
            raise InputError("a table is too large", file=path, expected=f"at most {LARGEST_TABLE >> 20} MiB")
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="," if path.suffix.lower() == ".csv" else "\t")
            rows = [{key.strip() if key else key: cell for key, cell in row.items()} for row in reader]
    except OSError as error:
        raise InputError("a table cannot be read", file=path, got=error.strerror) from None
    except UnicodeDecodeError as error:
        raise InputError("a table is not UTF-8 text", file=path, got=str(error), next_step="save it as UTF-8") from None
    except csv.Error as error:
        raise InputError("a table is damaged", file=path, got=str(error)) from None
    for number, row in enumerate(rows, start=2):
        if None in row:
            raise InputError(
                "a row of a table is longer than its header", file=path, got=f"line {number}", next_step="mend that line"
            )
    return rows


LARGEST_DESCRIPTION = 64 << 20
"""A JSON file beside the data of more bytes is none that a converter wrote."""


def read_description(path: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """The mapping in a JSON file beside the data, or an empty one where there is no file.

    A damaged file is told of and counts as empty: metadata is never a reason to lose a scan.
    """
    if not path.is_file():
        return {}
    try:
        size = path.stat().st_size
        if size > LARGEST_DESCRIPTION:
            tell(f"{path} has {size >> 20} MiB, which is no description; it is left out")
            return {}
        loaded = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        tell(f"{path} cannot be read and is left out: {(str(error).splitlines() or [''])[0]}")
        return {}
    if not isinstance(loaded, dict):
        tell(f"{path} holds no mapping and is left out")
        return {}
    return loaded


def age_years(raw: object, units: str | None = None) -> float | None:
    """An age in years from a number or from text such as ``"53"``, ``"89+"`` or ``"050Y"``; None where it is none.

    Args:
        raw: the cell.
        units: as a data dictionary gives them, for example ``"months"``; years where absent.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(?:\+|y|yr|yrs|years?)?\s*", str(raw), flags=re.IGNORECASE)
    if match is None:
        return None
    if units == UNTOLD:
        return None
    words = re.findall(r"[a-z]+", (units or "").casefold())
    factor = next((_UNITS[word] for word in words if word in _UNITS), 1.0)
    age = float(match.group(1)) * factor
    return age if age <= 130 else None


def distrusted(rows: Iterable[Mapping[str, Any]], dictionary: Mapping[str, Any], tell: Callable[[str], None]) -> dict[str, Any]:
    """The data dictionary, in which a column of ages without units that holds an age above 130 has an unknown unit.

    One such number says that the column is in months or days: the other ages, which would pass for years, are wrong as well.
    """
    result = dict(dictionary)
    columns: dict[str, float] = {}
    for row in rows:
        for name, cell in row.items():
            if name and name.casefold() in SYNONYMS["age"] and unit_in(name) is None:
                number = value(cell)
                if isinstance(number, (int, float)):
                    columns[name] = max(columns.get(name, 0.0), number)
    for name, most in columns.items():
        entry = dictionary.get(name)
        if most > 130 and not (isinstance(entry, Mapping) and entry.get("Units")):
            tell(
                f"the column {name!r} holds {most:g}, which is no age in years: say its Units in the data dictionary; its ages are left out"
            )
            result[name] = {**(entry if isinstance(entry, Mapping) else {}), "Units": UNTOLD}
    return result


def sex(raw: object, levels: Mapping[str, Any] | None = None) -> str | None:
    """``F``, ``M`` or None, from a letter, a word, or a code that a data dictionary explains (``{"1": "male"}``)."""
    text = str(raw).strip()
    found = _SEX.get(text.casefold())
    if found is None and levels:
        meaning = next((str(word) for code, word in levels.items() if str(code).casefold() == text.casefold()), "")
        found = _SEX.get(meaning.strip().casefold())
    return found


def unit_in(column: str) -> str | None:
    """The unit that a column's name states (``age_months``), or None."""
    return next((unit for unit in _YEARS if f"_{unit}" in column.casefold()), None)


def day(text: object) -> date | None:
    """The day of a time as tables write it (``2009-06-15T13:45:30``, ``2009-06-15``, ``20090615``), or None."""
    try:
        return datetime.fromisoformat(str(text).strip()).date()
    except ValueError:
        return None


def raw(cell: object) -> str:
    """A cell as the text that it is, an empty one where nothing is known; ``1E5`` stays ``1E5``."""
    text = "" if cell is None or (isinstance(cell, float) and math.isnan(cell)) else str(cell).strip()
    return "" if text.casefold() in MISSING else text


def facts(
    row: Mapping[str, Any],
    dictionary: Mapping[str, Any],
    tell: Callable[[str], None],
    *,
    of_columns: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Fields of a scan that a table row gives: age, sex, health, site, scanner, split and ``columns``.

    ``columns`` holds every cell whose column is not called exactly like one of those fields, so that a column can be
    asked for under the dataset's own name (``group``, ``gender``) as well as under ours (``health``, ``sex``). A cell
    of a field that cannot be understood (an age of ``"old"``) is kept in ``columns`` and told of.

    Args:
        row: column -> cell.
        dictionary: the table's data dictionary (``participants.json``): units of ages, levels of sexes.
        tell: where to say what was not understood.
        of_columns: where to say which columns are left out, if elsewhere: it is the same for all rows.
    """
    cells = {}
    for name, cell in row.items():
        if not name:
            continue
        if identifying(name):
            (of_columns or tell)(f"the column {name!r} may say who somebody is; it is left out")
            continue
        cells[name] = value(cell)
    by_key = {name.casefold(): name for name in cells}
    columns = {name: cell for name, cell in cells.items() if name not in _OURS}
    found: dict[str, Any] = {}
    for field, names in SYNONYMS.items():
        for name in (by_key[key] for key in names if key in by_key):
            cell = cells[name]
            if cell is None:
                continue
            entry = dictionary.get(name)
            entry = entry if isinstance(entry, Mapping) else {}
            if field == "age":
                levels = None
                units = entry.get("Units") or unit_in(name)
                understood = age_years(cell, str(units) if units else None)
            elif field == "sex":
                levels = entry.get("Levels")
                understood = sex(cell, levels if isinstance(levels, Mapping) else None)
            else:
                understood = raw(row[name])  # a site 1E5 is no number
            if understood is None:
                if field != "age" or entry.get("Units") != UNTOLD:  # of such a column it was told already
                    tell(f"{field} {cell!r} is not understood; it is kept as the column {name!r}")
                columns[name] = cell
                continue
            found[field] = understood
            break
    split = cells.get(by_key.get("split", ""))
    if split is not None:
        known = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
        name = known.get(str(split).casefold())
        if name is None:
            tell(f"split {split!r} is not understood (train, val or test); it is left out")
        else:
            found["split"] = name
    found["columns"] = columns
    return found


def unknown_contrast(raw: str) -> str:
    """The reason for a row whose contrast nobody knows, with the nearest known names and the way to map it."""
    from ..core.contrasts import canonical

    try:
        canonical(raw)
        hint = ""
    except InputError as error:
        hint = f"; {error.next_step}"
    return f"unknown contrast {raw!r}{hint}; map it with a contrast map such as {raw}=T1w"
