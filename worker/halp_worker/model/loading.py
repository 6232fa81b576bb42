"""`load_model`: a checkpoint (hub id or folder) -> the model, its processor, its identity.

Knows transformers and the files of a checkpoint. Any Qwen2.5-VL: every size is read from the
configuration.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import (
    AutoConfig,
    AutoProcessor,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.utils import cached_file

from halp_worker.fates import DeviceBroken, DeviceOutOfMemory, FatalError
from halp_worker.model.attention import use_own_attention
from halp_worker.model.faults import as_fault
from halp_worker.model.parts import shard_count
from halp_worker.model.versions import check_transformers
from halp_worker.settings import Dtype, ModelSettings

MODEL_TYPE: Final = "qwen2_5_vl"

_SAMPLED_PIECES: Final = 64
_SAMPLED_BYTES: Final = 64 << 10
"""Of each weight file 64 pieces of 64 KiB are hashed: reading 16 GB whole takes a minute."""

_TORCH_DTYPES: Final = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Greedy:
    """How answers are made. max_new_tokens: 0, not at all. The checkpoint's own sampling and
    penalties are not used."""

    max_new_tokens: int
    stop_tokens: tuple[int, ...]


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

    Raises FatalError if this is not a whole Qwen2.5-VL checkpoint, or has no place here.
    """
    check_transformers()
    config = _load_config(settings)
    placement = _placement(settings, config, ranks)
    processor = _load_processor(settings)
    with _fatal_in_one_line(f"model {settings.model}"):
        model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            settings.model,
            revision=settings.revision or "main",
            config=config,
            dtype=_TORCH_DTYPES[settings.dtype],
            **placement,
            use_safetensors=True,  # never a pickle
            output_loading_info=True,
        )
    _require_placed(settings.model, model, ranks)
    lacking = sorted(info["missing_keys"]) + sorted(map(str, info.get("mismatched_keys", ())))
    if lacking:
        raise FatalError(
            f"checkpoint {settings.model}: {len(lacking)} weights are missing or have another "
            f"shape, they would be random: {', '.join(lacking[:3])}, ..."
        )
    model.eval()
    use_own_attention(model)
    is_local = Path(settings.model).is_dir()
    return LoadedModel(
        model=model,
        processor=processor,
        generation=Greedy(
            0 if settings.no_answer else settings.max_new_tokens, _stop_tokens(model, processor)
        ),
        name="local" if is_local else settings.model,
        revision=_digest(Path(settings.model)) if is_local else _commit(settings),
        dtype=settings.dtype,
        device=next(model.get_input_embeddings().parameters()).device,
    )


def _load_config(settings: ModelSettings) -> Any:
    if settings.model.startswith(("/", ".", "~")) and not Path(settings.model).is_dir():
        raise FatalError(f"model {settings.model}: there is no such folder")
    with _fatal_in_one_line(f"model {settings.model}"):
        config = AutoConfig.from_pretrained(settings.model, revision=settings.revision or "main")
    if config.model_type != MODEL_TYPE:
        raise FatalError(
            f"model {settings.model}: expected a Qwen2.5-VL checkpoint (model_type "
            f"{MODEL_TYPE}), got {config.model_type}"
        )
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
    if kinds - {"full_attention"}:
        raise FatalError(
            f"model {settings.model}: its layers have {', '.join(sorted(kinds))}; only full "
            "attention is supported, as in all published Qwen2.5-VL"
        )
    return config


def _load_processor(settings: ModelSettings) -> Any:
    limits = {"min_pixels": settings.min_pixels, "max_pixels": settings.max_pixels}
    with _fatal_in_one_line(f"processor of {settings.model}"):
        return AutoProcessor.from_pretrained(
            settings.model,
            revision=settings.revision or "main",
            **{name: value for name, value in limits.items() if value is not None},
        )


@contextmanager
def _fatal_in_one_line(what: str) -> Iterator[None]:
    """The libraries explain at length; their first line says what is wrong."""
    try:
        yield
    except (OSError, ValueError) as error:
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


def _stop_tokens(model: Any, processor: Any) -> tuple[int, ...]:
    stops = model.generation_config.eos_token_id
    if stops is None:
        stops = processor.tokenizer.eos_token_id
    return tuple(stops) if isinstance(stops, list) else (stops,)


def _commit(settings: ModelSettings) -> str:
    """The commit whose files were loaded: the name of their folder in the hub's cache."""
    resolved = cached_file(settings.model, "config.json", revision=settings.revision or "main")
    return Path(resolved).parent.name


def _digest(folder: Path) -> str:
    """Over names, sizes and contents: small files whole, weight files in samples."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in {".json", ".jinja", ".txt", ".safetensors"}:
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if path.suffix != ".safetensors" or size <= _SAMPLED_PIECES * _SAMPLED_BYTES:
                digest.update(file.read())
                continue
            for piece in range(_SAMPLED_PIECES):
                file.seek((size - _SAMPLED_BYTES) * piece // (_SAMPLED_PIECES - 1))
                digest.update(file.read(_SAMPLED_BYTES))
    return f"sha256:{digest.hexdigest()[:32]}"
