"""A classifier directory keeps everything a result needs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ecg_agent_ray import ecg
from ecg_agent_ray.classifier import (
    LABELS,
    BeatRhythmClassifier,
    BeatRhythmConfig,
    Calibration,
    Classifier,
    load_classifier,
    read_labels,
)
from ecg_agent_ray.errors import CheckpointError, ConfigError, LeadError, ModelNotFoundError

FAIRSEQ = Path(__file__).resolve().parents[1] / "fixtures" / "fairseq_signals" / "finetuned_26.pt"


def test_round_trip(tmp_path: Path) -> None:
    builtin = load_classifier()
    again = load_classifier(builtin.save(tmp_path / "copy"))
    assert again.uri == str(tmp_path / "copy")
    for name in ("labels", "assessed", "lead_configurations", "thresholds", "metadata", "card"):
        assert getattr(again, name) == getattr(builtin, name), name
    assert again.calibration == builtin.calibration
    windows = ecg.sample(3).signal[None]
    np.testing.assert_array_equal(again.probabilities(windows), builtin.probabilities(windows))


def test_builtin_is_small_and_has_a_card() -> None:
    builtin = load_classifier("builtin:")
    assert builtin.labels == LABELS
    assert {"SR", "AFIB", "SBRAD", "STACH", "PACE"} <= set(builtin.assessed)
    assert "not a medical" in " ".join(builtin.card.split())
    assert "AUROC" in builtin.card
    assert sum(p.numel() for p in builtin.network.parameters()) < 1_000_000


def test_calibration_is_platts() -> None:
    network = BeatRhythmClassifier(BeatRhythmConfig(num_labels=2))
    plain = Classifier(network=network, labels=("SR", "AFIB"), assessed=("SR", "AFIB"))
    windows = ecg.sample(3).signal[None]
    logits = plain.logits(windows)
    np.testing.assert_allclose(plain.probabilities(windows), 1 / (1 + np.exp(-logits)))
    plain.calibration = Calibration("test", {"12-lead": {"AFIB": (2.0, -1.0)}})
    expected = 1 / (1 + np.exp(-(logits * [1.0, 2.0] + [0.0, -1.0])))
    np.testing.assert_allclose(plain.probabilities(windows), expected)
    # no entry for this configuration: plain sigmoid
    np.testing.assert_allclose(plain.probabilities(windows, leads="I"), 1 / (1 + np.exp(-logits)))


def test_several_recordings_share_batches_and_keep_their_order() -> None:
    builtin = load_classifier()
    recordings = [ecg.read(path) for path in ecg.samples()[:4]]
    short = recordings[0].crop(0, 4)
    together = [p for p, _ in builtin.predict([recordings[0], short, *recordings[1:]])]
    alone = [next(builtin.predict([r]))[0] for r in (recordings[0], short, *recordings[1:])]
    np.testing.assert_allclose(np.array(together), np.array(alone), atol=1e-6)


def test_fairseq_checkpoint_gives_its_plain_sigmoid_and_takes_labels() -> None:
    classifier = load_classifier(FAIRSEQ)
    assert classifier.calibration is None
    assert classifier.labels[:2] == ("label_0", "label_1")
    named = load_classifier(FAIRSEQ, labels=[f"C{i}" for i in range(26)])
    assert named.assessed_for("12-lead")[25] == "C25"
    with pytest.raises(ConfigError, match="2 labels for a network of 26 outputs"):
        load_classifier(FAIRSEQ, labels=["A", "B"])


def test_a_single_lead_classifier_answers_for_its_lead_only(tmp_path: Path) -> None:
    builtin = load_classifier()
    builtin.lead_configurations = ("I",)
    single = load_classifier(builtin.save(tmp_path))
    assert "SR" in single.assessed_for("I")
    with pytest.raises(LeadError, match="not made for lead configuration 12-lead"):
        single.assessed_for("12-lead")


def test_what_is_no_classifier(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        load_classifier(tmp_path / "absent")
    with pytest.raises(ModelNotFoundError, match=r"config\.json, model\.safetensors"):
        load_classifier(tmp_path)
    load_classifier().save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(CheckpointError):
        load_classifier(tmp_path)
    load_classifier().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["network"]["width"] = 8
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="no usable classifier"):
        load_classifier(tmp_path)


def test_label_files(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("A\n\nB\n")
    assert read_labels(path) == ("A", "B")
    path.write_text('["A", "B", "C"]')
    assert read_labels(path) == ("A", "B", "C")
    path.write_text("A\nA\n")
    with pytest.raises(ConfigError):
        read_labels(path)
