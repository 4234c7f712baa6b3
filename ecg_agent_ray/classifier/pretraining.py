"""Self-supervised pre-training of the ECG transformer: W2V + CMSC + RLM.

Three ideas at once, as fairseq-signals combines them (Oh et al. 2022, "Lead-agnostic
Self-supervised Learning for Local and Global Representations of Electrocardiogram",
arXiv 2203.06889):

W2V   wav2vec 2.0 (Baevski et al. 2020, arXiv 2006.11477): spans of frames are hidden and the
      encoder's output there must pick the true quantised frame among 100 others of the same signal.
CMSC  contrastive multi-segment coding (Kiyasseh et al. 2021, arXiv 2005.13249): two successive
      segments of one patient must be more alike than segments of two patients.
RLM   random lead masking: leads are zeroed before anything else (``pretraining_masking``).

This module has the network and its losses; parameter names are those of a fairseq-signals
pre-training checkpoint. What it does not cover: padding (all segments of a batch have one length),
negatives from other samples, quantised encoder input.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecg_agent_ray.classifier.model import (
    ECGTransformer,
    ECGTransformerConfig,
    init_transformer_weights,
)

__all__ = [
    "ECGPretrainingModel",
    "GumbelVectorQuantizer",
    "PretrainingConfig",
    "PretrainingLosses",
    "PretrainingOutput",
    "patient_contrast",
    "pretraining_losses",
]

_COSINE_EPS = 1e-8  # torch's cosine_similarity clamps norms at this


@dataclass(frozen=True)
class PretrainingConfig:
    """The objective's sizes and weights; defaults are fairseq-signals' full-size recipe."""

    final_dim: int = 256
    """Width in which masked frames and targets are compared."""
    latent_groups: int = 2
    latent_vars: int = 320
    """Codes of each group."""
    latent_temp: tuple[float, float, float] = (2.0, 0.5, 0.999995)
    """Gumbel temperature: start, floor, factor for each update."""
    logit_temp: float = 0.1
    num_negatives: int = 100
    mask_prob: float = 0.65
    mask_length: int = 10
    lead_mask_prob: float = 0.5
    """Probability that a lead of a segment is zeroed (RLM); 0 turns it off."""
    dropout_features: float = 0.1
    """On the unmasked conv features from which the targets are made."""
    diversity_weight: float = 0.1
    features_weight: float = 10.0
    cmsc_weight: float = 1.0
    """0 turns the patient contrast off (plain wav2vec 2.0)."""
    cmsc_temp: float = 0.1

    def temperature(self, updates: int) -> float:
        start, floor, factor = self.latent_temp
        return max(start * factor**updates, floor)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Quantized(NamedTuple):
    """``vectors`` (B, M, D); ``codes`` (B, M, groups) chosen indices; perplexities are sums over
    groups of exp(entropy), at most groups x vars."""

    vectors: Tensor
    codes: Tensor
    prob_perplexity: Tensor
    code_perplexity: Tensor


class GumbelVectorQuantizer(nn.Module):
    """Product quantisation with a straight-through hard Gumbel softmax (Jang et al. 2017)."""

    def __init__(self, dim: int, groups: int, num_vars: int, out_dim: int) -> None:
        super().__init__()
        self.groups, self.num_vars = groups, num_vars
        self.vars = nn.Parameter(torch.empty(1, groups * num_vars, out_dim // groups).uniform_())
        self.weight_proj = nn.Linear(dim, groups * num_vars)
        nn.init.normal_(self.weight_proj.weight)
        nn.init.zeros_(self.weight_proj.bias)

    def forward(
        self,
        x: Tensor,
        temperature: float,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Quantized:
        """Quantise (B, M, dim). In training the choice is sampled with Gumbel noise, which
        ``noise`` (B*M*groups, vars) gives instead of a draw from ``generator``."""
        batch, frames, _ = x.shape
        logits = self.weight_proj(x).float().view(batch * frames * self.groups, self.num_vars)
        codes = logits.argmax(-1)
        hard = F.one_hot(codes, self.num_vars).to(logits)
        code_perplexity = self._perplexity(hard)
        prob_perplexity = self._perplexity(logits.softmax(-1))
        if self.training:
            if noise is None:
                noise = _gumbel(logits, generator)
            soft = ((logits + noise) / temperature).softmax(-1)
            codes = soft.argmax(-1)
            hard = F.one_hot(codes, self.num_vars).to(soft) - soft.detach() + soft
        books = self.vars.float().view(self.groups, self.num_vars, -1)
        chosen = torch.einsum("ngv,gvd->ngd", hard.view(-1, self.groups, self.num_vars), books)
        return Quantized(
            chosen.reshape(batch, frames, -1),
            codes.view(batch, frames, self.groups),
            prob_perplexity,
            code_perplexity,
        )

    def _perplexity(self, choices: Tensor) -> Tensor:
        share = choices.view(-1, self.groups, self.num_vars).mean(0)
        return (-(share * torch.log(share + 1e-7)).sum(-1)).exp().sum()


def _gumbel(like: Tensor, generator: torch.Generator | None) -> Tensor:
    uniform = torch.empty(like.shape, dtype=torch.float32).exponential_(generator=generator)
    return -uniform.log().to(like.device)


class PretrainingOutput(NamedTuple):
    """``logits`` (1 + negatives, B, M), candidate 0 the true one; ``encoder_out`` (B, frames,
    width) with masked frames; ``features_penalty`` mean square of the conv features."""

    logits: Tensor
    encoder_out: Tensor
    features_penalty: Tensor
    quantized: Quantized


class ECGPretrainingModel(ECGTransformer):
    """Encoder, quantizer and projections."""

    def __init__(self, config: ECGTransformerConfig, objective: PretrainingConfig) -> None:
        super().__init__(config)
        self.config, self.objective = config, objective
        channels = config.conv_layers[-1][0]
        self.mask_emb = nn.Parameter(torch.empty(config.width).uniform_())
        self.dropout_features = nn.Dropout(objective.dropout_features)
        self.quantizer = GumbelVectorQuantizer(
            channels, objective.latent_groups, objective.latent_vars, objective.final_dim
        )
        self.project_q = nn.Linear(objective.final_dim, objective.final_dim)
        self.final_proj = nn.Linear(config.width, objective.final_dim)
        self.encoder.apply(init_transformer_weights)

    def frames(self, samples: int) -> int:
        """Frames that a segment of ``samples`` samples gives."""
        return int(self.feature_extractor.output_lengths(torch.tensor(samples)))

    def forward(  # type: ignore[override]
        self,
        source: Tensor,
        mask: Tensor,
        negatives: Tensor,
        *,
        temperature: float,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> PretrainingOutput:
        """Encode with masked frames and score the candidates.

        Parameters
        ----------
        source
            (B, 12, samples) float32, mV at 500 Hz, leads already masked.
        mask
            (B, frames) bool, the same number M of True in each row.
        negatives
            (B, M, N) index of each negative among the row's M masked frames.
        temperature
            Of the Gumbel softmax; unused in evaluation mode.
        noise, generator
            As :meth:`GumbelVectorQuantizer.forward`.
        """
        features = self.extract(source)
        penalty = features.float().pow(2).mean()
        features = self.layer_norm(features.transpose(1, 2))
        batch, _, channels = features.shape
        targets = self.dropout_features(features)[mask].view(batch, -1, channels)
        x = features if self.post_extract_proj is None else self.post_extract_proj(features)
        x = torch.where(mask[..., None], self.mask_emb.to(x.dtype), self.dropout_input(x))
        x = x + self.conv_pos(x)
        encoded, _ = self.encoder(x, None, False)
        quantized = self.quantizer(targets, temperature, noise=noise, generator=generator)
        predicted = self.final_proj(encoded[mask].view(batch, -1, encoded.shape[-1]))
        logits = self._contrast(predicted, self.project_q(quantized.vectors), quantized, negatives)
        return PretrainingOutput(logits, encoded, penalty, quantized)

    def _contrast(
        self, predicted: Tensor, targets: Tensor, quantized: Quantized, negatives: Tensor
    ) -> Tensor:
        # all M x M similarities of a signal are cheaper than gathering 100 vectors for each frame
        with torch.autocast(predicted.device.type, enabled=False):
            unit_x = F.normalize(predicted.float(), dim=-1, eps=_COSINE_EPS)
            unit_y = F.normalize(targets.float(), dim=-1, eps=_COSINE_EPS)
            similar = unit_x @ unit_y.transpose(1, 2)
        codes = quantized.codes
        same = (codes[:, :, None] == codes[:, None]).all(-1).gather(2, negatives)
        # a negative with the target's own code is not wrong, so it is no candidate
        others = similar.gather(2, negatives).masked_fill(same, float("-inf"))
        true = similar.diagonal(dim1=1, dim2=2)[..., None]
        logits = torch.cat([true, others], -1) / self.objective.logit_temp
        return logits.permute(2, 0, 1)


class PretrainingLosses(NamedTuple):
    """``total`` and its four parts, each summed over ``sample_size`` masked frames; ``correct``
    frames whose true candidate scored highest."""

    total: Tensor
    contrastive: Tensor
    diversity: Tensor
    features: Tensor
    patient: Tensor
    correct: Tensor
    sample_size: int


def pretraining_losses(
    output: PretrainingOutput, objective: PretrainingConfig, patients: Tensor, segments: Tensor
) -> PretrainingLosses:
    """The sum that is minimised; its gradient is to be divided by all workers' ``sample_size``.

    ``patients`` and ``segments`` (B,): whose each signal is, and whether it is the pair's first (0)
    or second (1).
    """
    candidates, batch, frames = output.logits.shape
    size = batch * frames
    logits = output.logits.reshape(candidates, size).T
    target = torch.zeros(size, dtype=torch.long, device=logits.device)
    contrastive = F.cross_entropy(logits, target, reduction="sum")
    codes = objective.latent_groups * objective.latent_vars
    unused = (codes - output.quantized.prob_perplexity) / codes
    diversity = objective.diversity_weight * size * unused
    features = objective.features_weight * size * output.features_penalty
    patient = logits.new_zeros(())
    if objective.cmsc_weight:
        contrast = patient_contrast(output.encoder_out, patients, segments, objective.cmsc_temp)
        patient = objective.cmsc_weight * size * contrast
    with torch.no_grad():
        # a tie with another candidate is no success
        correct = (logits[:, :1] > logits[:, 1:]).all(1).sum()
    total = contrastive + diversity + features + patient
    return PretrainingLosses(total, contrastive, diversity, features, patient, correct, size)


def patient_contrast(
    encoded: Tensor, patients: Tensor, segments: Tensor, temperature: float
) -> Tensor:
    """CMSC: mean negative log probability of the same patient's other segment, both directions.

    ``encoded`` (B, frames, width). Norms carry no gradient, as in fairseq-signals.
    """
    encoded = encoded.float()
    # upstream's pooling divides by the count of values that are exactly non-zero
    pooled = encoded.sum(1) / (encoded != 0).sum(1)
    unit = pooled / pooled.norm(dim=1, keepdim=True).detach().clamp(min=_COSINE_EPS)
    first, second = segments == 0, segments == 1
    similar = unit[first] @ unit[second].T / temperature
    positive = patients[first][:, None] == patients[second][None, :]
    forward = -similar.log_softmax(1)[positive].mean()
    backward = -similar.log_softmax(0)[positive].mean()
    return (forward + backward) / 2
