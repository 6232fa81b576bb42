"""Which tokens of a prompt have their states stored. Pure: token ids in, indices out.

Positions count from 0 in the UNPADDED prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Prompt:
    """input_ids: T token ids, unpadded. grid_patches: t*h*w of the image, before the merge."""

    input_ids: Sequence[int]
    grid_patches: int
    image_token_id: int
    turn_end_id: int

    @property
    def last_image_token(self) -> int:
        """The last of the image's own tokens; raises ValueError if there is none."""
        return _last_index(self.input_ids, self.image_token_id)

    @property
    def last_token(self) -> int:
        return len(self.input_ids) - 1

    @property
    def last_question_token(self) -> int:
        """The token before the user turn's end: the chat template puts nothing between them."""
        return _last_index(self.input_ids, self.turn_end_id) - 1

    @property
    def published_index(self) -> int:
        """The published scripts' boundary, min(t*h*w, T // 2): a patch inside the image.

        Only to reproduce their numbers; it is no boundary of anything.
        """
        return min(self.grid_patches, len(self.input_ids) // 2)


POSITIONS: Final[dict[str, Callable[[Prompt], int]]] = {
    "vision_token": lambda prompt: prompt.last_image_token,
    "query_token": lambda prompt: prompt.last_token,
    "question_token": lambda prompt: prompt.last_question_token,
    "halp_reference": lambda prompt: prompt.published_index,
}
"""Every position there is, by the name of its array in the store."""


def find_positions(prompt: Prompt, names: Sequence[str]) -> tuple[int, ...]:
    """The index of each named position, in the order of `names`."""
    return tuple(POSITIONS[name](prompt) for name in names)


def _last_index(values: Sequence[int], wanted: int) -> int:
    for index in range(len(values) - 1, -1, -1):
        if values[index] == wanted:
            return index
    raise ValueError(f"token {wanted} is not in the prompt")
