"""`load_model`: a checkpoint (hub id or folder) -> the model, its processor, its identity.

Knows transformers and devices; `Checkpoint` knows the files. Any Qwen2.5-VL: every size is read
from the configuration.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

from halp_worker.fates import DeviceBroken, DeviceOutOfMemory, FatalError
from halp_worker.model.attention import use_own_attention
from halp_worker.model.checkpoint import Checkpoint, find_checkpoint, unknown_weights
from halp_worker.model.faults import as_fault
from halp_worker.model.parity import ParityCheck
from halp_worker.model.parts import shard_count
from halp_worker.model.processor import load_processor
from halp_worker.model.versions import check_transformers
from halp_worker.settings import Dtype, ModelSettings

log = logging.getLogger(__name__)

_TORCH_DTYPES: Final = {"bfloat16": torch.bfloat16, "float32": torch.float32}

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
class LoadedModel:
    """A model in evaluation mode, on its device, with our attention.

    name, revision: for a hub id, the id and the commit; for a folder, "local" and a digest of
        its files, so that the same checkpoint is the same wherever it is mounted.
    device: where inputs go, and most of the rest; with a device map the first one.
    """

    model: Any
    processor: Any
    generation: Greedy
    name: str
    revision: str
    checkpoint: Checkpoint
    dtype: Dtype
    device: torch.device

    @property
    def n_layers(self) -> int:
        return int(self.model.config.get_text_config().num_hidden_layers)

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def vision_hidden_size(self) -> int:
        return int(self.model.config.vision_config.hidden_size)

    @property
    def context_tokens(self) -> int:
        return int(self.model.config.get_text_config().max_position_embeddings)


def choose_device(device: str) -> torch.device:
    """`auto` takes CUDA, else MPS, else CPU; `cuda` is the first GPU. Raises FatalError for a
    device that is not there."""
    if device == "auto":
        has_mps = torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        # With its number: torch's calls that choose a GPU want one.
        chosen = torch.device("cuda:0" if device == "cuda" else device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise FatalError(f"--device {device}: {first_line}") from None
    return chosen


def load_model(settings: ModelSettings, ranks: int = 1) -> LoadedModel:
    """ranks: processes that each take a slice of every layer; all of them call this.

    Raises FatalError if this is not a whole Qwen2.5-VL checkpoint, has no place here, or if our
    passes do not give the states of its own forward.
    """
    check_transformers()
    checkpoint = _find(settings)
    config = _load_config(settings, checkpoint)
    placement = _placement(settings, config, ranks)
    processor = load_processor(settings, checkpoint, config)
    generation = _generation(settings, checkpoint, processor, config)
    use_full_precision()
    model = _load_weights(settings, checkpoint, config, placement)
    _require_placed(settings.model, model, ranks)
    model.eval()
    _use_own_attention(settings, model, processor)
    return LoadedModel(
        model=model,
        processor=processor,
        generation=generation,
        name=checkpoint.name,
        revision=checkpoint.revision,
        checkpoint=checkpoint,
        dtype=settings.dtype,
        device=next(model.get_input_embeddings().parameters()).device,
    )


def _use_own_attention(settings: ModelSettings, model: Any, processor: Any) -> None:
    """After the model's own forward gave its states, and with ours compared."""
    with _fatal_in_one_line(f"model {settings.model}"):
        try:
            parity = ParityCheck(model, processor)
            use_own_attention(model)
            parity.require_same_states()
        except (RuntimeError, LookupError, TypeError, AttributeError) as error:
            if as_fault(error):
                raise
            words = (str(error).strip().splitlines() or [""])[0]
            raise FatalError(
                f"model {settings.model}: one image and a question cannot run through it "
                f"({type(error).__name__}: {words}): its files do not fit each other, or this "
                "transformers; take a published checkpoint"
            ) from error


