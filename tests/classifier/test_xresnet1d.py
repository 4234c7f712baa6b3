"""xresnet1d under the interface that every classifier module has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ecg_agent_ray import ecg, tools
from ecg_agent_ray.classifier import (
    LABELS,
    Classifier,
    XResNet1d,
    XResNet1dConfig,
    load_classifier,
)
from ecg_agent_ray.classifier.bundle import build_network
from ecg_agent_ray.errors import ConfigError

SMALL = {"num_labels": 71, "depth": 18, "width": 8}


def small() -> XResNet1d:
    torch.manual_seed(0)
    network: XResNet1d = build_network("xresnet1d", SMALL).eval()
    return network


@pytest.mark.parametrize(("depth", "channels"), [(18, 64), (50, 256), (101, 256)])
def test_depths(depth: int, channels: int) -> None:
    network = XResNet1d(XResNet1dConfig(depth=depth)).eval()
    main = [m for n, m in network.named_modules() if "shortcut" not in n]
    # the depth counts one convolution as stem where there are three, and the linear layer
    assert sum(isinstance(m, torch.nn.Conv1d) for m in main) == depth + 1
    output = network(torch.zeros(1, 12, 5000))
    assert output.logits.shape == (1, 71)
    assert output.encoder_out.shape == (1, 32, channels)
    assert output.pooled.shape == (1, 2 * channels)


def test_blocks_begin_as_their_shortcut() -> None:
    network = small()
    block = network.blocks[1]
    x = torch.rand(2, 8, 100)
    assert torch.equal(block(x), x)


def test_a_batch_of_one_trains_and_every_weight_learns() -> None:
    network = small().train()
    for block in network.blocks:
        torch.nn.init.ones_(block.path[-1].weight)
    network(torch.randn(1, 12, 5000)).logits.sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_padding_takes_no_part() -> None:
    network = small()
    source = torch.randn(2, 12, 5000)
    mask = torch.zeros(2, 12, 5000, dtype=torch.bool)
    mask[:, :, 2560:] = True
    padded = network(source, mask)
    assert padded.padding_mask.sum(1).tolist() == [15, 15]
    other = source.clone()
    other[:, :, 2560:] = 7.0
    assert torch.equal(network(other, mask).logits, padded.logits)
    whole = network(source[:, :, :2560])
    # only the frames beside the padding differ
    assert (padded.pooled - whole.pooled).abs().mean() < whole.pooled.abs().mean() / 4


def test_saved_loaded_and_asked(tmp_path: Path) -> None:
    classifier = Classifier(network=small(), assessed=("SR", "AFIB"))
    classifier.save(tmp_path)
    loaded = load_classifier(tmp_path)
    assert loaded.network.architecture == "xresnet1d"
    recording = ecg.sample(3)
    before, after = (tools.classify(recording, model) for model in (classifier, loaded))
    assert before.labels == after.labels
    assert set(before.not_assessed) == set(LABELS) - {"SR", "AFIB"}


def test_sizes_it_does_not_have() -> None:
    with pytest.raises(ConfigError, match="depth 19 is none of 18, 34"):
        build_network("xresnet1d", {"depth": 19})
    with pytest.raises(ConfigError, match="kernel 4 is even"):
        build_network("xresnet1d", {"kernel": 4})
