"""A family on disk: one BIDS dataset with the truth as a derivative, written subject by subject.

A subject's files depend on the options and the subject's number only, to the byte (gzip without a time, no dates). Its
record, written last, says that it is complete; a dataset that was cut off is continued. Tables are made at the end from
the records.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from ...core.artifacts import atomic, read_json, write_json, write_text
from ...core.errors import ArtifactError
from .anatomy import LESION_LABELS
from .options import Options
from .person import person
from .scanners import SCANNERS, Acquired, Scanner
from .subject import Sitting, sittings
from .template import REGIONS

VERSION = 1
TRUTH = Path("derivatives/truth")
RECORDS = Path("sourcedata/synthesis")
RECORD = RECORDS / "synthetic.json"
"""What says that a folder is such a dataset, and with which options it was made."""

VOLUMES = RECORDS / "volumes.tsv"
"""The true volumes, a row a session."""

FOLDER = {"DWI": "dwi", "ADC": "dwi"}
SUFFIX = {"T1ce": "ce-gadolinium_T1w", "DWI": "trace", "SWI": "swi"}
LEVEL = 1
"""Compression level: noise does not compress, so more effort buys little."""


def scan_file(subject: str, session: str, contrast: str) -> Path:
    """Where a scan lies, relative to the dataset's root."""
    name = f"{subject}_{session}_{SUFFIX.get(contrast, contrast)}.nii.gz"
    return Path(subject, session, FOLDER.get(contrast, "anat"), name)


def truth_file(subject: str, session: str, reference: str, what: str) -> Path:
    """Where a label map lies; ``what`` is ``dseg``, ``label-lesion_mask`` ..."""
    return TRUTH / subject / session / "anat" / f"{subject}_{session}_space-{reference}_{what}.nii.gz"


def begin(out: Path, options: Options) -> None:
    """Start the dataset in ``out`` or go on with it.

    Raises:
        ArtifactError: the folder holds something else, or a family with other options.
    """
    ours = {"artifact": "synthetic", "version": VERSION, "options": json.loads(options.model_dump_json())}
    if (out / RECORD).exists():
        if read_json(out / RECORD) != ours:
            raise ArtifactError(
                "the folder holds a family with other settings", file=out, next_step="choose another --out, or remove that folder"
            )
        return
    if out.exists() and any(out.iterdir()):
        raise ArtifactError("the folder is not empty", file=out, expected="a new folder", next_step="choose another --out")
    write_json(out / RECORD, ours)


def record_file(out: Path, subject: str) -> Path:
    """The file that is written last for a subject."""
    return out / RECORDS / f"{subject}.json"


def is_written(out: Path, subject: str) -> bool:
    """Whether a subject is complete: its record is there and every file it lists has its size."""
    path = record_file(out, subject)
    if not path.is_file():
        return False
    files = read_json(path)["files"]
    return all((out / name).is_file() and (out / name).stat().st_size == size for name, size in files.items())


def write_subject(out: Path, options: Options, number: int) -> str:
    """Write one subject's scans and truth; a complete one is left alone. Returns its name."""
    from threadpoolctl import threadpool_limits

    who = person(options, number)
    if is_written(out, who.name):
        return who.name
    files: dict[str, int] = {}
    sessions: list[dict[str, Any]] = []
    with threadpool_limits(1):  # the same sums in the same order, whatever the machine's load and number of workers
        for sitting in sittings(options, who):
            _write_sitting(out, who.name, sitting, files)
            sessions.append(
                {
                    "session_id": sitting.session,
                    "age": sitting.age,
                    "site": sitting.scanner.site,
                    "scanner": sitting.scanner.name,
                    "reference": sitting.reference,
                    "volumes_ml": sitting.volumes_ml,
                }
            )
    table = [["session_id", "age", "site", "scanner"]]
    table += [[str(item[key]) for key in table[0]] for item in sessions]
    _tsv(out / who.name / f"{who.name}_sessions.tsv", table)
    write_json(
        record_file(out, who.name),
        {"participant_id": who.name, "age": who.age, "sex": who.sex, "health": who.health, "sessions": sessions, "files": files},
    )
    return who.name


