"""Benchmarks: alternatives take turns, ratios come from neighbours in time, the CLI tells them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ecg_agent_ray.cli import run
from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.pipelines.bench import bench_measurement
from ecg_agent_ray.pipelines.bench.timing import Timing, interleaved, ratio


def test_alternatives_take_turns_in_changing_order() -> None:
    calls: list[str] = []
    work = {name: lambda item, name=name: calls.append(f"{name}{item}") for name in "ab"}
    timings = interleaved(work, [1, 2], rounds=2)
    assert calls[:2] == ["a1", "b1"]  # not timed
    assert calls[2:] == ["a1", "a2", "b1", "b2", "b1", "b2", "a1", "a2"]
    assert [len(timing.cpu_s) for timing in timings.values()] == [2, 2]
    assert timings["a"].n_items == 2


def test_ratio_is_by_round() -> None:
    ours, other = Timing(10, (1.0, 2.0, 4.0), (1, 2, 4)), Timing(10, (5.0, 20.0, 8.0), (5, 20, 8))
    assert ratio(ours, other) == {"median": 5.0, "min": 2.0, "max": 10.0}
    assert ours.to_dict()["records_per_s_per_core"] == 5.0
    assert ours.to_dict()["ms_per_record"] == 200.0


def test_bench_measurement_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "deep" / "result.json"
    options = ["--records", "1", "--rounds", "1", "--output", str(file), "--json"]
    assert run(["bench", "measurement", *options]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(file.read_text())
    assert set(printed["methods"]) == {"default", "default_lead_alone", "paper", "neurokit"}
    assert printed["speedup"]["default_over_paper"]["median"] > 0
    assert printed["n_records"] == 1
    assert run(["bench", "measurement", "--dir", str(tmp_path / "absent")]) == 2


def test_a_lead_that_no_recording_has_is_an_error() -> None:
    with pytest.raises(ConfigError, match="V9"):
        bench_measurement(lead="V9", rounds=1)
