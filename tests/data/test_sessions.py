"""Session files: any box of any array is what was written, whatever the chunks, and a chunk's head is believed only when it is right."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from neuroprior.core.errors import ArtifactError
from neuroprior.data import sessions

RNG = np.random.default_rng(0)
NOISE = RNG.integers(-900, 900, (70, 33, 65)).astype(np.int16)
HALF = np.where(np.arange(70)[:, None, None] < 40, 0, NOISE)  # whole chunks of one value take no bytes
ARRAYS = {
    "noise": NOISE, "half": HALF, "zero": np.zeros((40, 40, 40), np.int16), "one": np.full((5, 1, 3), 7, np.int16),
    "label": (NOISE > 0).astype(np.uint8), "float16": NOISE.astype(np.float16), "float32": NOISE.astype(np.float32),
}  # fmt: skip
BOXES = [None, (slice(0, 5),) * 3, (slice(31, 33), slice(0, 33), slice(60, 65)), (slice(64, 70), slice(30, 33), slice(1, 2))]


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, dict[str, sessions.Frame]]:
    path = tmp_path / "one.nps"
    record = {"scans": {}, "labels": {}}
    sessions.write(path, record, {name: sessions.pack(array) for name, array in ARRAYS.items()})
    return path, sessions.read(path)[1]


@pytest.mark.parametrize("name", ARRAYS)
def test_boxes(written: tuple[Path, dict[str, sessions.Frame]], name: str) -> None:
    path, frames = written
    boxes = [*BOXES, *(tuple(slice(a, a + 20) for a in RNG.integers(0, 60, 3)) for _ in range(20))]
    for box in boxes:
        found = sessions.read_array(path, frames[name], box)  # type: ignore[arg-type]
        wanted = ARRAYS[name] if box is None else ARRAYS[name][box]
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)


def test_chunks_of_any_edge_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores that were made when chunks had another size."""
    monkeypatch.setattr(sessions, "CHUNK", (64, 64, 64))
    path = tmp_path / "old.nps"
    sessions.write(path, {"scans": {}, "labels": {}}, {"noise": sessions.pack(NOISE)})
    monkeypatch.undo()
    frame = sessions.read(path)[1]["noise"]
    np.testing.assert_array_equal(sessions.read_array(path, frame, (slice(3, 69),) * 3), NOISE[3:69, 3:69, 3:69])


@pytest.mark.parametrize("place", [4, 8, 12])
def test_a_chunk_whose_head_lies_is_damaged(written: tuple[Path, dict[str, sessions.Frame]], place: int) -> None:
    """Sizes in a chunk's head (of what is in it, of its blocks, of itself) are what the frame says."""
    path, frames = written
    frame = frames["noise"]
    content = bytearray(path.read_bytes())
    at = frame.offset + frame.header + place
    content[at : at + 4] = (2**31 - 1).to_bytes(4, "little")
    path.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match="damaged"):
        sessions.read_array(path, frame)
    np.testing.assert_array_equal(sessions.read_array(path, frames["half"]), HALF)


def test_threads_do_not_share_a_buffer(written: tuple[Path, dict[str, sessions.Frame]]) -> None:
    path, frames = written
    wrong: list[str] = []

    def many(name: str) -> None:
        wrong.extend(
            name
            for _ in range(50)
            if not np.array_equal(sessions.read_array(path, frames[name], BOXES[2]), ARRAYS[name][BOXES[2]])
        )

    threads = [threading.Thread(target=many, args=(name,)) for name in ("noise", "half", "label", "float32")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_no_file_stays_open_and_few_indexes_are_kept(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(sessions.KNOWN + 5):
        path = tmp_path / f"{number}.nps"
        sessions.write(path, {"scans": {}, "labels": {}}, {"a": sessions.pack(np.full((4, 4, 4), number, np.int16))})
        assert sessions.read_array(path, sessions.read(path)[1]["a"])[0, 0, 0] == number
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert len(sessions._FOUND) <= sessions.KNOWN
    assert len(sessions._THREAD.arrays) <= sessions.KNOWN


def test_arrays_that_are_kept_read_their_own_chunks(written: tuple[Path, dict[str, sessions.Frame]], tmp_path: Path) -> None:
    """One thread reads arrays of several sizes in turn from one buffer, which grows in between."""
    path, frames = written
    large = np.arange(96**3, dtype=np.int32).reshape(96, 96, 96) * 7919
    other = tmp_path / "large.nps"
    sessions.write(other, {"scans": {}, "labels": {}}, {"large": sessions.pack(large)})
    where = sessions.read(other)[1]["large"]
    for turn in range(6):
        for name, array in ARRAYS.items():
            box = BOXES[turn % len(BOXES)]
            np.testing.assert_array_equal(sessions.read_array(path, frames[name], box), array if box is None else array[box])
        if turn % 2:
            np.testing.assert_array_equal(sessions.read_array(other, where), large)


@pytest.mark.parametrize("change", ["swapped", "twice", "beyond", "at the end"])
def test_an_index_of_chunks_that_lies_is_damaged(change: str, tmp_path: Path) -> None:
    import blosc2

    packed = sessions.pack(np.random.default_rng(0).integers(-900, 900, (48, 48, 96), dtype=np.int16))
    behind = packed.header + packed.chunks
    begin = np.frombuffer(blosc2.decompress2(packed.frame[behind:]), "<i8").copy()
    assert len(begin) == 8
    first, second = int(begin[1]), int(begin[2])
    begin[1], begin[2] = {
        "swapped": (second, first), "twice": (first, first), "beyond": (first, packed.chunks + 64), "at the end": (first, packed.chunks),
    }[change]  # fmt: skip
    index = bytes(blosc2.compress2(begin, typesize=8))
    tail = index + packed.frame[behind + len(index) :]
    path = tmp_path / "lies.nps"
    lying = sessions.Packed(packed.frame[:behind] + tail, packed.header, packed.chunks, packed.sha256)
    sessions.write(path, {"scans": {}, "labels": {}}, {"a": lying})
    with pytest.raises(ArtifactError, match="damaged") as raised:
        sessions.read_array(path, sessions.read(path)[1]["a"])
    assert "out of order" in str(raised.value)
