"""``torch.compile`` where it works, and the plain module where it does not, told once: a run is never lost to a compiler."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import NeuropriorError

logger = logging.getLogger(__name__)

OWN = (NeuropriorError, torch.OutOfMemoryError)
"""Errors that are not the compiler's: they are raised as they are."""


class Compiled:
    """A module compiled on its first call; from the first error of the compiled form on, the module as it is.

    An error that the plain module has too is raised by it. Randomness within the module may differ between the two forms.

    Args:
        module: called with a batch and keywords, returns a mapping with ``loss``.
        device: where it runs; compiling is tried there on a small convolution first.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module = module
        self._run: Any = None
        self._last: tuple[Any, dict[str, Any]] | None = None
        try:
            probe = torch.compile(nn.Conv3d(1, 1, 1).to(device))
            probe(torch.zeros(1, 1, 2, 2, 2, device=device)).sum().backward()
            self._run = torch.compile(module)
        except Exception as error:  # noqa: BLE001 (whatever the compiler raises, the run goes on without it)
            logger.warning("torch.compile does not work here, training without it: %s", _first_line(error))

    @property
    def active(self) -> bool:
        """Whether the compiled form is in use."""
        return self._run is not None

    def __call__(self, batch: Any, **how: Any) -> Any:
        """What the module returns."""
        if self._run is None:
            return self.module(batch, **how)
        self._last = batch, how
        try:
            return self._run(batch, **how)
        except OWN:
            raise
        except Exception as error:  # noqa: BLE001
            self._give_up(error)
            return self.module(batch, **how)

    def backward(self, loss: Tensor, share: float, first: bool) -> None:
        """Backward of the last call's loss; where its compiled form fails, forward and backward are done again without.

        Args:
            loss: that of the last call, times ``share``.
            share: of this micro-batch in the step.
            first: whether no gradient of the step was there before, so that one cut off half way can be thrown away; where there was
                one, the error is raised, and the same command goes on from the last state.
        """
        try:
            loss.backward()
        except OWN:
            raise
        except Exception as error:
            if self._run is None or self._last is None or not first:
                raise
            self._give_up(error)
            self.module.zero_grad(set_to_none=True)
            batch, how = self._last
            (self.module(batch, **how)["loss"] * share).backward()
        finally:
            self._last = None

    def _give_up(self, error: Exception) -> None:
        self._run = None
        logger.warning("the compiled form failed, training goes on without torch.compile: %s", _first_line(error))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
