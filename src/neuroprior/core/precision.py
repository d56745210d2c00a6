"""Where numbers of fewer bits than float32 are worth taking."""

from __future__ import annotations

import functools
import logging

import torch

logger = logging.getLogger(__name__)


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


def has_quick_int8(device: torch.device | str) -> bool:
    """Whether a device convolves 8-bit integers several times faster than float32: a CPU with VNNI (AVX-512 or AVX), found right by trying.

    Others do it in more steps, in which sums can overflow.

    Args:
        device: of the machine that this runs on.
    """
    return torch.device(device).type == "cpu" and _int8_works()


@functools.cache
def _int8_works() -> bool:
    """Whether this CPU has the instructions, and torch's convolutions of integers give exact sums; says once where they do not."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    if not (capabilities.get("avx512_vnni") or capabilities.get("avx_vnni")):
        return False
    how = [1, 1, 1], [1, 1, 1], [1, 1, 1]
    maps = (torch.arange(16 * 8**3) % 256).view(1, 8, 8, 8, 16).permute(0, 4, 1, 2, 3)
    weight = (torch.arange(16 * 16 * 27) * 7 % 255 - 127).view(16, 16, 3, 3, 3)
    exact = torch.nn.functional.conv3d(maps.double() - 3, weight.double(), padding=1)
    one, none = torch.ones(16), torch.zeros(16, dtype=torch.int64)
    try:
        packed = torch.ops.onednn.qconv_prepack(weight.to(torch.int8), one, 1.0, 1, *how, 1, list(maps.shape))
        found = torch.ops.onednn.qconv_pointwise(
            maps.to(torch.uint8), 1.0, 3, packed, one, none, None, *how, 1, 1.0, 0, torch.float32, "none", [], ""
        )
        wrong = float((found.double() - exact).abs().max() / exact.abs().max())
    except (AttributeError, RuntimeError) as error:  # another torch
        reason = str(error).splitlines()[0]
    else:
        reason = f"wrong by {wrong:.1e}" if not wrong < 1e-6 else ""
    if reason:
        logger.warning("this torch does not convolve 8-bit integers, going on without: %s", reason)
    return not reason
