"""The cellwise head: what it computes, by numpy; its running statistics; that it counts what pooled means cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from neuroprior.core.representation import Representation
from neuroprior.heads import cellwise, pooled

BASE: dict[str, Any] = {
    "contrasts": ("T1w", "T2w"), "anatomy_channels": 3, "contrast_channels": 2, "stage_channels": (5,), "outputs": 1, "width": 4,
    "grid": 2, "hidden": 8, "dropout": 0.0,
}  # fmt: skip


def rows(n: int, seed: int = 0) -> Representation:
    g = torch.Generator().manual_seed(seed)
    return Representation(
        torch.randn(n, 3, 4, 2, 2, generator=g),
        torch.randn(n, 2, 4, 2, 2, generator=g),
        (torch.randn(n, 5, 8, 4, 4, generator=g),),
    )


def test_it_equals_numpy() -> None:
    torch.manual_seed(1)
    head = cellwise.build(cellwise.Config(**BASE)).eval()
    head.mean.normal_()
    head.variance.uniform_(0.5, 2.0)
    given, case, contrast = rows(3), torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1])
    got = head(nn.Identity(), given, case, contrast, 2)
    state = {key: value.detach().numpy().astype(float) for key, value in head.state_dict().items()}
    vectors = []
    for n, k in enumerate(contrast.tolist()):
        stage = given.stages[0][n].numpy().reshape(5, 4, 2, 2, 2, 2, 2).mean((2, 4, 6))
        seen = np.concatenate([given.contrast[n].numpy(), stage])
        read = (
            np.einsum("cxyz,hc->hxyz", given.anatomy[n].numpy(), state["anatomy.weight"])
            + state["anatomy.bias"][:, None, None, None]
        )
        read = read + np.einsum("cxyz,hc->hxyz", seen, state[f"contrast.{k}.weight"])
        read = read / (1 + np.exp(-read))
        cells = read.reshape(4, 2, 2, 2, 1, 2, 1).mean((2, 4, 6)).reshape(-1)
        vectors.append((cells - state["mean"][k]) / np.sqrt(state["variance"][k] + 1e-5 * state["variance"].mean()))
    cases = np.stack([(vectors[0] + vectors[1]) / 2, vectors[2]])
    hidden = cases @ state["pooled.weight"].T + state["pooled.bias"]
    hidden = hidden / (1 + np.exp(-hidden))
    np.testing.assert_allclose(got.detach(), hidden @ state["out.2.weight"].T + state["out.2.bias"], atol=1e-5)


def test_the_statistics_begin_at_the_training_cases_and_follow_each_contrast() -> None:
    head = cellwise.build(cellwise.Config(**BASE, momentum=0.25))
    scans, contrast = torch.randn(10, 32) * 3 + 5, torch.tensor([0] * 9 + [1])
    head.standardise_by(scans, contrast)
    torch.testing.assert_close(head.mean[0], scans[:9].mean(0))
    torch.testing.assert_close(head.variance[0], scans[:9].var(0, correction=0))
    torch.testing.assert_close(head.mean[1], scans.mean(0), msg="one scan has no spread: it takes that of all")
    before, given = head.mean.clone(), rows(2)
    head.train()(nn.Identity(), given, torch.tensor([0, 1]), torch.tensor([1, 1]), 2)
    seen = head.scans(given, torch.tensor([1, 1])).detach().mean(0)
    torch.testing.assert_close(head.mean[0], before[0], msg="nobody had this contrast")
    torch.testing.assert_close(head.mean[1], before[1] + (1 - 0.75**2) * (seen - before[1]))
    kept = head.mean.clone()
    head.eval()(nn.Identity(), given, torch.tensor([0, 1]), torch.tensor([1, 1]), 2)
    torch.testing.assert_close(head.mean, kept, msg="a prediction moves nothing")


def test_enough_scans_of_a_contrast_are_normalised_as_by_batch_norm_with_its_gradient() -> None:
    torch.manual_seed(0)
    head = cellwise.build(cellwise.Config(**BASE, momentum=0.02)).train()
    head.mean.normal_()
    norm = nn.BatchNorm1d(32, affine=False, momentum=1 - 0.98**6, eps=1e-9).train()
    assert norm.running_mean is not None
    norm.running_mean.copy_(head.mean[0])
    scans, contrast = (torch.randn(9, 32) * 4 + 7).requires_grad_(), torch.tensor([0, 1, 0, 0, 1, 0, 0, 1, 0])
    running = head.mean[1].clone(), head.variance[1].clone()
    got = head.normalised(scans, contrast)
    expected = norm(scans[contrast == 0])
    torch.testing.assert_close(got[contrast == 0], expected, atol=1e-4, rtol=1e-4)
    weight = torch.randn(6, 32)
    (mine,) = torch.autograd.grad((got[contrast == 0] * weight).sum(), scans, retain_graph=True)
    (theirs,) = torch.autograd.grad((expected * weight).sum(), scans)
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(head.mean[0], norm.running_mean)
    torch.testing.assert_close(head.variance[0], norm.running_var)
    few = (scans[contrast == 1] - running[0]) / (
        running[1]
        + 1e-5 * torch.where(torch.tensor([[True], [False]]), scans[contrast == 0].var(0, correction=0), running[1]).mean()
    ).sqrt()
    torch.testing.assert_close(got[contrast == 1], few, msg="three scans are too few: the running statistics are taken")
    (few,) = torch.autograd.grad((got[contrast == 1] * torch.randn(3, 32)).sum(), scans)
    torch.testing.assert_close(few.sum(0), torch.zeros(32), atol=1e-5, rtol=0, msg="nothing moves all scans of a contrast alike")
    assert few[contrast == 1].abs().max() > 0.01


def test_it_counts_where_all_channel_means_are_alike() -> None:
    """Maps of mean 0 and spread 1, as instance normalisation leaves them: only their shape says what share of the box is full."""
    g = torch.Generator().manual_seed(3)
    share = torch.rand(64, generator=g) * 0.6 + 0.2
    full = (torch.rand(64, 1, 8, 8, 8, generator=g) < share.view(-1, 1, 1, 1, 1)).float()
    maps = functional.instance_norm(full)
    target = (share - share.mean()) / share.std()
    given = Representation(maps, maps[:, :0], ())
    case, contrast = torch.arange(64), torch.zeros(64, dtype=torch.int64)

    def error(module: Any, **more: Any) -> float:
        torch.manual_seed(0)
        head = module.build(
            module.Config(**(BASE | {"anatomy_channels": 1, "contrast_channels": 0, "stage_channels": ()} | more))
        )
        head.standardise_by(*head.statistics(given, contrast)[:1], contrast)
        optimiser = torch.optim.Adam(head.parameters(), 0.02)
        for _ in range(150):
            loss = functional.mse_loss(head(nn.Identity(), given, case, contrast, 64)[:, 0], target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return loss.item()

    assert error(cellwise) < 0.1

    plain = {key: value for key, value in BASE.items() if key not in ("width", "grid")}
    torch.manual_seed(0)
    head = pooled.build(pooled.Config(**(plain | {"anatomy_channels": 1, "contrast_channels": 0, "stage_channels": ()})))
    assert head(nn.Identity(), given, case, contrast, 64).std() < 1e-4, "means alone are the same for everybody"


def test_a_batch_of_one_and_half_precision_change_nothing() -> None:
    torch.manual_seed(2)
    head = cellwise.build(cellwise.Config(**BASE)).eval()
    given, contrast = rows(4), torch.zeros(4, dtype=torch.int64)
    whole = head(nn.Identity(), given, torch.arange(4), contrast, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = head(nn.Identity(), given, torch.arange(4), contrast, 4)
    torch.testing.assert_close(whole, half)
    assert half.dtype == torch.float32
