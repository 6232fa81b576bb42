"""`load_processor`: tokenizer, image processor and chat template of a checkpoint, checked."""

from __future__ import annotations

from typing import Any, Final

from transformers import AutoProcessor

from halp_worker.fates import FatalError
from halp_worker.model.checkpoint import Checkpoint
from halp_worker.model.inputs import render, user_turn
from halp_worker.settings import ModelSettings

_QUESTION: Final = "Is this a question?"

_SIZES: Final = {
    "patch_size": "patch_size",
    "merge_size": "spatial_merge_size",
    "temporal_patch_size": "temporal_patch_size",
}
"""The image processor's word -> that of the vision part in config.json."""


def load_processor(settings: ModelSettings, checkpoint: Checkpoint, config: Any) -> Any:
    """config: the model's. Raises FatalError in one sentence for what does not fit the model."""
    limits = {"min_pixels": settings.min_pixels, "max_pixels": settings.max_pixels}
    try:
        processor = AutoProcessor.from_pretrained(
            checkpoint.folder,
            trust_remote_code=False,
            **{name: value for name, value in limits.items() if value is not None},
        )
    except Exception as error:  # noqa: BLE001 - the library's readers raise types of all kinds
        raise _unreadable(settings.model, checkpoint, error) from None
    _check_parts(settings.model, processor)
    _check_sizes(settings, processor.image_processor, config)
    _check_tokens(settings.model, processor, config)
    _check_template(settings.model, processor)
    return processor


def _unreadable(name: str, checkpoint: Checkpoint, error: Exception) -> FatalError:
    words = _in_one_line(error)
    if "Unrecognized image processor" in words:
        kind = checkpoint.read_json("preprocessor_config.json").get("image_processor_type")
        words = f"its image processor {kind!r} is not known to this transformers"
    elif "Can't load image processor" in words:
        words = "it has no image processor"
    return FatalError(
        f"processor of {name}: {words[:200]}: take its processor and tokenizer files from a "
        "published Qwen2.5-VL"
    )


def _check_parts(name: str, processor: Any) -> None:
    images = getattr(processor, "image_processor", None)
    if images is None or getattr(processor, "tokenizer", None) is None:
        raise FatalError(
            f"processor of {name}: is a {type(processor).__name__}, which takes no images with "
            "text: take preprocessor_config.json from a published Qwen2.5-VL"
        )
    if "image_grid_thw" not in images.model_input_names:
        raise FatalError(
            f"processor of {name}: its image processor is {type(images).__name__}, which does not "
            "fit Qwen2.5-VL: take preprocessor_config.json from a published Qwen2.5-VL"
        )


def _check_sizes(settings: ModelSettings, images: Any, config: Any) -> None:
    """Both numbers of each that the image processor and the model must share, and of the limits."""
    for name, entry in _SIZES.items():
        got, expected = getattr(images, name, None), getattr(config.vision_config, entry)
        if got != expected:
            raise FatalError(
                f"processor of {settings.model}: its {name} is {got}, that of the model {expected} "
                f"({entry} in config.json): take preprocessor_config.json from the checkpoint that "
                "the weights are of"
            )
    limits = [images.size.get(edge) for edge in ("shortest_edge", "longest_edge")]
    whose = [
        f"{option} {limit}" if chosen is not None else f"the checkpoint's {entry} {limit}"
        for option, entry, chosen, limit in (
            ("--min-pixels", "min_pixels", settings.min_pixels, limits[0]),
            ("--max-pixels", "max_pixels", settings.max_pixels, limits[1]),
        )
    ]
    if not all(isinstance(limit, int) and limit > 0 for limit in limits):
        raise FatalError(
            f"processor of {settings.model}: expected numbers of pixels above 0, got "
            f"{' and '.join(whose)}: set min_pixels and max_pixels in its preprocessor_config.json"
        )
    if limits[0] > limits[1]:
        raise FatalError(f"model {settings.model}: {whose[0]} is above {whose[1]}: no image fits")


def _check_tokens(name: str, processor: Any, config: Any) -> None:
    tokenizer = processor.tokenizer
    vocabulary = int(config.get_text_config().vocab_size)
    if (tokens := len(tokenizer)) > vocabulary:
        raise FatalError(
            f"tokenizer of {name}: has {tokens} tokens, the model {vocabulary}: it is another "
            "model's, take the files of one checkpoint"
        )
    expected = {
        str(processor.image_token): int(config.image_token_id),
        "<|vision_start|>": int(config.vision_start_token_id),
    }
    for token, number in expected.items():
        if (got := tokenizer.convert_tokens_to_ids(token)) != number:
            raise FatalError(
                f"tokenizer of {name}: {token} is {got}, expected {number}: its files are missing "
                "or another model's, take those of a published Qwen2.5-VL"
            )
    if "<|im_end|>" not in tokenizer.get_vocab():
        raise FatalError(
            f"tokenizer of {name}: has no <|im_end|>, which ends a turn: take the tokenizer files "
            "of a published Qwen2.5-VL"
        )


def _check_template(name: str, processor: Any) -> None:
    """A template that is the tokenizer's is used as the processor's."""
    if not processor.chat_template:
        processor.chat_template = processor.tokenizer.chat_template
    if not processor.chat_template:
        raise FatalError(
            f"chat template of {name}: there is none: take chat_template.json or "
            "chat_template.jinja from a published Qwen2.5-VL"
        )
    try:
        prompt = render(processor, user_turn({"type": "image"}, _QUESTION))
    except Exception as error:  # noqa: BLE001 - a template is a program, and raises what it likes
        raise FatalError(
            f"chat template of {name}: fails for an image and a question ({_in_one_line(error)}): "
            "take the one of a published Qwen2.5-VL"
        ) from None
    images = prompt.count(processor.image_token)
    if images != 1 or _QUESTION not in prompt.partition(processor.image_token)[2]:
        raise FatalError(
            f"chat template of {name}: gives {images} image tokens for one image, or no question "
            "after it: take the one of a published Qwen2.5-VL"
        )


def _in_one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip()
