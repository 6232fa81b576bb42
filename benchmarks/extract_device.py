"""Around a timed run: its stages, how busy the device was, and the most memory that was in use.

Busy: on a GPU the driver's own figure (NVML: the share of time in which any kernel ran), sampled
during the run. Where there is none, the share of wall time inside the model's calls.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

SAMPLE_SECONDS: Final = 0.05


@dataclass
class Timing:
    """seconds: of wall time. stages: seconds by name. inside: (start, end) of the model's calls.

    busy: share of the time in which the GPU computed, None without NVML.
    others: processors that other processes used meanwhile; None where the system does not say.
    """

    began: float = 0.0
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    inside: list[tuple[float, float]] = field(default_factory=list)
    busy: float | None = None
    others: float | None = None
    peak_bytes: int = 0

    @contextmanager
    def stage(self, name: str, *, of_model: bool = False) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            ended = time.perf_counter()
            self.stages[name] = self.stages.get(name, 0.0) + ended - began
            if of_model:
                self.inside.append((began, ended))

    @property
    def inside_share(self) -> float:
        """Calls that overlap, on threads, count once."""
        covered, until = 0.0, self.began
        for start, end in sorted(self.inside):
            covered += max(0.0, end - max(start, until))
            until = max(until, end)
        return covered / self.seconds


@contextmanager
def timed(device: torch.device) -> Iterator[Timing]:
    """Times what is inside, as one run on a device that nothing else uses."""
    gc.collect()
    forget_peak(device)
    timing = Timing()
    with busy_share(device) as busy:
        others = _used_by_others()
        timing.began = time.perf_counter()
        yield timing
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        timing.seconds = time.perf_counter() - timing.began
        if others is not None:
            timing.others = max(0.0, (_used_by_others() or others) - others) / timing.seconds
    timing.busy = sum(busy) / len(busy) / 100 if busy else None
    timing.peak_bytes = peak_bytes(device)


def _used_by_others() -> float | None:
    """Processor seconds since the machine started, without those of this process."""
    try:
        fields = Path("/proc/stat").read_text().split(maxsplit=9)
    except OSError:
        return None
    user, nice, system, _, _, interrupts, soft, stolen = map(int, fields[1:9])
    ticks = user + nice + system + interrupts + soft + stolen
    return ticks / os.sysconf("SC_CLK_TCK") - sum(os.times()[:2])


# -- memory ----------------------------------------------------------------------------------


def forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # Linux: the high-water mark starts again from what is in use now
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Allocated on the device; on the CPU, resident memory of the whole process, model included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# -- NVML ------------------------------------------------------------------------------------


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


@contextmanager
def busy_share(device: torch.device) -> Iterator[list[int]]:
    """Per cent, sample after sample, while the context lasts; empty where NVML is not there."""
    samples: list[int] = []
    gpu = _nvml_gpu(device)
    if gpu is None:
        yield samples
        return
    library, handle = gpu
    ended = threading.Event()

    def watch() -> None:
        reading = _Utilization()
        while not ended.wait(SAMPLE_SECONDS):
            if library.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(reading)) == 0:
                samples.append(reading.gpu)

    thread = threading.Thread(target=watch, name="nvml", daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def _nvml_gpu(device: torch.device) -> tuple[Any, Any] | None:
    if device.type != "cuda":
        return None
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        name = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
    except (OSError, AttributeError):
        return None
    handle = ctypes.c_void_p()
    if library.nvmlInit_v2() != 0:
        return None
    if library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)) != 0:
        return None
    return library, handle
