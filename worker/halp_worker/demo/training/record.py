"""`training.json`: how a checkpoint came to be and how good it is, kept beside its weights."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from halp_worker.demo.training.loop import Schedule


def write_record(
    checkpoint: Path, schedule: Schedule, seconds: float, right: Mapping[str, Any]
) -> Path:
    """Writes it and returns its path. right: accuracy by data set, as `score.accuracy` has it."""
    weights = sorted(checkpoint.glob("*.safetensors"))
    record = {
        "schedule": asdict(schedule),
        "seconds": round(seconds),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "weight_bytes": sum(one.stat().st_size for one in weights),
        "accuracy": right,
    }
    path = checkpoint / "training.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
