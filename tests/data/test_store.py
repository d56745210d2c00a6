"""The store, its pairs and its loader."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from neuroprior.core import artifacts, headers, nifti
from neuroprior.core.errors import ArtifactError, InputError, LeakageError
from neuroprior.core.grids import canonical_grid, grid_of
from neuroprior.core.resampling import resample_label_shares, resample_labels
from neuroprior.core.volume import Volume
from neuroprior.data import sessions
from neuroprior.data.index import read_index
from neuroprior.data.loading import make_loader
from neuroprior.data.pairs import PairConfig, PairDataset, collate_pairs
from neuroprior.data.sessions import Frame
from neuroprior.data.store import Store
from neuroprior.data.table import write_table
from neuroprior.stages.index import index
from neuroprior.stages.prepare import prepare


@pytest.fixture
def store(store_path: Path) -> Store:
    return Store.open(store_path)


def copied(store_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(store_path, tmp_path / "copy"))


def flip(path: Path, frame: Frame, at: float = 0.5) -> None:
    """Flip a bit of an array's chunks."""
    content = bytearray(path.read_bytes())
    content[frame.offset + frame.header + int(at * frame.chunks)] ^= 0x10
    path.write_bytes(content)


def read_sum(arguments: tuple[Path, str, str]) -> float:
    path, key, contrast = arguments
    return float(Store.open(path).read(key, contrast).sum())


def test_a_box_is_the_part_of_the_whole(store: Store) -> None:
    session = store.sessions[0]
    whole = store.read(session.key, "T1w")
    assert whole.dtype == np.float32
    assert whole.shape == session.shape
    box = (slice(3, 20), slice(5, 9), slice(0, 11))
    np.testing.assert_array_equal(store.read(session.key, "T1w", box), whole[box])
    assert np.isfinite(whole).all()
    assert 0.5 < whole[whole != 0].std() < 2


def test_voxels_and_labels_are_those_of_the_files(store: Store, index_file: Path) -> None:
    scans = {scan.scan: scan for scan in read_index(index_file)}
    for session in store.sessions[:3]:
        for name, entry in session.scans.items():
            record = store.conformed(session.key, name)
            header = headers.inspect_header(scans[entry["scan"]].path)
            assert record.native.shape == header.shape
            np.testing.assert_allclose(record.native.affine, header.affine)
        scan = scans[session.scans["T1w"]["scan"]]
        label, _ = nifti.read_labels(scan.labels["dseg"])
        np.testing.assert_array_equal(
            store.read_label(session.key, "dseg"), resample_labels(label, store.conformed(session.key, "T1w").grid)
        )


def test_partial_volumes_are_those_of_the_files(index_file: Path, tmp_path: Path) -> None:
    """At 6 mm from 4 mm labels: the stored shares equal the computed ones to a byte's rounding and keep each label's volume."""
    prepare(index_file, tmp_path / "coarse", spacing="6", workers=1)
    coarse = Store.open(tmp_path / "coarse")
    assert coarse.verify() == []
    scans = {scan.scan: scan for scan in read_index(index_file)}
    for session in coarse.sessions[:3]:
        label, _ = nifti.read_labels(scans[session.scans["T1w"]["scan"]].labels["dseg"])
        grid = coarse.conformed(session.key, "T1w").grid
        expected = resample_label_shares(label, grid)
        values = [value for value in session.labels["dseg"]["values"] if value]
        shares = coarse.read_shares(session.key, "dseg", values)
        assert shares.dtype == np.float32
        assert shares.sum(0).max() <= 1 + 1e-6
        for value, share in zip(values, shares, strict=True):
            np.testing.assert_allclose(share, expected.of(value), atol=1.1 / 1020)
        fine, kept = np.count_nonzero(label.voxels) * np.prod(label.spacing_mm), shares.sum(dtype=np.float64) * 216
        assert kept == pytest.approx(fine, rel=0.03)
        box = (slice(2, 9), slice(0, 5), slice(4, 12))
        np.testing.assert_array_equal(coarse.read_shares(session.key, "dseg", values, box), shares[(slice(None), *box)])
    flip(*coarse.frame(coarse.sessions[0].key, "share.dseg"))
    assert any("share.dseg" in problem for problem in coarse.verify())


def test_a_store_no_coarser_than_its_labels_has_no_partial_volumes(heads: Path, tmp_path: Path) -> None:
    index([heads], tmp_path / "index.parquet", workers=1)
    prepare(tmp_path / "index.parquet", tmp_path / "native", spacing="native", workers=1)
    native = Store.open(tmp_path / "native")
    session = native.sessions[0]
    values = [value for value in session.labels["dseg"]["values"] if value]
    hard = native.read_label(session.key, "dseg")
    np.testing.assert_array_equal(native.read_shares(session.key, "dseg", values), np.stack([hard == v for v in values]))
    scan = next(scan for scan in read_index(tmp_path / "index.parquet") if scan.subject == session.subject)
    label, _ = nifti.read_labels(scan.labels["dseg"])
    assert np.count_nonzero(hard) == pytest.approx(np.count_nonzero(label.voxels), rel=1e-6)


