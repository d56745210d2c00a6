"""Where bfloat16 is worth taking."""

from __future__ import annotations

import torch


def has_quick_bfloat16(device: torch.device | str) -> bool:
    """Whether a device multiplies matrices in bfloat16 several times faster than in float32: a GPU that has it, a CPU with AMX.

    Others emulate bfloat16 or do it vector by vector, and are slower or hardly faster for it.

    Args:
        device: of the machine that this runs on; the current one, if it is a GPU.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.device(device).type != "cpu":
        return False
    capabilities = getattr(torch.cpu, "get_capabilities", dict)  # younger than the oldest torch that we take
    return bool(capabilities().get("amx_bf16", False))
