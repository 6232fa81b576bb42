"""The files of a small checkpoint, laid out as the hub lays out the published ones.

Flat `config.json`, sharded safetensors with the published weight names, processor and tokenizer.
What the weights hold is not known here: `small_checkpoint` fills them at random, `training` learns
them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from huggingface_hub import save_torch_state_dict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, Qwen2Tokenizer

SPECIAL_TOKENS: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Renders a user turn with an image exactly as Qwen2.5-VL's own template does."""


@dataclass(frozen=True)
class SmallShape:
    """Sizes of the checkpoint. The default has 28 layers, as the 7B model, in 2 MB.

    window_px: side of the vision tower's attention windows. initializer_range: standard deviation
    of fresh weights; large by default, so that every layer changes the residual stream and a wrong
    index shows.
    """

    layers: int = 28
    hidden_size: int = 64
    intermediate_size: int = 96
    heads: int = 4
    kv_heads: int = 2
    vision_depth: int = 4
    vision_hidden_size: int = 32
    vision_heads: int = 2
    context_tokens: int = 2048
    max_image_tokens: int = 64
    tie_word_embeddings: bool = False
    window_px: int = 112
    initializer_range: float = 0.1
    rope_theta: float = 10000.0
    seed: int = 0


def write_config(folder: Path, shape: SmallShape, tokenizer: Any) -> Any:
    """Writes `config.json` and `generation_config.json`; returns the library's reading of them."""
    flat = _flat_config(shape, tokenizer)
    (folder / "config.json").write_text(json.dumps(flat, indent=2) + "\n")
    generation = {
        "bos_token_id": flat["bos_token_id"],
        "eos_token_id": [flat["eos_token_id"], flat["bos_token_id"]],
        "pad_token_id": flat["bos_token_id"],
        # As the published checkpoints do; a worker must not let these change an answer.
        "do_sample": True,
        "repetition_penalty": 1.05,
        "temperature": 0.000001,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    return AutoConfig.from_pretrained(folder)


def _flat_config(shape: SmallShape, tokenizer: Any) -> dict[str, Any]:
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    half = shape.hidden_size // shape.heads // 2
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": shape.initializer_range,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.context_tokens,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": shape.rope_theta,
        "rope_scaling": {"type": "mrope", "mrope_section": _thirds(half)},
        "tie_word_embeddings": shape.tie_word_embeddings,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": (len(tokenizer) + 63) // 64 * 64,
        "vision_config": {
            "depth": shape.vision_depth,
            "hidden_act": "silu",
            "hidden_size": shape.vision_hidden_size,
            "intermediate_size": 2 * shape.vision_hidden_size,
            "num_heads": shape.vision_heads,
            "in_chans": 3,
            "out_hidden_size": shape.hidden_size,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": shape.window_px,
            "fullatt_block_indexes": [shape.vision_depth // 2 - 1, shape.vision_depth - 1],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
    }


def _thirds(half: int) -> list[int]:
    """Time gets a quarter, height and width share the rest, as in the published models."""
    time = half // 4
    height = (half - time) // 2
    return [time, height, half - time - height]


def write_weights(folder: Path, model: Any) -> None:
    """Under the published names, whatever the library calls its modules; in two shards or three."""
    state = {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): values
        for name, values in model.state_dict().items()
    }
    total_bytes = sum(values.nbytes for values in state.values())
    save_torch_state_dict(state, folder, max_shard_size=total_bytes // 2)
    for shard in folder.glob("*.safetensors"):
        shard.chmod(0o644)  # the library leaves them to their owner; a container is another user


BLANK: Final = "\u0120"
"""How a byte-level vocabulary writes the blank that starts a word."""


def make_tokenizer(corpus: Sequence[str], merges: int) -> Any:
    """A byte-level vocabulary of 256 bytes, `merges` learned tokens and Qwen's special ones."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=len(alphabet) + merges,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    learned = json.loads(trained.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
    )


def write_processor(folder: Path, tokenizer: Any, shape: SmallShape) -> None:
    """The processor's files by their published names; the tokenizer's as the library saves it."""
    tokenizer.save_pretrained(folder)
    preprocessor = {
        "min_pixels": 4 * 28 * 28,
        "max_pixels": shape.max_image_tokens * 28 * 28,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
    template = {"chat_template": CHAT_TEMPLATE}
    (folder / "chat_template.json").write_text(json.dumps(template, indent=2) + "\n")
