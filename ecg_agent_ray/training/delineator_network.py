"""The delineation network in torch, and its export for ONNX Runtime.

Its convolutions are over images of height one: ONNX Runtime blocks two-dimensional convolutions for
vector units and leaves one-dimensional ones as they are, which takes it 1.5 times as long.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecg_agent_ray.ecg.delineation.network import WAVES
from ecg_agent_ray.errors import MissingDependencyError

__all__ = ["WaveUNet", "export_onnx"]

_OPSET = 17


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, (1, kernel), (1, stride), (0, kernel // 2), bias=bias)


class _Block(nn.Module):
    """Two convolutions around a shortcut; the first may halve the rate."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, kernel: int = 7) -> None:
        super().__init__()
        self.first = _conv(inputs, outputs, kernel, stride, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = _conv(outputs, outputs, kernel, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut = _conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        return F.relu(y + self.shortcut(x))


class WaveUNet(nn.Module):
    """Logits of ``WAVES`` for each sample: (batch, 1, samples) -> (batch, 4, samples).

    A U-Net (Ronneberger et al. 2015) over time, as Moskalenko et al. 2019 (arXiv 1908.04191) use
    for this. ``samples`` must be a multiple of 2 to the power of ``len(widths) - 1``.
    """

    def __init__(self, widths: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        depth = len(widths) - 1
        self.stem = nn.Sequential(
            _conv(1, widths[0], 9, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        self.down = nn.ModuleList(_Block(widths[i], widths[i + 1], stride=2) for i in range(depth))
        self.dropout = nn.Dropout2d(dropout)
        self.up = nn.ModuleList(
            _Block(widths[i + 1] + widths[i], widths[i]) for i in reversed(range(1, depth))
        )
        last = widths[0] + 4
        self.last = nn.Sequential(
            _conv(widths[1] + widths[0], last, 7, bias=False), nn.BatchNorm2d(last), nn.ReLU()
        )
        self.head = _conv(last, len(WAVES), 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.stem(x[:, :, None])]
        for block in self.down:
            levels.append(block(levels[-1]))
        y = self.dropout(levels[-1])
        for block, skip in zip(self.up, reversed(levels[1:-1]), strict=True):
            y = block(torch.cat([_doubled(y), skip], dim=1))
        return self.head(self.last(torch.cat([_doubled(y), levels[0]], dim=1)))[:, :, 0]


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=(1.0, 2.0), mode="bilinear")


def export_onnx(network: WaveUNet, path: Path) -> Path:
    """Write ``network`` for ONNX Runtime, batch and length open; the batch norms are folded in.

    Raises :class:`MissingDependencyError` without the ``onnx`` package.
    """
    try:
        import onnx  # noqa: F401 - torch needs it and says so less clearly
    except ImportError as error:
        raise MissingDependencyError(
            "exporting the network needs onnx", hint="pip install 'ecg-agent-ray[delineator]'"
        ) from error
    axes = {0: "batch", 2: "samples"}
    with warnings.catch_warnings():
        # the newer exporter needs onnxscript and writes the same graph
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            network.eval(),
            (torch.zeros(1, 1, 2560),),
            str(path),
            input_names=["lead"],
            output_names=["logits"],
            dynamic_axes={"lead": axes, "logits": axes},
            opset_version=_OPSET,
            dynamo=False,
        )
    return path
