"""A small ECG classifier that reads the typical beat and the rhythm, for few records and a CPU.

A transformer over raw samples learns little from a few hundred recordings. This network has the
same interface (:class:`~ecg_agent_ray.classifier.model.ClassifierOutput`) and does first, without
parameters, what a reader of ECGs does: find the QRS complexes, lay the beats over each other,
measure the intervals between them. What is learned is small (about 0.05 M parameters): a
convolution over the typical beat in which each position keeps its meaning, and one linear layer
over that and the rhythm.

What it cannot see: anything that is neither in the typical beat nor in the intervals, such as
flutter waves between beats or one aberrant beat's shape.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecg_agent_ray.classifier.model import ClassifierOutput

__all__ = ["BeatRhythmClassifier", "BeatRhythmConfig", "find_beats"]


@dataclass(frozen=True)
class BeatRhythmConfig:
    """Sizes. ``decimation`` is from 500 Hz input samples to the network's own rate."""

    num_labels: int = 71
    in_leads: int = 12
    channels: int = 24
    width: int = 48
    rhythm_scale: float = 3.0
    """Factor on the rhythm numbers: they are few, and their weights must grow as fast as those of
    the many learned features together."""
    decimation: int = 5
    dropout: float = 0.5

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BeatRhythmConfig:
        return cls(**values)


def find_beats(x: Tensor, rate: float) -> Tensor:
    """(B, leads, T) at ``rate`` -> (B, T) bool, True at each QRS complex.

    Peaks of the QRS energy envelope that are the greatest within 0.15 s on both sides and above a
    third of the record's usual peak: the median over 2 s stretches, so that neither one large
    ectopic beat nor one artefact sets it.
    """
    envelope = _envelope(x, rate)
    half = round(0.15 * rate)
    local = F.max_pool1d(envelope[:, None], 2 * half + 1, 1, half)[:, 0]
    stretch = min(round(2 * rate), envelope.shape[-1])
    usual = F.max_pool1d(envelope[:, None], stretch)[:, 0].median(dim=-1).values
    return (envelope >= local) & (envelope > usual[:, None] / 3) & (envelope > 1e-4)


