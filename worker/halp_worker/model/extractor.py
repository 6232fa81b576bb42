"""`Extractor`: a batch in, finished rows out. Each image and each prefix once, greedy answers.

Knows the model and the layout; does not know the stream or the store's files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from halp_producer.job import canonical_json
from halp_producer.results import ABSTAINED
from halp_store.features import FeatureBatch
from halp_store.layout import GRID_COLUMN, Layout
from halp_worker.batcher import Batch
from halp_worker.delivery import row_key
from halp_worker.extraction import Extraction
from halp_worker.fates import DeviceOutOfMemory, Reason, Rejection
from halp_worker.model.decode import decode
from halp_worker.model.faults import as_fault, free_memory
from halp_worker.model.inputs import Sample
from halp_worker.model.likelihood import Chosen, entropy, greedy, mean_logprob
from halp_worker.model.loading import LoadedModel
from halp_worker.model.memory import CHUNK_TOKENS
from halp_worker.model.parts import next_logits
from halp_worker.model.passes import KeyValueRows
from halp_worker.model.penalty import RepetitionPenalty
from halp_worker.model.plan import plan_chunks
from halp_worker.model.prefill import CapturedStates, Prefilled, prefill, to_host
from halp_worker.model.risk import DeviceProbe, Foresight


@dataclass(frozen=True)
class Answer:
    """text without special tokens; tokens before the stop token; `stop` or `length`, `skipped`
    where no answer was asked for, `abstained` where none was generated for its risk."""

    text: str
    tokens: int
    finish_reason: str


class Extractor:
    """Runs batches through one model. One call at a time.

    foresight: with the probe that the layout's risk is of.
    """

    def __init__(
        self, loaded: LoadedModel, layout: Layout, foresight: Foresight | None = None
    ) -> None:
        self._loaded = loaded
        self._layout = layout
        self._foresight = foresight
        self._probe = (
            None if foresight is None else DeviceProbe(foresight.probe, layout, loaded.device)
        )

    def extract(self, batch: Batch[Sample]) -> Extraction:
        """Nothing is half done when this raises.

        Raises DeviceOutOfMemory, and the failed batch holds nothing on the device then; a smaller
        one may follow. Raises DeviceBroken, and FatalError if the model's hooks do not behave.
        """
        try:
            states, generated = self.run(batch.samples)
        except RuntimeError as error:  # all of torch's are
            fault = as_fault(error)
            if fault is None:
                raise
            if isinstance(fault, DeviceOutOfMemory):
                free_memory(error, self._loaded.device)
            raise fault from error
        return self._to_rows(batch.samples, states, self._answers(generated))

    @torch.inference_mode()
    def run(self, samples: Sequence[Sample]) -> tuple[CapturedStates, list[list[int] | None]]:
        """What was captured, and the new tokens of each sample, None where none were generated for
        its risk: all that is on the device is in this frame and those below it. Raises what torch
        raises."""
        model, generation = self._loaded.model, self._loaded.generation
        chunks = plan_chunks(samples, CHUNK_TOKENS)
        order = [row for chunk in chunks for row in chunk.rows]
        prompts = [samples[row].prompt_tokens for row in order]
        rows = KeyValueRows(prompts, generation.max_new_tokens)
        parts: list[Prefilled] = []
        for chunk in chunks:
            first = sum(len(part.tokens) for part in parts)
            parts.append(prefill(model, samples, chunk, self._layout.layers, rows, first))
        logits = next_logits(model, torch.cat([part.last_states for part in parts]))
        scores = {
            "first_token_entropy": entropy(logits),
            "mean_logprob": torch.full((len(order),), torch.nan, device=logits.device),
        }
        asked = list(range(len(order)))
        if self._probe is not None and self._foresight is not None:
            scores["risk"] = self._probe.risk(parts)
            asked = self._foresight.answered(scores["risk"])
        answers: list[list[int] | None] = [None] * len(order)
        if not generation.max_new_tokens:
            answers = [[] for _ in order]
        elif asked:
            found = self._decode(rows, logits, [samples[row] for row in order], asked)
            scores["mean_logprob"][asked] = mean_logprob(found, generation.stop_tokens)
            for row, tokens in zip(asked, found.tokens.tolist(), strict=True):
                answers[row] = tokens
        back = np.argsort(order)
        return to_host(parts, scores).take(back), [answers[row] for row in back]

    def _decode(
        self, rows: KeyValueRows, logits: torch.Tensor, samples: Sequence[Sample], asked: list[int]
    ) -> Chosen:
        """Only the rows that are asked. logits: (B, V) of the first token."""
        if len(asked) < len(rows):
            rows.keep(asked)
            logits = logits[torch.tensor(asked, device=logits.device)]
            samples = [samples[row] for row in asked]
        generation = self._loaded.generation
        penalty = None
        if generation.repetition_penalty != 1.0:
            prompts = [sample.input_ids for sample in samples]
            value = generation.repetition_penalty
            penalty = RepetitionPenalty.of_prompts(value, prompts, logits)
        return decode(
            self._loaded.model,
            rows,
            greedy(logits) if penalty is None else penalty.choose(logits),
            torch.tensor([sample.next_position for sample in samples], device=logits.device),
            stops=generation.stop_tokens,
            max_new_tokens=generation.max_new_tokens,
            penalty=penalty,
        )

    def _answers(self, generated: Sequence[Sequence[int] | None]) -> list[Answer]:
        stops = set(self._loaded.generation.stop_tokens)
        tokenizer = self._loaded.processor.tokenizer
        answers = []
        for tokens in generated:
            if tokens is None:
                answers.append(Answer("", 0, ABSTAINED))
                continue
            end = next((i for i, token in enumerate(tokens) if token in stops), None)
            kept = list(tokens[:end])
            text = tokenizer.decode(kept, skip_special_tokens=True)
            answers.append(Answer(text, len(kept), self._finish_reason(end)))
        return answers

    def _finish_reason(self, end: int | None) -> str:
        if not self._loaded.generation.max_new_tokens:
            return "skipped"
        return "length" if end is None else "stop"

    def _to_rows(
        self, samples: Sequence[Sample], states: CapturedStates, answers: list[Answer]
    ) -> Extraction:
        rejections = []
        finite = []
        for row, sample in enumerate(samples):
            places = self._not_finite(states, row) or _not_finite_scores(states, answers[row], row)
            if places:
                error = f"values are not finite: {', '.join(places)}"
                rejections.append((row_key(sample.job), Rejection(Reason.NOT_FINITE, error)))
            else:
                finite.append(row)
        features = self._features(samples, states, answers, finite) if finite else None
        return Extraction(features, tuple(rejections))

    def _not_finite(self, states: CapturedStates, row: int) -> list[str]:
        """Where this row holds NaN or infinity, in the store's words; empty if nowhere."""
        places = [
            name
            for name in ("vision_only", "vision_encoder")
            if not np.isfinite(getattr(states, name)[row]).all()
        ]
        for p, position in enumerate(self._layout.positions):
            for i, layer in enumerate(self._layout.layers):
                if not np.isfinite(states.tokens[row, p, i]).all():
                    places.append(f"{position} layer {layer}")
        return places

    def _features(
        self,
        batch: Sequence[Sample],
        states: CapturedStates,
        answers: list[Answer],
        rows: list[int],
    ) -> FeatureBatch:
        samples = [batch[row] for row in rows]
        kept = [answers[row] for row in rows]
        jobs = [sample.job for sample in samples]
        positions = self._layout.positions
        return FeatureBatch(
            layout=self._layout,
            text={
                "question_id": tuple(job.question_id for job in jobs),
                "question_text": tuple(job.question for job in jobs),
                "image": tuple(job.image for job in jobs),
                "image_sha256": tuple(sample.image.sha256 for sample in samples),
                "ground_truth": tuple(job.ground_truth for job in jobs),
                "answer": tuple(answer.text for answer in kept),
                "finish_reason": tuple(answer.finish_reason for answer in kept),
                "metadata": tuple(canonical_json(job.metadata) for job in jobs),
                "content_hash": tuple(job.content_hash for job in jobs),
            },
            integers={
                "prompt_tokens": _int64([sample.prompt_tokens for sample in samples]),
                "image_tokens": _int64([sample.image.tokens for sample in samples]),
                "answer_tokens": _int64([answer.tokens for answer in kept]),
                **{
                    f"{position}_position": _int64([sample.positions[p] for sample in samples])
                    for p, position in enumerate(positions)
                },
                GRID_COLUMN: np.concatenate([sample.image.grid_thw.numpy() for sample in samples]),
            },
            vectors={
                "vision_only": states.vision_only[rows],
                "vision_encoder": states.vision_encoder[rows],
                **{position: states.tokens[rows, p] for p, position in enumerate(positions)},
            },
            scores={name: states.scores[name][rows] for name in self._layout.scores},
        )


def _not_finite_scores(states: CapturedStates, answer: Answer, row: int) -> list[str]:
    """As `_not_finite`. An answer that was not generated has no `mean_logprob`."""
    is_silent = answer.finish_reason in (ABSTAINED, "skipped")
    return [
        name
        for name, values in states.scores.items()
        if not np.isfinite(values[row]) and not (is_silent and name == "mean_logprob")
    ]


def _int64(values: list[int]) -> Any:
    return np.array(values, dtype=np.int64)
