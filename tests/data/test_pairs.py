"""Which scans meet, where their boxes lie, and what becomes of those that do not align."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuroprior.core.errors import ConfigError, InputError
from neuroprior.data import alignment
from neuroprior.data.diagnosis import describe, health_class
from neuroprior.data.pairs import PairConfig, PairDataset, collate_pairs
from neuroprior.data.store import SessionView, coded


class Shelf:
    """A store in memory with a known field of intensities in world coordinates."""

    path = Path("memory")

    def __init__(self) -> None:
        self.sessions: list[SessionView] = []
        self.arrays: dict[tuple[str, str], np.ndarray] = {}

    def add(
        self,
        subject: str,
        session: str,
        scans: dict[str, Any],
        *,
        offset: Any = (0, 0, 0),
        moved: Any = (0, 0, 0),
        **columns: Any,
    ) -> None:
        shape, key = (24, 28, 24), f"d/{subject}/{session}"
        affine = np.eye(4)
        affine[:3, 3] = offset
        grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1) + np.asarray(offset) - np.asarray(moved)
        centre = np.array([12.0, 14.0, 12.0])
        radius = np.linalg.norm((grid - centre) / (9, 11, 9), axis=-1)
        labels = {"dseg": {}} if columns.pop("dseg", False) else {}
        for name, gain in scans.items():
            image = gain * (1.5 - radius + 0.3 * np.sin(grid[..., 0]) * np.cos(grid[..., 1] * 0.7)) + 1
            self.arrays[key, name] = np.where(radius < 1, image, 0).astype(np.float32)
        self.arrays[key, "dseg"] = (radius < 1).astype(np.int16) + (grid[..., 0] > centre[0])
        self.sessions.append(SessionView(
            key, "d", f"d/{subject}", session, "train", shape, affine, next(iter(scans)), {name: {} for name in scans}, labels, columns,
            Path(),
        ))  # fmt: skip

    def read(self, key: str, name: str, box: Any = None) -> np.ndarray:
        return self.arrays[key, name][box if box is not None else (slice(None),) * 3].copy()

    read_label = read

    def read_stored(self, key: str, name: str, box: Any = None) -> tuple[np.ndarray, float]:
        return self.read(key, name, box), 1.0

    def coded(self, name: str) -> tuple[np.ndarray, list[Any]]:
        return coded(self.sessions, name)

    def largest(self) -> tuple[int, ...]:
        return tuple(max(axis) for axis in zip(*(session.shape for session in self.sessions), strict=True))


def dataset(store: Any, **config: Any) -> PairDataset:
    return PairDataset(store, ("train",), PairConfig.model_validate({"patch": 12, "flip": 0.0, **config}), seed=0)


@pytest.fixture
def shelf() -> Shelf:
    store = Shelf()
    store.add("01", "1", {"T1w": 1.0, "T2w": -1.0}, scanner="A", health="healthy", dseg=True)
    store.add("01", "2", {"T1w": 1.0, "FLAIR": 2.0}, scanner="B", offset=(3, -2, 1), health="healthy")
    store.add("02", "1", {"T1w": 1.0}, scanner="A", health="wmh")
    return store


def test_a_box_far_larger_than_every_scan_is_a_mistake(shelf: Shelf) -> None:
    x, y, z = shelf.largest()
    dataset(shelf, patch=(4 * x, y, z))
    with pytest.raises(ConfigError, match="far larger than the scans"):
        dataset(shelf, patch=(4 * x + 1, y, z))


def kinds_of(found: dict[str, Any]) -> str:
    return f"{found['contrast_a']}-{found['contrast_b']}" if found["paired"] else f"{found['contrast_a']} alone"


def test_every_kind_of_pair_is_what_it_says(shelf: Shelf) -> None:
    session = shelf.sessions[0]
    data = dataset(shelf, kinds={"session": 1, "time": 1, "both": 1, "scanner": 1})
    found = data.partners((session, "T1w"), shelf.sessions[:2])
    assert {kind: [f"{s.session} {name}" for s, name in scans] for kind, scans in found.items()} == {
        "session": ["1 T2w"], "time": ["2 T1w"], "both": ["2 FLAIR"], "scanner": ["2 T1w"],
    }  # fmt: skip
    assert "scanner" not in data.partners((shelf.sessions[1], "FLAIR"), shelf.sessions[:2])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("session", {"T1w-T2w", "T2w-T1w", "T1w-FLAIR", "FLAIR-T1w", "T1w alone"}),
        ("time", {"T1w-T1w", "T1w alone", "T2w alone", "FLAIR alone"}),
        ("both", {"T1w-FLAIR", "FLAIR-T1w", "T1w-T2w", "T2w-T1w", "T2w-FLAIR", "FLAIR-T2w", "T1w alone"}),
        ("scanner", {"T1w-T1w", "T1w alone", "T2w alone", "FLAIR alone"}),
    ],
)
def test_pairs_are_drawn_by_kind(shelf: Shelf, kind: str, expected: set[str]) -> None:
    data = dataset(shelf, kinds={kind: 1})
    assert {kinds_of(data[n]) for n in range(200)} == expected


def test_a_subject_with_one_scan_takes_part_alone(shelf: Shelf) -> None:
    data = dataset(shelf, kinds={"session": 1, "time": 1})
    alone = [data[n] for n in range(40) if data[n]["subject"] == "d/02"]
    assert alone
    assert not any(found["paired"] for found in alone)
    assert all(np.array_equal(found["image_a"], found["image_b"]) for found in alone)


def test_boxes_of_two_sessions_lie_on_each_other(shelf: Shelf) -> None:
    """The images are a function of world coordinates, so aligned boxes are equal up to the contrast's gain."""
    data = dataset(shelf, kinds={"time": 1})
    seen = 0
    for n in range(30):
        found = data[n]
        if found["paired"]:
            inside = (found["image_a"] != 0) & (found["image_b"] != 0)
            assert inside.mean() > 0.2
            np.testing.assert_allclose(found["image_a"][inside], found["image_b"][inside], rtol=1e-4)
            seen += 1
    assert seen > 5