def _envelope(x: Tensor, rate: float) -> Tensor:
    """Length of the lead vector's slope, smoothed over 0.08 s: every lead that is there counts."""
    envelope = (x[..., 1:] - x[..., :-1]).square().sum(1).add(1e-12).sqrt()
    smooth = round(0.08 * rate) | 1
    return F.avg_pool1d(envelope[:, None], smooth, 1, smooth // 2)[:, 0]


class RhythmBranch(nn.Module):
    """Heart rate and regularity, from the QRS envelope's autocorrelation and from RR intervals.

    Nothing in it is learned but how sharply the autocorrelation's peak is read, so that a rhythm
    takes a handful of records to tell.
    """

    min_lag_s, max_lag_s = 0.3, 2.2
    size = 12
    bpm: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.first, self.last = round(self.min_lag_s * rate), round(self.max_lag_s * rate)
        lags = torch.arange(self.first, self.last) / rate
        self.register_buffer("bpm", 60.0 / lags, persistent=False)
        self.sharpness = nn.Parameter(torch.tensor(20.0))

    def autocorrelation(self, x: Tensor) -> Tensor:
        """(B, leads, T) at ``rate`` -> (B, lags), relative to lag 0, RR multiples removed."""
        envelope = _envelope(x, self.rate)
        envelope = envelope - envelope.mean(-1, keepdim=True)
        size = 2 * envelope.shape[-1]
        power = torch.fft.rfft(envelope.float(), n=size).abs().square()
        correlation = torch.fft.irfft(power, n=size)
        correlation = correlation / correlation[:, :1].clamp(min=1e-9)
        missing = max(0, self.last - correlation.shape[-1])
        correlation = F.pad(correlation, (0, missing))[:, : self.last].clamp(min=0)
        # a lag whose half or third correlates too is two or three beats: take those away
        # (enhanced autocorrelation, Tolonen & Karjalainen 2000, doi:10.1109/89.876309)
        enhanced = correlation - _stretch(correlation, 2) - _stretch(correlation, 3)
        return enhanced.clamp(min=0)[:, self.first :]

    def forward(self, x: Tensor, beats: Tensor) -> Tensor:
        """(B, leads, T) and (B, T) -> (B, 12), each about -1 to 1."""
        correlation = self.autocorrelation(x)
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
        intervals = torch.stack([_interval_statistics(row, self.rate) for row in beats])
        return torch.cat([torch.stack(columns, dim=-1), intervals.to(bpm)], dim=-1)


def _interval_statistics(beats: Tensor, rate: float) -> Tensor:
    """Six numbers of one record's RR intervals: rate, beyond 100, below 60, successive difference,
    shortest and longest relative to the median; zeros with fewer than three beats."""
    rr = torch.nonzero(beats).flatten().diff() / rate
    if len(rr) < 2:
        return torch.zeros(6)
    middle = rr.median()
    bpm = 60 / middle
    return torch.stack(
        [
            (bpm - 80) / 40,
            F.softplus((bpm - 100) / 4) / 4,
            F.softplus((60 - bpm) / 2) / 4,
            (rr.diff().abs().mean() / middle if len(rr) > 2 else rr.new_tensor(0.0)) * 5 - 1,
            (1 - rr.min() / middle) * 3 - 1,
            (rr.max() / middle - 1) * 3 - 1,
        ]
    ).cpu()


class TypicalBeat(nn.Module):
    """The median over QRS-aligned beats, each lead's own median taken off as baseline.

    Where a wave lies in the aligned beat says which wave it is, so no translation has to be
    learned.
    """

    before_s, after_s = 0.3, 0.5

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.before, self.after = round(self.before_s * rate), round(self.after_s * rate)
        self.length = self.before + self.after

    def forward(self, x: Tensor, beats: Tensor) -> Tensor:
        """(B, leads, T) and beat mask (B, T) -> (B, leads, length).

        Beats cut by the ends are left out; a record without any gives zeros.
        """
        typical = []
        for signal, row in zip(x, beats, strict=True):
            starts = torch.nonzero(row).flatten() - self.before
            starts = starts[(starts >= 0) & (starts + self.length <= x.shape[-1])]
            if not len(starts):
                typical.append(signal.new_zeros(signal.shape[0], self.length))
                continue
            index = starts[:, None] + torch.arange(self.length, device=x.device)
            typical.append(signal[:, index].median(dim=1).values)
        beat = torch.stack(typical)
        return beat - beat.median(dim=-1, keepdim=True).values


def _stretch(x: Tensor, factor: int) -> Tensor:
    """Value at lag k / factor for every lag k, linearly interpolated, (B, lags)."""
    count = x.shape[-1]
    short = x[:, None, : -(-count // factor) + 1]
    size = (short.shape[-1] - 1) * factor + 1
    return F.interpolate(short, size=size, mode="linear", align_corners=True)[:, 0, :count]


class BeatRhythmClassifier(nn.Module):
    architecture = "beat_rhythm"

    def __init__(self, config: BeatRhythmConfig) -> None:
        super().__init__()
        self.config = config
        self.rate = 500.0 / config.decimation
        self.typical_beat = TypicalBeat(self.rate)
        self.rhythm = RhythmBranch(self.rate)
        self.conv = nn.Sequential(
            nn.Conv1d(config.in_leads, config.channels, 7, 2, 3),
            nn.GELU(),
            nn.Conv1d(config.channels, config.channels, 7, 2, 3),
            nn.GELU(),
        )
        positions = -(-self.typical_beat.length // 4)
        self.shape = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(config.dropout),
            nn.Linear(config.channels * positions, config.width),
            nn.GELU(),
            nn.Dropout(config.dropout),
        )
        self.proj = nn.Linear(config.width + RhythmBranch.size, config.num_labels)

    def forward(self, source: Tensor, padding_mask: Tensor | None = None) -> ClassifierOutput:
        """As :meth:`ECGTransformerClassifier.forward`; padded samples are read as zero.

        ``encoder_out`` is (B, positions in the typical beat, channels).
        """
        if padding_mask is not None:
            mask = padding_mask if padding_mask.dim() == 3 else padding_mask[:, None]
            source = source.masked_fill(mask, 0.0)
        # averaging is the anti-alias filter: -3 dB at 44 Hz for 500 -> 100 Hz
        x = F.avg_pool1d(source, self.config.decimation)
        # the mean over a 1 s window is baseline, which drifts and says nothing
        window = round(self.rate) | 1
        x = x - F.avg_pool1d(x, window, 1, window // 2, count_include_pad=False)
        beats = find_beats(x, self.rate)
        features = self.conv(self.typical_beat(x, beats))
        # the rhythm numbers are few and exact: dropping them would only add noise
        rhythm = self.rhythm(x, beats) * self.config.rhythm_scale
        pooled = torch.cat([self.shape(features), rhythm], dim=1)
        return ClassifierOutput(self.proj(pooled), features.transpose(1, 2), pooled)
