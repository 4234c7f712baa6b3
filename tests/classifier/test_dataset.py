"""Labels of each data set, and which cells it assesses."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecg_agent_ray import ecg
from ecg_agent_ray.classifier.dataset import label_matrix, read_source
from ecg_agent_ray.classifier.labels import LABEL_INFO, LABELS, configuration_labels
from ecg_agent_ray.errors import ConfigError, LeadError


def test_labels_are_the_71_statements_in_ascii_order() -> None:
    assert len(LABELS) == 71
    assert list(LABELS) == sorted(LABELS)
    assert LABELS[0] == "1AVB"
    assert LABELS[-1] == "WPW"
    assert LABEL_INFO["NDT"].groups == ("diagnostic", "form")
    rhythms = [code for code, info in LABEL_INFO.items() if "rhythm" in info.groups]
    assert len(rhythms) == 12


def test_configuration_labels_keep_model_order() -> None:
    for leads, count in (("12-lead", 71), ("I", 24), ("II", 28)):
        labels = configuration_labels(leads)
        assert len(labels) == count
        assert list(labels) == [code for code in LABELS if code in labels]
    with pytest.raises(LeadError):
        configuration_labels("V1")


def test_names_are_those_of_ptbxl(shared_data: Path) -> None:
    import pandas as pd

    table = pd.read_csv(shared_data / "ptbxl" / "scp_statements.csv", index_col=0)
    assert set(table.index) == set(LABELS)
    for code, row in table.iterrows():
        groups = tuple(kind for kind in ("diagnostic", "form", "rhythm") if row[kind] == 1.0)
        assert LABEL_INFO[str(code)].groups == groups, code


def test_shipped_records() -> None:
    records = read_source("manifest", ecg.samples()[0].parent)
    assert len(records) == 12
    first = records[0]
    assert (first.record_id, first.patient_id) == ("00003_hr", "ptbxl-20372")
    # SR has likelihood 0.0, which means "not stated", and counts
    assert first.positives == {"NORM", "SR"}
    targets, mask = label_matrix(records, LABELS, ["NORM", "SR"])
    assert targets.shape == (12, 71)
    assert mask.sum() == 24
    assert targets[0, LABELS.index("SR")] == 1


def test_sources_assess_only_what_they_have_words_for(shared_data: Path) -> None:
    ludb = {r.record_id: r for r in read_source("ludb", shared_data / "ludb")}
    assert ludb["ludb-1"].positives == {"SBRAD"}
    assert "NORM" not in ludb["ludb-1"].assessed
    _, mask = label_matrix([ludb["ludb-1"]], LABELS)
    assert mask.sum() == len(ludb["ludb-1"].assessed)
    challenge = read_source("physionet", shared_data / "cinc2021")
    assert not any(record.record_id.startswith("HR") for record in challenge)
    positives = next(r for r in challenge if r.record_id == "JS20004").positives
    assert positives & set(LABELS) == {"STACH"}
    assert positives - set(LABELS) == {
        "427084000",
        "284470004|63593006",
        "427172004|17338001",
    }
    ptbxl = read_source("ptbxl", shared_data / "ptbxl")
    assert len(ptbxl) == 250
    assert len({r.patient_id for r in ptbxl}) == 234


def test_bad_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not there"):
        read_source("ptbxl", tmp_path)
    with pytest.raises(ConfigError, match="unknown data kind"):
        read_source("mitbih", tmp_path)  # type: ignore[arg-type]
    table = tmp_path / "records.csv"
    header = "ecg_id,patient_id,scp_codes,filename\n"
    table.write_text(header + "1,1,\"{'XYZ': 0.0}\",a\n")
    with pytest.raises(ConfigError, match="unknown statements XYZ"):
        read_source("manifest", table)
    table.write_text(header + "1,1,\"__import__('os')\",a\n")
    with pytest.raises(ConfigError, match="not in its form"):
        read_source("manifest", table)
    table.write_text(header + "1,1,\"{'SR': 0.0}\",absent\n")
    with pytest.raises(ConfigError, match="1 of 1 recordings are not there"):
        read_source("manifest", table)
