"""The list of contrasts that nobody knows, beside an index: filled in and given back, it is a contrast map."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from ..core import artifacts
from ..core.config import read_yaml
from ..core.contrasts import canonical
from ..core.errors import ConfigError

logger = logging.getLogger(__name__)

HEAD = """# How the datasets of {index} spell contrasts. Put a name of `neuroprior list contrasts` behind those that you want
# (as in "scan": T1w), leave the others empty, and give the file back: --contrast-map {file}
"""


def read(path: Path) -> dict[str, str]:
    """A dataset's spelling -> a canonical name; spellings without a name are left out.

    Raises:
        ConfigError: the file cannot be read or holds no mapping.
        InputError: nobody knows one of the names.
    """
    return {str(key): canonical(str(value)) for key, value in read_yaml(path).items() if value is not None}


def write(path: Path, unknown: Mapping[str, int], given: Mapping[str, str], index: Path) -> Path | None:
    """Write the spellings that nobody knows, with their counts, behind those that were mapped by now; what somebody filled in stays.

    Args:
        path: the list.
        unknown: spelling -> scans.
        given: the contrast map of this run.
        index: that it belongs to.

    Returns:
        The path, or None where there was nothing to write: no unknown spelling, or a file that is there and cannot be understood.
    """
    try:
        filled = {str(key): str(value) for key, value in read_yaml(path).items() if value is not None} if path.is_file() else {}
    except ConfigError as error:
        logger.warning("the list of unknown contrasts is not written: %s", error)
        return None
    if not unknown:
        if not filled:
            path.unlink(missing_ok=True)
        return None
    kept = {**given, **filled}
    lines = [f"{_quoted(name)}: {_quoted(kept[name])}" for name in sorted(kept)]
    rest = sorted((name for name in unknown if name not in kept), key=lambda name: (-unknown[name], name))
    lines += [f"{_quoted(name)}:  # {unknown[name]} scan{'s' * (unknown[name] > 1)}" for name in rest]
    artifacts.write_text(path, HEAD.format(index=index.name, file=path.name) + "\n".join(lines) + "\n")
    return path


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
