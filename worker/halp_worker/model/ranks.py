"""`Ranks`: one worker of several processes, each with a slice of every layer (tensor parallelism).

Started by `torchrun`. The first rank is the worker: it has the queue and the store. The others get
each batch from it and run the same passes; what they compute meets in the layers. Knows
torch.distributed; refuses to know the queue. No pickle: batches travel as safetensors.

A rank that fails alone would leave the others waiting, so any error ends all of them, and the jobs
are tried again by the next ones.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from safetensors.torch import load, save

from halp_producer.job import Job
from halp_worker.batcher import Batch
from halp_worker.extraction import Extraction
from halp_worker.fates import DeviceBroken, FatalError
from halp_worker.model.inputs import PreparedImage, Sample

_IDLE: Final = timedelta(days=365)
"""The other ranks wait for a batch for as long as the queue is empty."""


def rank_count() -> int:
    """How many processes `torchrun` started for this worker; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class Ranks:
    """This process among them. Made by every rank before its model is loaded."""

    def __init__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        # Batches come over the host, where waiting for hours is no error.
        self._group: Any = dist.new_group(backend="gloo", timeout=_IDLE)
        self.is_first = dist.get_rank() == 0

    def send(self, samples: Sequence[Sample]) -> None:
        """From the first rank to all others."""
        self._broadcast(torch.frombuffer(bytearray(pack(samples)), dtype=torch.uint8))

    def stop(self) -> None:
        """Ends `follow` in the others, and this process's part in the group."""
        self._broadcast(torch.empty(0, dtype=torch.uint8))
        dist.destroy_process_group()

    def follow(self, run: Callable[[Sequence[Sample]], object]) -> None:
        """In the other ranks: runs each batch that the first one sends, until it stops.

        `torchrun` sends its signals to all; only the first rank heeds them, since it needs the
        others to finish the batch in hand.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        while data := self._receive():
            run(unpack(data))
        dist.destroy_process_group()

    def _broadcast(self, data: torch.Tensor) -> None:
        dist.broadcast(torch.tensor([len(data)]), 0, group=self._group)
        if len(data):
            dist.broadcast(data, 0, group=self._group)

    def _receive(self) -> bytes:
        size = torch.zeros(1, dtype=torch.int64)
        dist.broadcast(size, 0, group=self._group)
        data = torch.empty(int(size), dtype=torch.uint8)
        if len(data):
            dist.broadcast(data, 0, group=self._group)
        return data.numpy().tobytes()


class ShardedExtractor:
    """An extractor whose batches all ranks compute."""

    def __init__(self, extractor: Any, ranks: Ranks) -> None:
        self._extractor, self._ranks = extractor, ranks

    def extract(self, batch: Batch[Sample]) -> Extraction:
        """Raises FatalError for whatever fails: the ranks are not in step any more."""
        self._ranks.send(batch.samples)
        try:
            return self._extractor.extract(batch)  # type: ignore[no-any-return]
        except DeviceBroken:
            raise
        except Exception as error:
            raise FatalError(
                f"tensor parallelism: a batch failed and the ranks with it: {error}. Nothing of it "
                "was acknowledged. For want of memory: lower --batch-size"
            ) from error


def pack(samples: Sequence[Sample]) -> bytes:
    """Samples as safetensors: tensors by name, the rest as JSON in the metadata."""
    images = list({id(sample.image): sample.image for sample in samples}.values())
    tensors: dict[str, torch.Tensor] = {}
    for number, image in enumerate(images):
        tensors[f"pixel_values.{number}"] = image.pixel_values
        tensors[f"grid_thw.{number}"] = image.grid_thw
    rest = []
    for number, sample in enumerate(samples):
        tensors[f"input_ids.{number}"] = sample.input_ids
        tensors[f"position_ids.{number}"] = sample.position_ids.contiguous()
        rest.append(
            {
                # An image inside it has become pixels; the others never write a row.
                "job": sample.job.model_dump(mode="json", exclude={"image_data"}),
                "image": images.index(sample.image),
                "next_position": sample.next_position,
                "positions": sample.positions,
                "prefix_tokens": sample.prefix_tokens,
            }
        )
    heads = [{"sha256": image.sha256, "tokens": image.tokens} for image in images]
    described = json.dumps({"images": heads, "samples": rest}).encode()
    tensors["described"] = torch.frombuffer(bytearray(described), dtype=torch.uint8)
    return bytes(save(tensors))


def unpack(data: bytes) -> list[Sample]:
    tensors = load(data)
    described = json.loads(tensors["described"].numpy().tobytes())
    images = [
        PreparedImage(
            head["sha256"],
            tensors[f"pixel_values.{number}"],
            tensors[f"grid_thw.{number}"],
            head["tokens"],
        )
        for number, head in enumerate(described["images"])
    ]
    return [
        Sample(
            job=Job.model_validate(one["job"]),
            image=images[one["image"]],
            input_ids=tensors[f"input_ids.{number}"],
            position_ids=tensors[f"position_ids.{number}"],
            next_position=one["next_position"],
            positions=tuple(one["positions"]),
            prefix_tokens=one["prefix_tokens"],
        )
        for number, one in enumerate(described["samples"])
    ]