def test_a_draw_is_a_function_of_the_sample_number(shelf: Shelf) -> None:
    config = {"kinds": {"session": 1, "time": 2}, "shift": 2}
    first, second = dataset(shelf, **config), dataset(shelf, **config)
    for n in (5, 3, 17):
        a, b = first[n], second[n]
        assert np.array_equal(a["image_b"], b["image_b"])
        assert a["contrast_b"] == b["contrast_b"]


def test_misaligned_sessions_are_skipped_with_a_reason(shelf: Shelf) -> None:
    shelf.add("03", "1", {"T1w": 1.0})
    shelf.add("03", "2", {"T1w": 1.0}, moved=(9, 0, 0))  # the head lies 9 mm away from where the header says
    data = dataset(shelf, kinds={"time": 1}, contrasts=("T1w",))
    assert not any(data[n]["paired"] for n in range(60) if data[n]["subject"] == "d/03")
    assert {key[0] for key in data.skipped} <= {"d/03/1", "d/03/2"}
    assert data.skipped
    assert all("mm" in reason or "overlap" in reason for reason in data.skipped.values())
    kept = dataset(shelf, kinds={"time": 1}, contrasts=("T1w",), misaligned="keep")
    assert any(kept[n]["paired"] for n in range(60) if kept[n]["subject"] == "d/03")


def test_misaligned_sessions_are_aligned_by_dipy(shelf: Shelf) -> None:
    pytest.importorskip("dipy.align", reason="dipy is not installed (extra atlas)")
    store = Shelf()
    store.add("03", "1", {"T1w": 1.0})
    store.add("03", "2", {"T1w": 1.0}, moved=(7, 0, 0))
    data = dataset(store, kinds={"time": 1}, misaligned="rigid")
    found = next(data[n] for n in range(5))
    assert found["paired"], data.skipped
    inside = (found["image_a"] != 0) & (found["image_b"] != 0)
    assert np.corrcoef(found["image_a"][inside], found["image_b"][inside])[0, 1] > 0.9


