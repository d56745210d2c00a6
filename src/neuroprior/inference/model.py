"""The model folder: weights, architecture and everything needed to use them, in files anybody can read.

::

    model/
      model.safetensors   keys ``net.*`` and, when fine-tuned, ``head.*``
      model.json          architecture, preprocessing to replay, contrasts, task, method, data summary, licences, forward check
      README.md           model card

No pickle, no other file, no training code. Loading is strict, and ends with a forward pass on a fixed input whose result
must equal the one stored when the folder was written.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import __version__
from ..core import artifacts, seeds, shelf
from ..core.config import parse
from ..core.conforming import ConformSpec
from ..core.errors import ArtifactError, ConfigError
from ..core.places import Place
from ..core.representation import Fused, Representation, fuse
from .described import Described

if TYPE_CHECKING:
    import numpy as np

    from .notebook import Features, Prediction, ScanLike

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the model folder's layout."""
WEIGHTS, DESCRIPTION, CARD = "model.safetensors", "model.json", "README.md"
CHECK_SHAPE = (32, 32, 32)
CHECK_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Model(Described):
    """A model in memory.

    Attributes:
        net: the encoder and decoder.
        head: what the task put on top, or None for a pretrained model.
        info: the content of ``model.json``.
        folder: where it was read from.
        members: the models of an ensemble (``net`` and ``head`` are then the first one's); empty for a single model.
    """

    net: nn.Module
    head: nn.Module | None
    info: Mapping[str, Any]
    folder: Path
    members: tuple[Model, ...] = ()

    @property
    def each(self) -> tuple[Model, ...]:
        """The members of an ensemble, or the model itself."""
        return self.members or (self,)

    @torch.inference_mode()
    def encode(self, scans: Mapping[str, Tensor]) -> tuple[Fused, dict[str, Representation]]:
        """The fused representation of conformed scans, and each contrast's own.

        Args:
            scans: contrast name -> (B, 1, x, y, z) float32, already conformed to ``spec``; at least one.
        """
        self.net.eval()
        each = {name: self.net.encode(image) for name, image in scans.items()}
        return fuse(each), each

    def predict(
        self,
        scans: ScanLike | Mapping[str, ScanLike],
        *,
        contrast: str | None = None,
        affine: np.ndarray | None = None,
        preset: str = "balanced",
        reference: str | None = None,
        covariates: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Prediction:
        """Predict one case in its native space (``inference/notebook.py`` has the details).

        Args:
            scans: a NIfTI path, a nibabel image or an (x, y, z) array; or several by contrast, ``{"T1w": ..., "FLAIR": ...}``.
            contrast: name of a single scan; not needed where the file's BIDS name or the model's only contrast tells it.
            affine: (4, 4) voxel -> RAS+ mm of arrays.
            preset: ``fast``, ``balanced`` or ``accurate``.
            reference: contrast whose native grid the mask is given on.
            covariates: for example ``{"age": 63}``, for a model that takes some.
            settings: any of ``PredictConfig``, such as ``probabilities=True`` or ``uncertainty=True``.

        Raises:
            InputError: a scan cannot be used; the message says what to do.
            ConfigError: the model is only pretrained, or a setting is unknown.
        """
        from .notebook import predict

        return predict(
            self, scans, contrast=contrast, affine=affine, preset=preset, reference=reference, covariates=covariates, **settings
        )

    def encode_scans(
        self,
        scans: ScanLike | Mapping[str, ScanLike],
        *,
        contrast: str | None = None,
        affine: np.ndarray | None = None,
        reference: str | None = None,
    ) -> Features:
        """Anatomy and contrast features of one case; arguments as in :meth:`predict`. Any model can, pretrained ones too."""
        from .notebook import encode

        return encode(self, scans, contrast=contrast, affine=affine, reference=reference)


def forward_check(net: nn.Module) -> list[float]:
    """Sixteen numbers that change when any weight on the path from scan to reconstruction changes.

    The fixed input is (1, 1, 32, 32, 32) standard normal noise drawn from a named seed; the numbers are means of the
    absolute reconstruction and of the halves over blocks of channels and space.
    """
    noise = torch.randn((1, 1, *CHECK_SHAPE), generator=seeds.torch_generator(0, "forward check"))
    parameter = next(net.parameters())
    modes = {module: module.training for module in net.modules()}  # a part of a net in training may be in evaluation
    net.eval()
    with torch.inference_mode():
        representation = net.encode(noise.to(parameter.device, torch.float32))
        outputs = [
            net.decode(representation.anatomy, representation.contrast),
            representation.anatomy,
            representation.contrast,
            *representation.stages,
        ]
        flat = torch.cat([output.float().abs().flatten().cpu() for output in outputs if output.numel()])
        values = [float(part.mean()) for part in flat.tensor_split(16)]
    for module, training in modes.items():
        module.training = training
    return values


def save(
    folder: str | Path,
    *,
    net: nn.Module,
    net_name: str,
    net_config: Mapping[str, Any],
    spec: ConformSpec,
    contrasts: Sequence[str],
    kind: str,
    method: Mapping[str, Any],
    data: Mapping[str, Any],
    head: nn.Module | None = None,
    head_name: str | None = None,
    head_config: Mapping[str, Any] | None = None,
    task: Mapping[str, Any] | None = None,
    lineage: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write a model folder; the marker that makes it valid (``model.json``) is written last.

    Args:
        folder: where to write; files of an earlier model there are replaced.
        net: the network, on any device.
        net_name, net_config: its name on the nets shelf and its config, from which it is rebuilt.
        spec: the preprocessing to replay.
        contrasts: canonical names, in the order of the head's contrast numbers.
        kind: ``pretrained`` or ``finetuned``.
        method: recipe, objective or task settings, steps taken: how these weights came to be.
        data: ``Store.data_summary()`` of the data they came from.
        head, head_name, head_config: the same for a fine-tuned model's head.
        task: what the head predicts.
        lineage: name, weights hash and data of the models that this one was initialised from, oldest first.

    Returns:
        The folder.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"net.{key}": value for key, value in net.state_dict().items()}
    if head is not None:
        state |= {f"head.{key}": value for key, value in head.state_dict().items()}
    state = {key: value.detach().to("cpu").contiguous() for key, value in state.items()}
    (folder / DESCRIPTION).unlink(missing_ok=True)
    with artifacts.atomic(folder / WEIGHTS) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    licences = sorted({*data.get("licences", ()), *(x for entry in lineage for x in entry.get("licences", ()))})
    info = {
        "artifact": "model",
        "format": FORMAT,
        "neuroprior": __version__,
        "kind": kind,
        "net": {"name": net_name, "config": dict(net_config)},
        "head": None if head is None else {"name": head_name, "config": dict(head_config or {})},
        "preprocessing": spec.model_dump(mode="json"),
        "contrasts": list(contrasts),
        "task": None if task is None else dict(task),
        "method": dict(method),
        "data": dict(data),
        "licences": licences,
        "lineage": [dict(entry) for entry in lineage],
        "parameters": {
            "net": sum(p.numel() for p in net.parameters()),
            "head": 0 if head is None else sum(p.numel() for p in head.parameters()),
        },
        "weights_sha256": artifacts.sha256_file(folder / WEIGHTS),
        "forward_check": {"shape": list(CHECK_SHAPE), "values": forward_check(net)},
    }
    artifacts.write_text(folder / CARD, _card(info))
    artifacts.write_json(folder / DESCRIPTION, info)
    return folder


def read_info(folder: str | Path) -> dict[str, Any]:
    """The content of ``model.json``, checked for being one, without building anything.

    ``folder`` may be the model folder or the run folder that holds it as ``model/``.

    Raises:
        ArtifactError: no model is there, a file is missing, or it was written by a newer version.
    """
    folder = resolve(folder)
    info = artifacts.read_json(folder / DESCRIPTION)
    if info.get("artifact") != "model" or info.get("format") != FORMAT:
        raise ArtifactError(
            "this model folder was written by another version",
            file=folder / DESCRIPTION,
            expected=f"model format {FORMAT}",
            got=f"{info.get('artifact')} format {info.get('format')}",
            next_step=f"use neuroprior {info.get('neuroprior', 'of the version that wrote it')}",
        )
    lacking = _lacking(info)
    if lacking:
        raise ArtifactError(
            f"{DESCRIPTION} is not whole", file=folder / DESCRIPTION, expected=", ".join(lacking), got="nothing that can be used there",
            next_step="copy the folder again",
        )  # fmt: skip
    return info


PARTS = {
    "net": Mapping, "preprocessing": Mapping, "contrasts": Sequence, "method": Mapping, "data": Mapping, "licences": Sequence,
    "lineage": Sequence, "weights_sha256": str, "forward_check": Mapping,
}  # fmt: skip
"""What ``model.json`` of every model has."""

TASK_PARTS = {
    "segmentation": ("target", "window", "label_values"),
    "classification": ("target", "window", "classes"),
    "regression": ("target", "window", "mean", "std"),
}
"""What it says of the task of a model with a head."""


def _lacking(info: Mapping[str, Any]) -> list[str]:
    """The parts that are missing or of another kind."""
    found = [name for name, kind in PARTS.items() if not isinstance(info.get(name), kind)]
    if info.get("head") is None:
        return found
    task = info.get("task")
    if not isinstance(task, Mapping) or task.get("name") not in TASK_PARTS:
        return [*found, f"task.name: {' or '.join(TASK_PARTS)}"]
    found += [f"task.{name}" for name in TASK_PARTS[task["name"]] if task.get(name) is None]
    window = task.get("window")
    if window is not None and not (
        isinstance(window, list) and len(window) == 3 and all(isinstance(n, int) and n > 0 for n in window)
    ):
        found.append("task.window: three numbers of voxels")
    return found


def resolve(folder: str | Path) -> Path:
    """The model folder itself, given it or the run folder that holds it.

    Raises:
        ArtifactError: there is no model folder, or a file of it is missing; the message names the file.
    """
    given = Path(folder)
    path = given / "model" if (given / "model").is_dir() else given
    if not path.is_dir():
        raise ArtifactError(
            "there is no model folder here", file=given, next_step="give a run folder or the model folder inside it"
        )
    for name in (DESCRIPTION, WEIGHTS):
        if not (path / name).is_file():
            raise ArtifactError(
                f"the model folder has no {name}",
                file=path,
                expected=f"{DESCRIPTION} and {WEIGHTS}",
                got=", ".join(sorted(item.name for item in path.iterdir())) or "an empty folder",
                next_step="copy the whole folder again, or train again",
            )
    return path


def build_net(name: str, config: Mapping[str, Any], *, where: Path | None = None) -> nn.Module:
    """A freshly initialised net from its name on the shelf and its config as plain data."""
    module = shelf.load("nets", name)
    return module.build(parse(module.Config, config, where=where))


def build_head(name: str, config: Mapping[str, Any], *, where: Path | None = None) -> nn.Module:
    """A freshly initialised head from its name on the shelf and its config as plain data."""
    module = shelf.load("heads", name)
    return module.build(parse(module.Config, config, where=where))


def load(folder: Place, *, device: str = "cpu") -> Model:
    """The model in a folder, ready to use.

    Args:
        folder: a model folder, a run folder that holds one, an ensemble's folder, or the address of one (``hf://ORG/NAME``,
            ``s3://bucket/folder``), which is brought to the cache folder of this machine first.
        device: where to put the weights.

    Raises:
        ArtifactError: a file is missing or damaged, a weight is missing or left over, or the forward check differs.
    """
    from safetensors.torch import load_file

    from . import ensemble
    from .elsewhere import at_hand

    folder = at_hand(folder)
    if ensemble.is_ensemble(folder):
        return ensemble.load(folder, device=device)
    path = resolve(folder)
    info = read_info(path)
    found = artifacts.sha256_file(path / WEIGHTS)
    if found != info["weights_sha256"]:
        raise ArtifactError(
            "the weights are not the ones that model.json describes",
            file=path / WEIGHTS,
            expected=f"sha256 {info['weights_sha256'][:12]}…",
            got=f"{found[:12]}…",
            next_step="copy the folder again",
        )
    parse(ConformSpec, info["preprocessing"], where=path / DESCRIPTION)
    state = load_file(path / WEIGHTS)
    net = build_net(info["net"]["name"], info["net"]["config"], where=path / DESCRIPTION)
    _load_strictly(net, state, "net.", path)
    head = None
    if info["head"] is not None:
        head = build_head(info["head"]["name"], info["head"]["config"], where=path / DESCRIPTION)
        _load_strictly(head, state, "head.", path)
    expected, got = info["forward_check"]["values"], forward_check(net)
    for stored, now in zip(expected, got, strict=True):
        if abs(stored - now) > CHECK_TOLERANCE * max(abs(stored), 1e-3):
            raise ArtifactError(
                "the model does not compute what it computed when it was saved",
                file=path,
                expected=[round(value, 5) for value in expected[:4]],
                got=[round(value, 5) for value in got[:4]],
                next_step="use the neuroprior version that wrote it, or report this as a bug",
            )
    net.to(device).eval()
    if hasattr(net, "lay_out"):
        net.lay_out(torch.device(device))
    if head is not None:
        head.to(device).eval()
    return Model(net, head, info, path)


def _load_strictly(module: nn.Module, state: Mapping[str, Tensor], prefix: str, path: Path) -> None:
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    expected = module.state_dict()
    missing, extra = sorted(expected.keys() - own.keys()), sorted(own.keys() - expected.keys())
    wrong = [
        f"{key}: {tuple(own[key].shape)} for {tuple(expected[key].shape)}"
        for key in sorted(expected.keys() & own.keys())
        if own[key].shape != expected[key].shape
    ]
    if missing or extra or wrong:
        raise ArtifactError(
            "the weights do not fit the architecture in model.json",
            file=path / WEIGHTS,
            expected=f"{len(expected)} tensors",
            got=f"missing {missing[:3]}, left over {extra[:3]}, of another shape {wrong[:3]}",
            next_step="copy the folder again; weights are never loaded in part",
        )
    module.load_state_dict(own, strict=True)


def require_head(model: Model, *names: str) -> nn.Module:
    """The model's head.

    Raises:
        ConfigError: the model is only pretrained, or its task is none of ``names`` (where names are given).
    """
    if model.head is None or (names and model.task.get("name") not in names):
        raise ConfigError(
            "this model cannot do that task",
            file=model.folder,
            expected=" or ".join(names) or "a fine-tuned model",
            got=model.task.get("name", "a pretrained model with no head"),
            next_step="fine-tune it first: neuroprior finetune STORE --from MODEL --task ...",
        )
    return model.head


def _card(info: Mapping[str, Any]) -> str:
    data, task = info["data"], info.get("task") or {}
    licence = info["licences"][0] if len(info["licences"]) == 1 else "other"
    what = f"{task['name']} of {task['target']}" if task else f"{info['method'].get('objective', 'self-supervised')} pretraining"
    rows = [
        ("kind", info["kind"]),
        ("network", f"{info['net']['name']}, {info['parameters']['net'] / 1e6:.2f} M parameters"),
        ("trained for", what),
        ("contrasts", ", ".join(info["contrasts"])),
        ("voxel spacing", f"{info['preprocessing'].get('spacing_mm')} mm"),
        ("subjects / sessions / scans", f"{data.get('subjects', '?')} / {data.get('sessions', '?')} / {data.get('scans', '?')}"),
        ("datasets", ", ".join(data.get("datasets", ())) or "not stated"),
        ("licences of the training data", "; ".join(info["licences"]) or "not stated"),
        ("weights sha256", info["weights_sha256"]),
    ]
    source, before = info["method"].get("source"), info["lineage"]
    if source:
        found = (source.get(name) for name in ("tool", "method", "dataset", "file"))
        rows.insert(2, ("converted from", ", ".join(str(value) for value in found if value)))
    if before:
        stages = (f"{step.get('method', {}).get('stage', 'a model')} [{step['weights_sha256'][:12]}]" for step in before)
        rows.insert(2, ("started from", ", then ".join(stages)))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"""---
library_name: neuroprior
license: {"other" if " " in licence or not licence else licence.lower()}
tags: [brain-mri, neuroimaging, {info["kind"]}]
---

# {what[0].upper() + what[1:]}

| | |
|---|---|
{table}

```python
import neuroprior
model = neuroprior.load("path/to/this/folder")
```

Research use; not a medical device. `model.json` holds the complete description.
"""
