"""`Sample`: one job's inputs, ready in host memory. `Collated`: samples side by side.

Knows the processor and the chat template; does not know the model's weights. Runs on threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from qwen_vl_utils import process_vision_info
from qwen_vl_utils.vision_process import MAX_RATIO

from halp_producer.job import Job
from halp_producer.problem import printable
from halp_worker.fates import FatalError, Reason, Rejected
from halp_worker.model.images import ImageReader
from halp_worker.model.positions import Prompt, find_positions


@dataclass(frozen=True)
class Sample:
    """One job's inputs.

    tensors: everything the processor returned, on the host. Per token (1, T): input_ids,
        attention_mask, mm_token_type_ids. Per image: pixel_values (patches, P),
        image_grid_thw (1, 3).
    positions: index in the unpadded prompt, in the order of the layout's positions.
    """

    job: Job
    image_sha256: str
    tensors: Mapping[str, torch.Tensor]
    positions: tuple[int, ...]
    prompt_tokens: int
    image_tokens: int


@dataclass(frozen=True)
class Collated:
    """B samples side by side.

    tensors: the model's inputs, on the host; per token (B, T), per image concatenated.
    columns: (B, P) int64, where each sample's positions are in the padded prompts.
    grid_thw: (B, 3) int64, patches before the merge, one image a sample.
    padded_tokens: T.
    """

    tensors: Mapping[str, torch.Tensor]
    columns: torch.Tensor
    grid_thw: torch.Tensor
    padded_tokens: int


def collate(samples: Sequence[Sample], pad_token_id: int) -> Collated:
    """Pads on the left, so that every prompt ends in the last column and decoding goes on there."""
    length = max(sample.prompt_tokens for sample in samples)
    tensors = {}
    for name, first in samples[0].tensors.items():
        parts = [sample.tensors[name] for sample in samples]
        if first.shape == samples[0].tensors["input_ids"].shape:
            filler = pad_token_id if name == "input_ids" else 0
            parts = [_pad_left(part, length, filler) for part in parts]
        tensors[name] = torch.cat(parts)
    columns = [
        [length - sample.prompt_tokens + index for index in sample.positions] for sample in samples
    ]
    return Collated(tensors, torch.tensor(columns), tensors["image_grid_thw"], length)


def _pad_left(row: torch.Tensor, length: int, filler: int) -> torch.Tensor:
    return torch.nn.functional.pad(row, (length - row.shape[-1], 0), value=filler)


class InputBuilder:
    """Turns jobs into samples with the checkpoint's own chat template and processor.

    max_prompt_tokens: longest prompt that leaves room for the answer in the context.
    Safe to call from several threads.
    """

    def __init__(
        self,
        processor: Any,
        images: ImageReader,
        positions: Sequence[str],
        *,
        max_prompt_tokens: int,
    ) -> None:
        self._processor = processor
        self._images = images
        self._positions = tuple(positions)
        self._max_prompt_tokens = max_prompt_tokens
        tokenizer = processor.tokenizer
        self._special_tokens = tuple(
            token.content for token in tokenizer.added_tokens_decoder.values() if token.special
        )
        self._turn_end_id = int(tokenizer.convert_tokens_to_ids("<|im_end|>"))

    def prepare(self, job: Job) -> Sample:
        """Raises Rejected if this job can never run."""
        # Tokenizers read these as control tokens: the question would end its own turn.
        for token in self._special_tokens:
            if token in job.question:
                raise Rejected(
                    Reason.SPECIAL_TOKEN, f"question holds the model's special token {token}"
                )
        source = self._images.read(job.image)
        tensors = self._process(job, source.pixels)
        return self._sample(job, source.sha256, tensors)

    def _process(self, job: Job, pixels: Any) -> dict[str, torch.Tensor]:
        image_processor = self._processor.image_processor
        content = {
            "type": "image",
            "image": pixels,
            "min_pixels": image_processor.size["shortest_edge"],
            "max_pixels": image_processor.size["longest_edge"],
        }
        messages = user_turn(content, job.question)
        try:
            images, _ = process_vision_info(messages, image_patch_size=image_processor.patch_size)
            _require_ratio(*images[0].size)
        except ValueError as error:  # an aspect ratio the model was not made for
            width, height = pixels.size
            raise Rejected(
                Reason.IMAGE_UNREADABLE,
                f"{printable(job.image)}: {width}x{height} pixels do not fit the model: {error}",
            ) from None
        outputs = self._processor(
            text=[render(self._processor, messages)], images=images, return_tensors="pt"
        )
        return dict(outputs)

    def _sample(self, job: Job, sha256: str, tensors: dict[str, torch.Tensor]) -> Sample:
        input_ids = tensors["input_ids"][0].tolist()
        if len(input_ids) > self._max_prompt_tokens:
            raise Rejected(
                Reason.PROMPT_TOO_LONG,
                f"prompt has {len(input_ids)} tokens, the context leaves room for "
                f"{self._max_prompt_tokens}: lower --max-pixels or shorten the question",
            )
        patches = int(tensors["image_grid_thw"].prod())
        image_token_id = self._processor.image_token_id
        image_tokens = input_ids.count(image_token_id)
        merged = patches // self._processor.image_processor.merge_size**2
        if image_tokens != merged:
            raise FatalError(
                f"question {job.question_id!r}: the prompt has {image_tokens} image tokens, "
                f"the image {merged}: this processor does not fit Qwen2.5-VL"
            )
        prompt = Prompt(input_ids, patches, image_token_id, self._turn_end_id)
        return Sample(
            job=job,
            image_sha256=sha256,
            tensors=tensors,
            positions=find_positions(prompt, self._positions),
            prompt_tokens=len(input_ids),
            image_tokens=image_tokens,
        )


def _require_ratio(width: int, height: int) -> None:
    """Of the resized image, as the image processor will: rounding to whole patches may have made a
    ratio of 199 one of 207. Raises ValueError."""
    ratio = max(width, height) / min(width, height)
    if ratio > MAX_RATIO:
        raise ValueError(f"aspect ratio {ratio:.0f} in whole patches, the limit is {MAX_RATIO}")


def user_turn(image: dict[str, Any], question: str) -> list[dict[str, Any]]:
    """The conversation: one user turn, the image before the question."""
    return [{"role": "user", "content": [image, {"type": "text", "text": question}]}]


def render(processor: Any, messages: list[dict[str, Any]]) -> str:
    """The prompt as text, up to and including the start of the assistant's turn."""
    return str(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
