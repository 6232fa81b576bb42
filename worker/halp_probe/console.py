"""What the commands of `halp-probe` share: options, errors as one sentence, exit code 1.

Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from halp_probe.errors import ProbeError
from halp_store.console import fail
from halp_store.errors import StoreError

NEEDS_EXTRA: Final = "halp-probe needs what is not installed: pip install 'halp-stream[probe]'"
_OF_EXTRA: Final = {
    *("numpy", "zarr", "sklearn", "matplotlib", "jinja2", "requests", "safetensors", "PIL"),
    *("numcodecs", "google_crc32c"),
}

LabelsFolder = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        metavar="DIR",
        help="Where the label tables are. [beside the store: run1.zarr has run1.labels]",
    ),
]


@contextmanager
def explained() -> Iterator[None]:
    """Ends the process with one sentence for what a user can mend."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in _OF_EXTRA:
            raise
        fail(NEEDS_EXTRA)
    except (ProbeError, StoreError, OSError) as error:
        fail(str(error))
