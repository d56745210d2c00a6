"""A GPU that is none, to find on a CPU what would go wrong on one.

A tensor "on the GPU" is a wrapper around one on the CPU (:class:`OnGpu`); every operation is done on the CPU, after it was checked as a GPU
would: tensors of both devices in one operation, a generator of the wrong one and ``.numpy()`` are errors. What would make the CPU wait for
the GPU (reading a number, a shape that depends on values, a copy that waits) is noted with its place in :data:`waits`. Triton's kernels are interpreted. Results
are those of the CPU, so a run can be compared with one there. What it cannot tell: speed, memory, rounding, and kernels of CUDA itself.

The whole process pretends from :func:`install` on, which must come before torch is imported.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import subprocess
import sysconfig
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

waits: collections.Counter[str] = collections.Counter()
"""``what: file:line`` -> how often the CPU would have waited for the GPU, while :data:`counting`."""

counting = [False]
"""Whether waits are noted."""

GIB = 2**30


def build(folder: Path) -> Path:
    """Compiles the library that :func:`install` loads; takes seconds.

    Raises:
        OSError, subprocess.CalledProcessError: there is no C++ compiler, or not torch's headers.
    """
    torch = Path(sysconfig.get_paths()["purelib"]) / "torch"
    library = folder / "standin.so"
    include = [f"-I{torch / 'include'}", f"-I{torch / 'include/torch/csrc/api/include'}"]
    link = [f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch / 'lib'}"]
    source = Path(__file__).with_name("guard.cpp")
    subprocess.run(["g++", "-std=c++20", "-O0", "-shared", "-fPIC", str(source), *include, "-o", str(library), *link], check=True)
    return library


def wait(what: str) -> None:
    """Notes that the CPU would wait here."""
    if counting[0]:
        frames = [frame for frame in traceback.extract_stack() if "neuroprior" in frame.filename]
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "elsewhere"
        waits[f"{what}: {place}"] += 1


def install(library: Path) -> None:
    """From now on this process has a GPU."""
    os.environ["TRITON_INTERPRET"] = "1"
    ctypes.CDLL(str(library))
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, return_and_correct_aliasing
    from torch.utils._pytree import tree_leaves, tree_map

    aten = torch.ops.aten
    device = torch.device("cuda", 0)
    generator = torch._C.Generator
    across = {aten._to_copy.default, aten.copy_.default}
    indexing = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
    reading = {
        "_local_scalar_dense",
        "nonzero",
        "masked_select",
        "equal",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "bincount",
    }
    scalars = {"fill_", "masked_fill_", "masked_fill", "where", "lerp_"}

    class OnGpu(torch.Tensor):
        """A tensor that says it is on the GPU; ``twin`` is the one on the CPU."""

        @staticmethod
        def __new__(cls, twin: Any) -> OnGpu:
            return torch.Tensor._make_wrapper_subclass(
                cls, twin.size(), strides=twin.stride(), storage_offset=twin.storage_offset(), dtype=twin.dtype, device=device
            )

        def __init__(self, twin: Any) -> None:
            self.twin = twin.detach()

        def numpy(self, *_: Any, **__: Any) -> Any:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

        __array__ = numpy

        def tolist(self) -> Any:
            wait("tolist")
            return self.detach().twin.tolist()

        def __reduce_ex__(self, protocol: Any) -> Any:
            return self.twin.__reduce_ex__(protocol)  # files hold what was on the CPU

        def __repr__(self, **_: Any) -> str:
            return f"OnGpu({self.twin!r})"

        __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

        @classmethod
        def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return run(func, args, kwargs or {})

    def check(func: Any, args: Any, tensors: list[Any], here: bool, generators: list[Any]) -> None:
        """As a GPU would."""
        strangers = [t for t in tensors if not isinstance(t, OnGpu)]
        if strangers and len(strangers) != len(tensors) and func not in across:
            for t in strangers:
                single = t.dim() == 0 and (torch.Tag.pointwise in func.tags or func.overloadpacket.__name__ in scalars)
                if func in indexing and isinstance(args[0], OnGpu):
                    wait("index by a tensor of the CPU")
                elif not single:
                    raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu ({func})")
        for draws in generators:
            if (draws.device.type == "cuda") is not here:
                raise RuntimeError(f"Expected a {'cuda' if here else 'cpu'} generator but found {draws.device.type} ({func})")

    def note(func: Any, args: Any, kwargs: Any, to: str | None) -> None:
        """What would be waited for."""
        given = isinstance(args[0], OnGpu) if args else False
        if given and func.overloadpacket.__name__ in reading:
            wait(func.overloadpacket.__name__)
        if (
            given
            and func in indexing
            and any(isinstance(t, torch.Tensor) and t.dtype == torch.bool for t in tree_leaves(args[1]))
        ):
            wait("index by a mask")
        if func is aten._to_copy.default and to is not None and given is not (to == "cuda") and not kwargs.get("non_blocking"):
            wait(f"copy to the {'GPU' if to == 'cuda' else 'CPU'}")
        if func is aten.copy_.default and given is not isinstance(args[1], OnGpu) and not (args[2:] and args[2]):
            wait("copy")

    def run(func: Any, args: Any, kwargs: Any) -> Any:
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        to = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        ours = any(isinstance(t, OnGpu) for t in tensors)
        onto = ours if to is None else to == "cuda"
        generators = [value for value in (*args, *kwargs.values()) if isinstance(value, generator)]
        check(func, args, tensors, onto, generators)
        note(func, args, kwargs, to)
        lent = {id(draws): generator("cpu").set_state(draws.get_state()) for draws in generators if draws.device.type == "cuda"}

        def twin(value: Any) -> Any:
            return value.twin if isinstance(value, OnGpu) else lent.get(id(value), value)

        plain_args, plain = tree_map(twin, (args, kwargs))
        plain |= {"device": torch.device("cpu")} if to is not None else {}
        plain |= {"pin_memory": False} if plain.get("pin_memory") else {}
        with _disable_current_modes():
            found = func(*plain_args, **plain)
            if func is aten._to_copy.default and found.data_ptr() == plain_args[0].data_ptr():
                found = found.clone()
        for draws in generators:
            if id(draws) in lent:
                draws.set_state(lent[id(draws)].get_state())
        if func is aten.copy_.default and not isinstance(args[0], OnGpu):
            return args[0]
        if not onto:
            return found
        made = tree_map(lambda value: OnGpu(value) if isinstance(value, torch.Tensor) else value, found)
        return return_and_correct_aliasing(func, args, kwargs, made) if ours else made

    class Mode(TorchDispatchMode):
        """Sees what makes tensors on the GPU, and generators."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            asked = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda"
            if (
                asked
                or any(issubclass(t, OnGpu) for t in types)
                or any(isinstance(v, generator) for v in (*args, *kwargs.values()))
            ):
                return run(func, args, kwargs)
            return func(*args, **kwargs)

    def from_host(old: Any) -> Any:
        """torch.tensor and its like make the tensor before any mode can see it."""

        def new(data: Any, *args: Any, **named: Any) -> Any:
            if named.get("device") is None or torch.device(named["device"]).type != "cuda":
                return old(data, *args, **named)
            wait("tensor from numbers")
            named.pop("device")
            return old(data, *args, **named).to(device, non_blocking=True)

        return new

    torch.tensor, torch.as_tensor = from_host(torch.tensor), from_host(torch.as_tensor)
    # tensors of inference mode have no version, which wrappers need
    torch.inference_mode = lambda mode=True: torch.no_grad() if mode else contextlib.nullcontext()
    torch.__future__.set_swap_module_params_on_conversion(True)  # a module that moves keeps its parameters, as on a GPU
    facts = SimpleNamespace(name="stand-in", total_memory=24 * GIB, major=9, minor=0, multi_processor_count=132)
    answers: dict[str, Any] = {
        "_lazy_init": None, "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0, "set_device": None,
        "get_device_name": facts.name, "get_device_capability": (9, 0), "get_device_properties": facts, "is_bf16_supported": True,
        "mem_get_info": (24 * GIB, 24 * GIB), "max_memory_allocated": GIB, "max_memory_reserved": GIB, "memory_reserved": GIB, "memory_allocated": GIB,
        "reset_peak_memory_stats": None, "empty_cache": None, "manual_seed": None, "manual_seed_all": None, "memory_stats": {},
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch.cuda.synchronize = lambda *_: wait("synchronize")

    import triton.runtime.interpreter as interpreter

    launch = interpreter.GridExecutor.__call__

    def launched(self: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map(lambda value: value.twin if isinstance(value, OnGpu) else value, (args, kwargs))
        with _disable_current_modes():
            return launch(self, *args, **kwargs)

    interpreter.GridExecutor.__call__ = launched
    Mode().__enter__()
