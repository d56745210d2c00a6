"""Every head on the shelf: ragged batches, any subset, any order, a missing contrast is not a zero one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from neuroprior.core import shelf
from neuroprior.core.representation import Representation

CONTRASTS = ("T1w", "T2w", "FLAIR")
CONFIGS = {
    "pooled": {
        "contrasts": CONTRASTS,
        "anatomy_channels": 6,
        "contrast_channels": 4,
        "outputs": 3,
        "hidden": 8,
        "pool": "mean_max",
    },
    "cellwise": {
        "contrasts": CONTRASTS,
        "anatomy_channels": 6,
        "contrast_channels": 4,
        "stage_channels": (5,),
        "outputs": 3,
        "width": 4,
        "hidden": 8,
    },
    "segmentation": {"contrasts": CONTRASTS, "features": 5, "classes": 3},
}


class Decoder(nn.Module):
    """A stand-in for a net's decoder: one convolution of the code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(10, 5, 1)

    def decode_features(self, stages: tuple[Tensor, ...], code: Tensor, *, skips: bool) -> Tensor:
        assert skips
        return self.conv(code) + stages[0]


def rows(n: int, seed: int) -> Representation:
    generator = torch.Generator().manual_seed(seed)
    return Representation(
        torch.randn(n, 6, 2, 3, 4, generator=generator),
        torch.randn(n, 4, 2, 3, 4, generator=generator),
        (torch.randn(n, 5, 2, 3, 4, generator=generator),),
    )


def take(representation: Representation, order: list[int]) -> Representation:
    return Representation(
        representation.anatomy[order], representation.contrast[order], tuple(stage[order] for stage in representation.stages)
    )


@pytest.fixture(params=shelf.names("heads"))
def head(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    module = shelf.load("heads", request.param)
    built = module.build(module.Config(**CONFIGS[request.param]))
    for parameter in built.parameters():
        nn.init.normal_(parameter)
    return built.eval()


@pytest.fixture
def decoder() -> Decoder:
    torch.manual_seed(1)
    return Decoder()


def test_a_ragged_batch_equals_its_cases_one_by_one(head: nn.Module, decoder: Decoder) -> None:
    whole = rows(4, 0)
    case, contrast = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 2, 1])
    together = head(decoder, whole, case, contrast, 2)
    first = head(decoder, take(whole, [0, 1, 2]), torch.zeros(3, dtype=torch.int64), contrast[:3], 1)
    second = head(decoder, take(whole, [3]), torch.zeros(1, dtype=torch.int64), contrast[3:], 1)
    torch.testing.assert_close(together, torch.cat([first, second]))


def test_the_order_of_the_inputs_changes_nothing(head: nn.Module, decoder: Decoder) -> None:
    whole, contrast = rows(3, 1), torch.tensor([0, 1, 2])
    case = torch.zeros(3, dtype=torch.int64)
    turned = [2, 0, 1]
    torch.testing.assert_close(
        head(decoder, whole, case, contrast, 1), head(decoder, take(whole, turned), case, contrast[turned], 1)
    )


def test_a_missing_contrast_is_not_a_zero_one(head: nn.Module, decoder: Decoder) -> None:
    whole, case, contrast = rows(2, 2), torch.zeros(2, dtype=torch.int64), torch.tensor([0, 2])
    zeroed = Representation(
        whole.anatomy * torch.tensor([1.0, 0]).view(2, 1, 1, 1, 1),
        whole.contrast * torch.tensor([1.0, 0]).view(2, 1, 1, 1, 1),
        (whole.stages[0] * torch.tensor([1.0, 0]).view(2, 1, 1, 1, 1),),
    )
    absent = head(decoder, take(whole, [0]), case[:1], contrast[:1], 1)
    assert not torch.allclose(absent, head(decoder, zeroed, case, contrast, 1), atol=1e-3)


def test_which_contrast_it_is_matters(head: nn.Module, decoder: Decoder) -> None:
    whole, case = rows(2, 3), torch.zeros(2, dtype=torch.int64)
    one = head(decoder, whole, case, torch.tensor([0, 1]), 1)
    other = head(decoder, whole, case, torch.tensor([0, 2]), 1)
    assert not torch.allclose(one, other)


def test_every_parameter_gets_a_gradient(head: nn.Module, decoder: Decoder) -> None:
    whole = rows(6, 4)
    case, contrast = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 1, 2, 0, 1, 2])
    output = head(decoder, whole, case, contrast, 2)
    (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(5))).sum().backward()
    silent = [name for name, parameter in head.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not silent


def test_pooled_with_all_contrasts_is_the_papers_linear_on_the_concatenation() -> None:
    module = shelf.load("heads", "pooled")
    torch.manual_seed(0)
    head = module.build(module.Config(**(CONFIGS["pooled"] | {"pool": "mean", "dropout": 0.0}))).eval()
    whole = rows(3, 6)
    got = head(nn.Identity(), whole, torch.zeros(3, dtype=torch.int64), torch.tensor([0, 1, 2]), 1)
    joined = torch.cat([whole.anatomy.mean((0, 2, 3, 4)), *whole.contrast.mean((2, 3, 4))])
    weight = torch.cat([head.anatomy.weight, *(layer.weight / 3 for layer in head.contrast)], 1)
    torch.testing.assert_close(got[0], head.out(weight @ joined + head.anatomy.bias))
