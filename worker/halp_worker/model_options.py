"""Options that commands with a model share: what each of them is, and its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from halp_worker.settings import Dtype

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
AllowUrls = Annotated[
    bool, typer.Option("--allow-urls", envvar="HALP_ALLOW_URLS", help="Also fetch http(s) images.")
]
