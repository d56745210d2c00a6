"""The whole river through the command line, on ten heads at 4 mm, and what it says of bad input on the way."""

from __future__ import annotations

import csv
import gzip
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest

from neuroprior.core import artifacts
from neuroprior.data.store import Store

Run = Callable[..., subprocess.CompletedProcess[str]]
SMALL = [
    "--set",
    "training.steps=6",
    "--set",
    "training.batch=2",
    "--set",
    "training.accelerator=cpu",
    "--set",
    "training.log_every=2",
]
NET = ["--set", "net.features=[4,8]", "--set", "net.latent=4", "--set", "data.patch=16"]


def ok(done: subprocess.CompletedProcess[str], code: int = 0) -> str:
    assert done.returncode == code, done.stderr + done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def pretrained(store_path: Path, tmp_path_factory: pytest.TempPathFactory, run_cli: Run) -> Path:
    out = tmp_path_factory.mktemp("runs") / "pretrained"
    ok(run_cli("pretrain", store_path, "--out", out, *SMALL, *NET))
    return out


@pytest.fixture(scope="module")
def segmenter(store_path: Path, pretrained: Path, run_cli: Run) -> Path:
    out = pretrained.parent / "lesion"
    ok(
        run_cli(
            "finetune",
            store_path,
            "--from",
            pretrained,
            "--task",
            "segmentation",
            "--target",
            "lesion",
            "--out",
            out,
            *SMALL,
            "--set",
            "data.patch=16",
        )
    )
    return out


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "predictions.tsv", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_a_run_folder_holds_what_the_docs_promise(pretrained: Path, store_path: Path) -> None:
    for name in (
        "recipe.yaml",
        "environment.json",
        "events.jsonl",
        "ledger.json",
        "complete.json",
        "model/model.safetensors",
        "model/README.md",
    ):
        assert (pretrained / name).is_file(), name
    assert list((pretrained / "panels").glob("*.png"))
    info = artifacts.read_json(pretrained / "model/model.json")
    assert info["data"]["store_hash"] == Store.open(store_path).store_hash
    ledger = artifacts.read_json(pretrained / "ledger.json")
    assert ledger["steps"] == 6
    assert ledger["forward_flops"] > 0
    assert not list(pretrained.rglob("*.pkl"))


@pytest.mark.parametrize(("task", "target"), [("regression", "age"), ("classification", "sex")])
def test_the_river_for_columns(
    store_path: Path, pretrained: Path, index_file: Path, tmp_path: Path, run_cli: Run, task: str, target: str
) -> None:
    run, predictions, scores = tmp_path / "run", tmp_path / "predictions", tmp_path / "scores.parquet"
    ok(run_cli("finetune", store_path, "--from", pretrained, "--task", task, "--target", target, "--out", run, *SMALL))
    ok(run_cli("predict", run, index_file, "--split", "test", "--out", predictions))
    assert len(rows(predictions)) == 2
    assert all(row["status"] == "ok" for row in rows(predictions))
    ok(run_cli("evaluate", predictions, "--reference", index_file, "--out", scores, "--name", "pretrained"))
    table = pd.read_parquet(scores)
    assert set(table["model"]) == {"pretrained", "floor: training mean" if task == "regression" else "floor: prior"}
    whole = table[
        (table["case"] == "all") & table["metric"].isin(["mae", "pearson_r", "auroc", "f1"]) & (table["region"] == "all")
    ]
    assert set(whole["n"]) == {2}
    page = Path(ok(run_cli("report", run, predictions, scores, "--out", tmp_path / "report")).strip())
    text = page.read_text()
    assert f"{task} of {target}" in text
    assert "floor" in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text


def test_the_same_encoder_serves_all_and_its_lineage_is_kept(pretrained: Path, segmenter: Path) -> None:
    info = artifacts.read_json(segmenter / "model/model.json")
    assert info["lineage"][0]["weights_sha256"] == artifacts.read_json(pretrained / "model/model.json")["weights_sha256"]


