"""Dialogues joined with CSVs by record number; what is malformed or leaks is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ecg_agent_ray.cli import run
from ecg_agent_ray.dialogue import Action, Dialogue, RecordIndex, Turn, read_dialogues, record_key
from ecg_agent_ray.evaluation import tool_source

CLEAN = [
    {"role": "user", "content": "Is it regular?"},
    {
        "role": "assistant",
        "action": "response_followup",
        "thought": "The user asks about rhythm in general.",
        "content": "A regular rhythm has equal gaps.",
    },
]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("HR00056.mat", "HR56"),
        ("WFDB/g1/HR56.mat", "HR56"),
        ("00001_hr", "1_hr"),
        ("JS00010", "JS10"),
        ("E00000", "E0"),
        ("plain.hea", "plain"),
    ],
)
def test_a_records_key_has_no_padding(name: str, key: str) -> None:
    assert record_key(name) == key


def test_an_exact_name_goes_first_and_an_ambiguous_number_finds_nothing() -> None:
    index = RecordIndex(["HR056.mat", "HR0056.mat", "HR0007.mat"])
    assert index.find("HR056.mat") == "HR056.mat"
    assert index.find("HR056.hea") == "HR056.mat"
    assert index.find("HR56.mat") is None
    assert index.find("x/HR7.mat") == "HR0007.mat"
    assert index.find("HR8.mat") is None


def test_padded_dialogues_meet_the_papers_unpadded_csvs(tmp_path: Path) -> None:
    (tmp_path / "measurement.csv").write_text(
        "ecg_file_path,PR_Interval_ms,QTc_ms,QRS_Duration_ms,Heart_Rate\n"
        "HR56.mat,158.4,412.55,92.0,72.35\nHR560.mat,1,2,3,4\n"
    )
    (tmp_path / "classification.csv").write_text(
        'ecg_file_path,top_classes\nHR56.mat,"SR (98.23%), NORM (86.88%)"\n'
    )
    tools = tool_source([str(tmp_path / f"{n}.csv") for n in ("measurement", "classification")])
    box = tools(Dialogue(turns=[Turn.user("x")], ecg_files=["HR00056.mat"], metadata={}))
    measured = box.call(Action.CALL_MEASUREMENT, question="", previous=[])
    assert measured.output == {
        "heart_rate": "72.35",
        "pr_interval": "158",
        "qrs_duration": "92",
        "qtc_interval": "412.55",
    }
    found = box.call(Action.CALL_CLASSIFICATION, question="", previous=[])
    assert found.output == ["SR (98.23%)", "NORM (86.88%)"]


def test_cleaning_counts_and_lists_what_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leaking = [dict(turn) for turn in CLEAN]
    leaking[1]["thought"] = "The action sequence says the next action should be a follow-up."
    malformed = [dict(turn) for turn in CLEAN]
    malformed[1]["action"] = "call_a_friend"
    rest = {"ecg_files": json.dumps(["HR00056.mat"]), "metadata": json.dumps({"ecg_id": 56})}
    rows = [{"dialogue": json.dumps(turns), **rest} for turns in (CLEAN, leaking, malformed)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{no json\n")
    kept = tmp_path / "clean.parquet"
    assert run(["data", "dialogues", "clean", str(path), "--output", str(kept)]) == 0
    report = json.loads(capsys.readouterr().out)
    counts = ("rows", "malformed_rows", "dialogues_that_leak", "kept")
    assert [report[name] for name in counts] == [4, 2, 1, 1]
    assert {problem["row"] for problem in report["problems"] if "row" in problem} == {2, 3}
    assert "call_a_friend" in report["problems"][0]["message"]
    (only,) = read_dialogues(kept)
    assert only.turns[1].thought == CLEAN[1]["thought"]
    assert run(["data", "dialogues", "stats", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["n_malformed_rows"] == 2
