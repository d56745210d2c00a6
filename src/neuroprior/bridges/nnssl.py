"""Checkpoints of nnssl, the framework of OpenMind and SSL3D, read and written: ResEnc-L U-Nets, with or without skip connections.

Wald et al., "Revisiting MAE pre-training for 3D medical image segmentation" (arXiv 2410.23132) and "An OpenMind for 3D medical vision
self-supervised learning" (arXiv 2412.17041). A checkpoint carries ``network_weights`` and ``nnssl_adaptation_plan``; where the plan is not in
the file, ``adaptation_plan.json`` beside it is read.

Their arrays run (z, y, x), further permuted by the plan's ``transpose_forward``, and ours (x, y, z): kernels are turned on the way, so that a scan means the
same to both. A net of ours answers a scan as theirs answers its transpose.

Departures: their intensities are z-scored over the whole scan, ours over the head; their scans keep the orientation of their file, ours are brought to
RAS+. Only the finest output is kept. Primus and other transformers have another net than ours and are refused. What is written has every name that
the library lists, copies included, so that its own strict loading takes it; coarser outputs, which it would have for deep supervision, are zero.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..core import artifacts
from ..core.conforming import ConformSpec
from ..core.errors import ArtifactError, ConfigError
from ..inference import model as models
from ..nets.resenc import SIZES
from ._foreign import Foreign, Wishes, drop_copies, split_settings, weights

WEIGHTS, PLAN, BESIDE = "network_weights", "nnssl_adaptation_plan", "adaptation_plan.json"

FILE = "checkpoint_final.pth"
"""What nnssl calls a finished training."""

STAGES = "encoder.stages"
"""Where the encoder's stages lie in our net, and in theirs but for a prefix."""


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether this is a checkpoint of nnssl."""
    return WEIGHTS in content and (PLAN in content or "plans" not in (content.get("init_args") or {}))


def translate(content: Mapping[str, Any], path: Path, wishes: Wishes) -> Foreign:
    """The checkpoint in our words.

    Args:
        content: of the file.
        path: the file; its plan may lie beside it.
        wishes: of the caller.

    Raises:
        ArtifactError: there is no plan, or weights are not what the plan says.
        ConfigError: another architecture than ours, or anisotropic voxels.
    """
    plan = content.get(PLAN)
    if plan is None and path.with_name(BESIDE).is_file():
        plan = artifacts.read_json(path.with_name(BESIDE))
    if not isinstance(plan, Mapping):
        raise ArtifactError(
            "the checkpoint does not say which net it is of", file=path, expected=f"{PLAN} in it, or {BESIDE} beside it", got="neither",
            next_step="nnssl's own add_adaptation_plan writes it, or copy the hub's whole folder",
        )  # fmt: skip
    features, blocks, skips = _architecture(plan.get("architecture_plans") or {}, path)
    state = weights(content, WEIGHTS, path)
    state = _unwrapped(state, str(plan.get("key_to_encoder", STAGES)), path)
    left = drop_copies(state, {name: original for name in state if (original := _original(name)) != name}, path)
    finest = str(len(features) - 2)
    # a net without skips has one output, under another name
    state = {re.sub(r"^decoder\.seg_layer\.", f"decoder.seg_layers.{finest}.", name): value for name, value in state.items()}
    for name in [name for name in state if (found := re.match(r"decoder\.seg_layers\.(\d+)\.", name)) and found[1] != finest]:
        del state[name]
        left[name] = "an output of deep supervision"
    pretraining = plan.get("pretrain_plan") or {}
    axes = _axes(pretraining.get("transpose_forward") or (0, 1, 2), path)
    state = {name: _turned(value, axes) for name, value in state.items()}
    spacing = wishes.spacing_mm or _spacing(pretraining, path)
    config = {"features": list(features), "blocks": list(blocks), "skips": skips, **split_settings(wishes)}
    origin = {
        "tool": "nnssl", "method": str(content.get("trainer_name") or plan.get("trainer_name") or "unknown"),
        "epoch": content.get("current_epoch"), "dataset": pretraining.get("dataset_name"),
    }  # fmt: skip
    patch = plan.get("recommended_downstream_patchsize")
    notes = (
        "nnssl z-scored each scan over all its voxels; here it is z-scored over the head, so intensities differ by a scale and an offset",
    )
    return Foreign(
        "resenc", config, state, ConformSpec(spacing_mm=spacing, order=3), origin,
        tuple(int(patch[axis]) for axis in axes) if patch else None, left, notes,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- ours out


def write(source: Path, out: Path) -> tuple[str, ...]:
    """A checkpoint that nnssl, and what fine-tunes its checkpoints, takes: ``checkpoint_final.pth`` and ``adaptation_plan.json``.

    Args:
        source: run or model folder of a residual-encoder U-Net.
        out: the folder to write to.

    Returns:
        What a user should know.

    Raises:
        ConfigError: the net, or the way in which its scans were prepared, has no counterpart there.
        ArtifactError: the model is damaged.
    """
    model = models.load(source)
    info, net, spec = model.info, model.net, model.spec
    if model.members:
        raise ConfigError("an ensemble is no checkpoint", file=source, next_step="give the folder of one of its members")
    if info["net"]["name"] != "resenc":
        raise ConfigError(
            "nnssl has no such net", file=source, expected="resenc (recipe ssl3d)", got=info["net"]["name"],
            next_step="pretrain with --set net.name=resenc, or with --recipe ssl3d",
        )  # fmt: skip
    if spec.normalise != "zscore":
        raise ConfigError("nnssl z-scores scans", file=source, expected="normalise zscore", got=f"normalise {spec.normalise}")
    notes = ["nnssl z-scores each scan over all its voxels; this model saw scans z-scored over the head"]
    if model.head is not None:
        notes.append("the head of the fine-tuned model has no place there and was left out")
    state = {name: value for name, value in net.state_dict().items() if name.startswith(("encoder.", "decoder."))}
    if net.latent is not None:
        state = {name: value for name, value in state.items() if name.startswith("encoder.")}
        notes.append("the halves are read from all stages, which nnssl does not know: the encoder alone was written")
    plan = _plan(net.config, spec, info)
    content = {
        WEIGHTS: _listed(state, net.config), PLAN: plan, "trainer_name": f"neuroprior_{info['method'].get('objective', 'model')}",
        "init_args": {}, "current_epoch": 0, "neuroprior": {"version": __version__, "weights_sha256": info["weights_sha256"]},
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    with artifacts.atomic(out / FILE) as temporary:
        torch.save(content, temporary)
    artifacts.write_json(out / BESIDE, plan)
    return tuple(notes)


def _listed(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The weights under all names that the library has for them, detached, for arrays (z, y, x)."""
    finest = len(config.features) - 2
    made = {name: _turned(value.detach(), (2, 1, 0)).clone() for name, value in state.items()}
    output = next((name.removesuffix(".weight") for name in made if re.match(r"decoder\.seg_layers\.\d+\.weight", name)), None)
    if output and not config.skips:
        for part in ("weight", "bias"):
            made[f"decoder.seg_layer.{part}"] = made.pop(f"{output}.{part}")
    elif output:
        for step in range(finest):
            made[f"decoder.seg_layers.{step}.weight"] = torch.zeros(1, config.features[-2 - step], 1, 1, 1)
            made[f"decoder.seg_layers.{step}.bias"] = torch.zeros(1)
    for name in list(made):
        for part, number in ((".conv.", 0), (".norm.", 1)):
            if part in name:
                made[name.replace(part, f".all_modules.{number}.")] = made[name]
    if output:
        made |= {f"decoder.{name}": value for name, value in made.items() if name.startswith("encoder.")}
    return made


