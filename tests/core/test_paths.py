"""Text where a stage expects a path."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import neuroprior
from neuroprior.core.paths import accept_text

VERBS = [name for name in neuroprior.__all__ if name not in ("__version__", "load")]


def one(a: Path, b: str, many: list[Path], c: Path | None = None, d: Path = Path("x")) -> tuple[object, ...]:
    return a, b, many, c, d


def test_text_becomes_a_path_only_where_a_path_is_expected() -> None:
    found = accept_text(one)("~/a", "b", many=["m", Path("n")], d="e")
    assert found == (Path.home() / "a", "b", [Path("m"), Path("n")], None, Path("e"))
    assert accept_text(one)(Path("a"), "b", [], None)[:4] == (Path("a"), "b", [], None)


@pytest.mark.parametrize("verb", VERBS)
def test_every_path_of_every_verb_is_known_by_its_annotation(verb: str) -> None:
    """A verb whose paths were annotated in a way that is not recognised would break on text."""
    function = getattr(neuroprior, verb)
    taken: dict[str, object] = {}
    plain = inspect.unwrap(function)
    paths = {
        name
        for name, p in inspect.signature(plain).parameters.items()
        if "Path" in str(p.annotation) or "Place" in str(p.annotation)
    }

    def spy(*args: object, **kwargs: object) -> None:
        taken.update(inspect.signature(plain).bind(*args, **kwargs).arguments)

    spy.__signature__ = inspect.signature(plain)  # type: ignore[attr-defined]
    required = {n: "t" for n, p in inspect.signature(plain).parameters.items() if p.default is inspect.Parameter.empty}
    accept_text(spy)(**{**required, **dict.fromkeys(paths, "t")})
    assert {name for name in paths if isinstance(taken[name], Path)} == paths


def test_the_docs_of_a_verb_stay() -> None:
    assert neuroprior.index.__doc__ and "Returns" in neuroprior.index.__doc__
    assert "out" in inspect.signature(neuroprior.index).parameters


def test_a_dataset_is_made_in_a_folder_given_as_text(tmp_path: Path) -> None:
    neuroprior.synthesise(str(tmp_path / "heads"), subjects=1, spacing=8.0, progress=False, workers=1)
    assert (tmp_path / "heads" / "participants.tsv").is_file()
