"""`rehearse`: one made image and a short question, before a job is taken.

What fails for them fails for every job, so that it is the settings' or the checkpoint's fault.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import torch
from PIL import Image

from halp_producer.job import Job
from halp_store.layout import Layout
from halp_worker.batcher import Batch
from halp_worker.delivery import row_key
from halp_worker.fates import DeviceOutOfMemory, FatalError, Reason, Rejected
from halp_worker.model.blueprint import Blueprint
from halp_worker.model.extractor import Extractor
from halp_worker.model.images import ImageReader
from halp_worker.model.inputs import InputBuilder, Sample
from halp_worker.model.loading import LoadedModel
from halp_worker.model.risk import Foresight

_SIZE: Final = (84, 56)
"""Of the image: six tokens of a published checkpoint, if no limit makes it larger."""

_NEW_TOKENS: Final = 2
"""The first comes from the prompt, the second from a decode step."""

T = TypeVar("T")


def rehearse_inputs(name: str, blueprint: Blueprint, positions: tuple[str, ...]) -> None:
    """The part of it on the host: without weights. name: the model, as the user calls it.

    Raises FatalError.
    """
    inputs = InputBuilder(
        blueprint.processor,
        ImageReader(Path()),
        positions,
        rope_index=_count,
        max_prompt_tokens=blueprint.max_prompt_tokens,
    )
    _prepare(name, blueprint, inputs)


def rehearse(
    name: str,
    loaded: LoadedModel,
    layout: Layout,
    inputs: InputBuilder,
    foresight: Foresight | None = None,
) -> None:
    """All of it; what comes out is thrown away. With tensor parallelism every rank calls this.

    Raises FatalError, DeviceBroken among them.
    """
    sample = _prepare(name, loaded, inputs)
    most = min(_NEW_TOKENS, loaded.generation.max_new_tokens)
    short = replace(loaded, generation=replace(loaded.generation, max_new_tokens=most))
    # Without a threshold, so that it is answered.
    asked = None if foresight is None else replace(foresight, abstain_above=None)
    batch = Batch((row_key(sample.job),), (sample,))
    extraction = _blamed(name, "extracted", lambda: Extractor(short, layout, asked).extract(batch))
    for _, fate in extraction.fates:
        raise _fault(name, "extracted", fate.error)


def _prepare(name: str, blueprint: Blueprint, inputs: InputBuilder) -> Sample:
    try:
        return _blamed(name, "prepared", lambda: inputs.prepare(_made_job()))
    except Rejected as error:
        if error.rejection.reason != Reason.PROMPT_TOO_LONG:
            raise _fault(name, "prepared", str(error)) from None
        raise FatalError(
            f"model {name}: the shortest prompt does not fit its context of "
            f"{blueprint.context_tokens} tokens with --max-new-tokens "
            f"{blueprint.generation.max_new_tokens} ({error}): lower --max-new-tokens or "
            "--min-pixels"
        ) from None


def _made_job() -> Job:
    width, height = _SIZE
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return Job(
        question_id="rehearsal",
        image="rehearsal.png",
        image_data=file.getvalue(),
        question="Is it?",
        ground_truth="",
    )


def _blamed(name: str, what: str, action: Callable[[], T]) -> T:
    try:
        return action()
    except (FatalError, Rejected):
        raise
    except DeviceOutOfMemory as error:
        raise FatalError(
            f"model {name}: a small image and a question do not fit the device beside the weights "
            f"({error}): take a smaller model, or a device that nothing else uses"
        ) from None
    except Exception as error:
        words = (str(error).strip().splitlines() or [""])[0]
        raise _fault(name, what, f"{type(error).__name__}: {words}") from error


def _fault(name: str, what: str, words: str) -> FatalError:
    return FatalError(
        f"model {name}: a made image and a question could not be {what} ({words}): no job could, "
        "so the settings or the checkpoint are at fault; no job was taken"
    )


def _count(input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
    """Positions for where no model is there to tell them."""
    return torch.arange(input_ids.shape[1]).expand(3, -1)
