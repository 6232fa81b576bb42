"""The report of extract.py as Markdown, and its targets. Knows the names of its figures alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

WAYS: Final = {"reference": "reference loop", "plain": "plain generate", "worker": "worker"}

TARGETS: Final[Mapping[str, Mapping[str, float]]] = {
    "small": {"times reference": 4, "times plain": 1.5},
    "3b": {},
    "7b": {"samples/s": 11, "times reference": 15, "times plain": 3, "busy": 0.9},
}
"""Of the worker: small on a CPU, 7b on an H100."""


def targets_of(shape: str, ways: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    worker = ways.get("worker", {})
    return [
        {
            "figure": name,
            "target": target,
            "value": worker[name],
            "reached": worker[name] >= target,
        }
        for name, target in TARGETS[shape].items()
        if name in worker
    ]


DISTURBED: Final = 0.25
"""Processors. The server and the system take less."""


def is_disturbed(ways: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether other processes had a part in these figures."""
    used = (figures["processors of others"] for figures in ways.values())
    return any(one is not None and one > DISTURBED for one in used)


ROWS: Final[Mapping[str, str]] = {
    "samples/s": "{:,.2f}",
    "times reference": "{:.2f}",
    "times plain": "{:.2f}",
    "samples in a call": "{:.1f}",
    "prefill tokens/s": "{:,.0f}",
    "decode tokens/s": "{:,.0f}",
    "busy": "{:.1%}",
    "inside the model's calls": "{:.1%}",
    "peak MiB": "{:,.0f}",
    "GFLOP a sample": "{:,.3g}",
    "flops of the minimum": "{:.2f}",
    "roofline samples/s": "{:,.1f}",
    "of the roofline": "{:.2%}",
}
NAMES: Final = {
    "times reference": "times the reference loop",
    "times plain": "times plain generate",
    "flops of the minimum": "FLOPs by the minimum",
    "roofline samples/s": "roofline at that many in a call, samples/s",
}


def show(report: Mapping[str, Any]) -> None:
    ways = report["ways"]
    print(
        f"{report['shape']} ({report['parameters'] / 1e6:,.1f} M parameters, {report['dtype']}) "
        f"on {report['device']}, torch {report['versions']['torch']}: "
        f"{report['questions']} questions on {report['images']} images, "
        f"{report['prompt tokens']:,.0f} prompt tokens ({report['image tokens']:,.0f} of the "
        f"image), {report['new tokens']} new ones.\n"
    )
    table(["", *(WAYS[name] for name in ways)], list(map(list, rows_of(ways))))
    print("\nStages, ms a sample and share of the time:\n")
    table(
        ["way", "stage", "ms a sample", "share"],
        [line for name, one in ways.items() for line in stage_rows(name, one)],
    )
    print(
        f"\nMeasured here: {report['peak flops/s'] / 1e12:,.3g} TFLOP/s in a matrix product, "
        f"{report['copy bytes/s'] / 1e9:,.3g} GB/s in a copy. The minimum is "
        f"{report['minimum flops a sample'] / 1e9:,.3g} GFLOP a sample; its formula gives "
        f"{report['formula by count']:.4f} of what is counted in one forward."
    )
    for note in notes_of(report):
        print(f"\n{note}")
    for one in report["targets"]:
        said = "reached" if one["reached"] else "NOT reached"
        said += ", but disturbed" if report["disturbed"] else ""
        name = NAMES.get(one["figure"], one["figure"])
        print(f"\nTarget {name} {one['target']:g}: {one['value']:.2f}, {said}.", end="")
    print(flush=True)


def rows_of(ways: Mapping[str, Mapping[str, Any]]) -> Sequence[Sequence[str]]:
    rows = []
    for key, how in ROWS.items():
        cells = []
        for figures in ways.values():
            values = {
                **figures,
                "peak MiB": figures["peak bytes"] / 2**20,
                "GFLOP a sample": figures["flops a sample"] / 1e9,
            }
            cells.append(how.format(values[key]) if key in values else "")
        if any(cells):
            rows.append([NAMES.get(key, key), *cells])
    return rows


def stage_rows(name: str, figures: Mapping[str, Any]) -> list[list[str]]:
    timed = {k: v for k, v in figures["stages"].items() if "not timed" not in k}
    rest = figures["seconds"] - sum(timed.values())
    rows = []
    stages = dict(figures["stages"])
    # Less than nothing: stages run beside each other.
    stages |= {"all else": rest} if rest >= 0 else {}
    for stage, seconds in stages.items():
        share = f"{seconds / figures['seconds']:.1%}" if "not timed" not in stage else ""
        milliseconds = 1000 * seconds / figures["samples"]
        rows.append([WAYS[name], stage, f"{milliseconds:.2f}", share])
    return rows


def notes_of(report: Mapping[str, Any]) -> list[str]:
    ways: Mapping[str, Mapping[str, Any]] = report["ways"]
    notes = [
        f"{WAYS[name]}: FLOPs could not be counted where it runs: {figures['not counted']}"
        for name, figures in ways.items()
        if figures["not counted"]
    ]
    notes += [
        f"{WAYS[name]}: fewer FLOPs counted than the minimum: part of them runs where the counter "
        "does not see it (replayed graphs, kernels without a formula)."
        for name, figures in ways.items()
        if figures["flops of the minimum"] < 0.99
    ]
    if any(figures["busy by"] == "calls" for figures in ways.values()):
        notes.append(
            "Busy is time inside the model's calls (of the worker: of its extractor) by wall time."
        )
    if report["disturbed"]:
        others = max(figures["processors of others"] for figures in ways.values())
        notes.append(
            f"DISTURBED: other processes used up to {others:.1f} processors meanwhile. Threads "
            "that wait for each other are then slower many times over: no figure here holds. Run "
            "it when nothing else runs (or, to compare alone, with OMP_NUM_THREADS=1)."
        )
    if report["device"].startswith("cpu"):
        notes.append("Memory is the resident memory of the whole process, model included.")
    return notes


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
