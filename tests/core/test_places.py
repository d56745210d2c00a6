"""What goes wrong on the way to an address, in whatever words its driver has."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from neuroprior.core import places


@pytest.mark.parametrize(("library", "root"), sorted(places.OTHER_TROUBLES.items()))
def test_errors_of_a_drivers_own_library_are_told_as_ours(
    library: str, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = ModuleType(library)
    own = type(root, (Exception,), {})
    setattr(module, root, own)
    monkeypatch.setitem(sys.modules, library, module)
    folder = places.Folder(f"file://{tmp_path}")

    def away(*args: Any, **kw: Any) -> bytes:
        raise type("ConnectError", (own,), {})("no route to host")

    for name in ("cat_file", "get_file", "exists", "makedirs", "rm_file"):
        monkeypatch.setattr(type(folder.files), name, away)
    calls = (
        lambda: folder.read("a"), lambda: folder.get("a", tmp_path / "a"), lambda: folder.has("a"), lambda: folder.put(tmp_path, "a"),
        lambda: folder.remove("a"), lambda: folder.listing(),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(places.Unreachable, match="no route to host"):
            call()


def test_what_is_not_there_is_another_thing(tmp_path: Path) -> None:
    with pytest.raises(places.Missing, match="missing there"):
        places.Folder(f"file://{tmp_path}").read("nothing")
