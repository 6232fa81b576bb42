"""What the user chose: `ModelSettings` and `WorkerSettings`. Plain values, nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

DEFAULT_MODEL: Final = "Qwen/Qwen2.5-VL-7B-Instruct"

Dtype = Literal["bfloat16", "float32"]
"""What the model computes in."""

DeviceMap = Literal["auto"]
"""Over all GPUs that the process may use."""


LogFormat = Literal["auto", "text", "json"]
"""auto: text, on a terminal with a live line below."""


@dataclass(frozen=True)
class ModelSettings:
    """model: hub id or folder. revision, min_pixels, max_pixels: None, what the checkpoint says.
    device_map: None, all on one device. no_answer: prefill only, whatever `max_new_tokens` says."""

    model: str = DEFAULT_MODEL
    revision: str | None = None
    dtype: Dtype = "bfloat16"
    device: str = "auto"
    device_map: DeviceMap | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_new_tokens: int = 200
    no_answer: bool = False
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class WorkerSettings:
    """What `halp-worker run` was asked to do; the meanings are those of its options.

    store: path or URL. probe, abstain_above: None, no risks, and an answer for every question.
    """

    store: str
    model: ModelSettings
    run: str
    redis_url: str
    image_root: Path
    allow_urls: bool
    batch_size: int
    layers: str
    positions: tuple[str, ...]
    lease_seconds: float
    max_job_seconds: float
    max_attempts: int
    flush_rows: int
    flush_seconds: float
    until_empty: bool
    metrics_port: int | None
    metrics_host: str
    log_format: LogFormat = "auto"
    probe: Path | None = None
    abstain_above: float | None = None
