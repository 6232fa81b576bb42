"""`as_fault`: what torch raises when the device is full or broken -> the worker's own types.

Knows the texts of CUDA, HIP, MPS and their libraries; torch has few types for them. An error that
is neither is some job's, and stays as it is.

The texts, from torch 2.6 to 2.14: the allocator raises `torch.OutOfMemoryError`; the runtime's
errors are `torch.AcceleratorError` since 2.8 and `RuntimeError` before, both `CUDA error: <words>`;
cuBLAS and cuDNN are always `RuntimeError` with the name of the status.
"""

from __future__ import annotations

import gc
import re
import traceback
from typing import Final

import torch

from halp_worker.fates import DeviceBroken, DeviceOutOfMemory

_OUT_OF_MEMORY: Final = re.compile(
    r"out of memory"  # CUDA, HIP, XPU and MPS, from their allocators and from `CUDA error:`
    r"|STATUS_ALLOC_FAILED"  # cuBLAS, cuDNN, cuSOLVER: no room for a workspace
    r"|CUBLAS_STATUS_NOT_INITIALIZED"  # what cublasCreate says when its own memory does not fit
    r"|DEVICE_ALLOCATION_FAILED"  # cuDNN 9
    r"|Invalid buffer size"  # MPS: one tensor above the largest buffer
    r"|DefaultCPUAllocator: can't allocate memory"  # where the CPU is the device
)

_BROKEN: Final = re.compile(
    r"illegal memory access|illegal instruction|illegal address|misaligned address"
    r"|invalid program counter|hardware stack error|device-side assert|unspecified launch failure"
    r"|launch timed out|uncorrectable|\bECC\b|MMU fault"
    r"|(device|GPU) (is|was|has been) lost|fallen off the bus|no CUDA-capable device"
    r"|driver shutting down|device\(s\) is/are busy or unavailable|no kernel image is available"
    r"|CUBLAS_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR)"
    r"|CUDNN_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR(?!_HOST))",
    re.IGNORECASE,
)
"""Most of these are sticky: CUDA refuses every later call of the process. The others (no kernel
image, busy) would fail job after job that has done nothing."""

_REFUSED: Final = re.compile(r"invalid argument|invalid configuration|too many resources requested")
"""One launch was refused and the device is fine: some job has a shape that cannot run."""


def as_fault(error: BaseException) -> DeviceOutOfMemory | DeviceBroken | None:
    """What this says of the device; None if nothing. Python's MemoryError is not the device's."""
    if not isinstance(error, RuntimeError):
        return None
    text = str(error)
    first_line = text.strip().partition("\n")[0]
    if isinstance(error, torch.OutOfMemoryError) or _OUT_OF_MEMORY.search(text):
        return DeviceOutOfMemory(f"the device has no room for this batch: {first_line}")
    is_from_runtime = isinstance(error, getattr(torch, "AcceleratorError", ()))
    if _BROKEN.search(text) or (is_from_runtime and not _REFUSED.search(text)):
        return DeviceBroken(
            f"the device failed: {first_line}. This process cannot use it any more and ends; "
            "nothing of the batch was acknowledged, its jobs will be tried again. See what "
            "`nvidia-smi` and `dmesg` (Xid) say of the GPU; if a job breaks it each time, that "
            "job is failed after --max-attempts"
        )
    return None


def free_memory(error: BaseException, device: torch.device) -> None:
    """Lets go of what the failed call still holds on the device, so that a smaller batch has room.

    A caught exception keeps its traceback, that keeps every frame of the call, and those keep the
    batch's tensors: activations, caches, captured states. Clearing the frames' variables is not
    enough, for a frame of an inner function keeps its closure (torch calls hooked layers from one).
    So the traceback of `error`, and of what it came from, becomes text in a note of it. Then what
    is in cycles is collected, and the allocator gives its cached blocks back, so that they are not
    in pieces of the wrong size. Who calls this must hold no tensor of the batch itself.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        lines = traceback.format_tb(current.__traceback__)
        current.add_note("Its traceback, as text because frames hold memory:\n" + "".join(lines))
        current.__traceback__ = None
        current = current.__cause__ or current.__context__
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
