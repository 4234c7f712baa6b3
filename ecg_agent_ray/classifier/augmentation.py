"""What is done to a training batch so that few records teach more.

Every draw is keyed by (seed, epoch, record), not by worker or batch: a run on four workers, or one
resumed in the middle, sees the very same signals as a run on one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ecg_agent_ray.classifier.labels import configuration_leads
from ecg_agent_ray.classifier.preprocessing import STANDARD_LEADS

__all__ = ["Augmentation", "augment", "mask_leads"]


@dataclass(frozen=True)
class Augmentation:
    """Strengths. A probability is per record and epoch."""

    shift: bool = True
    """Rotate in time by any amount (the seam is one beat of fifteen)."""
    gain: float = 0.2
    """Largest relative change of all leads together; half of it of each lead by itself."""
    noise_mv: float = 0.01
    """Standard deviation of added white noise, mV."""
    single_lead: float = 0.2
    """Probability of only lead I, or only lead II (half each), being left."""
    lead_dropout: float = 0.2
    """Probability that each lead is zeroed with probability 1/4."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def mask_leads(windows: Tensor, configuration: str) -> Tensor:
    """(B, 12, samples) with the leads outside the configuration set to zero."""
    keep = torch.tensor([name in configuration_leads(configuration) for name in STANDARD_LEADS])
    return windows * keep.to(windows)[None, :, None]


def augment(
    windows: Tensor, keys: list[int], *, seed: int, epoch: int, options: Augmentation
) -> Tensor:
    """Augmented copy of (B, 12, samples) mV; ``keys`` are the records' indices in the data set."""
    return torch.stack(
        [
            _augment_one(window, seed * 1_000_003 + epoch * 100_003 + key, options)
            for window, key in zip(windows, keys, strict=True)
        ]
    )


def _augment_one(window: Tensor, key: int, options: Augmentation) -> Tensor:
    generator = torch.Generator().manual_seed(key)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    leads, samples = window.shape
    if options.shift:
        window = window.roll(int(uniform(1) * samples), dims=1)
    change = 1 + options.gain * (2 * uniform(1, 1) - 1)
    change = change * (1 + options.gain / 2 * (2 * uniform(leads, 1) - 1))
    present = (window != 0).any(dim=1, keepdim=True)
    window = window * change
    if options.noise_mv:
        window = window + options.noise_mv * torch.randn(leads, samples, generator=generator)
    choice, drop = float(uniform(1)), uniform(leads, 1)
    if choice < options.single_lead:
        # rows 0 and 1 are leads I and II
        keep = torch.arange(leads)[:, None] == int(choice < options.single_lead / 2)
    elif choice < options.single_lead + options.lead_dropout:
        keep = drop > 0.25
    else:
        keep = torch.ones(leads, 1, dtype=torch.bool)
    return window * (keep & present)
