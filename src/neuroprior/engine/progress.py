"""Progress of a run: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import logging
import sys
import time

logger = logging.getLogger(__name__)


class Progress:
    """Steps, speed, time left, loss, and the share of time spent waiting for data.

    Args:
        steps: of the whole run.
        start: already done before this process began.
        enabled: False shows nothing (the other processes of a run).
    """

    def __init__(self, steps: int, start: int, *, enabled: bool) -> None:
        self.steps, self.start, self.enabled = steps, start, enabled
        self.began = self.said = time.perf_counter()
        self.bar = None
        if enabled and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(
                TextColumn("training"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"), console=Console(stderr=True),
            )  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task("training", total=steps, completed=start, text="")
        self.warnings: list[str] = []

    def update(self, step: int, loss: float, wait: float) -> None:
        """Say where the run is; ``wait`` is the share of time spent waiting for data, in [0, 1]."""
        if not self.enabled:
            return
        now = time.perf_counter()
        speed = (step - self.start) / max(now - self.began, 1e-9)
        left = (self.steps - step) / max(speed, 1e-9)
        alarms = f"  ALARM: {', '.join(self.warnings)}" if self.warnings else ""
        text = f"loss {loss:.4f}  {speed:.2f} steps/s  data wait {wait:.0%}{alarms}"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, text=text)
        elif now - self.said > 10 or step >= self.steps:
            self.said = now
            logger.info("step %d/%d  %s  %d:%02d left", step, self.steps, text, left // 60, left % 60)

    def warn(self, kind: str) -> None:
        """Show a kind of alarm for the rest of the run."""
        if kind not in self.warnings:
            self.warnings.append(kind)

    def close(self) -> None:
        """Leave the terminal tidy."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