def test_a_label_on_another_grid_is_told_and_resampled(heads: Path, tmp_path: Path) -> None:
    """A mask drawn on a shifted, finer grid of the same head: a note in the index, the same tissue in the store."""
    root = tmp_path / "other"
    root.mkdir()
    (root / "dataset_description.json").write_text('{"Name": "other", "BIDSVersion": "1.10.0"}')
    source = next(heads.glob("sub-*/ses-01/anat/*_T1w.nii.gz"))
    dseg = next(path for path in heads.rglob("*dseg.nii.gz") if path.name.startswith(source.name.split("_")[0]))
    anat = root / "sub-01" / "anat"
    anat.mkdir(parents=True)
    shutil.copy(source, anat / "sub-01_T1w.nii.gz")
    label, _ = nifti.read_labels(dseg)
    tissue = Volume((label.voxels > 0).astype(np.uint8), label.affine)
    grid = canonical_grid(grid_of(tissue), 2.5)
    finer = resample_labels(tissue, grid)
    masks = root / "derivatives" / "m" / "sub-01" / "anat"
    masks.mkdir(parents=True)
    (masks.parent.parent / "dataset_description.json").write_text(
        '{"Name": "m", "BIDSVersion": "1.10.0", "DatasetType": "derivative", "GeneratedBy": [{"Name": "x"}]}'
    )
    nibabel.save(nibabel.Nifti1Image(finer, grid.affine), masks / "sub-01_label-tissue_mask.nii.gz")
    index([root], tmp_path / "index.parquet", split="train=1", workers=1)
    (scan,) = read_index(tmp_path / "index.parquet")
    assert any("another grid" in reason for reason in scan.reasons)
    prepare(tmp_path / "index.parquet", tmp_path / "store", spacing="4", workers=1)
    store = Store.open(tmp_path / "store")
    (share,) = store.read_shares(store.sessions[0].key, "tissue", [1])
    expected = resample_label_shares(tissue, store.conformed(store.sessions[0].key, "T1w").grid).of(1)
    assert np.abs(share - expected).mean() / expected.mean() < 0.05
    assert 2 * np.minimum(share, expected).sum() / (share.sum() + expected.sum()) > 0.97


def test_metadata_comes_along(store: Store, index_file: Path) -> None:
    scans = {scan.subject: scan for scan in read_index(index_file)}
    for session in store.sessions:
        assert session.value("age") == scans[session.subject].age
        assert session.split == scans[session.subject].split
        assert session.value("nonsense") is None
    summary = store.data_summary()
    assert summary["subjects"] == 6
    assert not any("sub-" in str(value) for value in summary.values()), "a model card must not name subjects"


def test_two_processes_read_at_once(store: Store) -> None:
    jobs = [(store.path, session.key, "T2w") for session in store.sessions[:4]]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(read_sum, jobs)) == [read_sum(job) for job in jobs]


def test_damage_is_found_and_named(store_path: Path, tmp_path: Path) -> None:
    path = copied(store_path, tmp_path)
    store = Store.open(path)
    assert store.verify() == []
    session = store.sessions[2]
    whole = session.file.read_bytes()
    flip(*store.frame(session.key, "T1w"))
    problems = store.verify()
    assert len(problems) == 1 and problems[0].startswith(f"{session.key}: T1w"), problems
    session.file.write_bytes(whole[:200])
    with pytest.raises(ArtifactError, match="damaged"):
        store.read(session.key, "T1w")
    session.file.unlink()
    with pytest.raises(ArtifactError, match="missing"):
        store.read(session.key, "T1w")
    session.file.write_bytes(whole)
    assert store.verify() == []


def test_stores_that_are_no_stores_are_refused(store_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no store here"):
        Store.open(tmp_path)
    path = copied(store_path, tmp_path)
    info = artifacts.read_json(path / "store.json")
    artifacts.write_json(path / "store.json", info | {"version": 99})
    with pytest.raises(ArtifactError, match=r"(?s)another version.*version 3.*version 99"):
        Store.open(path)
    artifacts.write_json(path / "store.json", info)
    (path / artifacts.MARKER).unlink()
    with pytest.raises(ArtifactError, match="not finished"):
        Store.open(path)


def test_a_subject_in_two_splits_is_refused(store_path: Path, tmp_path: Path) -> None:
    path = copied(store_path, tmp_path)
    table = pq.read_table(path / "sessions.parquet")
    rows = table.to_pylist()
    for row, split in zip(rows[:2], ("train", "test"), strict=True):
        row |= {"subject": "same", "split": split}
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path / "sessions.parquet")
    with pytest.raises(LeakageError, match="same"):
        Store.open(path)


