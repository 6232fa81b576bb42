"""`Checkpoint`: the folder that a model is loaded from, and what its small files say.

Knows the hub's cache and the files of a checkpoint; loads no weights, and needs no device. What an
optional package would change is refused here: the same files must be the same model everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from huggingface_hub import snapshot_download

from halp_worker.fates import FatalError
from halp_worker.model.checkpoint_digest import folder_digest, sampled_digest, weights_digest
from halp_worker.model.tensor_files import (
    INDEX,
    SINGLE,
    TensorPlace,
    find_tensors,
    require_whole,
    weight_files,
)
from halp_worker.settings import ModelSettings

MODEL_TYPE: Final = "qwen2_5_vl"

_SMALL_FILES: Final = ("*.json", "*.jinja", "*.txt")
"""All of a checkpoint but its weights and what is for people."""

_FLOATS: Final = frozenset({"BF16", "F16", "F32", "F64"})

_MERGE: Final = (
    "merge the adapter first: "
    "PeftModel.from_pretrained(MODEL, ADAPTER).merge_and_unload().save_pretrained(FOLDER), and "
    "copy tokenizer and processor files beside it"
)

_OWN_CODE: Final = (
    "config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
"""Files whose `auto_map` names Python code of the checkpoint."""

_CHANGES_THE_MODEL: Final = ("fusion_config", "transformers_weights", "kernel_config")
"""Entries of config.json by which transformers takes other modules, kernels or files."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine's disk.

    name: "local" for a folder, else the hub id. commit: None for a folder.
    """

    folder: Path
    name: str
    commit: str | None

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json as it is written."""
        return self.read_json("config.json")

    @cached_property
    def tensors(self) -> dict[str, TensorPlace]:
        """Where each tensor is. Raises FatalError if the weight files are not whole."""
        return find_tensors(self.folder)

    @cached_property
    def weights(self) -> str:
        """Digest of all tensors."""
        return weights_digest(self.tensors)

    @cached_property
    def revision(self) -> str:
        """The commit, or a digest of the folder, which is the same wherever it is mounted."""
        return self.commit or folder_digest(self.folder, self.weights)

    @cached_property
    def older_revision(self) -> str:
        """`revision` as stores before layout version 3 have it."""
        return self.commit or sampled_digest(self.folder)

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON object; empty if there is no such file. Raises FatalError for anything else."""
        path = self.folder / name
        if not path.is_file():
            return {}
        require_whole(path, self.folder)
        try:
            value = json.loads(path.read_bytes())
        except ValueError as error:
            raise FatalError(
                f"checkpoint {self.folder}: {name} is not JSON ({error}): copy or download it again"
            ) from None
        if not isinstance(value, dict):
            raise FatalError(
                f"checkpoint {self.folder}: {name} is not a JSON object: copy or download it again"
            )
        return value

    @cached_property
    def stop_tokens(self) -> tuple[int, ...]:
        """All that generation config, config and its text part name; the tokenizer's are apart."""
        stops: list[Any] = []
        for entries in (
            self.read_json("generation_config.json"),
            self.config,
            self.config.get("text_config") or {},
        ):
            named = entries.get("eos_token_id")
            stops += named if isinstance(named, list) else [named]
        return tuple(dict.fromkeys(stop for stop in stops if type(stop) is int))

    @property
    def repetition_penalty(self) -> float:
        """What plain `generate` would use."""
        value = self.read_json("generation_config.json").get("repetition_penalty")
        return float(value) if isinstance(value, int | float) else 1.0

    def download_weights(self) -> None:
        """Fetches the weight files of a hub checkpoint, after its small files were checked."""
        if self.commit is None:
            return
        index = self.read_json(INDEX).get("weight_map", {})
        names = sorted(set(index.values())) if isinstance(index, Mapping) and index else [SINGLE]
        snapshot_download(self.name, revision=self.commit, allow_patterns=names)

    def check(self) -> None:
        """Raises FatalError for what its small files say cannot work here, in one sentence."""
        self._check_kind()
        for path in sorted(self.folder.iterdir()):
            if path.suffix in {".json", ".jinja"} and path.is_file():
                require_whole(path, self.folder)
        self._check_quantisation()
        for name in _OWN_CODE:
            if self.read_json(name).get("auto_map"):
                raise FatalError(
                    f"checkpoint {self.folder}: {name} names Python code of its own (auto_map), "
                    "which is not run; if it is a plain Qwen2.5-VL, delete that entry"
                )
        if entries := [name for name in _CHANGES_THE_MODEL if self.config.get(name)]:
            raise FatalError(
                f"checkpoint {self.folder}: config.json has {', '.join(entries)}, which changes "
                "the model with the installed packages: delete that entry"
            )
        self.read_json("generation_config.json")

    def check_weights(self) -> None:
        """Raises FatalError if the weight files are not whole, or are quantised."""
        kinds = {name: place.dtype for name, place in self.tensors.items()}
        if other := sorted(name for name, dtype in kinds.items() if dtype not in _FLOATS):
            raise self._quantised(f"{other[0]} is {kinds[other[0]]}")
        self._check_tied()

    def _check_kind(self) -> None:
        names = {path.name for path in self.folder.iterdir()}
        if adapters := sorted(name for name in names if name.startswith("adapter_")):
            raise FatalError(f"checkpoint {self.folder}: has {adapters[0]}: {_MERGE}")
        if "model_index.json" in names:
            raise FatalError(
                f"checkpoint {self.folder}: is a diffusers pipeline (model_index.json): expected a "
                "Qwen2.5-VL checkpoint"
            )
        if "config.json" not in names:
            if self.commit is None:
                weight_files(self.folder)  # a GGUF file or pickles say more
            raise FatalError(f"checkpoint {self.folder}: has no config.json: expected a checkpoint")
        model_type = self.config.get("model_type", "no model_type")
        if model_type != MODEL_TYPE:
            raise FatalError(
                f"model {self.folder}: expected a Qwen2.5-VL checkpoint (model_type "
                f"{MODEL_TYPE}), got {model_type}"
            )

    def _check_quantisation(self) -> None:
        parts = [self.config, *(self.config.get(f"{one}_config") for one in ("text", "vision"))]
        for part in parts:
            for key in ("quantization_config", "compression_config"):
                if isinstance(part, dict) and (found := part.get(key)):
                    method = found.get("quant_method") if isinstance(found, dict) else None
                    raise self._quantised(str(method or key))
        for name in ("quantize_config.json", "quant_config.json", "hf_quant_config.json"):
            if (self.folder / name).is_file():
                raise self._quantised(name)

    def _quantised(self, how: str) -> FatalError:
        return FatalError(
            f"checkpoint {self.folder}: its weights are quantised ({how}); only bfloat16, float16 "
            "and float32 weights are supported: use the checkpoint that it was made from"
        )

    def _check_tied(self) -> None:
        """transformers takes either of two differing weights, which one depends on its version."""
        embeddings = [name for name in self.tensors if name.endswith("embed_tokens.weight")]
        heads = [name for name in self.tensors if name.endswith("lm_head.weight")]
        text = self.config.get("text_config") or {}
        is_tied = self.config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
        if not (is_tied and embeddings and heads):
            return
        both = [self.tensors[names[0]] for names in (embeddings, heads)]
        if len({weights_digest({"": place}) for place in both}) > 1:
            raise FatalError(
                f"checkpoint {self.folder}: config.json ties {heads[0]} to {embeddings[0]}, but "
                "the files have both and they differ: set tie_word_embeddings to false there"
            )


def find_checkpoint(settings: ModelSettings) -> Checkpoint:
    """The folder, or the hub's small files. Raises FatalError, or what huggingface_hub raises."""
    folder = Path(settings.model).expanduser()
    if folder.is_dir():
        return Checkpoint(folder, "local", None)
    if folder.is_file():
        raise FatalError(f"model {settings.model}: is a file: give the folder of a checkpoint")
    if settings.model.startswith(("/", ".", "~")):
        raise FatalError(f"model {settings.model}: there is no such folder")
    snapshot = snapshot_download(
        settings.model, revision=settings.revision or "main", allow_patterns=[*_SMALL_FILES]
    )
    return Checkpoint(Path(snapshot), settings.model, Path(snapshot).name)


def unknown_weights(names: Iterable[str], tied: bool) -> list[str]:
    """Those of the weights that a plain Qwen2.5-VL has no place for, and that change it."""
    harmless = (".rotary_emb.inv_freq", *(("lm_head.weight",) if tied else ()))
    return sorted(name for name in names if not name.endswith(harmless))
