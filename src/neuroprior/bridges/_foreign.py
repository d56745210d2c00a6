"""Weights from elsewhere: read without running any code that the file could hold, matched name by name, accounted for to the last number.

A bridge says what a file's weights are called here, on which net of the shelf they sit and how its scans were prepared (:class:`Foreign`). What
follows is the same for all: nothing is loaded in part. Every weight of our net comes from the file, or the caller has said that only the encoder is
wanted; every weight of the file is used, or is a copy of another, or is left out with a reason.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core import artifacts, seeds, shelf
from ..core.conforming import ConformSpec
from ..core.errors import ArtifactError, ConfigError
from ..inference import model as models

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
"""What files of weights are called."""

WRAPPERS = ("module.", "_orig_mod.")
"""What parallel and compiled training put before a name, or into it."""

ENCODER = ("encoder.", "latent.")
"""Parts of our nets that lead from a scan to its representation."""


@dataclass(frozen=True)
class Wishes:
    """What only the caller can say.

    Attributes:
        spacing_mm: voxel spacing of the scans, where the file does not tell; None where it does.
        anatomy_share: share of the code's channels that are the anatomy half; None for a net that was trained without a split.
    """

    spacing_mm: float | None = None
    anatomy_share: float | None = None


@dataclass(frozen=True)
class Foreign:
    """What a bridge makes of a file.

    Attributes:
        net_name, net_config: the net on our shelf, as plain data.
        state: our name -> weight; kernels are (out, in, x, y, z), as ours are.
        spec: how the scans were prepared, as nearly as we can.
        origin: plain data on where the weights come from: tool, method, epoch ...
        patch: edge lengths (x, y, z) in voxels of the boxes that it was trained on, or recommends.
        left_out: their name -> why it has no place here.
        notes: what a user should know.
    """

    net_name: str
    net_config: dict[str, Any]
    state: dict[str, Tensor]
    spec: ConformSpec
    origin: dict[str, Any]
    patch: tuple[int, ...] | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Adopted:
    """A net with a file's weights in it.

    Attributes:
        net: with the weights.
        loaded: our names of the weights that came from the file.
        drawn: those that were drawn at random, since only the encoder was wanted.
        left_out: name in the file (ours, where the bridge has translated it) -> why it is not used.
        share: of the net's numbers that came from the file, 0 to 1.
    """

    net: nn.Module
    loaded: tuple[str, ...]
    drawn: tuple[str, ...]
    left_out: dict[str, str]
    share: float


# ------------------------------------------------------------------------------------------------------------- reading


def find(source: Path) -> Path:
    """The file of weights: itself, or the only one of a folder (as a hub's download is).

    Raises:
        ArtifactError: there is none, or several.
    """
    if source.is_dir():
        found = sorted(path for path in source.iterdir() if path.suffix in SUFFIXES)
        if len(found) == 1:
            return found[0]
        raise ArtifactError(
            "this folder does not hold one file of weights", file=source, expected=f"one of {', '.join(SUFFIXES)}",
            got=", ".join(path.name for path in found) or "none", next_step="give the file itself",
        )  # fmt: skip
    if not source.is_file():
        raise ArtifactError("there is no such file", file=source)
    return source


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint: tensors and plain values, and nothing that would run.

    Args:
        path: a file of ``torch.save``, or safetensors, whose weights are then found under ``state_dict``.

    Raises:
        ArtifactError: the file is damaged, or holds objects of Python; nothing of it has been run then.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return {"state_dict": load_file(path)}
        except SafetensorError as error:
            raise ArtifactError("the file is damaged", file=path, got=str(error)) from None
    try:
        with torch.serialization.safe_globals(_plain_numpy()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            said = re.search(r"Unpickler error:\s*(.+)", str(error))  # torch's advice before it is to read the file unsafely
            raise ArtifactError(
                "the file cannot be read as weights", file=path, expected="a checkpoint that torch.save or safetensors wrote",
                got=said[1] if said else type(error).__name__,
            ) from None  # fmt: skip
        raise ArtifactError(
            "the file holds more than weights and plain values, and reading it would run code that it brings", file=path, got=refused[1],
            next_step="where it was trained, save its weights alone (network_weights and nnssl_adaptation_plan, or state_dict) with torch.save or as "
            "safetensors",
        ) from None  # fmt: skip
    except (RuntimeError, EOFError, OSError) as error:
        raise ArtifactError("the file cannot be read as weights", file=path, got=str(error).splitlines()[0]) from None
    if not isinstance(content, dict):
        raise ArtifactError("this is no checkpoint", file=path, expected="a mapping", got=type(content).__name__)
    return content


def _plain_numpy() -> list[Any]:
    """Numpy's numbers, which trainers leave among their losses: data, no code."""
    dtypes = [type(np.dtype(kind)) for kind in (np.float16, np.float32, np.float64, np.int32, np.int64, np.bool_)]
    return [np.dtype, *dtypes, np._core.multiarray.scalar, (np._core.multiarray.scalar, "numpy.core.multiarray.scalar")]


def weights(content: Mapping[str, Any], key: str, path: Path) -> dict[str, Tensor]:
    """The tensors under a key, without the wrappers of parallel and compiled training, as float32.

    Raises:
        ArtifactError: there are none, two names become one, or a weight is not finite.
    """
    found = content.get(key)
    if not isinstance(found, Mapping) or not found:
        raise ArtifactError(f"the file holds no {key}", file=path, got=", ".join(map(str, content)) or "nothing")
    made: dict[str, Tensor] = {}
    for name, value in found.items():
        if not isinstance(value, Tensor):
            continue
        plain = str(name)
        for wrapper in WRAPPERS:
            plain = plain.removeprefix(wrapper).replace(f".{wrapper}", ".")
        if plain in made:
            raise ArtifactError("two weights of the file have one name", file=path, got=plain)
        if value.is_floating_point():
            value = value.float()
            if not value.isfinite().all():
                raise ArtifactError("a weight is not finite", file=path, got=plain, next_step="take an earlier checkpoint")
        made[plain] = value
    return made


def drop_copies(state: dict[str, Tensor], originals: Mapping[str, str], path: Path) -> dict[str, str]:
    """Take the copies out of ``state``: weights that a library lists twice, since two of its modules hold them.

    Args:
        state: name -> weight; a copy whose original is not there takes its place.
        originals: name of a copy -> name of the original.
        path: of the file, for errors.

    Returns:
        Name of each copy -> what it is.

    Raises:
        ArtifactError: a copy differs from its original.
    """
    told: dict[str, str] = {}
    for copy, original in originals.items():
        value = state.pop(copy)
        if original not in state:
            state[original] = value
        elif not torch.equal(state[original], value):
            raise ArtifactError(
                "two weights that the library holds once differ in the file", file=path, got=f"{copy} and {original}"
            )
        told[copy] = f"the same as {original}"
    return told


def recognised(content: Mapping[str, Any]) -> str | None:
    """The bridge that a checkpoint belongs to, by what it holds; None where none knows it."""
    for name in importers():
        if shelf.load("bridges", name).recognises(content):
            return name
    return None


def importers() -> list[str]:
    """The bridges that lead here."""
    return [name for name in shelf.names("bridges") if hasattr(shelf.load("bridges", name), "recognises")]


# ------------------------------------------------------------------------------------------------------------- adopting


def adopt(foreign: Foreign, path: Path, *, encoder_only: bool = False, leave_out: Sequence[str] = (), seed: int = 0) -> Adopted:
    """Our net with the file's weights.

    Args:
        foreign: what a bridge has made of the file.
        path: the file, for errors.
        encoder_only: take what leads from a scan to its representation, and draw the decoder at random.
        leave_out: beginnings of names (ours) that have no place and shall be left out.
        seed: of what is drawn.

    Raises:
        ArtifactError: a weight of the net is not in the file, one of the file has no place, or one has another shape.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.entropy(seed, "initialisation") % 2**63)
        net = models.build_net(foreign.net_name, foreign.net_config)
    expected, state, left = net.state_dict(), dict(foreign.state), dict(foreign.left_out)
    for name in sorted(state):
        if encoder_only and not name.startswith(ENCODER):
            left[name] = "not of the encoder"
        elif name not in expected and name.startswith(tuple(leave_out)):
            left[name] = "left out as asked"
        else:
            continue
        del state[name]
    extra = sorted(state.keys() - expected.keys())
    if extra:
        step = f"if they are not needed (a head, a projection), leave them out by how their names begin: --leave-out {extra[0].rpartition('.')[0]}."
        if all(name.startswith("decoder.") for name in extra):
            step = "their decoder is another one: --encoder-only takes the encoder and draws the decoder at random"
        raise ArtifactError(
            f"{len(extra)} weights of the file have no place in the net {foreign.net_name!r}", file=path, got=_some(extra), next_step=step
        )  # fmt: skip
    wrong = [name for name in sorted(state) if state[name].shape != expected[name].shape]
    if wrong:
        raise ArtifactError(
            f"{len(wrong)} weights have another shape than in the net {foreign.net_name!r}", file=path,
            expected=_some([f"{name} {tuple(expected[name].shape)}" for name in wrong]),
            got=_some([f"{name} {tuple(state[name].shape)}" for name in wrong]),
            next_step="our nets take one contrast at a time, and reconstruct one: where only the decoder differs, --encoder-only takes the rest",
        )  # fmt: skip
    missing = sorted(expected.keys() - state.keys())
    if missing and not encoder_only:
        beyond = not any(name.startswith(ENCODER) for name in missing)
        raise ArtifactError(
            f"{len(missing)} weights of the net {foreign.net_name!r} are not in the file", file=path, got=_some(missing),
            next_step="--encoder-only takes the encoder and draws the decoder at random" if beyond else "weights are never loaded in part",
        )  # fmt: skip
    lacking = [name for name in missing if name.startswith(ENCODER)]
    if lacking:
        raise ArtifactError(
            f"{len(lacking)} weights of the encoder are not in the file", file=path, got=_some(lacking),
            next_step="weights are never loaded in part",
        )  # fmt: skip
    net.load_state_dict({**expected, **state}, strict=True)
    whole = sum(value.numel() for value in expected.values())
    share = sum(value.numel() for value in state.values()) / whole
    return Adopted(net.eval(), tuple(sorted(state)), tuple(missing), left, share)


def save(
    foreign: Foreign, adopted: Adopted, path: Path, out: Path, *, bridge: str, contrasts: Sequence[str], licences: Sequence[str]
) -> Path:
    """Write the model folder.

    Args:
        foreign, adopted: what was read and what became of it.
        path: the file it came from; its name and hash are kept.
        out: the model folder.
        bridge: its name.
        contrasts: canonical names of what the weights were trained on.
        licences: of the weights and their data.
    """
    if out.exists() and any(out.iterdir()) and not (out / models.DESCRIPTION).is_file():
        raise ConfigError("the folder holds something else", file=out, next_step="choose another --out")
    method = {
        "stage": "convert", "bridge": bridge, "objective": foreign.origin.get("method", "unknown"),
        "source": {"file": path.name, "sha256": artifacts.sha256_file(path), **foreign.origin},
        "weights": {"loaded": len(adopted.loaded), "share": adopted.share, "drawn": list(adopted.drawn), "left_out": adopted.left_out},
        "notes": list(foreign.notes),
    } | ({} if foreign.patch is None else {"patch": list(foreign.patch)})  # fmt: skip
    net: Any = adopted.net
    return models.save(
        out, net=net, net_name=foreign.net_name, net_config=net.config.model_dump(mode="json"), spec=foreign.spec,
        contrasts=contrasts, kind="pretrained", method=method, data={"licences": sorted(licences)},
    )  # fmt: skip


def split_settings(wishes: Wishes) -> dict[str, Any]:
    """The net's settings of a split by channels, or of none."""
    if wishes.anatomy_share is None:
        return {"split": "none"}
    return {"split": "channels", "anatomy_share": wishes.anatomy_share}


def _some(names: Sequence[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
