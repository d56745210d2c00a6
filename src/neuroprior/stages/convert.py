"""Convert: another framework's weights in, a model folder out, with an account of every weight."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ConvertSummary:
    """What became of a file's weights. As text: the account; as a path: the model folder.

    Attributes:
        out: the model folder.
        bridge: which framework's checkpoint it was taken for.
        net: the net that has the weights, and its size.
        loaded: weights (tensors) of the net that came from the file.
        share: of the net's numbers that did, 0 to 1.
        drawn: weights of the net that were drawn at random.
        left_out: reason -> how many weights of the file were left out for it.
        prepare: what scans must be prepared with, as options of ``neuroprior prepare``.
        notes: what a user should know.
        planned: nothing was written (a dry run).
    """

    out: Path
    bridge: str
    net: str
    loaded: int
    share: float
    drawn: int
    left_out: dict[str, int]
    prepare: str
    notes: tuple[str, ...] = ()
    planned: bool = False

    def __fspath__(self) -> str:
        return str(self.out)

    def __str__(self) -> str:
        lines = [f"{self.bridge}: {self.net}", f"loaded    {self.loaded} weights, {self.share:.1%} of the net's numbers"]
        if self.drawn:
            lines.append(f"drawn     {self.drawn} weights at random (the decoder)")
        lines += [f"left out  {n} weights: {reason}" for reason, n in self.left_out.items()]
        lines += [f"note: {note}" for note in self.notes]
        lines.append(f"prepare scans for it with: neuroprior prepare INDEX --out STORE {self.prepare}")
        lines.append("dry run: nothing was written" if self.planned else str(self.out))
        return "\n".join(lines)


def convert(
    source: Path,
    out: Path,
    contrasts: str,
    bridge: str | None = None,
    licence: list[str] | None = None,
    spacing: float | None = None,
    anatomy_share: float | None = None,
    encoder_only: bool = False,
    leave_out: list[str] | None = None,
    dry_run: bool = False,
) -> ConvertSummary:
    """Take over the weights of another framework as a pretrained model, to fine-tune, to embed with, or to pretrain on.

    The file is read without running anything that it could bring. No weight is loaded in part, and none is dropped without a word.

    Args:
        source: checkpoint (.pth, .ckpt, .safetensors), or the folder of a hub that holds one.
        out: the model folder.
        contrasts: comma-separated names of what the weights were trained on, for example T1w,T2w,FLAIR.
        bridge: nnssl or fomo25; by default what the file looks like.
        licence: of the weights or their training data, for example CC-BY-4.0; models that start from them inherit it.
        spacing: voxel spacing in mm of their scans; by default what the file says.
        anatomy_share: share of the code's channels that are the anatomy half, for weights of the anatomy split (0.5); by default the net has no split.
        encoder_only: take the encoder alone and draw the decoder at random, for weights that have no decoder or another one.
        leave_out: beginnings of the names of weights that have no place here and are not needed, such as a projection head.
        dry_run: only say what would become of the weights.

    Returns:
        The account, which model.json keeps too.

    Raises:
        ArtifactError: the file is damaged, holds code, or its weights do not fit.
        ConfigError: nobody knows the file, or the architecture is on no shelf.
    """
    from collections import Counter

    from ..bridges import _foreign
    from ..core import shelf
    from ..core.errors import ConfigError, suggestion
    from ..inference.lineage import prepared_with

    known = _foreign.importers()
    if bridge is not None and bridge not in known:
        raise ConfigError(f"no bridge leads here from {bridge!r}", next_step=suggestion(bridge, known))
    names = _contrasts(contrasts)
    file = _foreign.find(source)
    content = _foreign.read(file)
    bridge = bridge or _foreign.recognised(content)
    if bridge is None:
        raise ConfigError(
            "this checkpoint is of no framework that is known here", file=file, expected=" or ".join(known),
            got=f"a file with {', '.join(list(map(str, content))[:6])}",
        )  # fmt: skip
    foreign = shelf.load("bridges", bridge).translate(content, file, _foreign.Wishes(spacing, anatomy_share))
    adopted = _foreign.adopt(foreign, file, encoder_only=encoder_only, leave_out=leave_out or [])
    if not dry_run:
        _foreign.save(foreign, adopted, file, out, bridge=bridge, contrasts=names, licences=licence or [])
    numbers = sum(p.numel() for p in adopted.net.parameters())
    return ConvertSummary(
        out, bridge, f"{foreign.origin['method']} on {foreign.net_name}, {numbers / 1e6:.2f} M parameters", len(adopted.loaded),
        adopted.share, len(adopted.drawn), dict(Counter(_reason(why) for why in adopted.left_out.values())),
        prepared_with(foreign.spec), foreign.notes, dry_run,
    )  # fmt: skip


def _contrasts(text: str) -> list[str]:
    """Canonical names.

    Raises:
        ConfigError: there is none.
        InputError: one is unknown.
    """
    from ..core.contrasts import canonical
    from ..core.errors import ConfigError

    names = list(dict.fromkeys(canonical(name.strip()) for name in text.split(",") if name.strip()))
    if not names:
        raise ConfigError("no contrast is named", expected="--contrasts T1w,T2w,FLAIR")
    return names


def _reason(why: str) -> str:
    return "a copy of another, by which the library lists it twice" if why.startswith("the same as ") else why
