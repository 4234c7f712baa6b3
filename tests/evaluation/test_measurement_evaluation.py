"""The measurement evaluation on LUDB and QTDB, and on the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from ecg_agent_ray.cli import run
from ecg_agent_ray.evaluation import evaluate_measurement

KEYS = {"pr", "qrs", "qt", "qtc"}


def test_ludb_metrics_have_the_contracts_keys(shared_data: Path, tmp_path: Path) -> None:
    ids = ["1", "4", "6", "8"]
    metrics = evaluate_measurement(
        "ludb", shared_data / "ludb", output=tmp_path, lead="II", records=ids, track=False
    )
    for name in ("mae_ms", "bias_ms", "sd_ms", "missing"):
        assert set(metrics[name]) == KEYS
    assert metrics["n_records"] == 4
    assert set(metrics["fiducials"]) >= {"p_onset", "qrs_onset", "t_offset"}
    assert {"sensitivity", "ppv", "bias_ms", "sd_ms"} <= set(metrics["fiducials"]["r_peak"])
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert (tmp_path / "plots" / "bland_altman.png").read_bytes()[1:4] == b"PNG"
    with (tmp_path / "records.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["record_id"] for row in rows] == ids
    # record 8 is in atrial fibrillation and was marked without P
    assert rows[3]["pr_marked"] == ""
    assert metrics["false_p"]["n_without_p"] == 1


def test_the_papers_method_is_as_far_off_as_published(shared_data: Path, tmp_path: Path) -> None:
    """Its QRS from Q to S peak is wider than the complex and missing where it is narrow."""
    ids = [path.stem for path in sorted((shared_data / "ludb" / "data").glob("*.hea"))[:25]]
    metrics = evaluate_measurement(
        "ludb",
        shared_data / "ludb",
        output=tmp_path,
        lead="II",
        method="paper",
        records=ids,
        track=False,
    )
    assert metrics["mae_ms"]["qrs"] > 20
    assert metrics["missing"]["qrs"] > 0.05


def test_qtdb_compares_the_marked_beats_only(shared_data: Path, tmp_path: Path) -> None:
    metrics = evaluate_measurement(
        "qtdb", shared_data / "qtdb", output=tmp_path, records=["sel100"], track=False
    )
    assert metrics["beats"]["marked"] == 30
    assert metrics["beats"]["found"] <= 30
    assert metrics["beats"]["sensitivity"] > 0.95
    assert metrics["fiducials"]["t_onset"]["marked"] == 0
    assert metrics["fiducials"]["t_onset"]["ppv"] is None
    assert metrics["heart_rate"]["mae_bpm"] < 1


def test_a_record_that_cannot_be_read_counts_as_failed(shared_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for path in (shared_data / "ludb" / "data").glob("1.*"):
        content = path.read_bytes()
        (data / path.name).write_bytes(content[:100] if path.suffix == ".dat" else content)
    metrics = evaluate_measurement("ludb", data, output=tmp_path / "out", track=False)
    assert [failure["record_id"] for failure in metrics["failed"]] == ["1"]
    assert "truncated" in metrics["failed"][0]["error"]


def test_command_line(
    shared_data: Path, tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    ids = tmp_path / "ids"
    ids.write_text("1\n4\n")
    common = ["evaluate", "measurement", "--dir", str(shared_data / "ludb"), "--output"]
    common += [str(tmp_path / "out"), "--records", str(ids)]
    assert run([*common, "--database", "ludb", "--json", "--no-track"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "out" / "metrics.json").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", store)
        assert run([*common, "--database", "ludb"]) == 0
    assert "PR" in capsys.readouterr().out
    (logged,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics["mae_ms/qt"] == pytest.approx(printed["mae_ms"]["qt"])
    files = mlflow.artifacts.list_artifacts(run_id=logged.info.run_id)
    assert {file.path for file in files} == {"metrics.json", "plots"}
    assert run([*common, "--database", "ecgdb"]) == 2
    assert run([*common, "--database", "ludb", "--method", "guess"]) == 2
    assert run([*common, "--database", "ludb", "--method", "paper", "--lead", "global"]) == 2
