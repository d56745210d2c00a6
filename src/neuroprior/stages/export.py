"""Export: a model in; a challenge container's folder, an ONNX folder or another framework's checkpoint out; and what was exported, checked."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..core.places import Place

if TYPE_CHECKING:
    from ..bridges._check import Finding

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportSummary:
    """What was written, or what was found.

    Attributes:
        out: the exported folder.
        findings: of a check; empty after an export.
        notes: what a user should know of the exported model.
        megabytes: of the folder and its packages, torch apart (an ONNX folder needs none).
        then: what to do next.
    """

    out: Path
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    megabytes: float | None = None
    then: str | None = None

    @property
    def failed(self) -> int:
        """How many checks failed."""
        return sum(row.status == "failed" for row in self.findings)

    @property
    def exit_code(self) -> int:
        """3 when a check failed, else 0."""
        return 3 if self.failed else 0

    def __str__(self) -> str:
        if not self.findings:
            size = "" if self.megabytes is None else f" ({self.megabytes:.0f} MB with its packages, without torch)"
            return "\n".join(
                [*(f"note: {note}" for note in self.notes), f"{self.out}{size}", *([f"next: {self.then}"] if self.then else [])]
            )
        width = [max(len(getattr(row, name)) for row in self.findings) for name in ("case", "check", "status")]
        lines = [
            f"{row.status:<{width[2]}}  {row.case:<{width[0]}}  {row.check:<{width[1]}}  {row.message}".rstrip()
            for row in self.findings
        ]
        end = (
            f"{self.failed} of {len(self.findings)} checks FAILED"
            if self.failed
            else f"all {len(self.findings)} checks passed or skipped"
        )
        return "\n".join([*lines, f"{end}: {self.out / 'check.json'}"])


def export(
    what: Literal["challenge", "onnx", "nnssl", "check"],
    source: Place,
    protocol: str | None = None,
    task: str | None = None,
    out: Path | None = None,
    partial: bool = False,
    preset: str = "fast",
    seconds: float | None = None,
    memory_gb: float | None = None,
    full_size: bool = True,
) -> ExportSummary:
    """Write a challenge container's folder from a model (challenge), a folder for ONNX Runtime that needs no torch (onnx) or a checkpoint for
    nnssl and SSL3D (nnssl); or check an exported folder: the contract of a container, the examples of an ONNX folder (check).

    Args:
        what: challenge, onnx, nnssl or check.
        source: the model or run folder, or its address (challenge, onnx, nnssl), or the exported folder (check).
        protocol: the challenge's rules; see neuroprior list protocols.
        task: the task's number or name.
        out: where the exported folder goes.
        partial: accept a model that does not know every contrast of the task.
        preset: how the container predicts: fast, balanced or accurate; challenges limit the seconds of a case.
        seconds: check: most seconds a case; by default the protocol's limit.
        memory_gb: check: most memory of a case in GB; by default it is only reported.
        full_size: check: also ask for a case of 1 mm.

    Returns:
        The folder and, for a check, one row for each thing that was looked at (also in check.json); a failed check makes the exit
        status 3.

    Raises:
        ConfigError: an option is missing, or the model does not fit the task.
        InputError: out holds something else, or the result is too large.
        ArtifactError: the model or the exported folder is damaged.
    """
    from ..core import artifacts
    from ..core.errors import ConfigError
    from ..inference.elsewhere import at_hand

    source = at_hand(source)
    if what == "check":
        if protocol or task or out or partial:
            raise ConfigError("export check takes only the exported folder, --seconds, --memory-gb and --full-size")
        from ..bridges._check import FAILED, OK, Finding, check
        from ..bridges._onnx_runner import is_export

        if is_export(source):
            from ..bridges import onnx

            rows, _ = onnx.check(source)
            words = ((row, f"{row['apart']:.2g}, allowed {row['allowed']:g}") for row in rows)
            return _told(source, [Finding(row["example"], row["what"], OK if row["ok"] else FAILED, word) for row, word in words])
        findings = check(
            source,
            seconds=seconds,
            memory_gb=memory_gb,
            full_size=full_size,
            tell=lambda text: logger.info("asking for a case: %s", text),
        )
        return _told(source, findings)

    if out is not None:
        artifacts.require_place(out, "export")
    if what in ("nnssl", "onnx") and (protocol or task or partial or out is None):
        raise ConfigError(f"export {what} takes the model and --out", expected=f"neuroprior export {what} MODEL --out DIR")
    if what == "onnx" and out is not None:
        from ..bridges import onnx

        made = onnx.write(source, out)
        notes = (f"checked without torch: its answers to the examples are off by at most {made.apart:.2g} of what is allowed",)
        return ExportSummary(out, notes=notes, megabytes=made.megabytes, then=f"python {out}/predict --help")
    if what == "nnssl" and out is not None:
        from ..bridges import nnssl

        return ExportSummary(out, notes=nnssl.write(source, out))

    from ..bridges import challenge
    from ..core import shelf
    from ..inference import presets
    from ..protocols import read

    missing = [f"--{name}" for name, value in (("protocol", protocol), ("task", task), ("out", out)) if value is None]
    if missing or protocol is None or task is None or out is None:
        raise ConfigError(
            f"export challenge needs {', '.join(missing)}",
            expected=f"--protocol {'|'.join(shelf.names('protocols'))} --task NUMBER --out DIR",
        )
    rules = read(protocol)
    presets.require(preset)
    container = challenge.write(source, rules, rules.task(task), out, partial=partial, preset=preset)
    return ExportSummary(
        out, notes=tuple(container["notes"]), megabytes=container["bytes"] / 1e6, then=f"neuroprior export check {out}"
    )


def _told(folder: Path, findings: list[Finding]) -> ExportSummary:
    """The summary of a check, also written into the folder."""
    from dataclasses import asdict

    from ..core import artifacts

    summary = ExportSummary(folder, tuple(findings))
    content = {"artifact": "check", "failed": summary.failed, "findings": [asdict(row) for row in findings]}
    artifacts.write_json(folder / "check.json", content)
    return summary
