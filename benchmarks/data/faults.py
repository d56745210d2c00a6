"""Faults in numbers that are too large for the tests: random kills of workers and parent, and fuzzed files.

    python benchmarks/data/faults.py [--kills 200] [--minutes 60] [--fuzz 10000]

Kills: ``neuroprior prepare`` on a hundred and twenty synthetic sessions with two processes; now the parent, now a worker gets SIGKILL after a
random time, until the number is reached; then it is run to the end. The store's hash must be that of a run left alone. When the store is
finished before the kills are used up, it is begun again.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import psutil

from neuroprior.core.errors import NeuropriorError
from neuroprior.data import building, sessions
from neuroprior.data.index import read_index, write_index
from neuroprior.data.store import Store
from neuroprior.stages.index import index
from neuroprior.stages.prepare import prepare
from neuroprior.stages.store import store
from neuroprior.stages.synthesise import synthesise


def kills(folder: Path, many: Path, wanted: int, minutes: float) -> None:
    """Kill until the number is reached, or the time is over, and compare the hashes."""
    rng = random.Random(0)
    expected = Store.open(folder / "store").store_hash
    command = [
        sys.executable,
        "-m",
        "neuroprior",
        "prepare",
        str(many),
        "--out",
        str(folder / "killed"),
        "--spacing",
        "4",
        "--workers",
        "2",
    ]
    done, end = {"parent": 0, "worker": 0, "finished": 0}, time.monotonic() + 60 * minutes

    def go_on() -> bool:
        return done["parent"] + done["worker"] < wanted and time.monotonic() < end

    while go_on():
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and go_on():
            time.sleep(rng.uniform(0.0, 1.5) if (folder / "killed/store.json").exists() else 0.5)
            try:
                children = [c for c in psutil.Process(process.pid).children() if "spawn_main" in " ".join(c.cmdline())]
                if not children:
                    continue
                if rng.random() < 0.3:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    done["parent"] += 1
                else:
                    rng.choice(children).kill()
                    done["worker"] += 1
            except psutil.Error:
                continue
        if process.poll() is None:
            process.wait()
        if process.returncode == 0:
            if Store.open(folder / "killed").table["name"].isna().any():  # some session met two kills and is quarantined
                continue
            done["finished"] += 1
            assert Store.open(folder / "killed").store_hash == expected
            subprocess.run(["rm", "-r", str(folder / "killed")], check=True)
    final = prepare(many, folder / "killed", spacing="4", workers=2)
    assert final.left_out == 0 and final.store_hash == expected, final
    assert store("verify", folder / "killed").exit_code == 0
    print(
        f"{done['parent']} kills of the parent, {done['worker']} of workers; the store was finished {done['finished'] + 1} times, each time with the hash of the run left alone"
    )


def fuzz(path: Path, wanted: int) -> None:
    """Overwrite and cut session files and tables and read them."""
    rng = random.Random(0)
    files = [Store.open(path).sessions[0].file, path / "sessions.parquet", path / "store.json", path / "complete.json"]
    told = {"refused": 0, "read": 0, "found by verify": 0}
    for number in range(wanted):
        file = files[0] if number % 2 else files[rng.randrange(1, 4)]
        whole = file.read_bytes()
        changed = bytearray(whole)
        for _ in range(rng.randint(1, 12)):
            place = rng.choice([rng.random(), rng.random() * 0.01, 1 - rng.random() * 0.02])
            changed[min(int(place * len(changed)), len(changed) - 1)] = rng.randrange(256)
        file.write_bytes(bytes(changed[: max(1, int(len(changed) * (1 if rng.random() < 0.7 else rng.random())))]))
        began = time.monotonic()
        try:
            opened = Store.open(path)
            for name in opened.sessions[0].scans:
                opened.read(opened.sessions[0].key, name, (slice(0, 40),) * 3)
            told["read"] += 1
        except NeuropriorError:
            told["refused"] += 1
        if file == files[0]:
            told["found by verify"] += bool(sessions.check(file)) or bytes(changed) == whole
        assert time.monotonic() - began < 30
        file.write_bytes(whole)
    assert building.damages(path) == {}
    print(f"{wanted} mutated files: {told}; {wanted // 2} of them were session files")


def main() -> None:
    """Make the family, then kill and fuzz."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop killing after this long")
    parser.add_argument("--fuzz", type=int, default=10_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthesise(folder / "heads", subjects=6, spacing=4.0, contrasts="T1w,T2w,FLAIR", workers=1)
        index([folder / "heads"], folder / "index.parquet", workers=1)
        rows = read_index(folder / "index.parquet")
        many = write_index(
            [replace(s, scan=f"{n}/{s.scan}", subject=f"{s.subject}x{n}") for s in rows for n in range(20)],
            folder / "many.parquet",
        )
        prepare(many, folder / "store", spacing="4", workers=1)
        if given.fuzz:
            fuzz(folder / "store", given.fuzz)
        if given.kills:
            kills(folder, many, given.kills, given.minutes)


if __name__ == "__main__":
    main()