def _write_sitting(out: Path, subject: str, sitting: Sitting, files: dict[str, int]) -> None:
    for contrast, scan in sitting.scans.items():
        path = scan_file(subject, sitting.session, contrast)
        files[str(path)] = _write_nifti(out / path, scan)
        write_json(out / str(path).replace(".nii.gz", ".json"), _sidecar(sitting.scanner, contrast))
    lesion = Acquired((sitting.lesion.voxels > 0).astype(np.uint8), sitting.lesion.affine)
    for what, labels in (
        ("dseg", sitting.labels),
        ("label-lesion_mask", lesion),
        ("desc-lesions_dseg", sitting.lesion),
        ("desc-brain_mask", sitting.brain_mask),
    ):
        path = truth_file(subject, sitting.session, sitting.reference, what)
        files[str(path)] = _write_nifti(out / path, labels)
        source = scan_file(subject, sitting.session, sitting.reference)
        facts: dict[str, Any] = {"SpatialReference": f"bids::{source.as_posix()}", "Sources": [f"bids::{source.as_posix()}"]}
        if what.endswith("mask"):
            facts["Type"] = "Brain" if "brain" in what else "Lesion"
        write_json(out / str(path).replace(".nii.gz", ".json"), facts)


def _sidecar(scanner: Scanner, contrast: str) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "Modality": "MR",
        "Manufacturer": scanner.manufacturer.split()[0],
        "ManufacturersModelName": scanner.name,
        "MagneticFieldStrength": scanner.tesla,
        "InstitutionName": scanner.site,
    }
    if contrast == "T1ce":
        facts["ContrastBolusIngredient"] = "GADOLINIUM"
    if contrast == "ADC":
        facts["Units"] = "um^2/s"
    return facts


