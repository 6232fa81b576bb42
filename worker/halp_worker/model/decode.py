"""`decode`: greedy answers for rows whose prompts are prefilled. One token of every row a step."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch

from halp_worker.model.likelihood import Chosen, greedy
from halp_worker.model.parts import next_logits, run_decoder, shard_count
from halp_worker.model.passes import DecodePass, KeyValueRows, StaticDecodePass
from halp_worker.model.penalty import RepetitionPenalty

log = logging.getLogger(__name__)

GRAPH_STEPS: Final = 16
"""A graph is captured for at least so many steps: it costs about as much as two without."""


LEAVING: Final = 2
"""Rows that have ended leave once only one in so many goes on: those that stay are copied."""


def decode(
    model: Any,
    rows: KeyValueRows,
    first: Chosen,
    positions: torch.Tensor,
    *,
    stops: Sequence[int],
    max_new_tokens: int,
    penalty: RepetitionPenalty | None = None,
) -> Chosen:
    """first: (B,), the first token of each answer. positions: (B,) of it, as M-RoPE counts.

    Returns (B, max_new_tokens) on the device. What follows a row's stop token is no part of its
    answer. penalty: has seen the prompts and the first tokens.

    Whether a row has ended is looked at one step late on CUDA, so that the device has the next step
    before the host waits for the one before.
    """
    tokens = first.tokens
    answers = tokens.new_zeros(len(tokens), max_new_tokens)
    logprobs = first.logprobs.new_zeros(answers.shape)
    answers[:, 0], logprobs[:, 0] = tokens, first.logprobs
    stop_tokens = torch.tensor(sorted(stops), device=tokens.device)
    ended = torch.isin(tokens, stop_tokens)
    left = torch.arange(len(tokens), device=tokens.device)  # whose answers the rows are
    flags = LateFlags(ended)
    begin = Standing(tokens, positions, rows.prompt_width)
    step = _step(model, rows, begin, max_new_tokens - 1, penalty)
    for count in range(1, max_new_tokens):
        chosen = step.run()
        tokens = chosen.tokens
        answers[left, count], logprobs[left, count] = tokens, chosen.logprobs
        ended = ended | torch.isin(tokens, stop_tokens)
        going_on = [row for row, has_ended in enumerate(flags.read(ended)) if not has_ended]
        if not going_on:
            break
        if LEAVING * len(going_on) <= len(rows):
            kept = torch.tensor(going_on, device=tokens.device)
            at = step.standing()
            del step  # and with it what holds the rows' buffers
            rows.keep(going_on)
            if penalty is not None:
                penalty.keep(kept)
            left, ended = left[kept], ended[kept]
            flags = LateFlags(ended)
            at = Standing(at.tokens[kept], at.positions[kept], at.column)
            step = _step(model, rows, at, max_new_tokens - 1 - count, penalty)
    return Chosen(answers, logprobs)


@dataclass(frozen=True)
class Standing:
    """tokens: (B,) int64, the last of each answer so far. positions: (B,), theirs. column: where
    their keys and values go."""

    tokens: torch.Tensor
    positions: torch.Tensor
    column: int


class Step(Protocol):
    """One token more of every row, each time it runs."""

    def run(self) -> Chosen:
        """The next tokens, (B,); overwritten by the next call."""

    def standing(self) -> Standing:
        """Where the next step begins."""


def _step(
    model: Any, rows: KeyValueRows, at: Standing, steps: int, penalty: RepetitionPenalty | None
) -> Step:
    if steps >= GRAPH_STEPS and _is_on_one_gpu(model):
        seen = None if penalty is None else penalty.seen.clone()
        try:
            return GraphStep(model, rows, at, penalty)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            log.warning("decoding without a captured graph: %s", str(error).splitlines()[0])
            if penalty is not None and seen is not None:
                penalty.seen = seen
    return EagerStep(model, rows, at, penalty)


def _is_on_one_gpu(model: Any) -> bool:
    devices = {parameter.device for parameter in model.parameters()}
    return len(devices) == 1 and devices.pop().type == "cuda" and shard_count(model) == 1


class EagerStep:
    """Kernel by kernel."""

    def __init__(
        self,
        model: Any,
        rows: KeyValueRows,
        at: Standing,
        penalty: RepetitionPenalty | None = None,
    ) -> None:
        self._model = model
        self._choose = greedy if penalty is None else penalty.choose
        self._tokens, self._positions = at.tokens, at.positions
        self._pass = DecodePass(rows, at.column)

    def run(self) -> Chosen:
        states = _states(self._model, self._tokens, self._positions, self._pass)
        chosen = self._choose(next_logits(self._model, states))
        self._tokens = chosen.tokens
        self._positions = self._positions + 1
        self._pass.column += 1
        return chosen

    def standing(self) -> Standing:
        return Standing(self._tokens, self._positions, self._pass.column)


class GraphStep:
    """All kernels of a step as one CUDA graph. Raises RuntimeError where it cannot be captured, or
    does not do what it did before it was."""

    def __init__(
        self,
        model: Any,
        rows: KeyValueRows,
        at: Standing,
        penalty: RepetitionPenalty | None = None,
    ) -> None:
        self._model = model
        self._choose = greedy if penalty is None else penalty.choose
        self._tokens, self._positions = at.tokens.clone(), at.positions.clone()
        self._logprobs = torch.zeros(at.tokens.shape, device=at.tokens.device)
        self._column = torch.tensor([at.column], device=at.tokens.device)
        self._next_column = at.column
        like = model.get_input_embeddings().weight
        self._pass = StaticDecodePass(rows, self._column, like)
        start = [self._tokens, self._positions, self._column]
        if penalty is not None:
            start.append(penalty.seen)
        before = [one.clone() for one in start]

        def restart() -> None:
            for one, value in zip(start, before, strict=True):
                one.copy_(value)

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # a first run, for what libraries set up when first called
            expected = self._advance().clone()
            restart()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads pin memory at the same time, which must not end the capture.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            states = self._advance()
        restart()
        self._graph.replay()
        restart()
        if not torch.allclose(states, expected, rtol=1e-2, atol=1e-2):
            raise RuntimeError("the captured step gives other states than the step itself")

    def _advance(self) -> torch.Tensor:
        self._pass.begin()
        states = _states(self._model, self._tokens, self._positions, self._pass)
        chosen = self._choose(next_logits(self._model, states))
        self._tokens.copy_(chosen.tokens)
        self._logprobs.copy_(chosen.logprobs)
        self._positions += 1
        self._column += 1
        return states

    def run(self) -> Chosen:
        self._graph.replay()
        self._next_column += 1
        return Chosen(self._tokens, self._logprobs)

    def standing(self) -> Standing:
        return Standing(self._tokens, self._positions, self._next_column)


def _states(
    model: Any, tokens: torch.Tensor, positions: torch.Tensor, plan: DecodePass | StaticDecodePass
) -> torch.Tensor:
    """(B,) tokens at (B,) positions -> states after the norm (B, D)."""
    embeddings = model.get_input_embeddings()(tokens[:, None])
    return run_decoder(model, embeddings, positions.expand(3, 1, -1).mT, plan)[:, 0]


class LateFlags:
    """Brings flags to the host: those of the call before on CUDA, so that nothing waits for the
    newest; those of this call elsewhere."""

    def __init__(self, flags: torch.Tensor) -> None:
        self._copies: list[tuple[torch.Tensor, Any]] = []
        if flags.is_cuda:
            self._copies.append(self._copy(flags))

    def read(self, flags: torch.Tensor) -> list[bool]:
        if not flags.is_cuda:
            return flags.tolist()
        self._copies.append(self._copy(flags))
        copy, done = self._copies.pop(0)
        done.synchronize()
        return copy.tolist()

    @staticmethod
    def _copy(flags: torch.Tensor) -> tuple[torch.Tensor, Any]:
        copy = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
        copy.copy_(flags, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        return copy, done
