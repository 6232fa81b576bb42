"""`read_blueprint`: all of a model but its weights, from the small files of its checkpoint.

Knows transformers' configurations; needs neither weights nor a device, so that what cannot work is
said in seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from safetensors import SafetensorError
from transformers import AutoConfig

from halp_worker.fates import DeviceBroken, DeviceOutOfMemory, FatalError
from halp_worker.model.checkpoint import Checkpoint, find_checkpoint
from halp_worker.model.faults import as_fault
from halp_worker.model.processor import load_processor
from halp_worker.model.versions import check_transformers
from halp_worker.settings import Dtype, ModelSettings

log = logging.getLogger(__name__)

_ROPE_WITH_MEMORY: Final = frozenset({"dynamic", "longrope"})
"""Kinds of rotary positions that depend on the longest sequence so far."""


@dataclass(frozen=True)
class Greedy:
    """How answers are made. max_new_tokens: 0, not at all. The checkpoint's own sampling and
    penalty are not used; repetition_penalty is what the worker was asked for, 1.0 is none."""

    max_new_tokens: int
    stop_tokens: tuple[int, ...]
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class Blueprint:
    """What the files and the settings say of a model.

    config: of transformers, as the model is built from it.
    """

    checkpoint: Checkpoint
    config: Any
    processor: Any
    generation: Greedy
    dtype: Dtype

    @property
    def name(self) -> str:
        """Of a hub id, the id; of a folder, "local"."""
        return self.checkpoint.name

    @property
    def revision(self) -> str:
        """The hub's commit, or a digest of the folder's files. Needs the weight files."""
        return self.checkpoint.revision

    @property
    def n_layers(self) -> int:
        return int(self.config.get_text_config().num_hidden_layers)

    @property
    def hidden_size(self) -> int:
        return int(self.config.get_text_config().hidden_size)

    @property
    def vision_hidden_size(self) -> int:
        return int(self.config.vision_config.hidden_size)

    @property
    def context_tokens(self) -> int:
        return int(self.config.get_text_config().max_position_embeddings)

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt that leaves room for the longest answer."""
        return self.context_tokens - self.generation.max_new_tokens


def read_blueprint(settings: ModelSettings) -> Blueprint:
    """Raises FatalError if these settings and small files cannot work together."""
    check_transformers()
    with fatal_in_one_line(f"model {settings.model}"):
        checkpoint = find_checkpoint(settings)
        checkpoint.check()
    config = _load_config(settings, checkpoint)
    processor = load_processor(settings, checkpoint, config)
    generation = _generation(settings, checkpoint, processor, config)
    blueprint = Blueprint(checkpoint, config, processor, generation, settings.dtype)
    _check_room(settings.model, blueprint)
    return blueprint


def _check_room(name: str, blueprint: Blueprint) -> None:
    """Whether an image and an answer fit the context at all."""
    images = blueprint.processor.image_processor
    token = (int(images.patch_size) * int(images.merge_size)) ** 2
    least = max(1, int(images.size["shortest_edge"]) // token)
    if least >= blueprint.max_prompt_tokens:
        raise FatalError(
            f"model {name}: its context has {blueprint.context_tokens} tokens, which is too short "
            f"for the smallest image ({least} tokens) and --max-new-tokens "
            f"{blueprint.generation.max_new_tokens}: lower --min-pixels or --max-new-tokens"
        )


def _load_config(settings: ModelSettings, checkpoint: Checkpoint) -> Any:
    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - a value of a wrong type raises types of all kinds
        words = " ".join(str(error).split())
        raise FatalError(f"model {settings.model}: config.json: {words}") from None
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ())
    if kinds - {"full_attention"}:
        raise FatalError(
            f"model {settings.model}: its layers have {', '.join(sorted(kinds))}; only full "
            "attention is supported, as in all published Qwen2.5-VL"
        )
    rope = (getattr(text, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in _ROPE_WITH_MEMORY:
        raise FatalError(
            f"model {settings.model}: rope_scaling {rope} in config.json makes a state depend on "
            "the prompts before it: take another, as all published Qwen2.5-VL do"
        )
    for part in (config, text, config.vision_config):
        # What the passes rely on, whatever config.json says.
        part.return_dict, part.output_hidden_states, part.output_attentions = True, False, False
    return config


def _generation(
    settings: ModelSettings, checkpoint: Checkpoint, processor: Any, config: Any
) -> Greedy:
    if settings.no_answer:
        return Greedy(0, _stop_tokens(settings, checkpoint, processor, config))
    own = checkpoint.repetition_penalty
    if own not in (1.0, settings.repetition_penalty):
        log.warning(
            "%s has repetition_penalty %g in its generation_config.json, which is not applied: "
            "answers may differ from those of `generate`; --repetition-penalty %g applies it",
            settings.model,
            own,
            own,
        )
    return Greedy(
        settings.max_new_tokens,
        _stop_tokens(settings, checkpoint, processor, config),
        settings.repetition_penalty,
    )


def _stop_tokens(
    settings: ModelSettings, checkpoint: Checkpoint, processor: Any, config: Any
) -> tuple[int, ...]:
    """All that tokenizer, generation config and config name, each once."""
    named = dict.fromkeys((*checkpoint.stop_tokens, processor.tokenizer.eos_token_id))
    vocabulary = int(config.get_text_config().vocab_size)
    stops = tuple(stop for stop in named if stop is not None and 0 <= stop < vocabulary)
    if not stops:
        raise FatalError(
            f"checkpoint {settings.model}: names no token that ends an answer: set eos_token_id in "
            "its generation_config.json"
        )
    return stops


@contextmanager
def fatal_in_one_line(what: str) -> Iterator[None]:
    """The libraries explain at length; their first line says what is wrong."""
    try:
        yield
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise FatalError(f"{what}: {first_line}") from None
    except RuntimeError as error:
        match as_fault(error):
            case DeviceOutOfMemory() as full:
                raise FatalError(
                    f"{what}: its weights do not fit ({full}): take a smaller model, or a device "
                    "that nothing else uses"
                ) from None
            case DeviceBroken() as broken:
                raise broken from error
            case _:
                raise