def _write_nifti(path: Path, scan: Acquired) -> int:
    """Write a scan with both transforms set to scanner coordinates, in mm; returns the size in bytes."""
    import nibabel

    image = nibabel.Nifti1Image(scan.voxels, scan.affine)
    image.set_sform(scan.affine, code=1)
    image.set_qform(scan.affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    data = gzip.compress(image.to_bytes(), compresslevel=LEVEL, mtime=0)
    with atomic(path) as temporary:
        temporary.write_bytes(data)
    return len(data)


def _tsv(path: Path, rows: list[list[str]]) -> None:
    write_text(path, "".join("\t".join(row) + "\n" for row in rows))


def finish(out: Path, options: Options) -> list[str]:
    """Write the tables and descriptions over every complete subject in ``out``; returns the subjects' names."""
    records = [read_json(path) for path in sorted((out / RECORDS).glob("sub-*.json"))]
    records = [record for record in records if is_written(out, record["participant_id"])]
    single = options.sessions == 1 and not options.travelling
    header = ["participant_id", "age", "sex", "health"] + (["site", "scanner"] if single else [])
    rows = [header]
    for record in records:
        first = record["sessions"][0] if single else {}
        rows.append([str({**record, **first}[key]) for key in header])
    _tsv(out / "participants.tsv", rows)
    write_json(out / "participants.json", {key: _COLUMNS[key] for key in header[1:]})
    write_json(out / "sessions.json", {key: _COLUMNS[key] for key in ("age", "site", "scanner")})
    write_json(out / "dataset_description.json", _description(options))
    write_text(out / "README.md", _readme(options))
    if "SWI" in options.contrasts:
        # BIDS has no suffix for susceptibility-weighted images yet
        write_text(out / ".bidsignore", "*_swi.*\n")
    write_json(out / TRUTH / "dataset_description.json", _truth_description())
    _write_tables(out, records)
    return [record["participant_id"] for record in records]


def _write_tables(out: Path, records: list[dict[str, Any]]) -> None:
    names = list(records[0]["sessions"][0]["volumes_ml"]) if records else []
    rows = [["participant_id", "session_id", "age", "sex", "health", *names]]
    for record in records:
        for session in record["sessions"]:
            facts = {**record, **session}
            values = [f"{session['volumes_ml'][name]:.4f}" for name in names]
            rows.append([*(str(facts[key]) for key in rows[0][:5]), *values])
    _tsv(out / VOLUMES, rows)
    about = {name: {"Description": f"True volume of {name.replace('-', ' ')}", "Units": "mL"} for name in names}
    write_json(out / VOLUMES.with_suffix(".json"), about)
    regions = [["index", "name", "tissue"]] + [[str(k), name, tissue] for k, (name, tissue) in REGIONS.items()]
    _tsv(out / TRUTH / "dseg.tsv", regions)
    _tsv(out / TRUTH / "desc-lesions_dseg.tsv", [["index", "name"]] + [[str(k), name] for k, name in LESION_LABELS.items()])


_COLUMNS: dict[str, dict[str, Any]] = {
    "age": {"Description": "Age at the scan (in participants.tsv: at the first)", "Units": "year"},
    "sex": {"Description": "Sex of the synthetic person", "Levels": {"F": "female", "M": "male"}},
    "health": {
        "Description": "What is wrong with the brain",
        "Levels": {
            "healthy": "nothing",
            "wmh": "white-matter hyperintensities",
            "infarct": "an acute infarct",
            "tumour": "an enhancing tumour with oedema and mass effect",
        },
    },
    "site": {"Description": "Where the scanner stands", "Levels": {scanner.site: scanner.site for scanner in SCANNERS}},
    "scanner": {"Description": "The scanner", "Levels": {scanner.name: f"{scanner.tesla:g} T" for scanner in SCANNERS}},
}


def _description(options: Options) -> dict[str, Any]:
    return {
        "Name": f"Synthetic heads, seed {options.seed}",
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "License": "CC0",
        "Authors": ["Neuroprior", "Nobody was scanned"],
        "GeneratedBy": [{"Name": "neuroprior synthesise"}],
    }


def _truth_description() -> dict[str, Any]:
    return {
        "Name": "The truth of the synthetic heads: regions, lesions, brain masks, volumes",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "License": "CC0",
        "GeneratedBy": [{"Name": "neuroprior synthesise"}],
    }


def _readme(options: Options) -> str:
    confound = (
        ""
        if options.shortcut is None
        else f"\n**This set has a confound built in on purpose: `{options.shortcut}`.** "
        "Use it to find out whether a model takes shortcuts.\n"
    )
    return f"""# Synthetic heads

Nobody was scanned: these heads are made by `neuroprior synthesise` from the ICBM 152 2009a average, deformed, aged, folded
and made ill by chance, then seen by imaginary scanners ({", ".join(scanner.name for scanner in SCANNERS)}).
{confound}
- Contrasts: {", ".join(options.contrasts)}; spacing {options.spacing_mm:g} mm; seed {options.seed}.
- Every scan has a field of view of its own, as its header says, and within a session the head has moved by about a
  millimetre, as no header says.
- `derivatives/truth` holds the exact regions (`dseg`), lesion masks, lesion parts and brain masks on the grid of each
  session's reference scan (the `space` entity). Regions under a lesion keep the name of the tissue that was there.
- `sourcedata/synthesis/volumes.tsv` holds the true volumes of the whole head in millilitres, a row a session.
- The imaginary diffusion-weighted trace image is `dwi/*_trace.nii.gz`; the ADC is in um^2/s.

Age, sex and health are independent of one another, of the scanner, of the subject's number and of anything in a header,
unless a confound is named above. Ages are in years at the scan.
"""
