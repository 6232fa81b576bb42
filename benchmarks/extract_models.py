"""The model that all ways share: the demo's small checkpoint, or the published sizes.

The published sizes get random weights, made on the device: nothing is downloaded and no weight
touches the disk. Their tokenizer and processor are the small checkpoint's, so special tokens have
its ids; every size, the vocabulary's too, is the published one. No answer ever stops early.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from extract_inputs import Sizes
from transformers import AutoConfig, GenerationConfig, Qwen2_5_VLForConditionalGeneration

from halp_worker.demo.small_checkpoint import SmallShape, build_checkpoint
from halp_worker.model.loading import LoadedModel, load_model
from halp_worker.settings import Dtype, ModelSettings

_VISION: Final = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
_TEXT: Final = {
    "initializer_range": 0.02,
    "max_position_embeddings": 128000,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}
PUBLISHED: Final[Mapping[str, Mapping[str, Any]]] = {
    "3b": {
        **_TEXT,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_attention_heads": 16,
        "num_hidden_layers": 36,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "vocab_size": 151936,
        "vision_config": {**_VISION, "out_hidden_size": 2048},
    },
    "7b": {
        **_TEXT,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
        "vocab_size": 152064,
        "vision_config": {**_VISION, "out_hidden_size": 3584},
    },
}
"""What the `config.json` of Qwen/Qwen2.5-VL-*B-Instruct says, as far as it differs from the small
checkpoint's."""

NEVER: Final = 1_000_000
"""The token that ends an answer: none has this id, since greedy answers of random weights may hold
any that there is."""


@dataclass(frozen=True)
class Shape:
    """A model's name and the inputs that go with it.

    reference_samples: the slow way does only so many of them, if that is not None.
    """

    name: str
    samples: int
    reference_samples: int | None
    new_tokens: int
    repeats: int
    sizes: Sizes
    max_image_tokens: int


SHAPES: Final = {
    "small": Shape("small", 48, None, 12, 3, Sizes(64, 20), SmallShape.max_image_tokens),
    # 16384 is the published checkpoints' limit; 22 of the 100 text tokens are the template's.
    "3b": Shape("3b", 128, 12, 64, 1, Sizes(1300, 70), 16384),
    "7b": Shape("7b", 128, 12, 64, 1, Sizes(1300, 70), 16384),
}


def load_shape(
    shape: Shape, folder: Path, device: str, dtype: Dtype, changes: Mapping[str, Any]
) -> LoadedModel:
    """Ready to generate on `device`; answers have exactly `shape.new_tokens` tokens.

    changes: of the published configuration, by its names (`vision_config.depth`), to try a large
    shape on a small machine.
    """
    checkpoint = build_checkpoint(
        folder / "checkpoint", SmallShape(max_image_tokens=shape.max_image_tokens)
    )
    is_small = shape.name == "small"
    settings = ModelSettings(
        str(checkpoint),
        dtype=dtype,
        device=device if is_small else "cpu",
        max_new_tokens=shape.new_tokens,
    )
    loaded = load_model(settings)
    loaded = replace(loaded, generation=replace(loaded.generation, stop_tokens=(NEVER,)))
    if not is_small:
        config = published_config(shape.name, checkpoint, changes)
        loaded = _with_random_weights(loaded, shape, config, device)
    # Nothing but this: `generate` fills what a call leaves open from here.
    loaded.model.generation_config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=shape.new_tokens,
        eos_token_id=[NEVER],
        pad_token_id=loaded.processor.tokenizer.pad_token_id,
        use_cache=True,
    )
    return loaded


def published_config(name: str, checkpoint: Path, changes: Mapping[str, Any]) -> Any:
    """The published configuration with the special tokens' ids of the small `checkpoint`."""
    flat = json.loads((checkpoint / "config.json").read_text())
    vision = {**flat["vision_config"], **PUBLISHED[name]["vision_config"]}
    flat |= {**PUBLISHED[name], "vision_config": vision}
    for path, value in changes.items():
        target, _, field = path.rpartition(".")
        (flat[target] if target else flat)[field] = value
    folder = checkpoint.parent / f"config-{name}"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(flat))
    return AutoConfig.from_pretrained(folder)


def build_model(config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """With the library's own random initialisation, on the device from the start."""
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=dtype)
    return model.eval()


def _with_random_weights(small: LoadedModel, shape: Shape, config: Any, device: str) -> LoadedModel:
    place = torch.device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    torch.manual_seed(0)
    model = build_model(config, small.model.dtype, place)
    # As loading a checkpoint leaves it for the worker.
    model.set_attn_implementation(attention_of(small.model))
    return replace(small, model=model, name=f"random-{shape.name}", device=place)


def attention_of(model: Any) -> dict[str, str]:
    names = ("text_config", "vision_config")
    return {name: str(getattr(model.config, name)._attn_implementation) for name in names}


@contextmanager
def library_attention(model: Any, kind: str = "sdpa") -> Iterator[None]:
    """The library's own, for the ways that are not ours; the worker may have set another."""
    found = attention_of(model)
    model.set_attn_implementation(dict.fromkeys(found, kind))
    try:
        yield
    finally:
        model.set_attn_implementation(found)