def test_masks_lie_in_native_space_with_the_inputs_header(
    segmenter: Path, index_file: Path, tmp_path: Path, run_cli: Run
) -> None:
    out = tmp_path / "predictions"
    ok(run_cli("predict", segmenter, index_file, "--split", "test", "--out", out, "--probabilities"))
    for row in rows(out):
        mask: Any = nibabel.load(out / row["output"])
        scan: Any = nibabel.load(row["input"])
        assert mask.shape == scan.shape
        for field in ("pixdim", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d"):
            np.testing.assert_array_equal(mask.header[field], scan.header[field])
        assert np.issubdtype(mask.get_data_dtype(), np.integer)
    assert len(list(out.rglob("*_probseg.nii.gz"))) == 2
    first = artifacts.sha256_file(out / "predictions.tsv")
    again = ok(run_cli("predict", segmenter, index_file, "--split", "test", "--out", out))
    assert "2 kept from before" in again
    assert artifacts.sha256_file(out / "predictions.tsv") == first
    ok(run_cli("evaluate", out, "--reference", index_file, "--out", tmp_path / "s.parquet"))
    table = pd.read_parquet(tmp_path / "s.parquet")
    assert {"dice", "nsd", "hd95_mm", "lesion_f1"} <= set(table["metric"])


def test_any_subset_in_any_order_and_one_bad_case_of_several(segmenter: Path, heads: Path, tmp_path: Path, run_cli: Run) -> None:
    anat = next(heads.glob("sub-*/ses-01/anat"))
    flair, t1 = next(anat.glob("*_FLAIR.nii.gz")), next(anat.glob("*_T1w.nii.gz"))
    masks = []
    for number, inputs in enumerate(([f"T1w={t1}", f"FLAIR={flair}"], [f"FLAIR={flair}", f"T1w={t1}"], [f"T2-FLAIR={flair}"])):
        out = tmp_path / str(number)
        ok(run_cli("predict", segmenter, *inputs, "--out", out, "--reference", "FLAIR", "--probabilities"))
        (row,) = rows(out)
        assert set(row["missing"].split(",")) == {"T2w"} if number < 2 else {"T1w", "T2w"}
        masks.append(np.asarray(nibabel.load(next(out.rglob("*probseg.nii.gz"))).dataobj))
    np.testing.assert_array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])

    bad = tmp_path / "bad" / "sub-99_FLAIR.nii.gz"
    bad.parent.mkdir()
    bad.write_bytes(flair.read_bytes()[:3000])
    done = run_cli("predict", segmenter, flair, bad, "--out", tmp_path / "mixed")
    assert done.returncode == 3
    status = {row["case"]: (row["status"], row["reason"]) for row in rows(tmp_path / "mixed")}
    assert [s for s, _ in status.values()] == ["ok", "failed"]
    assert status["sub-99_FLAIR"][1] != "n/a"


def test_wrong_requests_are_told(store_path: Path, pretrained: Path, segmenter: Path, tmp_path: Path, run_cli: Run) -> None:
    cases = [
        (("finetune", store_path, "--from", pretrained, "--task", "segmentation", "--target", "leison", "--out", tmp_path / "x"), "did you mean 'lesion'"),
        (("finetune", store_path, "--from", pretrained, "--task", "regression", "--target", "agee", "--out", tmp_path / "x"), "did you mean 'age'"),
        (("finetune", store_path, "--from", pretrained, "--task", "regresion", "--target", "age", "--out", tmp_path / "x"), "did you mean 'regression'"),
        (("finetune", store_path, "--from", pretrained, "--task", "regression", "--target", "age", "--contrasts", "ADC", "--out", tmp_path / "x"), "ADC"),
        (("finetune", store_path, "--from", tmp_path, "--task", "regression", "--target", "age", "--out", tmp_path / "x"), "no model.json"),
        (("predict", pretrained, "x.nii.gz", "--out", tmp_path / "x"), "fine-tune it first"),
        (("predict", segmenter, tmp_path / "nothing.nii.gz", "--out", tmp_path / "x"), "no such input"),
        (("evaluate", tmp_path / "none", "--reference", tmp_path), "no predictions folder"),
        (("report", tmp_path, "--out", tmp_path / "x"), "nothing a report is made from"),
    ]  # fmt: skip
    for arguments, message in cases:
        done = run_cli(*arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_a_model_folder_that_is_not_whole_is_refused(pretrained: Path, tmp_path: Path) -> None:
    import neuroprior
    from neuroprior.core.errors import ArtifactError

    folder = Path(shutil.copytree(pretrained / "model", tmp_path / "model"))
    assert neuroprior.load(folder).contrasts
    info = artifacts.read_json(folder / "model.json")
    artifacts.write_json(folder / "model.json", info | {"forward_check": info["forward_check"] | {"values": [9.0] * 16}})
    with pytest.raises(ArtifactError, match="does not compute"):
        neuroprior.load(folder)
    artifacts.write_json(folder / "model.json", info)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-4] + b"abcd")
    with pytest.raises(ArtifactError, match="not the ones that"):
        neuroprior.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"no model\.safetensors"):
        neuroprior.load(folder)


