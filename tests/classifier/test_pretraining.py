"""Pre-training objective: equal to fairseq-signals' recorded step, and right in its parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ecg_agent_ray.classifier import export_checkpoint, load_checkpoint
from ecg_agent_ray.classifier.model import ECGTransformerConfig
from ecg_agent_ray.classifier.pretraining import (
    ECGPretrainingModel,
    PretrainingConfig,
    patient_contrast,
    pretraining_losses,
)
from ecg_agent_ray.classifier.pretraining_checkpoint import (
    export_pretraining_checkpoint,
    load_pretraining_checkpoint,
)
from ecg_agent_ray.classifier.pretraining_masking import (
    mask_leads_at_random,
    sample_negatives,
    time_mask,
)
from ecg_agent_ray.errors import CheckpointError, ConfigError

TINY = ECGTransformerConfig(
    num_labels=0, layers=1, width=32, ffn=32, heads=2, conv_layers=((16, 2, 2),) * 4, conv_pos=16
)
SMALL = PretrainingConfig(final_dim=8, latent_vars=6, num_negatives=20)


@pytest.mark.parametrize("mode", ["eval", "train_nodropout"])
def test_losses_and_gradients_of_a_step_are_upstreams(parity: Path, mode: str) -> None:
    with np.load(parity / "pretrain_criterion.npz") as arrays:
        values = {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}
    expected = {
        key.removeprefix(f"{mode}/"): value
        for key, value in values.items()
        if key.startswith(f"{mode}/")
    }
    model = load_pretraining_checkpoint(parity / "pretrained.pt").eval()
    if mode == "train_nodropout":
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for layer in model.encoder.layers:
            layer.self_attn.dropout = 0.0
    mask = values["mask_indices"]
    masked = int(mask.sum(1)[0])
    # recorded as flat over (batch, masked)
    negatives = expected["neg_idxs"].view(len(mask), masked, -1)
    negatives = negatives - torch.arange(len(mask))[:, None, None] * masked
    output = model(
        values["source"],
        mask,
        negatives,
        temperature=float(expected["temp"]),
        noise=values["gumbel_noise"],
    )
    losses = pretraining_losses(output, model.objective, values["patient_id"], values["segment"])

    finite = torch.isfinite(expected["contrastive_logits"])
    assert torch.equal(torch.isfinite(output.logits), finite)
    difference = (output.logits - expected["contrastive_logits"])[finite].abs().max()
    assert difference < 1e-4
    assert (output.encoder_out - expected["encoder_out"]).abs().max() < 1e-4
    assert (output.quantized.vectors - expected["quantized"]).abs().max() < 1e-5
    for name in ("prob_perplexity", "code_perplexity"):
        assert float(getattr(output.quantized, name).detach()) == pytest.approx(
            float(expected[name]), 1e-4
        )
    parts = (losses.contrastive, losses.diversity, losses.features, losses.patient)
    for index, part in enumerate(parts):
        assert float(part.detach()) == pytest.approx(float(expected[f"loss_{index}"]), rel=1e-4), (
            index
        )
    assert float(losses.total.detach()) == pytest.approx(float(expected["loss"]), rel=1e-4)
    assert losses.sample_size == int(expected["sample_size"])
    assert int(losses.correct) == int(expected["correct"])

    losses.total.backward()
    norms = {k.removeprefix("grad_norm/"): float(v) for k, v in expected.items() if "_norm/" in k}
    own = {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}
    assert set(norms) <= set(own)
    for name, norm in norms.items():
        assert own[name] == pytest.approx(norm, rel=1e-3, abs=1e-3), name
    gradients = dict(model.named_parameters())
    for key in ("final_proj.weight", "feature_extractor.conv_layers.0.0.weight"):
        wanted, got = expected[f"grad/{key}"], gradients[key].grad
        assert got is not None
        assert (got - wanted).abs().max() < 1e-3 * wanted.abs().max()


def test_time_mask_has_equal_rows_made_of_spans() -> None:
    mask = time_mask(50, 156, generator=torch.Generator().manual_seed(1))
    counts = mask.sum(1)
    assert mask.shape == (50, 156)
    assert len(counts.unique()) == 1
    # ten or eleven spans of ten frames, overlapping
    assert 40 < int(counts[0]) <= 110
    assert not torch.equal(mask[0], mask[1])
    with pytest.raises(ConfigError, match="cannot hold"):
        time_mask(2, 11)


def test_negatives_are_other_masked_frames() -> None:
    drawn = sample_negatives(3, 7, 500, torch.Generator().manual_seed(0))
    own = torch.arange(7)[None, :, None]
    assert not (drawn == own).any()
    assert set(drawn[0, 3].tolist()) == {0, 1, 2, 4, 5, 6}


def test_half_of_the_leads_are_masked() -> None:
    masked = mask_leads_at_random(torch.ones(500, 12, 4), 0.5, torch.Generator().manual_seed(0))
    assert float(masked.mean()) == pytest.approx(0.5, abs=0.03)
    assert set(masked.mean(2).unique().tolist()) == {0.0, 1.0}


def test_patient_contrast_prefers_the_same_patient() -> None:
    patients, segments = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    views = torch.eye(4)[[0, 0, 1, 1]][:, None] + 1e-3
    apart = torch.eye(4)[[0, 1, 1, 0]][:, None] + 1e-3
    alike = float(patient_contrast(views, patients, segments, 0.1))
    assert alike < 0.01 < float(patient_contrast(apart, patients, segments, 0.1))


def step(model: ECGPretrainingModel) -> float:
    generator = torch.Generator().manual_seed(5)
    source = torch.randn(4, 12, 1000, generator=generator)
    mask = time_mask(4, model.frames(1000), generator=generator)
    negatives = sample_negatives(4, int(mask[0].sum()), 20, generator)
    output = model(source, mask, negatives, temperature=2.0, generator=generator)
    patients, segments = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    losses = pretraining_losses(output, model.objective, patients, segments)
    losses.total.backward()
    return float(losses.total.detach())


def test_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    model = ECGPretrainingModel(TINY, SMALL)
    assert np.isfinite(step(model))
    silent = [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert silent == []


def test_an_exported_checkpoint_reads_back_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ECGPretrainingModel(TINY, SMALL).eval()
    path = export_pretraining_checkpoint(model, tmp_path / "checkpoint_last.pt", num_updates=3)
    again = load_pretraining_checkpoint(path).eval()
    assert again.config == model.config
    assert again.objective == model.objective
    assert step(again) == step(model)
    encoder = load_checkpoint(path)
    source = torch.randn(1, 12, 1000)
    assert torch.equal(encoder(source).encoder_out, encoder.encoder(source)[0])
    assert encoder.config.num_labels == 0
    encoder.reset_head(2)
    classifier = export_checkpoint(encoder, tmp_path / "classifier.pt")
    with pytest.raises(CheckpointError, match="no quantizer"):
        load_pretraining_checkpoint(classifier)