def samples(
    store: Store, *, start: int = 0, count: int = 12, rank: int = 0, world: int = 1, workers: int = 0, batch: int = 2
) -> list[dict]:
    dataset = PairDataset(store, ("train",), PairConfig(patch=16), seed=3)
    loader = make_loader(
        dataset,
        batch=batch,
        start_sample=start,
        n_samples=count - start,
        collate=collate_pairs,
        rank=rank,
        world=world,
        workers=workers,
    )
    return list(loader)


def joined(batches: list[dict], name: str) -> torch.Tensor:
    return torch.cat([torch.as_tensor(batch[name]) for batch in batches])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(store: Store, workers: int) -> None:
    for name in ("image_a", "image_b", "sample", "paired"):
        assert torch.equal(joined(samples(store), name), joined(samples(store, workers=workers), name))


def test_a_resumed_stream_goes_on_where_it_stopped(store: Store) -> None:
    assert torch.equal(joined(samples(store), "image_a")[8:], joined(samples(store, start=8), "image_a"))
    with pytest.raises(InputError, match="multiple"):
        samples(store, start=3)


def test_ranks_together_take_the_batch_of_one(store: Store) -> None:
    one = samples(store, batch=4)
    ranks = [samples(store, batch=2, rank=rank, world=2) for rank in (0, 1)]
    for step, batch in enumerate(one):
        assert torch.equal(batch["image_b"], torch.cat([ranks[0][step]["image_b"], ranks[1][step]["image_b"]]))


def test_an_epoch_is_each_subject_once_and_pairs_differ(store: Store) -> None:
    dataset = PairDataset(store, ("train",), PairConfig(patch=16), seed=0)
    for epoch in range(3):
        drawn = [dataset[epoch * len(dataset) + place] for place in range(len(dataset))]
        assert len({item["subject"] for item in drawn}) == len(dataset) == 6
        assert all(item["paired"] and item["contrast_a"] != item["contrast_b"] for item in drawn)
    orders = {tuple(dataset[epoch * 6 + place]["subject"] for place in range(6)) for epoch in range(5)}
    assert len(orders) > 1


def test_both_of_a_pair_show_the_same_box_in_the_same_way(store_path: Path, tmp_path: Path) -> None:
    path = copied(store_path, tmp_path)
    for session in Store.open(path).sessions:  # three contrasts with the same voxels: any difference is one of place
        record, frames = sessions.read(session.file)
        told = json.loads(record)
        same = sessions.pack(sessions.read_array(session.file, frames["T1w"]), frames["T1w"].scale)
        rest = {
            n: sessions.pack(sessions.read_array(session.file, f), f.scale) for n, f in frames.items() if n.startswith("label")
        }
        sessions.write(session.file, told, rest | dict.fromkeys(("T1w", "T2w", "FLAIR"), same))
    write_table(path, [session.key for session in Store.open(path).sessions])
    dataset = PairDataset(Store.open(path), ("train",), PairConfig(patch=24, flip=0.5), seed=1)
    for number in range(12):
        item = dataset[number]
        assert item["image_a"].any()
        np.testing.assert_array_equal(item["image_a"], item["image_b"])
    single = PairDataset(Store.open(path), ("train",), PairConfig(patch=24, contrasts=("T1w",)), seed=1)[0]
    assert not single["paired"]


def test_nothing_to_train_on_is_told(store: Store) -> None:
    with pytest.raises(InputError, match="no session of split train"):
        PairDataset(store, ("train",), PairConfig(contrasts=("ADC",)), seed=0)


def test_an_error_in_a_worker_names_the_case(store_path: Path, tmp_path: Path) -> None:
    path = copied(store_path, tmp_path)
    store = Store.open(path)
    for session in store.sessions:
        session.file.unlink()
    with pytest.raises(
        ArtifactError, match=r"(?s)sample \d+ \(heads/sub-\d+/ses-\d+ .*could not be read: a file of the store is missing"
    ):
        samples(store, workers=1)


@pytest.mark.parametrize("dtype", ["int16", "float16", "float32"])
def test_stored_voxels_keep_to_their_error_and_zero_means_outside(dtype: str) -> None:
    values = np.random.default_rng(0).standard_normal((40, 41, 42)).astype(np.float32)
    values[:4] = 0
    for gain in (1.0, 300.0, 1e-4):
        given = values * np.float32(gain)
        given[20, 20, 20] = 20 * gain
        stored, scale, error = sessions.quantised(given, dtype)
        packed = sessions.pack(stored, scale)
        back = sessions.scaled(stored, packed.scale)
        assert float(np.abs(back - given).max()) == pytest.approx(error, rel=1e-3, abs=1e-12)
        assert stored.dtype == dtype
        if dtype == "int16":
            assert error <= gain / 512 * 1.5 and np.log2(scale) == round(np.log2(scale))
            np.testing.assert_array_equal(stored == 0, given == 0)
            assert np.median(np.abs(back - given)) < gain / 1024
    far = values.copy()
    far[0, 0, 0] = 1e5
    stored, scale, error = sessions.quantised(far, "int16")
    assert stored.max() * scale == pytest.approx(1e5, rel=1e-3) and error <= scale
