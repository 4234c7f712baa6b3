"""The ECG transformer of fairseq-signals as a plain torch module.

Architecture and parameter names are those of the ``ecg_transformer_classifier`` (a wav2vec 2.0
style encoder over raw 12-lead signal), so that its checkpoints load here and ours load there. This
module covers the forward pass for classification and for features; self-supervised objectives are
elsewhere.

Shapes: a batch is ``(B, leads, samples)`` float32 in mV at 500 Hz, leads in the order I, II, III,
aVR, aVL, aVF, V1-V6, unfiltered and unnormalised; absent leads are zero. A frame covers 16 samples
(32 ms).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

__all__ = ["ClassifierOutput", "ECGTransformerClassifier", "ECGTransformerConfig"]


class ClassifierOutput(NamedTuple):
    """What every classifier module returns.

    ``logits`` (B, labels); ``encoder_out`` (B, frames, width), padded frames zero; ``pooled``
    (B, width); ``padding_mask`` (B, frames) bool, True where padded, or None; ``saliency``
    (B, layers, frames, frames) head-averaged attention, only when asked for.
    """

    logits: Tensor
    encoder_out: Tensor
    pooled: Tensor
    padding_mask: Tensor | None = None
    saliency: Tensor | None = None


@dataclass(frozen=True)
class ECGTransformerConfig:
    """Sizes and rates. Defaults are the full-size model (90.4 M parameters with 71 labels)."""

    num_labels: int = 71
    layers: int = 12
    width: int = 768
    ffn: int = 3072
    heads: int = 12
    in_leads: int = 12
    conv_layers: tuple[tuple[int, int, int], ...] = ((256, 2, 2),) * 4
    """(channels, kernel, stride) of each convolution of the extractor."""
    conv_bias: bool = False
    extractor_mode: str = "default"
    """``default``: group norm after the first convolution; ``layer_norm``: layer norm after each.
    """
    conv_pos: int = 128
    conv_pos_groups: int = 16
    layer_norm_first: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.1
    dropout_input: float = 0.0
    final_dropout: float = 0.0
    feature_grad_mult: float = 1.0
    """Factor on the extractor's gradient; 0 freezes it (upstream's fine-tuning default)."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ECGTransformerConfig:
        values = dict(values)
        values["conv_layers"] = tuple(tuple(layer) for layer in values["conv_layers"])
        return cls(**values)


class _Fp32LayerNormLast(nn.Sequential):
    """Layer norm over channels of (B, C, T); index 1 holds the weights, as upstream names them."""

    def __init__(self, channels: int) -> None:
        norm = nn.LayerNorm(channels)
        super().__init__(nn.Identity(), norm, nn.Identity())
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (value.float() for value in self[1].parameters())
        y = F.layer_norm(x.transpose(1, 2).float(), (x.shape[1],), weight, bias, self.eps)
        return y.transpose(1, 2).to(x.dtype)