def test_shift_displaces_the_second_box_only(shelf: Shelf) -> None:
    plain, moved = dataset(shelf, contrasts=("T1w", "T2w")), dataset(shelf, contrasts=("T1w", "T2w"), shift=2)
    differ = [n for n in range(20) if plain[n]["paired"] and not np.array_equal(plain[n]["image_b"], moved[n]["image_b"])]
    assert len(differ) > 3
    assert all(np.array_equal(plain[n]["image_a"], moved[n]["image_a"]) for n in range(20))


def test_repeat_makes_batches_of_one_subject(shelf: Shelf) -> None:
    data = dataset(shelf, repeat=4)
    for first in range(0, 24, 4):
        assert len({data[n]["subject"] for n in range(first, first + 4)}) == 1
    assert {data[n]["subject"] for n in range(24)} == {"d/01", "d/02"}


def test_temperature_evens_out_groups() -> None:
    store = Shelf()
    for n in range(9):
        store.add(f"{n:02}", "1", {"T1w": 1.0}, site="big")
    store.add("99", "1", {"T1w": 1.0}, site="small")
    shares = {}
    for temperature in (1.0, 2.0, 1000.0):
        data = dataset(store, balance="site", temperature=temperature)
        shares[temperature] = Counter(data[n]["subject"] == "d/99" for n in range(400))[True] / 400
    assert shares[1.0] == pytest.approx(0.1, abs=0.05)
    assert shares[2.0] == pytest.approx(1 / 4, abs=0.07)  # sqrt(1) / (sqrt(9) + sqrt(1))
    assert shares[1000.0] == pytest.approx(0.5, abs=0.08)
    with pytest.raises(ConfigError, match="column 'country'"):
        dataset(store, balance="country")


def test_labels_health_and_vectors_come_along(shelf: Shelf) -> None:
    config = PairConfig.model_validate({"patch": 12, "flip": 1.0, "label": "dseg"})
    data = PairDataset(shelf, ("train",), config, seed=0, anatomy={"d/01": np.arange(3.0)})  # type: ignore[arg-type]
    batch = collate_pairs([data[n] for n in range(12)])
    for n, subject in enumerate(batch["subject"]):
        assert bool(batch["has_anatomy"][n]) == (subject == "d/01")
        assert batch["anatomy"][n].tolist() == ([0, 1, 2] if subject == "d/01" else [0, 0, 0])
        assert int(batch["health"][n]) == (0 if subject == "d/01" else 1)
        assert "label_a" in batch
        if batch["has_label"][n]:
            assert bool((batch["label_a"][n][batch["image_a"][n, 0] != 0] > 0).all())  # mirrored together
    assert 0 < int(batch["has_label"].sum()) < 12
    with pytest.raises(InputError, match="no session of split train has the label 'nothing'"):
        dataset(shelf, label="nothing")
    with pytest.raises(ConfigError, match="no kind of pair has a weight"):
        dataset(shelf, kinds={"time": 0})


