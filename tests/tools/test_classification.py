"""The classification tool on the shipped recordings and on unusual ones."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from ecg_agent_ray import ecg, tools
from ecg_agent_ray.classifier import LABELS, load_classifier
from ecg_agent_ray.errors import ConfigError, LeadError, ModelNotFoundError
from ecg_agent_ray.tools.classification import classify_many

FAIRSEQ = Path(__file__).resolve().parents[1] / "fixtures" / "fairseq_signals" / "finetuned_26.pt"
# what the shipped weights give for shipped records; changes only with the weights
REGRESSION: dict[int, list[str]] = {
    3: ["SR (93.09%)", "NORM (92.01%)"],
    263: [],
    296: ["LVH (99.82%)", "STD_ (95.35%)", "SR (88.58%)", "ISC_ (62.24%)"],
    351: ["STACH (90.00%)"],
    385: ["SR (91.95%)"],
    424: ["SR (54.55%)"],
}
KEYS = [
    "record_id",
    "lead_configuration",
    "model",
    "calibration",
    "labels",
    "positive",
    "not_assessed",
    "notes",
]


def test_contract() -> None:
    result = tools.classify(ecg.sample(3))
    values = result.to_dict()
    assert list(values) == KEYS
    assert json.loads(json.dumps(values)) == values
    assert values["record_id"] == "00003_hr"
    assert values["lead_configuration"] == "12-lead"
    assert values["model"] == "builtin:"
    assert values["calibration"] == "platt-cv5"
    assert list(values["labels"]) == list(LABELS)
    for code, probability in values["labels"].items():
        assert (probability is None) == (code in values["not_assessed"])
        assert probability is None or 0 <= probability <= 1


@pytest.mark.parametrize("record_id", REGRESSION)
def test_shipped_samples_by_value(record_id: int) -> None:
    assert tools.classify(ecg.sample(record_id)).to_dialogue() == REGRESSION[record_id]


def test_threshold_is_strict_and_positive_is_descending() -> None:
    everything = tools.classify(ecg.sample(296), threshold=0.0)
    values = [everything.labels[code] for code in everything.positive]
    assert values == sorted(values, reverse=True)
    top = everything.positive[0]
    limit = everything.labels[top]
    assert limit is not None
    assert tools.classify(ecg.sample(296), threshold=limit).positive == ()
    assert tools.classify(ecg.sample(296), threshold=limit).to_dialogue() == []
    assert tools.classify(ecg.sample(296), threshold=limit).top_classes() == "None > 50%"
    for bad in (1.5, -0.1, "high"):
        with pytest.raises(ConfigError, match="threshold"):
            tools.classify(ecg.sample(3), threshold=bad)  # type: ignore[arg-type]


def test_model_thresholds() -> None:
    kept = load_classifier().thresholds["12-lead"]
    result = tools.classify(ecg.sample(296), threshold="model")
    for code, probability in result.labels.items():
        if probability is not None:
            assert (code in result.positive) == (probability > kept[code])
    with pytest.raises(ConfigError, match="keeps no thresholds"):
        tools.classify(ecg.sample(3), FAIRSEQ, threshold="model")


def test_what_was_not_taught_is_not_a_negative() -> None:
    result = tools.classify(ecg.sample(3), threshold=0.0)
    assert "WPW" in result.not_assessed
    assert result.labels["WPW"] is None
    assert not set(result.positive) & set(result.not_assessed)


def test_single_leads_say_less() -> None:
    twelve = tools.classify(ecg.sample(3))
    single = tools.classify(ecg.sample(3), leads="I")
    assert single.lead_configuration == "I"
    assert "NORM" in single.not_assessed
    assert twelve.labels["NORM"] is not None
    # only lead I is looked at: the others may be absent
    alone = tools.classify(ecg.sample(3).select(["I"]), leads="I")
    assert alone.labels == single.labels


def test_unusual_recordings_carry_their_caveat() -> None:
    recording = ecg.sample(3)
    assert "only 3.0 s long" in tools.classify(recording.crop(0, 3)).notes[0]
    two = tools.classify(recording.select(["I", "II"]))
    assert "leads absent and fed as zero: III, aVR" in two.notes[0]
    slow = tools.classify(recording.resample(250))
    assert slow.notes == ("resampled from 250 Hz to 500 Hz",)
    assert slow.labels["SR"] == pytest.approx(tools.classify(recording).labels["SR"], abs=0.05)
    signal = np.array(recording.signal)
    signal[:, 1000:1100] = np.nan
    gaps = ecg.Recording(signal=signal, sampling_rate=500, leads=recording.leads)
    assert "missing, interpolated" in tools.classify(gaps).notes[0]
    with pytest.raises(LeadError):
        tools.classify(recording.select(["V1"]), leads="II")


def test_many_at_once_equal_one_by_one() -> None:
    recordings = [ecg.read(path) for path in ecg.samples()]
    together = list(classify_many(recordings))
    assert [r.record_id for r in together] == [r.record_id for r in recordings]
    alone = tools.classify(recordings[5])
    for code, probability in alone.labels.items():
        assert together[5].labels[code] == pytest.approx(probability, abs=2e-4)


def test_fairseq_checkpoint_is_its_plain_sigmoid() -> None:
    import torch

    from ecg_agent_ray.classifier import load_checkpoint

    result = tools.classify(ecg.sample(3), FAIRSEQ)
    assert result.calibration == "none"
    with torch.inference_mode():
        logits = load_checkpoint(FAIRSEQ)(torch.tensor(ecg.sample(3).signal)[None]).logits[0]
    expected = torch.sigmoid(logits.double())
    for value, probability in zip(expected, result.labels.values(), strict=True):
        assert probability == pytest.approx(float(value), abs=1e-4)
    with pytest.raises(ModelNotFoundError):
        tools.classify(ecg.sample(3), "no/such/model")


def test_a_warm_classification_is_quick() -> None:
    recording = ecg.sample(3)
    tools.classify(recording)
    started = time.process_time()
    tools.classify(recording)
    assert time.process_time() - started < 1.0
