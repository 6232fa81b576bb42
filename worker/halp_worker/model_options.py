"""Options that commands with a model share: what each of them is, and its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from halp_worker.settings import Dtype


def check_abstaining(probe: Path | None, abstain_above: float | None, *, no_answer: bool) -> None:
    """Raises BadParameter where the three do not go together."""
    if abstain_above is None:
        return
    if probe is None:
        raise typer.BadParameter(
            "needs --probe, which gives the risk", param_hint="--abstain-above"
        )
    if no_answer:
        raise typer.BadParameter(
            "goes without --no-answer, which generates no answer at all",
            param_hint="--abstain-above",
        )


Model = Annotated[
    str, typer.Option(envvar="HALP_MODEL", help="Hub id or folder of a Qwen2.5-VL checkpoint.")
]
Revision = Annotated[
    str | None, typer.Option(envvar="HALP_REVISION", help="Branch, tag or commit on the hub.")
]
Device = Annotated[
    str,
    typer.Option(envvar="HALP_DEVICE", help="auto (CUDA, else MPS, else CPU), cpu, cuda:1, ..."),
]
DtypeOption = Annotated[
    Dtype,
    typer.Option("--dtype", envvar="HALP_DTYPE", help="What the model computes in."),
]
MaxNewTokens = Annotated[
    int, typer.Option(envvar="HALP_MAX_NEW_TOKENS", min=1, help="Longest answer, in tokens.")
]
MinPixels = Annotated[
    int | None,
    typer.Option(
        envvar="HALP_MIN_PIXELS", min=1, help="Smaller images are enlarged. [checkpoint's own]"
    ),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        envvar="HALP_MAX_PIXELS",
        min=1,
        help="Larger images are shrunk: 28 x 28 pixels are one token. [checkpoint's own]",
    ),
]
NoAnswer = Annotated[
    bool,
    typer.Option(
        "--no-answer",
        envvar="HALP_NO_ANSWER",
        help="Only the states of the prompt: no answer is generated, and none is stored.",
    ),
]


def _above_nothing(value: float) -> float:
    # NaN and infinity, too, give no order of tokens.
    if not 0 < value < float("inf"):
        raise typer.BadParameter(f"expected a number above 0, got {value}")
    return value


RepetitionPenalty = Annotated[
    float,
    typer.Option(
        envvar="HALP_REPETITION_PENALTY",
        callback=_above_nothing,
        help="Make tokens of the prompt and the answer less likely, as `generate` does: the "
        "published checkpoints carry 1.05. 1 is none.",
    ),
]
Layers = Annotated[
    str, typer.Option(envvar="HALP_LAYERS", help="auto (0, n/4, n/2, 3n/4, n-1) or 0,7,14.")
]
Positions = Annotated[
    str,
    typer.Option(
        envvar="HALP_POSITIONS",
        help="Extra token positions besides vision_token and query_token, comma-separated: "
        "question_token, halp_reference.",
    ),
]
ImageRoot = Annotated[
    Path,
    typer.Option(
        envvar="HALP_IMAGE_ROOT",
        exists=True,  # a slip here would reject every job of the run
        file_okay=False,
        help="Images are found below this folder and nowhere else.",
    ),
]


def _within(value: float | None) -> float | None:
    # NaN, too: it is neither below nor above anything.
    if value is not None and not 0 <= value <= 1:
        raise typer.BadParameter(f"expected a number from 0 to 1, got {value}")
    return value


ProbeFile = Annotated[
    Path | None,
    typer.Option(
        "--probe",
        envvar="HALP_PROBE",
        exists=True,
        dir_okay=False,
        metavar="FILE",
        help="A probe that `halp-probe fit --save` wrote: each row gets its risk, how likely the "
        "answer is wrong, before the first token.",
    ),
]
AbstainAbove = Annotated[
    float | None,
    typer.Option(
        envvar="HALP_ABSTAIN_ABOVE",
        callback=_within,
        help="With --probe, from 0 to 1: an answer whose risk is above this is not generated.",
    ),
]
AllowUrls = Annotated[
    bool, typer.Option("--allow-urls", envvar="HALP_ALLOW_URLS", help="Also fetch http(s) images.")
]