def _plan(config: Any, spec: ConformSpec, info: Mapping[str, Any]) -> dict[str, Any]:
    """The adaptation plan: which net, how scans are prepared, where the encoder lies."""
    n = len(config.features)
    named = (config.features, config.blocks) == SIZES["L"]
    edges = [int(edge) for edge in info["method"].get("patch") or (info.get("task") or {}).get("window") or (160, 160, 160)][::-1]
    architecture: dict[str, Any] = {"arch_class_name": "ResEncL" if config.skips else "NoSkipResEncL", "arch_kwargs": None}
    if not named:
        if not config.skips:
            raise ConfigError("nnssl has nets without skip connections in size L alone", got=f"features {list(config.features)}")
        architecture = {
            "arch_class_name": "ResidualEncoderUNet",
            "arch_kwargs": {
                "n_stages": n, "features_per_stage": list(config.features), "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[3, 3, 3]] * n, "strides": [[1, 1, 1]] + [[2, 2, 2]] * (n - 1), "n_blocks_per_stage": list(config.blocks),
                "n_conv_per_stage_decoder": [1] * (n - 1), "conv_bias": True, "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
                "nonlin": "torch.nn.modules.activation.LeakyReLU", "nonlin_kwargs": {"inplace": True},
            },
        }  # fmt: skip
    style = "noresample" if spec.spacing_mm == "native" else "onemmiso" if spec.spacing_mm == 1 else "median"
    spacing = None if spec.spacing_mm == "native" else [spec.spacing_mm] * 3
    resampling = {"is_seg": False, "order": spec.order, "order_z": 0, "force_separate_z": None}
    return {
        "architecture_plans": architecture | {"arch_kwargs_requiring_import": None if named else ["conv_op", "norm_op", "nonlin"]},
        "pretrain_plan": {
            "dataset_name": ", ".join(info["data"].get("datasets", ())) or "unknown", "plans_name": "nnsslPlans",
            "original_median_spacing_after_transp": spacing or [1.0, 1.0, 1.0], "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "experiment_planner_used": "neuroprior",
            "configurations": {
                style: {
                    "data_identifier": f"nnsslPlans_{style}", "preprocessor_name": "DefaultPreprocessor", "spacing_style": style,
                    "normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False],
                    "resampling_fn_data": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": resampling,
                    "resampling_fn_mask": "resample_data_or_seg_to_shape", "resampling_fn_mask_kwargs": resampling | {"order": 1},
                    "spacing": spacing, "patch_size": edges,
                },
            },
        },
        "pretrain_num_input_channels": 1, "recommended_downstream_patchsize": edges, "key_to_encoder": STAGES, "key_to_stem": "encoder.stem",
        "keys_to_in_proj": ["encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"], "key_to_lpe": None,
    }  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- theirs in


