"""`extract_each`: a batch through the extractor, whatever happens to it.

A batch that fails is halved until the guilty job stands alone; the others are finished.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from halp_store.errors import StoreError
from halp_worker.batcher import Batch
from halp_worker.extraction import Extraction
from halp_worker.fates import DeviceOutOfMemory, FatalError, Reason, Setback
from halp_worker.mention import jobs, named

log = logging.getLogger(__name__)


def extract_each(
    extract: Callable[[Batch[Any]], Extraction],
    batch: Batch[Any],
    on_out_of_memory: Callable[[Batch[Any]], None],
) -> list[Extraction]:
    """One extraction, or those of the halves. on_out_of_memory: is told which batch was too much.

    Raises FatalError or StoreError: those are no job's fault.
    """
    try:
        return [extract(batch)]
    except DeviceOutOfMemory as error:
        on_out_of_memory(batch)
        setback = Setback(Reason.OUT_OF_MEMORY, str(error))
    except (FatalError, StoreError):
        raise
    except Exception as error:  # noqa: BLE001 - anything a model may raise over one input
        setback = Setback.of(Reason.EXTRACTION_FAILED, error)
    # Out here the exception is gone, and with it the tensors that its frames held.
    if len(batch) == 1:
        return [Extraction(None, ((batch.keys[0], setback),))]
    ids = [key.question_id for key in batch.keys]
    log.warning(
        "a batch of %d failed (%s): halving it: %s",
        len(ids),
        setback.error,
        named(ids),
        extra={**jobs(ids), "reason": setback.reason},
    )
    middle = len(batch) // 2
    halves = (batch.take(range(middle)), batch.take(range(middle, len(batch))))
    return [one for half in halves for one in extract_each(extract, half, on_out_of_memory)]
