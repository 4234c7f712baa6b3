"""The training benchmark trains for real with each number of workers, and leaves MLflow alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ecg_agent_ray.cli import run


@pytest.mark.slow
def test_epochs_and_the_loader_are_timed(
    ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("ECG_AGENT_HOME", str(tmp_path / "mine"))
    assert run(["bench", "training", "--epochs", "1", "--batch-size", "4", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["epoch_s"]) == {"1", "2"}
    assert all(seconds["n"] == 1 for seconds in result["epoch_s"].values())
    assert result["ratio"]["2_over_1"] > 0
    assert set(result["loader"]["records_per_s_per_core"]) == {"shards", "memory"}
    assert not (tmp_path / "mine").exists()
