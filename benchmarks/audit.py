"""What the audit finds and what it does not: shortcuts and copies planted in synthetic heads, honest families, real scans, speed.

Usage: python benchmarks/audit.py [--families 5] [--subjects 40] [--draws 40] [--copied 60] [--real ../shared/data] [--only shortcuts,honest,copies,real,speed]

Heads are made at 4 mm with one contrast in a temporary folder. Prints tables, then one JSON line.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from neuroprior.assessments import _nuisance as nuisance
from neuroprior.assessments import contamination, shortcuts
from neuroprior.core import nifti, seeds
from neuroprior.core.grids import canonical_grid, grid_of
from neuroprior.core.headmask import head_mask
from neuroprior.core.records import Scan
from neuroprior.core.resampling import resample
from neuroprior.core.volume import Volume
from neuroprior.data import fingerprint
from neuroprior.data.index import read_index
from neuroprior.stages.index import index
from neuroprior.stages.synthesise import synthesise

PROBE = {
    "order": "order", "name": "name", "header": "header", "spacing": "spacing", "fov": "fov", "background": "background", "skull": "skull",
    "site": "site",
}  # fmt: skip


def family(folder: Path, name: str, subjects: int, seed: int, kind: str | None = None) -> list[Scan]:
    root = folder / name
    synthesise(root, subjects=subjects, spacing=4.0, contrasts="T1w", shortcut=kind, workers=1, progress=False, seed=seed)
    index([root], folder / f"{name}.parquet", checks="header", workers=1)
    return read_index(folder / f"{name}.parquet")


def planted(folder: Path, subjects: int) -> list[dict[str, Any]]:
    rows = []
    for kind, probe in PROBE.items():
        scans = family(folder, f"planted-{kind}", subjects, 1, kind)
        target = "age" if kind == "order" else "health"
        found = shortcuts.audit(scans, [target], voxels=subjects)
        one = next(f for f in found if f.probe == probe)
        others = [f.probe for f in found if f.verdict == shortcuts.SHORTCUT and f.probe != probe]
        rows.append({"kind": kind, "target": target, "metric": one.metric, "value": one.value, "low": one.low, "high": one.high, "p": one.p,
                     "p_holm": one.p_holm, "verdict": one.verdict, "also": others})  # fmt: skip
        print(
            f"{kind:<11} {target:<7} {one.metric} {one.value:.2f} [{one.low:.2f}, {one.high:.2f}]  p {one.p:.1g}  Holm {one.p_holm:.2g}  {one.verdict}  also {', '.join(others)}"
        )
    return rows


def honest(folder: Path, families: int, subjects: int, draws: int) -> tuple[dict[str, Any], list[Scan]]:
    """Draws from which nothing is to be found: each family once with its own labels, then with ages and health dealt anew.

    Dealing anew is sound because in the family both are independent of everything that the probes see but of anatomy, and a
    subject's anatomy is independent of all else: the own labels are there to see whether anatomy gives a false alarm.
    """
    nuisance.facts = functools.cache(nuisance.facts)  # a scan's voxels are measured once for all draws
    every = []
    for k in range(families):
        scans = family(folder, f"honest-{k}", subjects, 1000 + k)
        every.append([replace(s, subject=f"{k}/{s.subject}", scan=f"{k}/{s.scan}") for s in scans])
    alarms: dict[str, list[str]] = {"shortcut": [], "check": [], "hint": []}
    counts = dict.fromkeys(alarms, 0)
    for number in range(draws):
        scans = every[number % families]
        if number >= families:
            names = sorted({s.subject for s in scans})
            values = {s.subject: (s.age, s.health) for s in scans}
            order = seeds.generator(7, "deal", number).permutation(len(names))
            dealt = {name: values[names[int(j)]] for name, j in zip(names, order, strict=True)}
            scans = [replace(s, age=dealt[s.subject][0], health=dealt[s.subject][1]) for s in scans]
        found = shortcuts.audit(scans, ["health", "age"], voxels=subjects, config=shortcuts.Config(seed=number))
        for verdict, told in alarms.items():
            these = [f"draw {number}: {f.target} from {f.probe}" for f in found if f.verdict == verdict]
            told += these
            counts[verdict] += bool(these)
    print(
        f"honest: of {draws} audits ({families} families of {subjects} subjects, 2 labels, {len(nuisance.FROM_INDEX) + len(nuisance.FROM_VOXELS)} probes): {counts} {alarms}",
        flush=True,
    )
    return {"draws": draws, "families": families, "audits": counts, "alarms": alarms}, [s for scans in every for s in scans]


def altered(volume: Volume, draw: np.random.Generator) -> dict[str, Volume]:
    """Copies of a scan as they are met: name -> volume."""
    import nibabel

    v, affine, spacing = volume.voxels, volume.affine, np.array(volume.spacing_mm)
    inside = head_mask(v, volume.spacing_mm)
    level = float(v[inside].mean())
    axes = "".join(draw.permutation([draw.choice(list(pair)) for pair in ("RL", "AP", "SI")]))
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(affine), nibabel.orientations.axcodes2ornt(axes)
    )
    turned = np.ascontiguousarray(nibabel.orientations.apply_orientation(v, turn))
    cut = max(1, round(8 / float(spacing.min())))
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ np.full(3, cut)
    coarse = canonical_grid(grid_of(volume), float(spacing.min() * 1.3))
    field = ndimage.zoom(draw.normal(0, 1, (3, 3, 3)), [n / 3 for n in v.shape], order=3)
    noise = draw.normal(0, 0.05 * level, (2, *v.shape))
    return {
        "re-oriented": Volume(turned, affine @ nibabel.orientations.inv_ornt_aff(turn, v.shape)),
        "flipped, header kept": Volume(np.ascontiguousarray(v[::-1]), affine),
        "rescaled": Volume(v * np.float32(draw.uniform(0.01, 5)) + np.float32(draw.uniform(0, 50)), affine),
        "8 bit": Volume(np.rint(np.clip(v / np.percentile(v, 99.9), 0, 1) * 255).astype(np.float32), affine),
        "gamma 0.8": Volume((np.clip(v, 0, None) / v.max()) ** np.float32(0.8), affine),
        "noise 5 %": Volume(np.hypot(v + noise[0], noise[1]).astype(np.float32), affine),
        "cropped 8 mm": Volume(v[cut:-cut, cut:-cut, cut:-cut].copy(), moved),
        "shifted 2 mm": Volume(ndimage.shift(v, draw.uniform(-2, 2, 3) / spacing, order=1), affine),
        "resampled x 1.3": Volume(resample(volume, coarse), coarse.affine),
        "bias field 20 %": Volume((v * np.exp(0.2 * field / np.abs(field).max())).astype(np.float32), affine),
        "noise, rescaled, re-oriented": Volume(np.ascontiguousarray(nibabel.orientations.apply_orientation((np.hypot(v + noise[0], noise[1]) * 0.3).astype(np.float32), turn)), affine @ nibabel.orientations.inv_ornt_aff(turn, v.shape)),
    }  # fmt: skip


def copies(folder: Path, scans: list[Scan], most: int) -> dict[str, Any]:
    """Planted copies found, and distinct subjects called copies."""
    import nibabel

    start = time.perf_counter()
    prints = {s.path: fingerprint.of_file(s.path) for s in scans}
    seconds = (time.perf_counter() - start) / len(scans)
    pairs = contamination.compare({"all": scans}, [("all", "all")], fingerprints=prints)
    involved = {pair.left for pair in pairs} | {pair.right for pair in pairs}
    vectors = np.stack([prints[s.path].vector for s in scans])  # type: ignore[misc]  # every synthetic head is found
    highest = max((value for i, j, value in fingerprint.similar(vectors, vectors, threshold=0.3) if i != j), default=0.3)
    print(
        f"distinct: {len(involved)} of {len(scans)} scans in {len(pairs)} of {len(scans) * (len(scans) - 1) // 2} pairs called copies; highest correlation {highest:.2f}; {seconds:.3f} s a scan"
    )
    hits: dict[str, list[tuple[str, float]]] = {}
    for number, scan in enumerate(scans[:most]):
        volume, _ = nifti.read_scan(scan.path)
        made = {name: fingerprint.of_volume(one) for name, one in altered(volume, seeds.generator(3, "alter", number)).items()}
        path = folder / "copy.nii"
        image = nibabel.Nifti1Image(volume.voxels.astype(np.float64), volume.affine)
        image.header["descrip"] = b"somebody else's"
        nibabel.save(image, path)
        made["re-saved (type, header, compression)"] = fingerprint.of_file(str(path))
        for name, found in made.items():
            copy = replace(scan, scan="copy", subject="other/sub-x", path="copy")
            told = contamination.compare({"a": [scan], "b": [copy]}, fingerprints={scan.path: prints[scan.path], "copy": found})
            kind = next((p.kind for p in told if p.kind in contamination.SURE), "missed")
            value = float(prints[scan.path].vector @ found.vector) if found.vector is not None else float("nan")  # type: ignore[operator]
            hits.setdefault(name, []).append((kind, value))
    result = {}
    for name, told in hits.items():
        rate = float(np.mean([kind != "missed" for kind, _ in told]))
        kinds = sorted({kind for kind, _ in told})
        values = [value for _, value in told]
        result[name] = {
            "found": rate,
            "n": len(told),
            "kinds": kinds,
            "lowest": min(values),
            "q05": float(np.quantile(values, 0.05)),
        }
        print(
            f"{name:<38} {rate:6.1%} of {len(told)}  {', '.join(kinds):<34} correlation: lowest {min(values):.2f}, 5 % {np.quantile(values, 0.05):.2f}"
        )
    return {
        "distinct_scans": len(scans),
        "false_scans": len(involved),
        "false_pairs": len(pairs),
        "highest": highest,
        "seconds_a_scan": seconds,
        "copies": result,
    }


def real(folder: Path) -> dict[str, Any]:
    files = sorted(folder.glob("ixi-2mm/sub-*/**/*_T1w.nii.gz")) + sorted(folder.glob("openms-*/sub-*/**/anat/*.nii.gz"))
    files += sorted(folder.glob("ds002748/sub-*/**/*.nii.gz")) + sorted(folder.glob("stroke-cstar/sub-*/**/*.nii.gz"))
    who = np.array([file.name.split("_")[0] for file in files])
    start = time.perf_counter()
    vectors = np.stack([fingerprint.of_file(str(file)).vector for file in files])  # type: ignore[misc]
    seconds = (time.perf_counter() - start) / len(files)
    product = vectors @ vectors.T
    distinct = product[who[:, None] != who[None]]
    told = int((distinct >= fingerprint.SAME).sum() // 2)
    print(
        f"real: {len(files)} scans of {len(set(who))} subjects: {told} pairs of distinct subjects called copies, highest correlation {distinct.max():.2f}; {seconds:.2f} s a scan"
    )
    rows: dict[str, list[float]] = {}
    for number, file in enumerate(files[:30]):
        volume, _ = nifti.read_scan(file, nonfinite="zero")
        for name, one in altered(volume, seeds.generator(3, "alter", number)).items():
            made = fingerprint.vector(one)
            rows.setdefault(name, []).append(float(made @ vectors[number]) if made is not None else 0.0)
    rates = {name: float(np.mean(np.array(values) >= fingerprint.SAME)) for name, values in rows.items()}
    for name, values in rows.items():
        print(f"  {name:<38} {rates[name]:6.1%} by the vector alone, lowest {min(values):.2f}")
    return {"scans": len(files), "false_pairs": told, "highest": float(distinct.max()), "seconds_a_scan": seconds, "rates": rates}


def speed() -> dict[str, float]:
    draw = np.random.default_rng(0)
    a = draw.standard_normal((100_000, 1485), dtype=np.float32)
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    b = a[:1000].copy()
    start, cpu = time.perf_counter(), time.process_time()
    found = sum(1 for _ in fingerprint.similar(a, b))
    product, product_cpu = time.perf_counter() - start, time.process_time() - cpu
    affine = (-2.0, 0.0, 0.0, 90.0, 0.0, 2.0, 0.0, -120.0, 0.0, 0.0, 2.0, -70.0, 0.0, 0.0, 0.0, 1.0)
    ages = draw.uniform(20, 80, 50_000)
    scans = [
        Scan(f"d/s{k:06d}-{c}", "d", f"d/sub-{k:06d}", "", c, c, f"/data/d/sub-{k:06d}/anat/sub-{k:06d}_{c}.nii.gz", age=float(ages[k]), site=f"site{k % 7}",
             shape=(91, 109, 91), spacing_mm=(2.0, 2.0, 2.0), affine=affine, orientation="LAS", dtype="int16", size_bytes=10**6 + k % 999, mtime_ns=10**18 + k)
        for k in range(50_000) for c in ("T1w", "FLAIR")
    ]  # fmt: skip
    start, cpu = time.perf_counter(), time.process_time()
    told = shortcuts.audit(scans, ["age"])
    header, header_cpu = time.perf_counter() - start, time.process_time() - cpu
    print(
        f"100,000 x 1,000 fingerprints: {product:.1f} s, {product_cpu:.1f} s of CPU ({found} pairs); header probes of 100,000 rows: "
        f"{header:.1f} s, {header_cpu:.1f} s of CPU ({[f.probe for f in told if f.verdict == 'shortcut'] or 'silent'})"
    )
    return {"product_s": product, "product_cpu_s": product_cpu, "header_s": header, "header_cpu_s": header_cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", type=int, default=5)
    parser.add_argument("--subjects", type=int, default=40)
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--copied", type=int, default=60)
    parser.add_argument("--real", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", default="shortcuts,honest,copies,real,speed")
    given = parser.parse_args()
    logging.getLogger("neuroprior").setLevel(logging.ERROR)
    wanted = given.only.split(",")
    result: dict[str, Any] = {"benchmark": "audit", "subjects": given.subjects}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        clock = time.perf_counter()
        if "shortcuts" in wanted:
            result["planted"] = planted(folder, given.subjects)
        every: list[Scan] = []
        if "honest" in wanted:
            result["honest"], every = honest(folder, given.families, given.subjects, given.draws)
        if "copies" in wanted:
            result["copies"] = copies(folder, every or family(folder, "copies", given.copied, 5), given.copied)
        if "real" in wanted and given.real.is_dir():
            result["real"] = real(given.real)
        if "speed" in wanted:
            result["speed"] = speed()
        result["minutes"] = (time.perf_counter() - clock) / 60
    print(json.dumps(result, default=float))


if __name__ == "__main__":
    main()
