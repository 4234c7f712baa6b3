"""What pre-training hides and compares with: leads (RLM), spans of frames, negatives.

All draws come from the generator they are given, on the CPU, so that a resumed or re-run job sees
the same ones whatever the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ecg_agent_ray.errors import ConfigError

__all__ = ["mask_leads_at_random", "sample_negatives", "time_mask"]

_MIN_SPANS = 2


def mask_leads_at_random(
    source: Tensor, probability: float, generator: torch.Generator | None = None
) -> Tensor:
    """Copy of (B, leads, samples) with each lead zeroed with ``probability``, independently.

    Nothing prevents all leads of a signal from being zeroed, as in fairseq-signals.
    """
    keep = torch.rand(source.shape[:2], generator=generator) >= probability
    return source * keep.to(source)[..., None]


def time_mask(
    batch: int,
    frames: int,
    *,
    probability: float = 0.65,
    length: int = 10,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(batch, frames) bool, the same count of True in each row.

    Each row gets max(2, floor(probability * frames / length + u)) spans of ``length`` frames with
    distinct starts, u uniform in [0, 1) once for the batch; spans may overlap. Rows that then mask
    more frames than the poorest row give up random ones of them (wav2vec 2.0's static masking).

    Raises
    ------
    ConfigError
        Signals too short to hold the spans.
    """
    share = float(torch.rand((), generator=generator))
    spans = max(_MIN_SPANS, int(probability * frames / length + share))
    starts = frames - length
    if starts < spans:
        raise ConfigError(
            f"{frames} frames cannot hold {spans} masked spans of {length}",
            hint="longer segments, or a smaller mask_length or mask_prob",
        )
    mask = torch.zeros(batch, frames, dtype=torch.bool)
    for row in mask:
        chosen = torch.randperm(starts, generator=generator)[:spans]
        row[(chosen[:, None] + torch.arange(length)).flatten()] = True
    fewest = int(mask.sum(1).min())
    for row in mask:
        places = row.nonzero().flatten()
        if len(places) > fewest:
            row[places[torch.randperm(len(places), generator=generator)[fewest:]]] = False
    return mask


def sample_negatives(
    batch: int, masked: int, count: int, generator: torch.Generator | None = None
) -> Tensor:
    """(batch, masked, count) indices into the row's masked frames, never the frame's own.

    Raises
    ------
    ConfigError
        Fewer than two masked frames.
    """
    if masked < 2:
        raise ConfigError(f"{masked} masked frames leave no other frame to compare with")
    drawn = torch.randint(0, masked - 1, (batch, masked, count), generator=generator)
    own = torch.arange(masked)[None, :, None]
    return drawn + (drawn >= own)