def use_full_precision() -> None:
    """From now on float32 is float32: no TF32 in matrix products and convolutions on CUDA, and no
    bfloat16 in place of it on a CPU, whatever the process or its environment chose before."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def _find(settings: ModelSettings) -> Checkpoint:
    """A checkpoint whose small files can work, with its weights on this disk."""
    with _fatal_in_one_line(f"model {settings.model}"):
        checkpoint = find_checkpoint(settings)
        checkpoint.check()
        checkpoint.download_weights()
    checkpoint.check_weights()
    return checkpoint


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


def _load_weights(
    settings: ModelSettings, checkpoint: Checkpoint, config: Any, placement: dict[str, Any]
) -> Any:
    with _fatal_in_one_line(f"model {settings.model}"):
        model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            checkpoint.folder,
            config=config,
            dtype=_TORCH_DTYPES[settings.dtype],
            **placement,
            # What config.json names may need a package, or be another one's numbers.
            attn_implementation="sdpa",
            trust_remote_code=False,
            use_kernels=False,
            use_safetensors=True,  # never a pickle
            ignore_mismatched_sizes=True,  # they are in `info`
            output_loading_info=True,
        )
    mismatched = [str(one[0]) for one in info.get("mismatched_keys", ())]
    lacking = sorted({*info["missing_keys"], *mismatched})
    if lacking:
        raise FatalError(
            f"checkpoint {settings.model}: {len(lacking)} weights are missing or have another "
            f"shape, they would be random: {', '.join(lacking[:3])}, ..."
        )
    tied = bool(config.tie_word_embeddings)
    if unknown := unknown_weights(info["unexpected_keys"], tied):
        raise FatalError(
            f"checkpoint {settings.model}: {len(unknown)} weights have no place in a Qwen2.5-VL of "
            f"its config.json and would be left out: {', '.join(unknown[:3])}, ...: take the "
            "config.json and the weights of one checkpoint"
        )
    return model


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
def _fatal_in_one_line(what: str) -> Iterator[None]:
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


def _placement(settings: ModelSettings, config: Any, ranks: int) -> dict[str, Any]:
    """Where the weights go, in transformers' words."""
    if settings.device != "auto" and (settings.device_map or ranks > 1):
        how = "torchrun" if ranks > 1 else "--device-map auto"
        raise FatalError(f"{how} uses several devices: name no --device with it")
    if ranks > 1:
        return {"distributed_config": _shards(settings, config, ranks)}
    if settings.device_map:
        return {"device_map": settings.device_map}
    device = choose_device(settings.device)
    if device.type == "cuda":
        # What names no device goes to this one, and does not open a context on the first GPU.
        torch.cuda.set_device(device)
    return {"device_map": {"": device}}


def _shards(settings: ModelSettings, config: Any, ranks: int) -> Any:
    if settings.device_map:
        raise FatalError("--device-map and torchrun exclude each other: use one of them")
    heads = int(config.get_text_config().num_key_value_heads)
    if heads % ranks:
        raise FatalError(
            f"model {settings.model}: its {heads} key heads cannot be shared out to {ranks} "
            f"processes: start as many as divide {heads}"
        )
    try:
        from transformers.distributed import DistributedConfig

        return DistributedConfig(tp_size=ranks)
    except (ImportError, TypeError):
        raise FatalError(
            "this transformers cannot split a model over processes: pip install -U transformers"
        ) from None


def _require_placed(name: str, model: Any, ranks: int) -> None:
    """Without `torchrun`'s variables transformers loads the whole model; a device map puts what has
    no room on the GPUs on the host or the disk, a hundred times slower."""
    if shard_count(model) != ranks:
        raise FatalError(f"model {name}: was not split over {ranks} processes")
    places = {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()}
    if len(places) > 1 and places & {"cpu", "disk"}:
        raise FatalError(
            f"model {name}: its weights do not fit the GPUs together: use more or larger ones, or "
            "a smaller model"
        )
