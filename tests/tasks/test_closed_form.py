"""The closed form against scikit-learn's own fits, and as a strategy: nothing of the net moves, and what is saved predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from neuroprior.core.errors import ConfigError
from neuroprior.core.representation import Representation
from neuroprior.data.store import Store
from neuroprior.heads import pooled
from neuroprior.inference import model as models
from neuroprior.tasks import _closed_form as closed_form
from neuroprior.tasks import _finetuning as finetuning
from neuroprior.tasks import _running


@pytest.fixture(scope="module")
def store(store_path: Path) -> Store:
    return Store.open(store_path)


def go(store: Store, source: Path | str, out: Path, task: str, target: str, *more: str, **kw: Any) -> Any:
    config = finetuning.settings(
        ["strategy=closed-form", "training.accelerator=cpu", "data.patch=16", *more], seed=0, task=task
    )  # as the command does
    return _running.fine_tune(store, str(source), task, target, config=config, out=out, **kw)


def made(outputs: int, n: int = 24) -> tuple[pooled.PooledHead, list[closed_form.Seen], Representation, torch.Tensor]:
    """A head over two contrasts, n cases (some with one contrast) whose target shows in one anatomy channel, and all scans as one batch."""
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    head = pooled.build(
        pooled.Config(
            contrasts=("T1w", "T2w"), anatomy_channels=5, contrast_channels=3, outputs=outputs, hidden=0, standardise=True
        )
    )
    anatomy, contrast, owner, number, targets = [], [], [], [], []
    for case in range(n):
        level = random.normal()
        targets.append(float(level > 0) if outputs > 1 else level)
        for k in (0, 1) if case % 5 else (case % 2,):
            anatomy.append(random.normal(size=5) + [2 * level, 0, 0, 0, 0])
            contrast.append(random.normal(size=3) + k)
            owner.append(case)
            number.append(k)
    a, c = (torch.tensor(np.array(rows), dtype=torch.float32)[..., None, None, None] for rows in (anatomy, contrast))
    representation = Representation(a, c, ())
    case, contrasts = torch.tensor(owner), torch.tensor(number)
    means, scans = head.vectors(representation, case, n)
    head.standardise_by(means, scans, contrasts)
    each, scans = head.vectors(representation, torch.arange(len(case)), len(case))
    seen = [
        closed_form.Seen(each[case == k].numpy(), scans[case == k].numpy(), contrasts[case == k].numpy(), targets[k])
        for k in range(n)
    ]
    return head, seen, representation, torch.stack([case, contrasts])


@pytest.mark.parametrize("classes", [0, 2])
def test_the_head_says_what_scikit_learn_says(classes: int) -> None:
    head, seen, representation, (case, contrast) = made(max(1, classes))
    penalty = closed_form.fit(head, seen, classes)
    with torch.no_grad():
        found = head.eval()(None, representation, case, contrast, len(seen)).numpy()
    rows = [closed_form._rows(head, one) for one in seen]
    assert [len(one) for one in rows] == [1 if k % 5 == 0 else 3 for k in range(len(seen))]
    targets = np.repeat([one.target for one in seen], [len(one) for one in rows])
    first = np.stack([one[0] for one in rows])
    if classes:
        fitted = LogisticRegression(C=1 / penalty, max_iter=5000, tol=1e-8).fit(np.concatenate(rows), targets)
        found = np.exp(found) / np.exp(found).sum(1, keepdims=True)
        np.testing.assert_allclose(found, fitted.predict_proba(first), atol=2e-3)
        assert (found.argmax(1) == [one.target for one in seen]).mean() > 0.8
    else:
        fitted = Ridge(alpha=penalty).fit(np.concatenate(rows), targets)
        np.testing.assert_allclose(found[:, 0], fitted.predict(first), atol=1e-5)
        assert np.corrcoef(found[:, 0], [one.target for one in seen])[0, 1] > 0.8


def test_a_scan_alone_is_answered_as_it_was_fitted() -> None:
    head, seen, representation, (case, contrast) = made(1)
    closed_form.fit(head, seen, 0)
    row = int(np.flatnonzero(case.numpy() == 1)[1])  # the second contrast of a case with two
    one = Representation(representation.anatomy[row : row + 1], representation.contrast[row : row + 1], ())
    with torch.no_grad():
        found = head.eval()(None, one, torch.zeros(1, dtype=torch.long), contrast[row : row + 1], 1)
    features = closed_form._rows(head, seen[1])[2]
    layers: list[Any] = [head.anatomy, *head.contrast]
    weights = np.concatenate([w.weight[0].detach().numpy() * np.sqrt(n) for w, n in zip(layers, (5, 3, 3), strict=True)])
    assert len(weights) == len(features)
    np.testing.assert_allclose(float(found), features @ weights + head.anatomy.bias.item(), atol=1e-4)


def test_noise_gets_the_strongest_penalties_and_says_the_mean() -> None:
    head, seen, representation, (case, contrast) = made(1)
    random = np.random.default_rng(1)
    noise = [closed_form.Seen(one.anatomy, one.scans, one.contrasts, float(random.normal())) for one in seen]
    assert closed_form.fit(head, noise, 0) >= 10
    with torch.no_grad():
        found = head.eval()(None, representation, case, contrast, len(seen)).numpy()
    assert found.std() < 0.5


@pytest.mark.parametrize("task, target", [("regression", "age"), ("classification", "sex")])
def test_as_a_strategy(task: str, target: str, store: Store, pretrained: Path, tmp_path: Path) -> None:
    result = go(store, pretrained, tmp_path / "run", task, target)
    assert (result.status, result.step) == ("complete", 0)
    model, before = models.load(tmp_path / "run"), models.load(pretrained)
    assert model.info["method"]["strategy"] == "closed-form"
    assert model.info["lineage"][0]["weights_sha256"] == before.info["weights_sha256"]
    assert all(torch.equal(a, b) for a, b in zip(model.net.state_dict().values(), before.net.state_dict().values(), strict=True))
    again = go(store, pretrained, tmp_path / "again", task, target)
    assert again.step == 0
    same = models.load(tmp_path / "again")
    assert same.info["weights_sha256"] == model.info["weights_sha256"]
    assert go(store, pretrained, tmp_path / "run", task, target).status == "complete"  # the same command finds it done
    session = next(s for s in store.sessions if s.split == "test")
    scans = {name: store.read(session.key, name) for name in session.scans}
    assert model.head is not None
    from neuroprior.inference import windows

    images = torch.from_numpy(np.stack(list(scans.values()))).float()
    raw = windows.pool(model, images, list(scans), window=(16, 16, 16))
    assert raw.shape == (1 if task == "regression" else 2,)
    assert torch.isfinite(raw).all()


def test_steps_may_follow(store: Store, pretrained: Path, tmp_path: Path) -> None:
    go(store, pretrained, tmp_path / "solved", "regression", "age")
    assert go(store, pretrained, tmp_path / "more", "regression", "age", "training.steps=3").step == 3
    solved, more = (models.load(tmp_path / name) for name in ("solved", "more"))
    assert solved.head is not None and more.head is not None
    a, b = solved.head.state_dict(), more.head.state_dict()
    assert not torch.equal(a["anatomy.weight"], b["anatomy.weight"])
    assert torch.allclose(a["anatomy.weight"], b["anatomy.weight"], atol=0.01), "three small steps from the solution"


def test_what_has_no_closed_form(store: Store, pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a segmentation has no closed form"):
        go(store, pretrained, tmp_path / "a", "segmentation", "lesion")
    for setting in (
        "task.hidden=8", "task.loss=ordinal", "task.loss=heteroscedastic", "task.head=cellwise", "data.covariates=[sex]",
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="plain linear head"):
            go(store, pretrained, tmp_path / "b", "regression", "age", setting)
    for setting in ("task.class_weights=balanced", "task.smoothing=0.1"):
        with pytest.raises(ConfigError, match="plain linear head"):
            go(store, pretrained, tmp_path / "b", "classification", "sex", setting)
    config = finetuning.settings(["training.steps=0", "data.patch=16"], seed=0, task="regression")
    with pytest.raises(ConfigError, match="leaves the head as it was drawn"):
        _running.fine_tune(store, str(pretrained), "regression", "age", config=config, out=tmp_path / "c")
    head, seen, *_ = made(2)
    with pytest.raises(ConfigError, match="two training cases of different classes"):
        closed_form.fit(head, [one for one in seen if one.target == 1], 2)