def test_health_in_many_spellings(caplog: pytest.LogCaptureFixture) -> None:
    for spelling in ("healthy", "Control", "HC", "cognitively-normal", "0", 0, 0.0, False):
        assert health_class(spelling) == 0, spelling
    for spelling in ("patient", "MS", "wmh", "1", 1, True, "Alzheimer's disease", "Not healthy"):
        assert health_class(spelling) == 1, spelling
    for spelling in (None, "", "n/a", "Unknown", float("nan"), "7"):
        assert health_class(spelling) == -1, spelling
    assert describe(["HC", "HC", "MS"]) == "'HC' (2) as healthy, 'MS' (1) as not healthy"


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_displaced_brain_of_another_contrast_is_found(axis: int) -> None:
    from nilearn.datasets import load_mni152_template

    image: Any = load_mni152_template(resolution=2)
    t1 = np.asarray(image.get_fdata(), np.float32)
    other = np.where(t1 != 0, 2 - t1 + 0.1 * np.sin(8 * t1), 0)  # fluid bright, as in T2w
    moved = np.asarray(image.affine).copy()
    moved[axis, 3] += 8  # the header says 8 mm too far
    found = alignment.compare(t1, image.affine, other, moved)
    assert found.shift_mm == pytest.approx(-8, abs=2)
    assert found.reason(0.7, 6.0) is not None
    assert alignment.compare(t1, image.affine, other, image.affine).reason(0.7, 6.0) is None


def test_mutual_information_equals_scikit_learns() -> None:
    from sklearn.metrics import mutual_info_score

    rng = np.random.default_rng(0)
    a = rng.normal(size=(12, 12, 12)) + 5
    b = a**2 + rng.normal(size=a.shape)
    edges = [np.quantile(x, np.linspace(0, 1, 17)[1:-1]) for x in (a, b)]
    bins = [np.searchsorted(e, x.ravel(), side="right") for e, x in zip(edges, (a, b), strict=True)]
    assert alignment.mutual_information(a, b) == pytest.approx(mutual_info_score(*bins), rel=1e-6)


@pytest.fixture
def ramps() -> Shelf:
    """Seven subjects of different extents whose voxels hold their own place, so that a box tells where it begins."""
    store = Shelf()
    for number in range(7):
        store.add(f"{number:02d}", "1", {"T1w": 1.0, "T2w": 1.0})
        shape = (24 + number, 28, 24 - number)
        places = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
        for name in ("T1w", "T2w"):
            store.arrays[f"d/{number:02d}/1", name] = (1 + places @ np.array([10000, 100, 1])).astype(np.float32)
        store.sessions[-1] = replace(store.sessions[-1], shape=shape)
    return store


