"""`Sample`: one job's inputs, ready in host memory.

Knows the processor and the chat template; does not know the model's weights. Runs on threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

import torch
from qwen_vl_utils import process_vision_info
from qwen_vl_utils.vision_process import MAX_RATIO

from halp_producer.job import Job
from halp_producer.problem import printable
from halp_worker.fates import FatalError, Reason, Rejected
from halp_worker.model.images import ImageReader
from halp_worker.model.positions import Prompt, find_positions

Key = TypeVar("Key", bound=Hashable)

RopeIndex = Callable[..., torch.Tensor]
"""input_ids (1, T), image_grid_thw (1, 3), mm_token_type_ids (1, T) -> position ids (3, T)."""


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image as the vision encoder takes it. Questions on one image share one of these.

    sha256: of the file. pixel_values: (patches, P) float32. grid_thw: (1, 3) int64, patches before
    the merge. tokens: after it.
    """

    sha256: str
    pixel_values: torch.Tensor
    grid_thw: torch.Tensor
    tokens: int


@dataclass(frozen=True)
class Sample:
    """One job's inputs, on the host.

    input_ids: (T,) int64. position_ids: (3, T) int64, as M-RoPE counts; the answer's go on from
    `next_position`.
    positions: index in the prompt, in the order of the layout's positions.
    prefix_tokens: how many tokens there are up to and including the last of the image.
    """

    job: Job
    image: PreparedImage
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    next_position: int
    positions: tuple[int, ...]
    prefix_tokens: int

    @property
    def prompt_tokens(self) -> int:
        return len(self.input_ids)


class InputBuilder:
    """Turns jobs into samples with the checkpoint's own chat template and processor.

    rope_index: the model's `get_rope_index`.
    max_prompt_tokens: longest prompt that leaves room for the answer in the context.
    pin_memory: for pixels, so that the device fetches them while it computes.
    Safe to call from several threads. An image that several jobs at hand share is prepared once.
    """

    def __init__(
        self,
        processor: Any,
        images: ImageReader,
        positions: Sequence[str],
        *,
        rope_index: RopeIndex,
        max_prompt_tokens: int,
        pin_memory: bool = False,
    ) -> None:
        self._processor = processor
        self._images = images
        self._positions = tuple(positions)
        self._rope_index = rope_index
        self._max_prompt_tokens = max_prompt_tokens
        self._pin_memory = pin_memory
        self._prepared = SharedImages(self._prepare_image)
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
        return self.sample(job, self._prepared.get((job.image, job.image_data)))

    def _prepare_image(self, image: tuple[str, bytes | None]) -> PreparedImage:
        name, data = image
        source = self._images.read(name, data)
        image_processor = self._processor.image_processor
        content = {
            "type": "image",
            "image": source.pixels,
            "min_pixels": image_processor.size["shortest_edge"],
            "max_pixels": image_processor.size["longest_edge"],
        }
        try:
            images, _ = process_vision_info(
                user_turn(content, ""), image_patch_size=image_processor.patch_size
            )
            _require_ratio(*images[0].size)
        except ValueError as error:  # an aspect ratio the model was not made for
            width, height = source.pixels.size
            raise Rejected(
                Reason.IMAGE_UNREADABLE,
                f"{printable(name)}: {width}x{height} pixels do not fit the model: {error}",
            ) from None
        outputs = image_processor(images=images, return_tensors="pt")
        grid_thw = outputs["image_grid_thw"]
        return PreparedImage(
            sha256=source.sha256,
            pixel_values=self._pinned(outputs["pixel_values"]),
            grid_thw=grid_thw,
            tokens=int(grid_thw.prod()) // image_processor.merge_size**2,
        )

    def _pinned(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.pin_memory() if self._pin_memory else pixels

    def sample(self, job: Job, image: PreparedImage) -> Sample:
        image_token = self._processor.image_token
        text = render(self._processor, user_turn({"type": "image"}, job.question))
        text = text.replace(image_token, image_token * image.tokens)
        encoded = self._processor.tokenizer(text, return_tensors="pt")
        input_ids = encoded["input_ids"]
        ids = input_ids[0].tolist()
        if len(ids) > self._max_prompt_tokens:
            raise Rejected(
                Reason.PROMPT_TOO_LONG,
                f"prompt has {len(ids)} tokens, the context leaves room for "
                f"{self._max_prompt_tokens}: lower --max-pixels or shorten the question",
            )
        image_token_id = self._processor.image_token_id
        if ids.count(image_token_id) != image.tokens:
            raise FatalError(
                f"question {job.question_id!r}: the prompt has {ids.count(image_token_id)} image "
                f"tokens, the image {image.tokens}: this processor does not fit Qwen2.5-VL"
            )
        prompt = Prompt(ids, int(image.grid_thw.prod()), image_token_id, self._turn_end_id)
        position_ids = self._rope_index(
            input_ids=input_ids,
            image_grid_thw=image.grid_thw,
            mm_token_type_ids=(input_ids == image_token_id).int(),
        )
        return Sample(
            job=job,
            image=image,
            input_ids=input_ids[0],
            position_ids=position_ids,
            next_position=int(position_ids.max()) + 1,
            positions=find_positions(prompt, self._positions),
            prefix_tokens=prompt.last_image_token + 1,
        )


class SharedImages(Generic[Key]):
    """`get(key)` makes an image once for all who ask while somebody holds it; then it is let go.
    The key is all that makes it what it is: of an image inside a job its bytes too, since jobs may
    call two of them by one name.

    Two threads that ask at the same time wait for one of them, and get its error too.
    """

    def __init__(self, prepare: Callable[[Key], PreparedImage]) -> None:
        self._prepare = prepare
        self._lock = threading.Lock()
        self._held: WeakValueDictionary[Key, PreparedImage] = WeakValueDictionary()
        self._making: dict[Key, Future[PreparedImage]] = {}

    def get(self, key: Key) -> PreparedImage:
        with self._lock:
            if (image := self._held.get(key)) is not None:
                return image
            if (making := self._making.get(key)) is None:
                ours = self._making[key] = Future()
        if making is not None:
            return making.result()
        try:
            image = self._prepare(key)
        except BaseException as error:
            with self._lock:
                del self._making[key]
            ours.set_exception(error)
            raise
        with self._lock:
            self._held[key] = image
            del self._making[key]
        ours.set_result(image)
        return image


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
