"""What samples cost at least, what was really computed, and how fast the device could be.

One convention throughout, that of torch's `FlopCounterMode`: a multiplication and an addition are
two operations; attention counts queries times keys, also where a causal kernel skips half of it
(about 2 % of the 7B model's prefill). Norms, activations and rotations are not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Lengths:
    """Of one sample. prompt: its tokens; prefix: those before the question's own, which all
    questions on this image share. grid: (t, h, w) patches. new: tokens of the answer."""

    image: str
    grid: tuple[int, int, int]
    prefix: int
    prompt: int
    new: int


class Costs:
    """FLOPs and bytes of a Qwen2.5-VL by the sizes in its configuration."""

    def __init__(self, config: Any, bytes_each: int) -> None:
        self.eyes, text = config.vision_config, config.get_text_config()
        self.hidden: int = text.hidden_size
        self.layers: int = text.num_hidden_layers
        kv_width: int = self.hidden // text.num_attention_heads * text.num_key_value_heads
        inner: int = text.intermediate_size
        self.layer_weights: int = self.hidden * (2 * self.hidden + 2 * kv_width + 3 * inner)
        self.head_weights: int = self.hidden * text.vocab_size
        self.step_bytes: int = bytes_each * (self.layers * self.layer_weights + self.head_weights)
        """Read by each decode step, however many samples are in it."""
        self.kv_bytes: int = bytes_each * 2 * kv_width * self.layers
        """Of one token in the cache."""

    def decoder(self, tokens: int, keys: int) -> int:
        """All layers over `tokens`, each of which looks at `keys`; without the head."""
        linear = 2 * tokens * self.layer_weights
        return self.layers * (linear + 4 * self.hidden * tokens * keys)

    def head(self, tokens: int) -> int:
        return 2 * tokens * self.head_weights

    def vision(self, grid: tuple[int, int, int]) -> int:
        """One image through the encoder and the merger."""
        eyes, d = self.eyes, self.eyes.hidden_size
        patches, merge = grid[0] * grid[1] * grid[2], eyes.spatial_merge_size**2
        pixels = eyes.in_channels * eyes.temporal_patch_size * eyes.patch_size**2
        whole = sum(0 <= block < eyes.depth for block in eyes.fullatt_block_indexes)
        pairs = whole * grid[0] * (grid[1] * grid[2]) ** 2
        pairs += (eyes.depth - whole) * sum(size**2 for size in self.windows(grid))
        block = 4 * d * d + 3 * d * eyes.intermediate_size
        merger = (merge * d) ** 2 + merge * d * eyes.out_hidden_size
        linear = patches * (pixels * d + eyes.depth * block) + patches // merge * merger
        return int(2 * linear + 4 * d * pairs)

    def windows(self, grid: tuple[int, int, int]) -> Iterator[int]:
        """Patches of each attention window; those at the edges are smaller."""
        eyes = self.eyes
        side = eyes.window_size // eyes.patch_size
        for _ in range(grid[0]):
            for top in range(0, grid[1], side):
                for left in range(0, grid[2], side):
                    yield min(side, grid[1] - top) * min(side, grid[2] - left)

    def prefill(self, samples: Sequence[Lengths]) -> int:
        """The minimum: each image encoded once, its prefix run once, each question's own tokens
        once, the head at the last token only."""
        total = 0
        for one in {sample.image: sample for sample in samples}.values():
            total += self.vision(one.grid) + self.decoder(one.prefix, one.prefix)
        for one in samples:
            total += self.decoder(one.prompt - one.prefix, one.prompt) + self.head(1)
        return total

    def decode(self, samples: Sequence[Lengths]) -> int:
        """The minimum: each token of an answer run once, but for the last, which nobody runs."""
        return sum(
            self.decoder(1, keys) + self.head(1)
            for one in samples
            for keys in range(one.prompt + 1, one.prompt + one.new)
        )

    def cache_bytes(self, samples: Sequence[Lengths]) -> int:
        """Read from the cache in decoding, each sample's own."""
        keys = sum(one.prompt * (one.new - 1) + (one.new - 1) * one.new // 2 for one in samples)
        return self.kv_bytes * keys


@dataclass(frozen=True)
class Peaks:
    """Measured on the device: FLOP/s of a matrix product in the model's dtype, bytes/s of a copy
    (read and written)."""

    flops: float
    bandwidth: float

    def samples_per_second(self, costs: Costs, samples: Sequence[Lengths], batch: float) -> float:
        """The roofline of these samples at `batch` in a decode step."""
        steps = sum(one.new - 1 for one in samples)
        seconds = costs.prefill(samples) / self.flops
        seconds += steps * costs.step_bytes / (self.bandwidth * batch)
        seconds += costs.cache_bytes(samples) / self.bandwidth
        return len(samples) / seconds


def measure_peaks(device: torch.device, dtype: torch.dtype) -> Peaks:
    """About a second on a GPU or two on a CPU; the best of some tries."""
    is_gpu = device.type != "cpu"
    side, count = (8192, 1 << 29) if is_gpu else (1536, 1 << 26)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    flops = 2 * side**3 / _best(lambda: torch.mm(left, right, out=product), device)
    source = torch.zeros(count, device=device, dtype=torch.int16)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / _best(lambda: target.copy_(source), device)
    return Peaks(flops, bandwidth)


def _best(function: Callable[[], object], device: torch.device) -> float:
    tries, calls = (10, 10) if device.type != "cpu" else (6, 2)
    seconds = []
    for _ in range(tries):
        began = time.perf_counter()
        for _ in range(calls):
            function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append((time.perf_counter() - began) / calls)
    return min(seconds[1:])


# -- what was really computed ----------------------------------------------------------------


class Counted:
    """FLOPs of the calls made inside `counting`, on whatever thread each runs.

    Does not see: replayed CUDA graphs, fused kernels, kernels of one's own without a formula.
    """

    def __init__(self) -> None:
        self.total = 0
        self.unseen: str | None = None

    @contextmanager
    def counting(self) -> Iterator[None]:
        mode = FlopCounterMode(display=False, custom_mapping=dict(_formulas()))
        with mode:
            yield
        self.total += mode.get_total_flops()


def count_one_forward(model: Any, inputs: Mapping[str, torch.Tensor]) -> int:
    """Of a plain forward with the head at the last token."""
    counted = Counted()
    with torch.inference_mode(), counted.counting():
        model(**inputs, logits_to_keep=1, use_cache=True)
    return counted.total


_ATTENTION: Final = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
"""The first has no formula in torch; in older releases the others' refuse grouped heads."""


def _formulas() -> Iterator[tuple[Any, Any]]:
    for name in _ATTENTION:
        operator = getattr(torch.ops.aten, name, None)
        if operator is not None:
            yield operator, _attention_flops
    try:
        from torch.nn.attention import varlen  # noqa: F401 - registers the operators
    except ImportError:
        return
    _whole_values(_varlen_flops)
    yield torch.ops.torch_attn._varlen_attn, _varlen_flops
    if hasattr(torch.ops.torch_attn, "_varlen_attn_out"):
        _whole_values(_varlen_out_flops)
        yield torch.ops.torch_attn._varlen_attn_out, _varlen_out_flops


def _attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    batch, heads, tokens, width = query
    return 2 * batch * heads * tokens * key[2] * (width + value[3])


def _whole_values(formula: Any) -> None:
    """Asks the counter to pass tensors, not their shapes."""
    formula._get_raw = True


def _varlen_flops(
    query: Any, key: Any, value: Any, query_ends: Any, key_ends: Any, *rest: Any, **options: Any
) -> int:
    """query: (tokens, heads, width); the ends are cumulative lengths. `seqused_k` where given."""
    queries = query_ends.diff()
    used = options.get("seqused_k", rest[6] if len(rest) > 6 else None)
    keys = queries if key_ends is None else key_ends.diff()
    keys = keys if used is None else used
    pairs = int((queries.long() * keys.long()).sum())
    return 2 * pairs * int(query.shape[1]) * int(query.shape[2] + value.shape[-1])


def _varlen_out_flops(out: Any, *arguments: Any, **options: Any) -> int:
    return _varlen_flops(*arguments, **options)