def begins(found: dict[str, Any], which: str = "image_a") -> np.ndarray:
    value = int(found[which][0, 0, 0]) - 1
    return np.array([value // 10000, value // 100 % 100, value % 100])


def test_subjects_of_a_batch_share_a_place_and_batches_do_not(ramps: Shelf) -> None:
    data = PairDataset(ramps, ("train",), PairConfig(patch=12, flip=0.0, place="shared"), seed=5, batch=4)  # type: ignore[arg-type]
    shapes = {session.subject: np.array(session.shape) for session in ramps.sessions}
    places = []
    for group in range(6):
        found = [data[4 * group + n] for n in range(4)]
        shares = np.array([begins(one) / (shapes[one["subject"]] - 12) for one in found])
        room = np.array([shapes[one["subject"]] - 12 for one in found])
        assert (np.ptp(shares, axis=0) <= (1.01 / room).max(0)).all(), "the same share of the room, to a voxel"
        assert all((begins(one) == begins(one, "image_b")).all() for one in found)
        places.append(shares.mean(0))
    assert np.std(places, axis=0).min() > 0.1
    again = PairDataset(ramps, ("train",), PairConfig(patch=12, flip=0.0, place="shared"), seed=5, batch=4)  # type: ignore[arg-type]
    for sample in (23, 2, 14):  # in any order, by any worker
        assert (again[sample]["image_a"] == data[sample]["image_a"]).all()


def test_a_box_in_the_middle_moves_by_its_jitter_only(ramps: Shelf) -> None:
    shapes = {session.subject: np.array(session.shape) for session in ramps.sessions}

    def slips(jitter: int) -> np.ndarray:
        data = PairDataset(ramps, ("train",), PairConfig(patch=12, flip=0.0, place="centre", jitter=jitter), seed=5)  # type: ignore[arg-type]
        return np.array([begins(one) - np.round((shapes[one["subject"]] - 12) / 2) for one in (data[n] for n in range(60))])

    assert (slips(0) == 0).all()
    assert slips(2).min(0).tolist() == [-2, -2, -2] and slips(2).max(0).tolist() == [2, 2, 2]


def test_a_box_larger_than_the_head_holds_all_of_it(ramps: Shelf) -> None:
    for place in ("shared", "centre"):
        data = PairDataset(ramps, ("train",), PairConfig(patch=40, flip=0.0, place=place), seed=5, batch=3)  # type: ignore[arg-type]
        for n in range(5):
            found = data[n]
            session = next(s for s in ramps.sessions if s.subject == found["subject"])
            assert (found["image_a"] != 0).sum() == np.prod(session.shape)


class Boxed:
    """A store in memory that notes which boxes are read."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf, self.boxes = shelf, []
        self.path, self.sessions, self.coded, self.largest = shelf.path, shelf.sessions, shelf.coded, shelf.largest

    def read(self, key: str, name: str, box: Any = None) -> np.ndarray:
        self.boxes.append(self.shelf.arrays[key, name].shape if box is None else tuple(part.stop - part.start for part in box))
        return self.shelf.read(key, name, box)

    read_label = read

    def read_stored(self, key: str, name: str, box: Any = None) -> tuple[np.ndarray, float]:
        return self.read(key, name, box), 1.0


def turned(degrees: float, about: Any = (12.0, 14.0, 12.0)) -> np.ndarray:
    """(4, 4) rotation about the third axis through a point, and a little slip."""
    a = np.deg2rad(degrees)
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    matrix[:3, 3] = np.asarray(about) - matrix[:3, :3] @ np.asarray(about) + (0.3, -0.2, 0.4)
    return matrix


@pytest.mark.parametrize("how", ["oblique", "rigid"])
def test_a_box_of_another_grid_is_read_as_a_box(shelf: Shelf, how: str) -> None:
    """The same voxels as by way of the whole volume, of boxes no larger than the turned box and a voxel around it."""
    first, second = (shelf.sessions[0], "T1w"), (shelf.sessions[1], "T1w")
    transform = turned(8) if how == "rigid" else None
    if how == "oblique":
        second = (replace(second[0], affine=turned(8) @ second[0].affine), "T1w")
    shelf.arrays[second[0].key, "dseg"] = (shelf.arrays[second[0].key, "T1w"] > 1.5).astype(np.int16)
    second = (replace(second[0], labels={"dseg": {}}), "T1w")
    store = Boxed(shelf)
    data = dataset(store, kinds={"time": 1}, patch=8, label="dseg")
    for start in ([8, 10, 8], [0, 0, 0], [17, 22, 17], [-5, 9, 8], [60, 60, 60]):
        store.boxes.clear()
        image, scale = data._scan(second, first, start, transform)
        label = data._label(second, first, start, transform)
        corner = data._corner(first, start)
        whole = [
            alignment.resampled(
                shelf.arrays[second[0].key, name], second[0].affine, (8, 8, 8), corner, order=order, rigid=transform
            )
            for name, order in (("T1w", 1), ("dseg", 0))
        ]
        assert image.dtype == np.float32 and scale == 1.0 and image.shape == label.shape == (8, 8, 8)
        assert np.allclose(image, whole[0], atol=1e-5)
        assert np.array_equal(label, whole[1])
        assert len(store.boxes) == (0 if start[0] == 60 else 2)
        assert all(max(box) <= 8 + 2 + 3 for box in store.boxes), store.boxes
        if start == [8, 10, 8]:
            assert image.any() and label.any()


def test_a_sample_is_named_by_its_scans(shelf: Shelf) -> None:
    data = dataset(shelf, kinds={"session": 1, "time": 1})
    for n in range(60):
        found, told = data[n], data.name(n)
        assert told.startswith(f"{found['subject']}/") and f" {found['contrast_a']}" in told
        assert told.endswith(found["contrast_b"]) and (" beside " in told) == found["paired"], told
