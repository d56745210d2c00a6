"""The stage from an index to a table: what is used, what fails and why, and that nothing is measured twice or lost."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import neuroprior
from neuroprior.anatomy import FAILED, MISSING, OK, Anatomy, Candidate, labelmap, synthseg
from neuroprior.core.errors import ConfigError
from neuroprior.core.records import BAD
from neuroprior.stages.anatomy import anatomy

from . import made

Run = Callable[..., subprocess.CompletedProcess[str]]


def table(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path).set_index("scan")


def synthseg_index(tmp_path: Path, n: int = 3) -> tuple[Path, pd.DataFrame]:
    scans = made.people(tmp_path, n)
    return made.index(scans, tmp_path), made.synthseg_rows(scans)


def run(frame: pd.DataFrame, index: Path, tmp_path: Path, *settings: str) -> pd.DataFrame:
    frame.to_csv(tmp_path / "volumes.csv", index=False)
    anatomy(index, "synthseg", tmp_path / "anatomy.parquet", files=tmp_path / "volumes.csv", set=[*settings], workers=1)
    return table(tmp_path / "anatomy.parquet")


def test_the_table_of_ixi_is_dlmuse(real_data: Path, tmp_path: Path) -> None:
    from neuroprior.readers import bids

    root = real_data / "ixi-2mm"
    scans = list(bids.read(root))
    index = made.index(scans, tmp_path)
    out = tmp_path / "anatomy.parquet"
    summary = anatomy(index, out=out, set=["ignore=[69]"], workers=1)
    assert (summary.ok, summary.failed, summary.missing, summary.subjects, summary.without) == (30, 0, 0, 30, 0)
    oracle = pd.read_csv(root / "derivatives/dlmuse/DLMUSE_Volumes.csv").set_index("MRID")
    singles = [code for code in oracle.columns if int(code) < 300]
    ours = table(out)
    for scan in scans:
        row, theirs = ours.loc[scan.scan], oracle.loc[scan.columns["source_id"]]
        assert [round(row[f"volume:{code}"] * 1000, 6) for code in singles] == list(theirs[singles])
        assert round(row["icv_ml"] * 1000, 6) == theirs["702"]
    assert list(ours["used"]) == [True] * 30
    note = json.loads(pq.read_schema(out).metadata[b"neuroprior"])
    assert {name: note[name] for name in ("artifact", "version", "units", "source")} == {
        "artifact": "anatomy", "version": 1, "units": "ml", "source": "labelmap"
    }  # fmt: skip
    assert note["settings"]["ignore"] == [69]
    assert note["made_by"]["command"] == "anatomy"


def test_one_row_a_subject_by_preference(tmp_path: Path) -> None:
    scans = [made.scan(tmp_path, "sub-1", contrast) for contrast in ("FLAIR", "T2w", "SWI")] + [
        made.scan(tmp_path, "sub-2", "SWI")
    ]
    scans.append(made.scan(tmp_path, "sub-2", "T2w", "ses-2"))
    folder = made.label_maps([*scans[:3], scans[4]], tmp_path / "maps")
    summary = anatomy(made.index(scans, tmp_path), out=tmp_path / "a.parquet", files=folder, workers=1)
    ours = table(tmp_path / "a.parquet")
    assert list(ours.index[ours["used"]]) == ["made/sub-1_T2w", "made/sub-2_ses-2_T2w"]
    assert ours.loc["made/sub-2_SWI", "status"] == MISSING
    assert ours.loc["made/sub-2_SWI", "reason"]
    assert (summary.ok, summary.missing, summary.subjects) == (4, 1, 2)
    assert list(ours.columns[-4:]) == ["volume:grey", "volume:white", "volume:ventricle", "volume:nobody has it"]


def test_an_intracranial_volume_out_of_range_is_failed(tmp_path: Path) -> None:
    index, frame = synthseg_index(tmp_path)
    numbers = [synthseg.INTRACRANIAL, *synthseg.NAMES.values()]
    frame.loc[0, numbers] *= 0.4
    ours = run(frame, index, tmp_path)
    assert list(ours["status"]) == [FAILED, OK, OK]
    assert "not plausible" in ours["reason"].iloc[0]
    assert "look like" not in ours["reason"].iloc[0]
    assert not any(ours["volume:csf"].isna())
    assert list(run(frame, index, tmp_path, "quality.icv_low_ml=400")["status"]) == [OK, OK, OK]


def test_mm3_given_as_ml_is_told_and_ml_given_as_mm3(tmp_path: Path) -> None:
    index, frame = synthseg_index(tmp_path)
    ours = run(frame, index, tmp_path, "units=ml")
    assert set(ours["status"]) == {FAILED}
    assert all("look like mm3 given as ml (of a table: --set units=mm3)" in reason for reason in ours["reason"])
    numbers = [synthseg.INTRACRANIAL, *synthseg.NAMES.values()]
    frame[numbers] /= 1000
    ours = run(frame, index, tmp_path)
    assert all("look like ml given as mm3 (of a table: --set units=ml)" in reason for reason in ours["reason"])
    assert set(run(frame, index, tmp_path, "units=ml")["status"]) == {OK}


def test_an_outlier_is_not_used(tmp_path: Path) -> None:
    index, frame = synthseg_index(tmp_path, 12)
    regions = [*synthseg.NAMES.values()]
    frame.loc[4, regions[:8]] *= 8
    ours = run(frame, index, tmp_path)
    assert list(ours.index[ours["status"] == FAILED]) == ["made/sub-04_T1w"]
    assert "an outlier: 8 of 32 regions" in ours.loc["made/sub-04_T1w", "reason"]
    assert not ours.loc["made/sub-04_T1w", "used"]
    assert set(run(frame, index, tmp_path, "quality.outlier_share=1")["status"]) == {OK}


def test_bad_scans_keep_the_index_reason(tmp_path: Path) -> None:
    scans = made.people(tmp_path, 2)
    scans[0] = replace(scans[0], status=BAD, reasons=("the scan holds voxels that are no numbers",))
    ours = run(made.synthseg_rows(scans), made.index(scans, tmp_path), tmp_path)
    assert list(ours["status"]) == [FAILED, OK]
    assert "no numbers" in ours["reason"].iloc[0]


def test_unnamed_ids_fail_their_row_and_are_in_the_issues(tmp_path: Path) -> None:
    scans = made.people(tmp_path, 2)
    folder = made.label_maps(scans, tmp_path / "maps")
    made.label_map(folder / "sub-00_T1w_dseg.nii.gz", {1: 6000, 2: 5000, 77: 3})
    summary = anatomy(made.index(scans, tmp_path), out=tmp_path / "a.parquet", files=folder, workers=1)
    assert (summary.ok, summary.failed) == (1, 1)
    assert "77" in next(iter(summary.reasons))
    assert summary.issues is not None
    assert "1 label ids have no name in dseg.tsv: 77" in summary.issues.read_text()
    made.label_map(folder / "sub-00_T1w_dseg.nii.gz", {1: 6000, 2: 5000})
    again = anatomy(made.index(scans, tmp_path), out=tmp_path / "a.parquet", files=folder, workers=1)
    assert (again.ok, again.failed, again.reused) == (2, 0, 1)
    assert not summary.issues.exists()


def test_settings_that_nobody_knows_are_refused(tmp_path: Path) -> None:
    index = made.index(made.people(tmp_path, 1), tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'icv_low_ml'"):
        anatomy(index, set=["quality.icv_low=1"])
    with pytest.raises(ConfigError, match="unknown key 'unit'"):
        anatomy(index, set=["unit=ml"])
    with pytest.raises(ConfigError, match="did you mean 'synthseg'"):
        anatomy(index, source="synthsec")
    with pytest.raises(ConfigError, match="icv_low_ml must lie below"):
        anatomy(index, set=["quality.icv_low_ml=5000"])


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    scans = made.people(tmp_path, 2)
    folder = made.label_maps(scans[:1], tmp_path / "maps")
    summary = anatomy(made.index(scans, tmp_path), out=tmp_path / "a.parquet", files=folder, dry_run=True)
    assert summary.missing == 1
    assert not list(tmp_path.glob("a.*"))


def test_a_failed_registration_is_a_row_with_a_reason(tmp_path: Path) -> None:
    pytest.importorskip("dipy", reason="the extra 'atlas' is not installed")
    scan = made.scan(tmp_path, "sub-1")
    voxels = np.random.default_rng(1).normal(100, 20, (48, 48, 48)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([4.0, 4.0, 4.0, 1.0])), scan.path)
    anatomy(made.index([scan], tmp_path), "atlas", tmp_path / "a.parquet", set=["iterations=[2,1]", "spacing_mm=4"], workers=1)
    row = table(tmp_path / "a.parquet").iloc[0]
    assert row["status"] == FAILED
    assert row["reason"].startswith("failed registration")


def test_killed_and_started_again_gives_the_same_table(tmp_path: Path) -> None:
    scans = made.people(tmp_path, 12)
    folder = made.label_maps(scans, tmp_path / "maps")
    index = made.index(scans, tmp_path)
    anatomy(index, out=tmp_path / "whole.parquet", files=folder, workers=1)
    out = tmp_path / "killed.parquet"
    slow = (
        "import sys, time\nfrom neuroprior.anatomy import labelmap\nplain = labelmap.measure\n"
        "def measure(*args):\n    time.sleep(0.1)\n    return plain(*args)\nlabelmap.measure = measure\n"
        "from neuroprior.stages.anatomy import anatomy\nfrom pathlib import Path\n"
        "print(anatomy(Path(sys.argv[1]), out=Path(sys.argv[2]), files=Path(sys.argv[3]), workers=1).reused)"
    )
    command = [sys.executable, "-c", slow, str(index), str(out), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    parts = tmp_path / "killed.parts"
    until = time.time() + 60
    while process.poll() is None and time.time() < until and len(list(parts.glob("[0-9a-f]*.json"))) < 3:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not out.exists()
    done = len(list(parts.glob("[0-9a-f]*.json")))
    assert done >= 3
    again = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert int(again.stdout.split()[-1]) >= done
    assert not parts.exists()
    columns = [name for name in table(out).columns if name != "path"]
    pd.testing.assert_frame_equal(table(out)[columns], table(tmp_path / "whole.parquet")[columns])


@pytest.mark.slow
def test_processes_dask_and_slurm_give_the_same_table(tmp_path: Path, run_cli: Run, stub_slurm: Callable[[str], Path]) -> None:
    scans = made.people(tmp_path, 5)
    folder = made.label_maps(scans, tmp_path / "maps")
    index = made.index(scans, tmp_path)
    anatomy(index, out=tmp_path / "one.parquet", files=folder, workers=1)
    ways = {
        "two": ["--workers", "2"],
        "dask": ["--workers", "1", "--scheduler", "local"],
        "slurm": ["--slurm", stub_slurm("300s")],
    }
    for name, options in ways.items():
        out = tmp_path / f"{name}.parquet"
        done = run_cli("anatomy", index, "--out", out, "--files", folder, *options)
        assert done.returncode == 0, done.stderr
        assert "5 subjects with 4 regional volumes (labelmap), 0 without" in done.stdout
        pd.testing.assert_frame_equal(table(out), table(tmp_path / "one.parquet"))
    assert list(tmp_path.glob("script-*")), "nothing was submitted"


def test_one_scan_that_ends_badly_does_not_end_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a row with its reason, and the next command tries it again."""
    scans = made.people(tmp_path, 3)
    folder = made.label_maps(scans, tmp_path / "maps")
    index, out = made.index(scans, tmp_path), tmp_path / "a.parquet"
    measure = labelmap.measure

    def bad(candidate: Candidate, config: labelmap.Config) -> Anatomy:
        if "sub-00" in str(candidate.path):
            raise MemoryError
        if "sub-01" in str(candidate.path):
            raise ZeroDivisionError("a bug")
        return measure(candidate, config)

    monkeypatch.setattr(labelmap, "measure", bad)
    summary = anatomy(index, out=out, files=folder, workers=1)
    assert (summary.ok, summary.failed) == (1, 2)
    reasons = table(out)["reason"]
    assert "out of memory" in reasons["made/sub-00_T1w"]
    assert "ZeroDivisionError: a bug (test_stage.py, line" in reasons["made/sub-01_T1w"]
    monkeypatch.setattr(labelmap, "measure", measure)
    again = anatomy(index, out=out, files=folder, workers=1)
    assert (again.ok, again.failed, again.reused) == (3, 0, 1)


