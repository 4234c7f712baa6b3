"""xresnet1d: the one-dimensional residual network that ECG classifiers are usually compared with.

The family of the PTB-XL benchmark (Strodthoff et al. 2020, arXiv 2004.13701): a ResNet with the
tweaks of He et al. 2018 (arXiv 1812.01187), which are a stem of three convolutions, the stride in a
bottleneck's middle convolution, average pooling before a shortcut's projection, and blocks that
start as the identity; kernels of 5 samples at 100 Hz; average and maximum over time side by side.

What differs from the benchmark: it reads the whole window where the benchmark averages crops of
2.5 s, takes millivolts without standardising (batch norm follows the first convolution), and has no
batch norm in the head, so that a worker may have a batch of one record.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecg_agent_ray.classifier.model import ClassifierOutput

__all__ = ["XResNet1d", "XResNet1dConfig"]

_BLOCKS = {
    18: (1, (2, 2, 2, 2)),
    34: (1, (3, 4, 6, 3)),
    50: (4, (3, 4, 6, 3)),
    101: (4, (3, 4, 23, 3)),
    152: (4, (3, 8, 36, 3)),
}
"""Depth: channels of a block's output over those of its middle, and blocks of each stage."""


@dataclass(frozen=True)
class XResNet1dConfig:
    """Sizes; the defaults are the benchmark's xresnet1d101 (1.8 M parameters with 71 labels)."""

    num_labels: int = 71
    in_leads: int = 12
    depth: int = 101
    """18, 34, 50, 101 or 152."""
    width: int = 64
    """Channels in the middle of every block, at all stages."""
    kernel: int = 5
    decimation: int = 5
    """From 500 Hz input samples to the network's own rate."""
    dropout: float = 0.5

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> XResNet1dConfig:
        config = cls(**values)
        if config.depth not in _BLOCKS:
            raise ValueError(f"depth {config.depth} is none of {', '.join(map(str, _BLOCKS))}")
        if config.kernel % 2 == 0:
            raise ValueError(f"kernel {config.kernel} is even")
        return config


def _conv(channels: int, out: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """Convolution without bias, and batch norm."""
    conv = nn.Conv1d(channels, out, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight)
    return [conv, nn.BatchNorm1d(out)]


class _Block(nn.Module):
    """Basic for expansion 1, else a bottleneck."""

    def __init__(self, channels: int, width: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        out = width * expansion
        if expansion == 1:
            layers = [
                *_conv(channels, width, kernel, stride),
                nn.ReLU(),
                *_conv(width, out, kernel),
            ]
        else:
            layers = [
                *_conv(channels, width, 1),
                nn.ReLU(),
                *_conv(width, width, kernel, stride),
                nn.ReLU(),
                *_conv(width, out, 1),
            ]
        # the block begins as its shortcut
        nn.init.zeros_(layers[-1].weight)  # type: ignore[arg-type]
        self.path = nn.Sequential(*layers)
        shortcut: list[nn.Module] = []
        if stride > 1:
            shortcut.append(nn.AvgPool1d(stride, ceil_mode=True))
        if channels != out:
            shortcut += _conv(channels, out, 1)
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.path(x) + self.shortcut(x))


class XResNet1d(nn.Module):
    architecture = "xresnet1d"

    def __init__(self, config: XResNet1dConfig) -> None:
        super().__init__()
        self.config = config
        expansion, blocks = _BLOCKS[config.depth]
        half, width, kernel = config.width // 2, config.width, config.kernel
        self.stem = nn.Sequential(
            *_conv(config.in_leads, half, kernel, 2),
            nn.ReLU(),
            *_conv(half, half, kernel),
            nn.ReLU(),
            *_conv(half, width, kernel),
            nn.ReLU(),
            nn.MaxPool1d(3, 2, 1),
        )
        stages, channels = [], width
        for index, count in enumerate(blocks):
            for block in range(count):
                stride = 2 if index and not block else 1
                stages.append(_Block(channels, width, expansion, kernel, stride))
                channels = width * expansion
        self.blocks = nn.Sequential(*stages)
        self.dropout = nn.Dropout(config.dropout)
        self.proj = nn.Linear(2 * channels, config.num_labels)

    def forward(self, source: Tensor, padding_mask: Tensor | None = None) -> ClassifierOutput:
        """As :meth:`ECGTransformerClassifier.forward`; padded samples are read as zero, and frames
        of padding alone take no part in pooling.

        ``encoder_out`` is (B, frames, channels), ``pooled`` (B, 2 x channels).
        """
        padding = None
        if padding_mask is not None:
            padding = padding_mask[:, 0] if padding_mask.dim() == 3 else padding_mask
            source = source.masked_fill(padding[:, None], 0.0)
        # averaging is the anti-alias filter: -3 dB at 44 Hz for 500 -> 100 Hz
        x = self.blocks(self.stem(F.avg_pool1d(source, self.config.decimation)))
        frames = x.shape[-1]
        if padding is None:
            pooled = torch.cat([x.mean(-1), x.amax(-1)], dim=1)
            return ClassifierOutput(self.proj(self.dropout(pooled)), x.transpose(1, 2), pooled)
        share = F.interpolate(padding[:, None].float(), size=frames, mode="area")[:, 0]
        hidden = share >= 1.0
        # features are not negative, so that zeroed frames do not change a maximum
        x = x.masked_fill(hidden[:, None], 0.0)
        mean = x.sum(-1) / (~hidden).sum(-1, keepdim=True).clamp(min=1)
        pooled = torch.cat([mean, x.amax(-1)], dim=1)
        logits = self.proj(self.dropout(pooled))
        return ClassifierOutput(logits, x.transpose(1, 2), pooled, hidden)