class _Fp32GroupNorm(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(
            x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps
        ).to(x.dtype)


class ConvFeatureExtractor(nn.Module):
    """Strided convolutions over the raw signal: (B, leads, samples) -> (B, channels, frames)."""

    def __init__(self, config: ECGTransformerConfig) -> None:
        super().__init__()
        self.shapes = config.conv_layers
        blocks = []
        channels_in = config.in_leads
        for index, (channels, kernel, stride) in enumerate(config.conv_layers):
            conv = nn.Conv1d(channels_in, channels, kernel, stride, bias=config.conv_bias)
            nn.init.kaiming_normal_(conv.weight)
            # positions in the Sequential are upstream's, hence the dropout that drops nothing
            parts: list[nn.Module] = [conv, nn.Dropout(0.0)]
            if config.extractor_mode == "layer_norm":
                parts.append(_Fp32LayerNormLast(channels))
            elif index == 0:
                parts.append(_Fp32GroupNorm(channels, channels))
            parts.append(nn.GELU())
            blocks.append(nn.Sequential(*parts))
            channels_in = channels
        self.conv_layers = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.conv_layers:
            x = block(x)
        return x

    def output_lengths(self, samples: Tensor) -> Tensor:
        """Frames that ``samples`` valid samples give (zero where there are too few)."""
        for _, kernel, stride in self.shapes:
            samples = torch.div(samples - kernel, stride, rounding_mode="floor") + 1
        return samples.clamp(min=0)


class ConvPositionalEncoding(nn.Module):
    """Grouped, weight-normalised convolution whose output is added to the frames."""

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups)
        nn.init.normal_(conv.weight, mean=0.0, std=math.sqrt(4.0 / (kernel * width)))
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        self.pos_conv = nn.Sequential(weight_norm(conv, name="weight", dim=2))
        self.drop_last = kernel % 2 == 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.pos_conv(x.transpose(1, 2))
        if self.drop_last:
            y = y[..., :-1]
        return F.gelu(y).transpose(1, 2)


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, padding: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        batch, frames, width = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(batch, frames, self.heads, width // self.heads).transpose(1, 2)

        q, k, v = split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        allowed = None if padding is None else ~padding[:, None, None, :]
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q @ k.transpose(-1, -2)) / math.sqrt(width // self.heads)
            if allowed is not None:
                scores = scores.masked_fill(~allowed, float("-inf"))
            attention = scores.float().softmax(-1).to(q.dtype)
            weights = attention.mean(1)
            y = F.dropout(attention, dropout) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
        return self.out_proj(y.transpose(1, 2).reshape(batch, frames, width)), weights


class EncoderLayer(nn.Module):
    def __init__(self, config: ECGTransformerConfig) -> None:
        super().__init__()
        self.norm_first = config.layer_norm_first
        self.dropout = nn.Dropout(config.dropout)
        self.activation_dropout = nn.Dropout(config.activation_dropout)
        self.self_attn = SelfAttention(config.width, config.heads, config.attention_dropout)
        self.self_attn_layer_norm = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.ffn)
        self.fc2 = nn.Linear(config.ffn, config.width)
        self.final_layer_norm = nn.LayerNorm(config.width)

    def feed_forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        h = self.activation_dropout(F.gelu(h.float()).to(h.dtype))
        return self.dropout(self.fc2(h))

    def forward(
        self, x: Tensor, padding: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        if self.norm_first:
            attended, weights = self.self_attn(self.self_attn_layer_norm(x), padding, need_weights)
            x = x + self.dropout(attended)
            return x + self.feed_forward(self.final_layer_norm(x)), weights
        attended, weights = self.self_attn(x, padding, need_weights)
        x = self.self_attn_layer_norm(x + self.dropout(attended))
        return self.final_layer_norm(x + self.feed_forward(x)), weights


class TransformerEncoder(nn.Module):
    """Layer norm comes first in the post-norm model, last in the pre-norm one."""

    def __init__(self, config: ECGTransformerConfig) -> None:
        super().__init__()
        self.norm_first = config.layer_norm_first
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.layer_norm = nn.LayerNorm(config.width)

    def forward(
        self, x: Tensor, padding: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, list[Tensor]]:
        if not self.norm_first:
            x = self.layer_norm(x)
        x = self.dropout(x)
        attention = []
        for layer in self.layers:
            x, weights = layer(x, padding, need_weights)
            if weights is not None:
                attention.append(weights)
        return (self.layer_norm(x) if self.norm_first else x), attention


class ECGTransformer(nn.Module):
    """The encoder: its parameter names are those of a pre-training checkpoint without prefix."""

    def __init__(self, config: ECGTransformerConfig) -> None:
        super().__init__()
        channels = config.conv_layers[-1][0]
        self.feature_grad_mult = config.feature_grad_mult
        self.feature_extractor = ConvFeatureExtractor(config)
        self.layer_norm = nn.LayerNorm(channels)
        self.post_extract_proj = (
            nn.Linear(channels, config.width) if channels != config.width else None
        )
        self.dropout_input = nn.Dropout(config.dropout_input)
        self.conv_pos = ConvPositionalEncoding(
            config.width, config.conv_pos, config.conv_pos_groups
        )
        self.encoder = TransformerEncoder(config)

    def extract(self, source: Tensor) -> Tensor:
        """Conv features (B, channels, frames), their gradient scaled by ``feature_grad_mult``."""
        if self.feature_grad_mult == 0.0:
            with torch.no_grad():
                return self.feature_extractor(source)
        features = self.feature_extractor(source)
        if self.feature_grad_mult != 1.0:
            scaled = features * self.feature_grad_mult
            features = scaled + (features - scaled).detach()
        return features

    def frame_padding(self, padding_mask: Tensor | None, frames: int) -> Tensor | None:
        """(B, frames) bool from a sample mask (B, leads, samples) or (B, samples), else None."""
        if padding_mask is None or not bool(padding_mask.any()):
            return None
        if padding_mask.dim() == 3:
            padding_mask = padding_mask[:, 0]
        valid = self.feature_extractor.output_lengths((~padding_mask).sum(-1))
        return torch.arange(frames, device=valid.device)[None, :] >= valid[:, None]

    def forward(
        self, source: Tensor, padding_mask: Tensor | None = None, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None, list[Tensor]]:
        features = self.layer_norm(self.extract(source).transpose(1, 2))
        padding = self.frame_padding(padding_mask, features.shape[1])
        if self.post_extract_proj is not None:
            features = self.post_extract_proj(features)
        x = self.dropout_input(features)
        # the positional convolution sees padded frames; only then are they zeroed
        x = x + self.conv_pos(x)
        if padding is not None:
            x = x.masked_fill(padding[..., None], 0.0)
        x, attention = self.encoder(x, padding, need_weights)
        return x, padding, attention


class ECGTransformerClassifier(nn.Module):
    """Encoder, mean over frames, linear head.

    With ``num_labels`` 0 there is no head and ``logits`` is (B, 0): the form a pre-training
    checkpoint loads into until :meth:`reset_head` gives it labels.
    """

    architecture = "ecg_transformer"

    def __init__(self, config: ECGTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ECGTransformer(config)
        self.encoder.apply(init_transformer_weights)
        self.final_dropout = nn.Dropout(config.final_dropout)
        self.proj: nn.Linear | None = None
        if config.num_labels:
            self.reset_head(config.num_labels)

    def reset_head(self, num_labels: int) -> None:
        """A fresh head as upstream initialises it: Xavier-uniform, zero bias."""
        self.config = replace(self.config, num_labels=num_labels)
        self.proj = nn.Linear(self.config.width, num_labels)
        nn.init.xavier_uniform_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(
        self, source: Tensor, padding_mask: Tensor | None = None, *, saliency: bool = False
    ) -> ClassifierOutput:
        """Run the classifier.

        Parameters
        ----------
        source
            (B, 12, samples) float32, mV at 500 Hz, absent leads zero.
        padding_mask
            Bool (B, 12, samples) or (B, samples), True where padded, equal over leads.
        saliency
            Also return each layer's head-averaged attention.
        """
        x, padding, attention = self.encoder(source, padding_mask, need_weights=saliency)
        x = self.final_dropout(x)
        if padding is not None:
            x = x.masked_fill(padding[..., None], 0.0)
        # upstream divides by the count of values that are exactly non-zero, channel by channel
        pooled = x.sum(1) / (x != 0).sum(1)
        logits = self.proj(pooled) if self.proj is not None else pooled.new_zeros(len(pooled), 0)
        stacked = torch.stack(attention, 1) if attention else None
        return ClassifierOutput(logits, x, pooled, padding, stacked)


def init_transformer_weights(module: nn.Module) -> None:
    """BERT's initialisation for the linear layers, as fairseq applies it."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
