"""A small Qwen2.5-VL checkpoint: the real architecture and processor, random weights.

Laid out as the hub lays it out: flat `config.json`, sharded safetensors with the published weight
names, processor and tokenizer files. What it answers is word salad; everything else is real. Every
size differs from the published models', so a number that is hard-coded somewhere shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from halp_worker.demo.checkpoint_files import (
    BLANK,
    SmallShape,
    make_tokenizer,
    write_config,
    write_processor,
    write_weights,
)

_CORPUS: Final = (
    "You are a helpful assistant. system user assistant\n"
    "Is there a cat in the picture? What colour is the flower? How many people are there? "
    "Where does the astronaut stand? What is on the table? Does the rocket fly at night? "
    "yes no the a of on in is red green blue orange white black one two three left right above "
    "below cup spoon coffee temple roof water sky tree cat eyes helmet flag smoke tower wheel"
)

_MERGES: Final = 160
"""Enough for most words of the corpus to be one token."""


USUAL: Final = SmallShape()


def build_checkpoint(folder: Path, shape: SmallShape = USUAL) -> Path:
    """Writes the checkpoint into `folder` (created) and returns it. Same shape, same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer([_CORPUS], _MERGES)
    config = write_config(folder, shape, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(shape.seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
        _roughen(model, tokenizer)
    write_weights(folder, model.to(torch.bfloat16))
    write_processor(folder, tokenizer, shape)
    return folder


def _roughen(model: Any, tokenizer: Any) -> None:
    """Makes random weights behave: no dead biases or norms, and answers made of whole words."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.02)
            elif parameter.ndim == 1:
                parameter.uniform_(0.8, 1.2)
        head = model.get_output_embeddings().weight
        if head is not model.get_input_embeddings().weight:
            sayable = torch.zeros(head.shape[0], 1)
            sayable[tokenizer.convert_tokens_to_ids("<|im_end|>")] = 1
            for token, index in tokenizer.get_vocab().items():
                if token.startswith(BLANK) and len(token) > 3:
                    sayable[index] = 1
            head.mul_(sayable)