def test_the_bad_dataset_becomes_rows_with_reasons(heads: Path, tmp_path: Path, run_cli: Run) -> None:
    """One of every kind among good ones: nothing is lost, nothing crashes, and the store holds what can be used."""
    root = tmp_path / "bad"
    root.mkdir()
    (root / "dataset_description.json").write_text('{"Name": "bad", "BIDSVersion": "1.10.0"}')
    good = nibabel.load(next(heads.rglob("*_T1w.nii.gz")))
    data = np.asarray(good.dataobj, dtype=np.float32)

    def place(number: int, array: np.ndarray, affine: np.ndarray | None = None, suffix: str = "T1w") -> Path:
        path = root / f"sub-{number:02d}" / "anat" / f"sub-{number:02d}_{suffix}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, good.affine if affine is None else affine), path)
        return path

    place(1, data)
    path = place(2, data)
    path.write_bytes(path.read_bytes()[:5000])
    place(3, np.stack([data] * 3, -1))
    place(4, data[:, :, 0])
    holes = data.copy()
    holes[3, 3, 3] = np.nan
    place(5, holes)
    place(6, np.full_like(data, 5))
    skewed = good.affine.copy()
    skewed[0, 1] += 0.3
    place(7, data, skewed)
    place(8, data, suffix="FLARE")
    path = place(9, data)
    raw = bytearray(gzip.decompress(path.read_bytes()))
    header = nibabel.Nifti1Header(bytes(raw[:348]), check=False)
    header["pixdim"][2] = 0
    header["sform_code"] = 0
    raw[:348] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(raw)))
    masks = root / "derivatives" / "m"
    masks.mkdir(parents=True)
    (masks / "dataset_description.json").write_text(
        '{"Name": "m", "BIDSVersion": "1.10.0", "DatasetType": "derivative", "GeneratedBy": [{"Name": "x"}]}'
    )
    mask = masks / "sub-01" / "anat" / "sub-01_label-lesion_mask.nii.gz"
    mask.parent.mkdir(parents=True)
    shutil.copy(root / "sub-01/anat/sub-01_T1w.nii.gz", mask)

    index = tmp_path / "index.parquet"
    text = ok(run_cli("index", root, "--out", index, "--split", "train=1", "--workers", "1"))
    table = pd.read_parquet(index).set_index("subject")
    status = {subject.rsplit("-", 1)[-1]: row["status"] for subject, row in table.iterrows()}
    assert status == {
        "01": "warning",
        "02": "bad",
        "03": "bad",
        "04": "bad",
        "05": "bad",
        "06": "bad",
        "07": "warning",
        "08": "bad",
        "09": "bad",
    }
    reasons = {subject.rsplit("-", 1)[-1]: "; ".join(row["reasons"]) for subject, row in table.iterrows()}
    assert "equals its image" in reasons["01"] or "label" in reasons["01"]
    assert all(reasons[number] for number in status)
    assert "FLAIR" in reasons["08"] + text, "an unknown contrast is told with suggestions"
    assert "FLARE" in text
    listed = (tmp_path / "index.issues.tsv").read_text().splitlines()
    assert len(listed) == 1 + 9
    ok(run_cli("prepare", index, "--out", tmp_path / "store", "--spacing", "4", "--workers", "1"))
    store = Store.open(tmp_path / "store")
    assert {session.subject.rsplit("-", 1)[-1] for session in store.sessions} == {"01", "07"}
    left = store.table[store.table["status"] == "bad"]
    assert len(left) == 7
    assert (left["reason"].str.len() > 5).all()
    again = ok(run_cli("index", root, "--out", index, "--split", "train=1", "--workers", "1"))
    assert "rows kept from the earlier index" in again


def test_an_empty_folder_is_told(tmp_path: Path, run_cli: Run) -> None:
    done = run_cli("index", tmp_path, "--out", tmp_path / "i.parquet")
    assert done.returncode == 2
    assert "an empty folder" in done.stderr


def test_a_subject_in_two_splits_is_told(heads: Path, tmp_path: Path, run_cli: Run) -> None:
    (tmp_path / "split.tsv").write_text("participant_id\tsplit\nsub-0001\ttrain\nsub-0001\ttest\n")
    done = run_cli("index", heads, "--out", tmp_path / "i.parquet", "--split-file", tmp_path / "split.tsv")
    assert done.returncode == 2
    assert "two splits" in done.stderr


def test_a_full_disk_while_preparing_is_told_and_the_rest_follows(
    index_file: Path, store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    from neuroprior.core.errors import ArtifactError
    from neuroprior.stages.prepare import prepare

    out, real, count = tmp_path / "store", os.replace, 0

    def full(source: str, target: str) -> None:
        nonlocal count
        count += 1
        if count == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ArtifactError, match=r"(?s)disk is full.*run the same command again"):
        prepare(index_file, out, spacing="4", workers=1, timeout=0)
    monkeypatch.setattr(os, "replace", real)
    assert prepare(index_file, out, spacing="4", workers=1).store_hash == Store.open(store_path).store_hash
