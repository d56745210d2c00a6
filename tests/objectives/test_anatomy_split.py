"""Every term of anatomy_split against plain numpy, and where its gradient goes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from neuroprior.core.shelf import load
from neuroprior.data.records import PairBatch
from neuroprior.objectives import anatomy_split
from neuroprior.objectives._masking import block_mask

SIZE = (16, 24, 16)
NETS: dict[str, dict[str, Any]] = {
    "resenc": {"features": (4, 8, 20), "blocks": (1, 1, 1)},
    "unet": {"features": (4, 8, 20), "split": "channels", "skips": True},
}


@pytest.fixture(params=sorted(NETS))
def net(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    module = load("nets", request.param)
    return module.build(module.Config.model_validate(NETS[request.param]))


def batch(has: list[bool] | None = None, health: list[int] | None = None) -> PairBatch:
    has, health = has or [True, True, False], health or [0, 1, -1]
    n = len(has)
    generator = torch.Generator().manual_seed(3)
    return PairBatch(
        image_a=torch.randn(n, 1, *SIZE, generator=generator), image_b=torch.randn(n, 1, *SIZE, generator=generator),
        paired=[True, True, False][:n], contrast_a=["T1w"] * n, contrast_b=["T2w"] * n, subject=[f"s{k}" for k in range(n)],
        sample=list(range(5, 5 + n)), health=torch.tensor(health), anatomy=torch.randn(n, 7, generator=generator),
        has_anatomy=torch.tensor(has), label_a=torch.randint(0, 4, (n, *SIZE), generator=generator),
        label_b=torch.randint(0, 4, (n, *SIZE), generator=generator), has_label=torch.tensor(has),
    )  # fmt: skip


def layer_norm(x: np.ndarray, layer: nn.LayerNorm) -> np.ndarray:
    z = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + layer.eps)
    return z * layer.weight.detach().numpy() + layer.bias.detach().numpy()


def head(x: np.ndarray, mlp: nn.Sequential) -> np.ndarray:
    for layer in mlp:
        if isinstance(layer, nn.Linear):
            x = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        elif isinstance(layer, nn.LayerNorm):
            x = layer_norm(x, layer)
        else:
            x = np.maximum(x, 0)
    return x


def pool(x: np.ndarray) -> np.ndarray:
    """Adaptive average pool to 2^3 by its definition: cell i of n covers [floor(i n / 2), ceil((i + 1) n / 2))."""
    spans = [[(i * n // 2, -(-(i + 1) * n // 2)) for i in range(2)] for n in x.shape[2:]]
    out = np.stack([
        x[:, :, a:b, c:d, e:f].mean((2, 3, 4)) for a, b in spans[0] for c, d in spans[1] for e, f in spans[2]
    ], 2)  # fmt: skip
    return out.reshape(len(x), -1)


@pytest.mark.parametrize("distance", ["cosine", "smooth_l1"])
@pytest.mark.parametrize("centre", ["none", "batch_mean", "batchnorm"])
@pytest.mark.parametrize("both", [True, False])
def test_every_term_equals_numpy(net: Any, distance: Any, centre: Any, both: bool) -> None:
    config = anatomy_split.Config(block=8, dimension=7, distance=distance, centre=centre, both=both)
    torch.manual_seed(1)
    objective: Any = anatomy_split.build(net, config).train()
    data = batch()
    got = objective(data, epoch=0.0, seed=2)
    names = "ab" if both else "a"
    images = torch.cat([data["image_a"], data["image_b"]][: len(names)])
    hidden = torch.cat([block_mask(data["sample"], SIZE, 8, 0.75, seed=2, purpose=f"mask {name}") for name in names])
    assert hidden.float().mean() == pytest.approx(0.75, abs=0.03)
    code = net.encode(images.masked_fill(hidden, 0.0))
    guess = net.reconstruct(code, SIZE).detach().numpy()
    where, image = hidden.numpy(), images.numpy()
    rec = np.mean([((guess[k] - image[k]) ** 2)[where[k]].mean() for k in range(len(image))])
    assert float(got["reconstruction"]) == pytest.approx(rec, rel=1e-5)

    whole = torch.cat([code.anatomy, code.contrast], 1).detach().numpy()
    assert whole.shape[1] == 20
    anatomy, pathology = pool(whole[:, :10]), pool(whole[:, 10:16])  # 50 %, then 30 %
    if centre != "none":
        anatomy = anatomy - anatomy.mean(0)
    if centre == "batchnorm":
        anatomy = anatomy / np.sqrt(anatomy.var(0) + 1e-5)
    vectors = head(anatomy, objective.anatomy_head.mlp)
    target = np.concatenate([data["anatomy"].numpy()] * len(names))
    has = np.concatenate([data["has_anatomy"].numpy()] * len(names))
    if distance == "cosine":
        each = -(vectors * target).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(target, axis=1)
    else:
        d = np.abs(vectors - target)
        each = np.where(d < 1, 0.5 * d**2, d - 0.5).mean(1)
    assert float(got["anatomy"]) == pytest.approx(each[has].mean(), rel=1e-4, abs=1e-6)

    logits = head(pathology, objective.pathology_head.mlp)
    health = np.concatenate([data["health"].numpy()] * len(names))
    log_share = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    each = -np.array([log_share[k, max(0, health[k])] for k in range(len(health))])
    assert float(got["pathology"]) == pytest.approx(each[health >= 0].mean(), rel=1e-4)
    total = 0.7 * float(got["reconstruction"]) + 0.15 * float(got["anatomy"]) + 0.15 * float(got["pathology"])
    assert float(got["loss"].detach()) == pytest.approx(total, rel=1e-5)


def test_the_heads_have_the_published_widths(net: Any) -> None:
    objective: Any = anatomy_split.build(net, anatomy_split.Config(dimension=102))
    widths = [layer.weight.shape for layer in objective.anatomy_head.mlp if isinstance(layer, nn.Linear)]
    assert widths == [(128, 80), (256, 128), (102, 256)]  # 10 channels x 2^3 = 80, next power of two 128
    kinds = [type(layer).__name__ for layer in objective.anatomy_head.mlp]
    assert kinds == ["Linear", "LayerNorm", "ReLU", "Linear", "LayerNorm", "ReLU", "Linear", "LayerNorm"]


def gradient_at_code(net: Any, config: anatomy_split.Config, data: PairBatch) -> Tensor:
    """The gradient of a loss at the split code, (channels,) of absolute sums; decoder included."""
    torch.manual_seed(1)
    objective: Any = anatomy_split.build(net, config)
    kept: list[Tensor] = []
    encode = net.encode

    def watched(*args: Any, **kwargs: Any) -> Any:
        from dataclasses import replace

        code = encode(*args, **kwargs)
        whole = torch.cat([code.anatomy, code.contrast], 1).detach().requires_grad_()
        kept.append(whole)
        return replace(code, anatomy=whole[:, : net.anatomy_channels], contrast=whole[:, net.anatomy_channels :])

    net.encode = watched
    try:
        objective(data, epoch=0.0, seed=0)["loss"].backward()
    finally:
        net.encode = encode
    grad = kept[0].grad
    assert grad is not None
    return grad.abs().sum((0, 2, 3, 4))


def only(**weights: Any) -> anatomy_split.Config:
    off = {"reconstruction": 0.0, "anatomy": 0.0, "pathology": 0.0}
    return anatomy_split.Config.model_validate({"block": 8, "dimension": 7, "contrasts": ("T1w", "T2w"), **off, **weights})


@pytest.mark.parametrize(
    ("weights", "reached"),
    [
        ({"anatomy": 1.0}, range(10)),
        ({"anatomy": 1.0, "target": "map", "map_labels": (1, 2, 3)}, range(10)),
        ({"pathology": 1.0}, range(10, 16)),
        ({"pathology": 1.0, "pathology_share": 0.5}, range(10, 20)),
        ({"agreement": 1.0}, range(10)),
        ({"agreement": 1.0, "agreement_form": "dense_infonce"}, range(10)),
        ({"agreement": 1.0, "agreement_form": "vicreg"}, range(10)),
        ({"blind": 1.0}, range(10)),
        ({"blind": 1.0, "blind_form": "moments"}, range(10)),
        ({"reconstruction": 1.0}, range(20)),
        ({"cross": 1.0}, range(20)),
    ],
)
def test_gradients_reach_exactly_the_channels_they_should(net: Any, weights: dict[str, Any], reached: range) -> None:
    gradient = gradient_at_code(net, only(**weights), batch())
    for channel in range(20):
        assert bool(gradient[channel] > 0) == (channel in reached), channel


def test_a_batch_where_nobody_has_a_label_is_no_error(net: Any) -> None:
    data = batch(has=[False, False, False], health=[-1, -1, -1])
    objective: Any = anatomy_split.build(net, anatomy_split.Config(block=8, dimension=7))
    got = objective(data, epoch=0.0, seed=0)
    assert float(got["anatomy"]) == 0.0
    assert float(got["pathology"]) == 0.0
    got["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters() if p.grad is not None)
    assert not any(p.grad.any() for p in objective.pathology_head.parameters() if p.grad is not None)


def test_label_shares_are_counts(net: Any) -> None:
    maps = torch.randint(0, 4, (2, 8, 12, 5))
    shares = anatomy_split.label_shares(maps, (2, 1), 4)
    assert shares.shape == (2, 3, 2, 3, 2)
    torch.testing.assert_close(shares.sum(1), torch.ones(2, 2, 3, 2))
    block = maps[1, 4:8, 8:12, 0:4].numpy()
    assert shares[1, :, 1, 2, 0].tolist() == pytest.approx(
        [np.isin(block, (0, 3)).mean(), (block == 2).mean(), (block == 1).mean()]
    )


def test_the_map_term_equals_numpy(net: Any) -> None:
    objective: Any = anatomy_split.build(net, only(anatomy=1.0, target="map", map_labels=(1, 3)))
    data = batch()
    got = float(objective(data, epoch=0.0, seed=0)["anatomy"])
    hidden = torch.cat([block_mask(data["sample"], SIZE, 8, 0.75, seed=0, purpose=f"mask {name}") for name in "ab"])
    code = net.encode(torch.cat([data["image_a"], data["image_b"]]), hidden=hidden)
    logits = objective.anatomy_head(code.anatomy).detach().numpy()
    log_share = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert "label_a" in data
    assert "label_b" in data
    maps = np.concatenate([data["label_a"].numpy(), data["label_b"].numpy()])
    each = []
    for k in (0, 1, 3, 4):  # the third subject has no map
        total = []
        for i, j, m in np.ndindex(4, 6, 4):
            block = maps[k, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4, 4 * m : 4 * m + 4]
            share = [np.isin(block, (0, 2)).mean(), (block == 1).mean(), (block == 3).mean()]
            total.append(-(np.array(share) * log_share[k, :, i, j, m]).sum())
        each.append(np.mean(total))
    assert got == pytest.approx(np.mean(each), rel=1e-5)


def test_a_net_without_a_split_is_refused() -> None:
    module = load("nets", "resenc")
    whole = module.build(module.Config(features=(4, 8), blocks=(1, 1), split="none"))
    with pytest.raises(ValueError, match=r"net\.split=channels"):
        anatomy_split.build(whole, anatomy_split.Config())
    narrow = module.build(module.Config(features=(4, 8), blocks=(1, 1), anatomy_share=0.9))
    with pytest.raises(ValueError, match="pathology_share"):
        anatomy_split.build(narrow, anatomy_split.Config())


def staged(**settings: Any) -> Any:
    torch.manual_seed(0)
    module = load("nets", "unet")
    return module.build(module.Config.model_validate({"features": (4, 8, 20), "split": "stages", "latent": 10, **settings}))


def test_the_vector_is_read_from_the_summary_and_agreement_from_the_others() -> None:
    net = staged(summary=6)
    assert net.anatomy_channels == 16
    vector = gradient_at_code(net, only(anatomy=1.0), batch())
    assert (vector[10:16] > 0).all() and (vector[:10] == 0).all() and (vector[16:] == 0).all()
    agree = gradient_at_code(net, only(agreement=1.0, agreement_form="dense_infonce"), batch())
    assert (agree[:10] > 0).all() and (agree[10:] == 0).all()


def test_the_summary_is_the_same_in_every_cell_and_masked_scans_leave_its_statistics() -> None:
    net = staged(summary=6).train()
    data = batch()
    before = net.latent["summary"].norm.running_mean.clone()
    code = net.encode(data["image_a"], hidden=torch.zeros_like(data["image_a"], dtype=torch.bool))
    assert torch.equal(before, net.latent["summary"].norm.running_mean)
    summary = code.anatomy[:, 10:]
    assert torch.equal(summary, summary[..., :1, :1, :1].expand_as(summary))
    net.encode(data["image_a"])
    assert not torch.equal(before, net.latent["summary"].norm.running_mean)


def test_a_finished_net_is_refined_and_decodes_what_it_decoded() -> None:
    net = staged(summary=6, refined=True).eval()
    data = batch()
    config = only(refine=10, refine_summary=6)
    objective: Any = anatomy_split.build(net, config).eval()
    data["paired"] = [True, True, True]
    made = objective.finished([data])
    old, new = net.encode(data["image_a"]), made.encode(data["image_a"])
    assert not torch.allclose(old.anatomy, new.anatomy, atol=1e-3)
    assert torch.equal(net.latent["refine"].weight, torch.eye(16))  # the net in training is left as it was
    kept = made.latent["restore"](new.anatomy)
    np.testing.assert_allclose(kept.detach(), old.anatomy.detach(), atol=2e-2)
    with pytest.raises(ValueError, match="refined"):
        anatomy_split.build(staged(), config)
