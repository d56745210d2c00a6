"""evaluate beyond accuracy, the model's card, and every kind of bad input: a clear error or a row, never a silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from neuroprior.assessments._tables import write_scores
from neuroprior.core import artifacts
from neuroprior.core.errors import ConfigError, InputError
from neuroprior.core.records import Score
from neuroprior.data.index import read_index
from neuroprior.inference import derivative
from neuroprior.stages.evaluate import evaluate

NAMES = ("calibration", "selective", "conformal", "fairness", "domain_shift", "rare", "cost")


def people(index_file: Path) -> dict[str, Any]:
    return {f"{scan.subject}/{scan.session}" if scan.session else scan.subject: scan for scan in read_index(index_file)}


def predictions(folder: Path, task: str, target: str, rows: list[dict[str, Any]], **info: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    base = {"artifact": "predictions", "version": 1, "task": task, "target": target, "label_values": None, "calibration": None}
    artifacts.write_json(folder / "predictions.json", {**base, **info})
    derivative.write_table(folder, rows)
    return folder


def row(case: str, **more: Any) -> dict[str, Any]:
    return {"case": case, "subject": case.split("/ses")[0], "dataset": case.split("/")[0], "status": "ok", **more}


def sexes(index_file: Path, p_of: Any) -> list[dict[str, Any]]:
    made = []
    for n, (case, scan) in enumerate(sorted(people(index_file).items())):
        p = float(p_of(n, scan))
        made.append(row(case, value="M" if p > 0.5 else "F", probability=p, p_F=1 - p, p_M=p, seconds=1.5, peak_memory_mb=300.0))
    return made


SEX: dict[str, Any] = {"classes": ["F", "M"], "positive": "M", "floor": {"prior": {"F": 0.5, "M": 0.5}}}


def guesses(n: int, scan: Any) -> float:
    return min(0.95, max(0.05, (0.6 if scan.sex == "M" else 0.4) + 0.3 * float(np.sin(3 * n + 1))))


def note_of(path: Path) -> dict[str, Any]:
    return json.loads((pq.read_schema(path).metadata or {})[b"neuroprior"])


def save(path: Path, voxels: np.ndarray, spacing: float = 1.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([spacing, spacing, spacing, 1.0])), path)


def box(shift: int = 0, label: int = 1) -> np.ndarray:
    made = np.zeros((12, 12, 12), dtype=np.uint8)
    made[3 + shift : 8 + shift, 3:8, 3:8] = label
    return made


# ----------------------------------------------------------------------------------------------------- one command, all


def test_every_assessment_has_rows_or_a_reason(index_file: Path, tmp_path: Path) -> None:
    folder = predictions(tmp_path / "p", "classification", "sex", sexes(index_file, guesses), **SEX)
    done = evaluate(folder, index_file, out=tmp_path / "s.parquet")
    table = pd.read_parquet(tmp_path / "s.parquet")
    mine = table[table["model"] == "p"]
    reasons = dict(
        zip(mine[mine["metric"] == "not_assessed"]["region"], mine[mine["metric"] == "not_assessed"]["note"], strict=True)
    )
    assert reasons["conformal"].startswith("a class has no interval")
    assert "--model" in reasons["cost of training"]
    metrics = set(mine["metric"])
    assert {"ece_class_wise", "aurc", "auroc_gap", "auprc", "seconds_per_case"} <= metrics
    assert ("domain_shift" in reasons) != bool({"auroc_shift"} & metrics)
    assert "not assessed: conformal" in str(done)
    assert not table.duplicated(["model", "task", "target", "case", "metric", "region", "condition"]).any()
    assert mine[(mine["metric"] == "seconds_per_case")]["value"].iloc[0] == pytest.approx(1.5)
    facts = note_of(tmp_path / "s.parquet")
    assert facts["assessed"] == list(NAMES)
    assert facts["printed_rule"].startswith("rule for empty masks: honest")
    assert set(next(iter(facts["groups"].values()))) >= {"sex", "age", "dataset", "spacing"}


def test_some_assessments_only(index_file: Path, tmp_path: Path) -> None:
    folder = predictions(tmp_path / "p", "classification", "sex", sexes(index_file, guesses), **SEX)
    evaluate(folder, index_file, out=tmp_path / "a.parquet", assess="selective")
    evaluate(folder, index_file, out=tmp_path / "b.parquet", assess="none")
    a, b = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in "ab")
    assert set(a["metric"]) - set(b["metric"]) == {"aurc", "excess_aurc", "risk", "risk_at_coverage"}
    with pytest.raises(ConfigError, match="did you mean 'selective'"):
        evaluate(folder, index_file, out=tmp_path / "a.parquet", assess="selektive")
    with pytest.raises(ConfigError, match="honest or fomo26"):
        evaluate(folder, index_file, out=tmp_path / "a.parquet", rule="honst")


def test_further_groups_are_columns_of_the_index(index_file: Path, tmp_path: Path) -> None:
    rows = [row(case, value=scan.age + n) for n, (case, scan) in enumerate(sorted(people(index_file).items()))]
    folder = predictions(tmp_path / "p", "regression", "age", rows, floor={"mean": 50.0})
    curve = [
        Score("scratch", "regression", "age", case, case, "absolute_error", "all", "scratch", 20.0 / shots)
        for shots in (2, 5) for case in people(index_file)
    ]  # fmt: skip
    extra = [{"shots": str(shots), "seed": 0, "subjects_learned": shots} for shots in (2, 5) for _ in people(index_file)]
    write_scores(curve, tmp_path / "few/curve.parquet", {"stage": "fewshot"}, extra=extra)
    evaluate(folder, index_file, out=tmp_path / "s.parquet", groups="health", assess="fairness", fewshot=tmp_path / "few")
    table = pd.read_parquet(tmp_path / "s.parquet")
    assert list(table[table["condition"] == "few-shot"]["region"]) == ["shots=2", "shots=5"]
    health = {str(scan.health) for scan in people(index_file).values()}
    found = set(table[(table["metric"] == "mae") & table["region"].str.startswith("health=")]["region"])
    assert found == {f"health={name}" for name in health}


def test_the_card_holds_the_numbers_of_the_table_and_is_written_once(index_file: Path, tmp_path: Path) -> None:
    import re

    from neuroprior.core.conforming import ConformSpec
    from neuroprior.inference import model as models

    net = {"features": [4, 8], "latent": 4}
    models.save(
        tmp_path / "run/model", net=models.build_net("unet", net), net_name="unet", net_config=net, spec=ConformSpec(spacing_mm=4.0),
        contrasts=["T1w"], kind="pretrained", method={}, data={"licences": []},
    )  # fmt: skip
    artifacts.write_json(
        tmp_path / "run/ledger.json", {"device": "cpu", "device_hours": 0.5, "flops_total": 1e12, "energy_kwh": None}
    )
    card = tmp_path / "run/model/README.md"
    before = card.read_text()
    folder = predictions(tmp_path / "p", "classification", "sex", sexes(index_file, guesses), **SEX)
    done = evaluate(folder, index_file, out=tmp_path / "s.parquet", model=tmp_path / "run", assess="conformal,cost")
    assert done.card == card
    text = card.read_text()
    assert text.startswith(before.rstrip())
    table = pd.read_parquet(tmp_path / "s.parquet")
    auroc = table.query("metric == 'auroc' and region == 'all' and model == 'p'").iloc[0]
    assert f"| auroc | {auroc['value']:.3f} [{auroc['low']:.3f}, {auroc['high']:.3f}], n = 10 | 0.500" in text
    assert "| device hours ↓ | 0.500, n = 1 | on cpu" in text
    assert "Not assessed: " in text
    evaluate(folder, index_file, out=tmp_path / "s.parquet", model=tmp_path / "run", assess="conformal,cost")
    assert card.read_text() == text
    evaluate(folder, index_file, out=tmp_path / "s.parquet", model=tmp_path / "run", name="other set", assess="none")
    assert re.findall(r"^## Scores: (.*)$", card.read_text(), re.MULTILINE) == ["p", "other set"]
    evaluate(folder, index_file, out=tmp_path / "s.parquet", model=tmp_path / "run", name="third", card=False, assess="none")
    assert "third" not in card.read_text()
    assert models.load(tmp_path / "run").info["kind"] == "pretrained"  # the card is no part of the checked weights


def test_a_leave_one_site_out_run_is_a_domain_shift(index_file: Path, tmp_path: Path) -> None:
    from neuroprior.assessments.accuracy import Context, regress

    folder = tmp_path / "cv"
    folder.mkdir()
    known = people(index_file)
    context = Context("out of fold", "regression", "age", resamples=200)
    cases = sorted(known)
    subjects = [known[case].subject for case in cases]
    truth = [known[case].age for case in cases]
    rows = regress(context, cases, subjects, truth, [value + (9 if n < 5 else 1) for n, value in enumerate(truth)])
    write_scores(rows, folder / "scores.parquet", {"stage": "crossvalidate", "scheme": "loso"})
    lines = [f"{'north' if n < 5 else 'south'}\t{subject}\ttest" for n, subject in enumerate(subjects)]
    (folder / "folds.tsv").write_text("\n".join(["fold\tparticipant_id\tsplit", *lines]) + "\n")
    answered = [f"{case}\t{value + 5}\t{value - 5}\t{value + 15}" for case, value in zip(cases, truth, strict=True)]
    answered[0] = f"{cases[0]}\t{truth[0]}\tn/a\tn/a"
    (folder / "out_of_fold.tsv").write_text("\n".join(["case\tvalue\tvalue_low\tvalue_high", *answered]) + "\n")
    evaluate(folder, index_file, out=tmp_path / "s.parquet", name="cv")
    table = pd.read_parquet(tmp_path / "s.parquet").set_index(["metric", "region"])
    assert table.loc[("mae", "left_out=north"), "value"] == pytest.approx(9)
    assert table.loc[("mae_shift", "left_out"), "value"] == pytest.approx(8)
    assert table.loc[("coverage", "all"), "value"] == 1
    assert table.loc[("coverage", "all"), "n"] == 9
    assert "worst group north" in table.loc[("mae_shift", "left_out"), "note"]


def test_masks_of_another_tool_with_a_participants_table(tmp_path: Path) -> None:
    for k in range(12):
        save(tmp_path / f"truth/sub-{k:02}_mask.nii.gz", box())
        save(tmp_path / f"tool/sub-{k:02}_seg.nii.gz", box(2 if k % 2 else 0))
    (tmp_path / "participants.tsv").write_text(
        "participant_id\tsex\tage\tsite\n"
        + "".join(f"sub-{k:02}\t{'FM'[k % 2]}\t{30 + 3 * k}\t{'ab'[k // 6]}\n" for k in range(12))
    )
    evaluate(
        tmp_path / "tool", tmp_path / "truth", tmp_path / "s.parquet", participants=tmp_path / "participants.tsv", groups="site"
    )
    table = pd.read_parquet(tmp_path / "s.parquet").set_index(["metric", "region"])
    assert table.loc[("dice", "sex=F"), "value"] == 1
    assert table.loc[("dice_gap", "sex"), "value"] == pytest.approx(1 - 3 / 5)
    assert ("dice_shift", "site") in table.index
    assert ("dice_gap", "site") in table.index
    assert ("lesion_recall_pooled", "mask, medium") in table.index
    with pytest.raises(InputError, match="no participants table"):
        evaluate(
            tmp_path / "tool", tmp_path / "truth", tmp_path / "s.parquet", participants=tmp_path / "truth/sub-00_mask.nii.gz"
        )


# ------------------------------------------------------------------------------------------------------------ bad input


def test_probabilities_that_do_not_sum_to_one_and_nan_are_failures(index_file: Path, tmp_path: Path) -> None:
    rows = sexes(index_file, guesses)
    rows[0]["p_F"] = 0.9
    rows[1] |= {"probability": None, "p_F": None, "p_M": None}
    rows[2] |= {"probability": 1.7, "p_M": 1.7}
    folder = predictions(tmp_path / "p", "classification", "sex", rows, **SEX)
    done = evaluate(folder, index_file, out=tmp_path / "s.parquet", assess="calibration")
    assert done.failed == 3
    table = pd.read_parquet(tmp_path / "s.parquet")
    notes: Any = table[(table["metric"] == "correct") & (table["model"] == "p")].set_index("case")["note"]
    assert "the probabilities sum to" in notes[rows[0]["case"]]
    assert "not a number" in notes[rows[1]["case"]]
    assert "not in [0, 1]" in notes[rows[2]["case"]]
    accuracy: Any = table[(table["metric"] == "correct") & (table["model"] == "p")].set_index("case")["value"]
    assert accuracy[[one["case"] for one in rows[:3]]].sum() == 0
    said = table.query("metric == 'ece_class_wise'")["note"].iloc[0]
    assert said.startswith("3 cases without a probability")


def test_numbers_that_are_not_finite_are_failures(index_file: Path, tmp_path: Path) -> None:
    rows = [row(case, value=scan.age) for case, scan in sorted(people(index_file).items())]
    rows[0]["value"], rows[1]["value"] = float("nan"), "inf"
    folder = predictions(tmp_path / "p", "regression", "age", rows, floor={"mean": 50.0})
    done = evaluate(folder, index_file, out=tmp_path / "s.parquet")
    assert done.failed == 2
    table: Any = pd.read_parquet(tmp_path / "s.parquet").query("metric == 'absolute_error' and model == 'p'").set_index("case")
    for one in rows[:2]:
        age = people(index_file)[one["case"]].age
        assert table.loc[one["case"], "value"] == pytest.approx(2 * abs(50.0 - age))
        assert "not a number" in table.loc[one["case"], "note"]


def test_predictions_without_a_reference_and_the_reverse(index_file: Path, tmp_path: Path) -> None:
    known = people(index_file)
    test = sorted(case for case, scan in known.items() if scan.split == "test")
    rows = [row(test[0], value=known[test[0]].age), row("heads/sub-9999/ses-01", value=3.0)]
    folder = predictions(tmp_path / "p", "regression", "age", rows, floor={"mean": 50.0}, command={"split": "test"})
    done = evaluate(folder, index_file, out=tmp_path / "s.parquet")
    table: Any = pd.read_parquet(tmp_path / "s.parquet").query("metric == 'not_scored'").set_index("case")["note"]
    assert table["heads/sub-9999/ses-01"] == "no reference: the index has no such case"
    assert table[test[1]] == "no prediction for this case of the split test"
    assert (done.unscored, done.unusable, done.exit_code) == (2, 0, 0)
    assert "2 cases NOT SCORED" in str(done)


def test_damaged_masks_labels_outside_the_map_and_spacing_zero(tmp_path: Path) -> None:
    for k in range(5):
        save(tmp_path / f"truth/sub-{k:02}_mask.nii.gz", box())
    save(tmp_path / "tool/sub-00_seg.nii.gz", box())
    holes = box().astype(np.float32)
    holes[0, 0, 0] = np.nan
    save(tmp_path / "tool/sub-01_seg.nii.gz", holes)
    strange = box()
    strange[0, 0, :3] = 9
    save(tmp_path / "tool/sub-02_seg.nii.gz", strange)
    for folder, name in (("tool", "sub-03_seg"), ("truth", "sub-04_mask")):
        image = nib.Nifti1Image(box(), np.diag([1.0, 1, 1, 1]))
        save(tmp_path / f"{folder}/{name}.nii.gz", box())
        raw = bytearray(nib.Nifti1Image(box(), image.affine).to_bytes())
        raw[76 + 4 : 76 + 8] = np.float32(0).tobytes()  # pixdim[1]
        import gzip

        (tmp_path / f"{folder}/{name}.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    save(tmp_path / "tool/sub-04_seg.nii.gz", box())
    done = evaluate(tmp_path / "tool", tmp_path / "truth", tmp_path / "s.parquet", assess="none")
    table = pd.read_parquet(tmp_path / "s.parquet")
    notes: Any = table[(table["metric"] == "dice") & (table["case"] != "all")].set_index("subject")["note"]
    assert notes["sub-00"] == ""
    assert notes["sub-01"].startswith("failed: the label map holds values that are no whole numbers")
    assert notes["sub-03"].startswith("failed: the voxel spacing is impossible")
    outside: Any = table[(table["metric"] == "voxels_outside_map") & (table["case"] != "all")].iloc[0]
    assert (outside["value"], outside["subject"]) == (3, "sub-02")
    assert "9 (3 voxels)" in outside["note"]
    lost: Any = table[table["metric"] == "not_scored"].iloc[0]
    assert lost["case"] == "sub-04_mask.nii.gz"
    assert lost["note"].startswith("the reference cannot be read: the voxel spacing is impossible")
    assert (done.failed, done.unscored, done.exit_code) == (2, 1, 3)


def test_one_class_only_and_a_group_of_two(index_file: Path, tmp_path: Path) -> None:
    known = people(index_file)
    women = [case for case, scan in sorted(known.items()) if scan.sex == "F"]
    rows = [one for one in sexes(index_file, guesses) if one["case"] in women]
    folder = predictions(tmp_path / "p", "classification", "sex", rows, **SEX)
    evaluate(folder, index_file, out=tmp_path / "s.parquet", assess="none")
    table = pd.read_parquet(tmp_path / "s.parquet").query("model == 'p'").set_index(["metric", "region"])
    assert pd.isna(table.loc[("auroc", "all"), "value"])
    assert "not defined: one class only" in table.loc[("auroc", "all"), "note"]
    two = [case for case, scan in sorted(known.items()) if scan.sex == "M"][:2]
    rows = [row(case, value=known[case].age + 1) for case in (*women, *two)]
    folder = predictions(tmp_path / "q", "regression", "age", rows, floor={"mean": 50.0})
    evaluate(folder, index_file, out=tmp_path / "t.parquet")
    found: Any = pd.read_parquet(tmp_path / "t.parquet").set_index(["metric", "region"]).loc[("mae", "sex=M")]
    assert found["n"] == 2
    assert pd.isna(found["low"])
    assert "2 subjects" in found["note"]


def test_a_model_that_knows_its_sites_says_what_is_new(store_path: Path) -> None:
    from neuroprior.data.store import Store

    summary = Store.open(store_path).data_summary()
    assert {"sites", "scanners", "datasets"} <= set(summary)
    text = json.dumps(summary)
    assert not any(session.subject in text for session in Store.open(store_path).sessions)