def test_a_file_that_never_answers_is_failed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scans = made.people(tmp_path, 4)
    folder = made.label_maps(scans, tmp_path / "maps")
    hanging = next(path for path in folder.iterdir() if "sub-02" in path.name)
    kept = hanging.read_bytes()
    index, out = made.index(scans, tmp_path), tmp_path / "a.parquet"
    hanging.unlink()
    os.mkfifo(hanging)
    summary = anatomy(index, out=out, files=folder, workers=2, timeout=3)
    assert (summary.ok, summary.failed) == (3, 1)
    assert "it was not done after 3 s" in table(out).loc["made/sub-02_T1w", "reason"]
    assert "it is tried once more, alone" in caplog.text
    hanging.unlink()
    hanging.write_bytes(kept)
    again = anatomy(index, out=out, files=folder, workers=2)
    assert (again.ok, again.failed, again.reused) == (4, 0, 3)


def test_one_cluster_is_named(tmp_path: Path) -> None:
    scans = made.people(tmp_path, 1)
    with pytest.raises(ConfigError, match="both --scheduler and --slurm"):
        anatomy(made.index(scans, tmp_path), out=tmp_path / "a.parquet", scheduler="local", slurm=tmp_path / "slurm.yml")


def test_the_verb_stays_a_function_when_the_shelf_is_imported() -> None:
    code = "import neuroprior, neuroprior.anatomy.labelmap; print(callable(neuroprior.anatomy)); from neuroprior.anatomy import rank; rank('T1w')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
    assert neuroprior.anatomy is neuroprior.anatomy
    assert inspect.unwrap(neuroprior.anatomy) is anatomy  # the verb takes text for paths, and is else the stage
