"""`encode_images`: distinct images through the vision encoder, once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from halp_worker.fates import FatalError
from halp_worker.model.inputs import PreparedImage
from halp_worker.model.parts import vision_encoder


@dataclass(frozen=True)
class EncodedImages:
    """Of G images, on the device.

    tokens: (sum of tokens, D), merged, in raster order, image after image.
    vision_only: (G, D) float32, mean over the image's merged tokens.
    vision_encoder: (G, V) float32, mean over the image's patches before the merger.
    """

    tokens: torch.Tensor
    vision_only: torch.Tensor
    vision_encoder: torch.Tensor


def encode_images(model: Any, images: Sequence[PreparedImage]) -> EncodedImages:
    """One pass. Raises FatalError if the encoder returns another number of tokens than it must."""
    encoder = vision_encoder(model)
    weight = next(encoder.parameters())
    pixels = torch.cat(
        [image.pixel_values.to(weight.device, non_blocking=True) for image in images]
    )
    grids = torch.cat([image.grid_thw for image in images]).to(weight.device)
    output = encoder(pixels.to(weight.dtype), grid_thw=grids)
    merged, patches = output.pooler_output, output.last_hidden_state
    tokens = [image.tokens for image in images]
    if merged.shape[0] != sum(tokens):
        raise FatalError(
            f"vision encoder: {merged.shape[0]} tokens for {len(images)} images that have "
            f"{sum(tokens)}: this is not the Qwen2.5-VL we know"
        )
    return EncodedImages(
        tokens=merged,
        vision_only=_mean_per_image(merged, tokens),
        # In window order, but windows never cross images: a mean per image is the same.
        vision_encoder=_mean_per_image(patches, [image.pixel_values.shape[0] for image in images]),
    )


def _mean_per_image(values: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """(sum of counts, D) of B images -> (B, D) float32. Sums in float32 whatever the dtype."""
    return torch.stack([part.float().mean(dim=0) for part in torch.split(values, counts)])
