"""`load_model`: a checkpoint (hub id or folder) -> the model on its device.

Knows transformers and devices; `Checkpoint` and `Blueprint` know the files. Any Qwen2.5-VL: every
size is read from the configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from halp_worker.fates import FatalError
from halp_worker.model.attention import use_own_attention
from halp_worker.model.blueprint import Blueprint, fatal_in_one_line, read_blueprint
from halp_worker.model.checkpoint import Checkpoint, unknown_weights
from halp_worker.model.faults import as_fault
from halp_worker.model.parity import ParityCheck
from halp_worker.model.parts import shard_count
from halp_worker.settings import ModelSettings

_TORCH_DTYPES: Final = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class LoadedModel(Blueprint):
    """A model in evaluation mode, on its device, with our attention.

    device: where inputs go, and most of the rest; with a device map the first one.
    """

    model: Any
    device: torch.device


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


def check_device(settings: ModelSettings, ranks: int = 1) -> None:
    """Whether the device that was named is there. Raises FatalError."""
    if settings.device == "auto":
        return
    if settings.device_map or ranks > 1:
        how = "torchrun" if ranks > 1 else "--device-map auto"
        raise FatalError(f"{how} uses several devices: name no --device with it")
    choose_device(settings.device)


def fetch_weights(settings: ModelSettings, blueprint: Blueprint) -> None:
    """Brings the weight files to this disk. Raises FatalError if they are not whole."""
    with fatal_in_one_line(f"model {settings.model}"):
        blueprint.checkpoint.download_weights()
    blueprint.checkpoint.check_weights()


def load_model(
    settings: ModelSettings, ranks: int = 1, blueprint: Blueprint | None = None
) -> LoadedModel:
    """ranks: processes that each take a slice of every layer; all of them call this.
    blueprint: of these settings, with its weights fetched; None, it is read here.

    Raises FatalError if this is not a whole Qwen2.5-VL checkpoint, has no place here, or if our
    passes do not give the states of its own forward.
    """
    if blueprint is None:
        blueprint = read_blueprint(settings)
        fetch_weights(settings, blueprint)
    placement = _placement(settings, blueprint.config, ranks)
    use_full_precision()
    model = _load_weights(settings, blueprint.checkpoint, blueprint.config, placement)
    _require_placed(settings.model, model, ranks)
    model.eval()
    _use_own_attention(settings, model, blueprint.processor)
    return LoadedModel(
        **vars(blueprint),
        model=model,
        device=next(model.get_input_embeddings().parameters()).device,
    )


def _use_own_attention(settings: ModelSettings, model: Any, processor: Any) -> None:
    """After the model's own forward gave its states, and with ours compared."""
    with fatal_in_one_line(f"model {settings.model}"):
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


def _load_weights(
    settings: ModelSettings, checkpoint: Checkpoint, config: Any, placement: dict[str, Any]
) -> Any:
    with fatal_in_one_line(f"model {settings.model}"):
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


def _placement(settings: ModelSettings, config: Any, ranks: int) -> dict[str, Any]:
    """Where the weights go, in transformers' words."""
    check_device(settings, ranks)
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