def _architecture(plan: Mapping[str, Any], path: Path) -> tuple[Sequence[int], Sequence[int], bool]:
    """Features and blocks of each stage, and whether there are skips.

    Raises:
        ConfigError: it is another architecture than the nets on our shelf.
    """
    name = str(plan.get("arch_class_name")).split(".")[-1]
    if name in ("ResEncL", "NoSkipResEncL"):
        return *SIZES["L"], name == "ResEncL"
    if name != "ResidualEncoderUNet":
        raise ConfigError(
            "no net on our shelf has this architecture",
            file=path,
            expected="ResEncL, NoSkipResEncL or ResidualEncoderUNet",
            got=name,
        )
    given = plan.get("arch_kwargs") or {}
    features, blocks = given.get("features_per_stage") or (), given.get("n_blocks_per_stage") or 1
    other = {
        "kernel_sizes": (given.get("kernel_sizes"), 3),
        "strides": (given.get("strides"), [1] + [2] * (len(features) - 1)),
        "n_conv_per_stage_decoder": (given.get("n_conv_per_stage_decoder"), 1),
        "conv_bias": (given.get("conv_bias"), True),
        "dropout_op": (given.get("dropout_op"), None),
        "norm_op": (_class(given.get("norm_op")), "InstanceNorm3d"),
        "nonlin": (_class(given.get("nonlin")), "LeakyReLU"),
    }
    for setting, (found, wanted) in other.items():
        if not _everywhere(found, wanted):
            raise ConfigError(
                "no net on our shelf has this architecture", file=path, expected=f"{setting} {wanted}", got=f"{setting} {found}"
            )
    return tuple(features), (blocks,) * len(features) if isinstance(blocks, int) else tuple(blocks), True


def _class(name: Any) -> str:
    """Without its module."""
    return str(name).split(".")[-1]


def _everywhere(found: Any, wanted: Any) -> bool:
    """Whether a setting that may be one value, one a stage, or one a stage and axis is what we have."""
    if isinstance(found, (list, tuple)):
        each = wanted if isinstance(wanted, list) else [wanted] * len(found)
        return len(each) == len(found) and all(_everywhere(a, b) for a, b in zip(found, each, strict=True))
    return found == wanted


def _unwrapped(state: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    """The weights with the names of our encoder, where the plan's key to it has another prefix or none.

    Raises:
        ConfigError: the key is of another architecture.
    """
    if key == STAGES:
        return state
    if key == STAGES.partition(".")[2]:
        return {f"encoder.{name}": value for name, value in state.items()}
    if not key.endswith(f".{STAGES}"):
        raise ConfigError("no net on our shelf has this architecture", file=path, expected=f"key_to_encoder {STAGES}", got=key)
    return {name.removeprefix(key.removesuffix(STAGES)): value for name, value in state.items()}


def _axes(forward: Sequence[int], path: Path) -> tuple[int, int, int]:
    """Which axis of their arrays is our x, y and z: theirs are (z, y, x), then in the order of ``transpose_forward``.

    Raises:
        ConfigError: that is no permutation.
    """
    if sorted(forward) != [0, 1, 2]:
        raise ConfigError("the plan's transpose_forward is no order of three axes", file=path, got=list(forward))
    x, y, z = (list(forward).index(2 - axis) for axis in range(3))
    return x, y, z


def _turned(value: Tensor, axes: Sequence[int]) -> Tensor:
    """A kernel (O, I, a, b, c) with its axes in another order; other weights as they are."""
    return value.permute(0, 1, *(2 + axis for axis in axes)).contiguous() if value.ndim == 5 else value


def _original(name: str) -> str:
    """The name under which a weight that the library lists several times is kept here."""
    name = re.sub(r"^decoder\.encoder\.", "encoder.", name)
    name = re.sub(r"\.all_modules\.0\.", ".conv.", name)
    return re.sub(r"\.all_modules\.1\.", ".norm.", name)


def _spacing(plan: Mapping[str, Any], path: Path) -> float | str:
    """Voxel spacing in mm of the plan's only configuration.

    Raises:
        ConfigError: it is not told, or not the same along the three axes.
    """
    configurations = list((plan.get("configurations") or {}).values())
    if len(configurations) == 1 and configurations[0].get("spacing_style") == "noresample":
        return "native"
    spacing = configurations[0].get("spacing") if len(configurations) == 1 else None
    if not spacing or max(spacing) - min(spacing) > 1e-3:
        raise ConfigError(
            "the plan names no isotropic voxel spacing", file=path, got=spacing or "none", next_step="say it: --spacing 1.0"
        )
    return float(spacing[0])
