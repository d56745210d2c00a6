"""Who DICOM files are of, without saying it: the key, pseudonyms, and folders that are named as a patient is.

A path says who somebody is where one of its folders holds a part of a patient's name (in any order, without case and accents), an
identifier or a date of the files. What is written then is ``dicom-`` and a keyed hash of the path.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import ArtifactError

KEY = "key.bin"
NAMES = ("PatientName", "OtherPatientNames", "PatientBirthName")
"""Tags that name a patient in words."""
NUMBERS = ("PatientID", "OtherPatientIDs", "AccessionNumber")
"""Tags that name a patient by an identifier."""
DATES = ("PatientBirthDate", "StudyDate")
"""Dates that are left out of everything."""
NOBODY = (
    "anon", "anonym", "anonymous", "anonymized", "anonymised", "patient", "subject", "volunteer", "control", "phantom", "test", "unknown",
    "none", "null", "pilot", "trial", "study", "site", "scan", "brain", "data", "dicom", "home", "user", "users", "work", "mnt", "tmp", "var",
)  # fmt: skip
"""Words that stand in the place of names and in many paths, and name nobody."""
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "ø": "oe", "æ": "ae"})


def key_of(into: Path) -> bytes:
    """The conversion folder's secret, drawn where there is none yet. Not a function of a seed: it must not be guessed.

    Raises:
        ArtifactError: the key that is there is no key.
    """
    path = into / KEY
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        key = path.read_bytes()
        if len(key) != 32:
            raise ArtifactError("the conversion folder's key is damaged", file=path, expected="32 bytes", got=f"{len(key)} bytes",
                                next_step="choose another conversion folder") from None  # fmt: skip
        return key
    key = secrets.token_bytes(32)
    with os.fdopen(handle, "wb") as file:
        file.write(key)
    return key


def keyed(text: str, key: bytes, length: int = 12) -> str:
    """So many hexadecimal digits of a text's keyed hash."""
    return hmac.new(key, text.encode("utf-8", errors="replace"), hashlib.sha256).hexdigest()[:length]


def cover(text: str, into: Path) -> str | None:
    """What is said in place of a path or a name; None where the conversion folder has no key yet."""
    return f"dicom-{keyed(f'called {text}', key_of(into))}" if (into / KEY).is_file() else None


def subject(tags: Mapping[str, Any], key: bytes) -> tuple[str, bool]:
    """The subject's pseudonym, and whether the files name no patient."""
    identity = str(tags.get("PatientID") or "").strip()
    if identity:
        text = f"id {identity} {str(tags.get('IssuerOfPatientID') or '').strip()}"
    elif str(tags.get("PatientName") or "").strip():
        text = f"name {tags.get('PatientName')} {tags.get('PatientBirthDate')}"
    else:
        text = f"study {tags.get('StudyInstanceUID') or tags.get('SeriesInstanceUID')}"
    return keyed(text, key), text.startswith("study ")


class People:
    """The names, identifiers and dates of all files of a tree."""

    def __init__(self) -> None:
        self.words: set[str] = set()
        self.numbers: set[str] = set()
        self.dates: set[str] = set()
        self._seen: set[tuple[str, ...]] = set()

    def add(self, tags: Mapping[str, Any]) -> None:
        """Take note of a file."""
        facts = tuple(str(tags.get(tag) or "") for tag in (*NAMES, *NUMBERS, *DATES))
        if facts in self._seen:
            return
        self._seen.add(facts)
        number = _plain(str(tags.get("PatientID") or ""))
        for text in _texts(tags, NAMES):
            if any(c.isdigit() for c in text) and "^" not in text.strip("^") and _plain(text) == number:
                continue  # an identifier in the name's place: its letters are a study's (STUDY-0001), no name
            for form in _forms(text):
                self.words |= {word for word in _words(form) if _telling(word)}
        self.numbers |= {number for text in _texts(tags, NUMBERS) if len(number := _plain(text)) >= 3 and number not in NOBODY}
        self.numbers |= {digits for text in _texts(tags, NUMBERS) for digits in re.findall(r"\d{5,}", text)}
        self.dates |= {date for text in _texts(tags, DATES) if len(date := _plain(text)) == 8 and date.isdigit()}

    def told_by(self, text: str) -> int:
        """How much a folder's name tells: 0 nothing, 1 a part of a name or a date, 2 an identifier or several parts of a name."""
        found: set[str] = set()
        certain = False
        for form in _forms(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)):
            tokens = {*_words(form), *re.findall(r"\w+", form)}
            joined = _plain(form)
            for word in self.words:
                if word in tokens or (len(word) >= (5 if word.isascii() else 2) and word in joined):
                    found.add(word)
            short = [word for word in self.words if len(word) < 5]
            found |= {word for a in short for b in short if a != b and a + b in tokens for word in (a, b)}
            certain |= any(number in tokens or (len(number) >= 4 and number in joined) for number in self.numbers)
            if any(date in joined for date in self.dates):
                found.add("date")
        return 2 if certain or len(found - {"date"}) > 1 else 1 if found else 0

    def told_by_path(self, path: Path) -> int:
        """The most that any folder of a path tells."""
        return max((self.told_by(part) for part in path.parts[1:]), default=0)


def _texts(tags: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    values = [tags.get(name) for name in names]
    return [str(item) for value in values for item in (value if isinstance(value, list) else [value]) if item]


def _forms(text: str) -> set[str]:
    """A text without case and accents, in the ways that it may be spelt (Müller: muller, mueller)."""
    folded = unicodedata.normalize("NFC", text).casefold()
    return {
        "".join(c for c in unicodedata.normalize("NFKD", form) if not unicodedata.combining(c))
        for form in (folded, folded.translate(_UMLAUTS))
    }


def _words(form: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", form)


def _telling(word: str) -> bool:
    return len(word) >= (3 if word.isascii() else 2) and word not in NOBODY


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.casefold())
