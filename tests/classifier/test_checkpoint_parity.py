"""fairseq-signals checkpoints give fairseq-signals' numbers, whatever their form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ecg_agent_ray.classifier import export_checkpoint, load_checkpoint
from ecg_agent_ray.classifier.checkpoint import parse_conv_layers
from ecg_agent_ray.errors import CheckpointError

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "fairseq_signals"
BATCHES = ["noise_5000", "ecg_5000", "ecg_2500", "padded_5000", "lead_I_5000", "lead_II_5000"]


def run(model: Any, inputs: Any, batch: str, **options: Any) -> Any:
    mask = torch.from_numpy(inputs["padding_mask"]) if batch.startswith("padded") else None
    with torch.inference_mode():
        return model(torch.from_numpy(inputs[batch]), padding_mask=mask, **options)


def assert_equal(output: Any, expected: Any, batch: str) -> None:
    for name, tolerance in (("logits", 1e-5), ("pooled", 1e-4), ("encoder_out", 1e-4)):
        if f"{batch}/{name}" in expected:
            difference = np.abs(getattr(output, name).numpy() - expected[f"{batch}/{name}"]).max()
            assert difference < tolerance, (batch, name)


@pytest.mark.parametrize("batch", ["ecg_2500", "padded_5000"])
def test_shipped_fixture(batch: str) -> None:
    data = np.load(FIXTURES / "parity_26.npz")
    model = load_checkpoint(FIXTURES / "finetuned_26.pt")
    assert not model.training
    assert_equal(run(model, data, batch), data, batch)


@pytest.mark.parametrize("legacy", [False, True])
def test_export_reads_back_the_same(tmp_path: Path, legacy: bool) -> None:
    model = load_checkpoint(FIXTURES / "finetuned_26.pt")
    path = export_checkpoint(model, tmp_path / "out.pt", legacy_weight_norm=legacy)
    state = torch.load(path, weights_only=True)
    names = {key.rsplit(".", 1)[1] for key in state["model"] if "pos_conv" in key}
    assert names == (
        {"weight_g", "weight_v", "bias"} if legacy else {"original0", "original1", "bias"}
    )
    assert state["cfg"]["model"]["conv_feature_layers"] == repr([(32, 2, 2)] * 4)
    again = load_checkpoint(path)
    assert again.config == model.config
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", ["finetuned_26", "finetuned_26_legacy", "finetuned_71"])
def test_all_fixtures(parity: Path, name: str, batch: str) -> None:
    inputs = np.load(parity / "inputs.npz")
    expected = np.load(parity / f"outputs_{name.removesuffix('_legacy')}.npz")
    assert_equal(run(load_checkpoint(parity / f"{name}.pt"), inputs, batch), expected, batch)


def test_saliency(parity: Path) -> None:
    expected = np.load(parity / "outputs_finetuned_26.npz")["ecg_2500/saliency"]
    inputs = np.load(parity / "inputs.npz")
    output = run(load_checkpoint(parity / "finetuned_26.pt"), inputs, "ecg_2500", saliency=True)
    np.testing.assert_allclose(output.saliency.numpy(), expected, atol=1e-6)


def test_pretraining_checkpoint_is_an_encoder_without_head(parity: Path) -> None:
    model = load_checkpoint(parity / "pretrained.pt")
    inputs = np.load(parity / "inputs.npz")
    output = run(model, inputs, "ecg_5000")
    expected = np.load(parity / "pretrained_features.npz")["ecg_5000/encoder_out"]
    np.testing.assert_allclose(output.encoder_out.numpy(), expected, atol=1e-4)
    assert output.logits.shape == (3, 0)
    model.reset_head(5)
    assert run(model, inputs, "ecg_5000").logits.shape == (3, 5)


def test_full_size_names_and_shapes(parity: Path) -> None:
    import json

    from ecg_agent_ray.classifier import ECGTransformerClassifier, ECGTransformerConfig

    architecture = json.loads((parity / "full_size_architecture.json").read_text())
    with torch.device("meta"):
        model = ECGTransformerClassifier(ECGTransformerConfig())
    ours = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert ours == architecture["classifier_12_layers_71_labels"]["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == 90_427_847


def test_heads_can_be_overridden_and_must_divide_the_width() -> None:
    assert load_checkpoint(FIXTURES / "finetuned_26.pt").config.heads == 4
    assert load_checkpoint(FIXTURES / "finetuned_26.pt", num_heads=8).config.heads == 8
    with pytest.raises(CheckpointError, match="5 attention heads do not divide the width 64"):
        load_checkpoint(FIXTURES / "finetuned_26.pt", num_heads=5)


def test_conv_layers_are_parsed_not_evaluated() -> None:
    assert parse_conv_layers("[(256, 2, 2)] * 4") == ((256, 2, 2),) * 4
    assert parse_conv_layers("[(512,10,5)] + [(512,3,2)] * 2") == (
        (512, 10, 5),
        (512, 3, 2),
        (512, 3, 2),
    )
    for text in (
        "__import__('os').system('true')",
        "[(1, 2, 2)] * 10**9",
        "[(1, 2, 2)] * 1000000000",
        "[(1, 2)]",
        "[(1, -2, 2)]",
        "[(True, 2, 2)]",
        "((" * 500,
    ):
        with pytest.raises(CheckpointError):
            parse_conv_layers(text)


def test_gradient_multiplier_freezes_or_scales_the_extractor() -> None:
    model = load_checkpoint(FIXTURES / "finetuned_26.pt")
    source = torch.randn(2, 12, 640, generator=torch.Generator().manual_seed(0))

    def gradient(multiplier: float) -> torch.Tensor | None:
        model.zero_grad()
        model.encoder.feature_grad_mult = multiplier
        model(source).logits.square().sum().backward()
        return model.encoder.feature_extractor.conv_layers[0][0].weight.grad

    full = gradient(1.0)
    assert full is not None
    full = full.clone()
    tenth = gradient(0.1)
    assert tenth is not None
    torch.testing.assert_close(tenth, full * 0.1)
    assert gradient(0.0) is None
