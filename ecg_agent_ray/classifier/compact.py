"""A small convolutional ECG classifier with a rhythm branch, for few records and a CPU.

A transformer over raw samples learns little from a few hundred recordings. This network has the
same interface (:class:`~ecg_agent_ray.classifier.model.ClassifierOutput`) and two inductive biases
that need no data: *morphology* from a residual 1-D network at 100 Hz (the xresnet1d family of the
PTB-XL benchmark, Strodthoff et al. 2021, doi:10.1109/JBHI.2020.3022989, much reduced), and *rhythm*
from the autocorrelation of a QRS energy envelope, whose peak is the RR interval and whose decay
tells irregularity. The whole is about 0.1 M parameters and reads a 10 s record in a few
milliseconds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecg_agent_ray.classifier.model import ClassifierOutput

__all__ = ["CompactECGClassifier", "CompactECGConfig"]


@dataclass(frozen=True)
class CompactECGConfig:
    """Sizes. ``decimation`` is from 500 Hz input samples to the network's own rate."""

    num_labels: int = 71
    in_leads: int = 12
    width: int = 32
    """Channels of the first stage; doubled at the third and fourth."""
    rhythm_width: int = 24
    decimation: int = 5
    dropout: float = 0.3

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CompactECGConfig:
        return cls(**values)


class _Residual(nn.Module):
    """Two convolutions and a pooled shortcut; group norm, so that a batch of one trains too."""

    def __init__(self, channels_in: int, channels: int, stride: int, kernel: int = 7) -> None:
        super().__init__()
        pad = kernel // 2
        self.conv1 = nn.Conv1d(channels_in, channels, kernel, stride, pad, bias=False)
        self.norm1 = nn.GroupNorm(4, channels)
        self.conv2 = nn.Conv1d(channels, channels, kernel, 1, pad, bias=False)
        self.norm2 = nn.GroupNorm(4, channels)
        self.pool = nn.AvgPool1d(stride, ceil_mode=True) if stride > 1 else nn.Identity()
        self.shortcut = (
            nn.Conv1d(channels_in, channels, 1) if channels_in != channels else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.gelu(y + self.shortcut(self.pool(x)))


class RhythmBranch(nn.Module):
    """Heart rate and its regularity, from the autocorrelation of the QRS energy envelope.

    The envelope is the length of the lead vector's slope, so every lead that is there counts. From
    the correlation at lags 0.3 to 2.2 s (27 to 200 beats a minute) come, with a learned sharpness:
    the expected RR as a rate, how far it is beyond 60 and 100, its spread, and the peak's height. A
    small network over the whole curve adds what these leave out, such as the pause of a premature
    beat.
    """

    min_lag_s, max_lag_s = 0.3, 2.2
    summary_size = 6
    bpm: Tensor

    def __init__(self, width: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.first, last = round(self.min_lag_s * rate), round(self.max_lag_s * rate)
        self.count = last - self.first
        lags = torch.arange(self.first, last) / rate
        self.register_buffer("bpm", 60.0 / lags, persistent=False)
        self.sharpness = nn.Parameter(torch.tensor(30.0))
        self.curve = nn.Sequential(
            nn.Conv1d(1, 8, 9, 4, 4),
            nn.GELU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(8 * -(-self.count // 4), width),
            nn.GELU(),
        )

    def autocorrelation(self, x: Tensor) -> Tensor:
        """(B, leads, T) at ``rate`` -> (B, lags), relative to lag 0, RR multiples removed."""
        envelope = (x[..., 1:] - x[..., :-1]).square().sum(1).add(1e-12).sqrt()
        smooth = round(0.08 * self.rate) | 1
        envelope = F.avg_pool1d(envelope[:, None], smooth, 1, smooth // 2)[:, 0]
        envelope = envelope - envelope.mean(-1, keepdim=True)
        size = 2 * envelope.shape[-1]
        power = torch.fft.rfft(envelope.float(), n=size).abs().square()
        correlation = torch.fft.irfft(power, n=size)
        correlation = correlation / correlation[:, :1].clamp(min=1e-9)
        last = self.first + self.count
        correlation = F.pad(correlation, (0, max(0, last - correlation.shape[-1])))[:, :last]
        # a lag whose half or third correlates too is two or three beats: take those away
        # (enhanced autocorrelation, Tolonen & Karjalainen 2000, doi:10.1109/89.876309)
        positive = correlation.clamp(min=0)
        for divisor in (2, 3):
            positive = positive - _stretch(correlation.clamp(min=0), divisor)
        return positive.clamp(min=0)[:, self.first :]

    def summary(self, correlation: Tensor) -> Tensor:
        """(B, lags) -> (B, 6), each about -1 to 1."""
        weight = (correlation * self.sharpness).softmax(-1)
        bpm = (weight * self.bpm).sum(-1)
        spread = (weight * (self.bpm - bpm[:, None]).square()).sum(-1).add(1e-6).sqrt()
        peak = correlation.amax(-1)
        columns = (
            (bpm - 80) / 40,
            F.softplus((bpm - 100) / 4) / 4,
            F.softplus((60 - bpm) / 2) / 4,
            spread / 20 - 1,
            peak * 2 - 1,
            (peak - correlation.mean(-1)) * 2 - 1,
        )
        return torch.stack(columns, dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        correlation = self.autocorrelation(x)
        return torch.cat([self.summary(correlation), self.curve(correlation[:, None])], dim=-1)


def _stretch(x: Tensor, factor: int) -> Tensor:
    """Value at lag k / factor for every lag k, linearly interpolated, (B, lags)."""
    count = x.shape[-1]
    short = x[:, None, : -(-count // factor) + 1]
    size = (short.shape[-1] - 1) * factor + 1
    return F.interpolate(short, size=size, mode="linear", align_corners=True)[:, 0, :count]


class CompactECGClassifier(nn.Module):
    architecture = "compact"

    def __init__(self, config: CompactECGConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.stem = nn.Conv1d(config.in_leads, width, 11, 2, 5)
        self.blocks = nn.Sequential(
            _Residual(width, width, 2),
            _Residual(width, width * 2, 2),
            _Residual(width * 2, width * 3, 2),
        )
        self.rhythm = RhythmBranch(config.rhythm_width, 500.0 / config.decimation)
        self.dropout = nn.Dropout(config.dropout)
        rhythm_out = config.rhythm_width + RhythmBranch.summary_size
        self.proj = nn.Linear(width * 6 + rhythm_out, config.num_labels)

    def forward(self, source: Tensor, padding_mask: Tensor | None = None) -> ClassifierOutput:
        """As :meth:`ECGTransformerClassifier.forward`; padded samples are read as zero."""
        if padding_mask is not None:
            mask = padding_mask if padding_mask.dim() == 3 else padding_mask[:, None]
            source = source.masked_fill(mask, 0.0)
        # averaging is the anti-alias filter: -3 dB at 44 Hz for 500 -> 100 Hz
        x = F.avg_pool1d(source, self.config.decimation)
        # the mean over a 1 s window is baseline, which drifts and says nothing
        window = round(1.0 * 500 / self.config.decimation) | 1
        x = x - F.avg_pool1d(x, window, 1, window // 2, count_include_pad=False)
        features = self.blocks(F.gelu(self.stem(x)))
        morphology = self.dropout(torch.cat([features.mean(-1), features.amax(-1)], dim=1))
        # the rhythm summary is few and exact: dropping of it would only add noise
        pooled = torch.cat([morphology, self.rhythm(x)], dim=1)
        return ClassifierOutput(self.proj(pooled), features.transpose(1, 2), pooled)
