"""The queueing simulator against closed forms, and the estimate from service times in a file."""

from __future__ import annotations

import json
import random
import statistics
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from capacity import main  # noqa: E402
from capacity_simulator import (  # noqa: E402
    Dialogue,
    Scaling,
    Size,
    Turn,
    erlang_c,
    simulate,
    speeds,
)


def poisson(rate: float, n: int, mean_work: float, seed: int = 1) -> list[Dialogue]:
    rng = random.Random(seed)
    now, dialogues = 0.0, []
    for _ in range(n):
        now += rng.expovariate(rate)
        turn = Turn((("agent", rng.expovariate(1 / mean_work)),))
        dialogues.append(Dialogue(now, (turn,)))
    return dialogues


def test_erlang_c_by_value() -> None:
    assert erlang_c(1, 0.5) == pytest.approx(0.5)
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert erlang_c(10, 8.0) == pytest.approx(0.4092, abs=1e-4)
    assert erlang_c(3, 3.0) == 1.0


@pytest.mark.parametrize(("servers", "load"), [(1, 0.7), (4, 3.0), (20, 17.0)])
def test_waiting_agrees_with_erlang_c(servers: int, load: float) -> None:
    result = simulate(poisson(load, 120_000, 1.0), {"agent": Size(servers)})
    waits = result.waits["agent"][5_000:]
    expected = erlang_c(servers, load) / (servers - load)
    assert statistics.fmean(w > 0 for w in waits) == pytest.approx(
        erlang_c(servers, load), rel=0.05
    )
    assert statistics.fmean(waits) == pytest.approx(expected, rel=0.12)


def test_a_sharing_replica_agrees_with_processor_sharing() -> None:
    result = simulate(poisson(0.6, 120_000, 1.0), {"agent": Size(1, slots=10_000)})
    assert statistics.fmean(s for _, s in result.turns) == pytest.approx(1 / (1 - 0.6), rel=0.08)


def test_speeds_between_measured_ones_lie_on_a_line() -> None:
    assert speeds({1: 1.0, 2: 1.6, 4: 2.6}) == pytest.approx((1.0, 1.6, 2.1, 2.6))


def test_two_at_once_on_a_replica_that_batches() -> None:
    pair = [Dialogue(0.0, (Turn((("agent", 3.0),)),)) for _ in range(2)]
    for speed, ended in (((1.0,), 6.0), ((1.0, 1.5), 4.0), ((1.0, 2.0), 3.0)):
        result = simulate(pair, {"agent": Size(1, slots=8, speed=speed)})
        assert [seconds for _, seconds in result.turns] == pytest.approx([ended, ended])


def test_visits_follow_each_other_and_pauses_count_for_nothing() -> None:
    turns = (Turn((("agent", 1.0), ("tool", 0.5)), 7.0), Turn((("agent", 2.0),), 30.0))
    result = simulate([Dialogue(3.0, turns)], {"agent": Size(1), "tool": Size(1)})
    assert result.turns == [(10.0, 1.5), (41.5, 2.0)]
    assert result.replica_seconds["agent"] == pytest.approx(43.5)


def test_the_autoscaler_waits_starts_and_gives_back() -> None:
    burst = [Dialogue(0.0, (Turn((("agent", 20.0),)),)) for _ in range(10)]
    late = [Dialogue(2000.0, (Turn((("agent", 1.0),)),))]
    rule = Scaling(1, 4, target_ongoing=2, cold_start_s=15)
    result = simulate(burst + late, {"agent": Size(1, scaling=rule)})
    ended = [at + seconds for at, seconds in result.turns]
    # alone until 10 (first look) + 30 (delay) + 15 (start), then four
    assert ended[:3] == [20.0, 40.0, 60.0]
    assert ended[3:6] == [75.0, 75.0, 75.0]
    assert result.most_replicas["agent"] == 4
    assert result.replica_seconds["agent"] < 4 * 800 + 1 * 1300


def times(path: Path, **more: object) -> Path:
    turns = [
        {"agent_s": 2.0, "tools": {"measurement": 0.05}},
        {"agent_s": 1.0, "tools": {}},
    ]
    path.write_text(json.dumps({"source": "a test", "dialogues": [turns], **more}), "utf-8")
    return path


def test_more_dialogues_need_more_replicas(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = times(tmp_path / "times.json")
    needed = []
    for n in (1_000, 100_000):
        arguments = ["estimate", str(file), "--dialogues-per-day", str(n), "--p95", "6", "--json"]
        assert main([*arguments, "--window", "120"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["fixed"]["p95_s"] <= 6
        assert answer["inputs"]["source_of_service_times"] == "a test"
        assert answer["inputs"]["peak_factor"] == 3.0
        needed.append(answer["fixed"]["replicas"]["agent"])
    # 100 000 a day at three times the mean are 3.47 dialogues/s of 3 s of work
    assert needed[0] < 10.4 < needed[1] < 40


def test_batching_needs_fewer_replicas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needed = []
    for speed in ({"1": 1}, {"1": 1, "4": 3}):
        file = times(tmp_path / "times.json", speed_together=speed)
        arguments = ["estimate", str(file), "--dialogues-per-day", "100000", "--p95", "6"]
        assert main([*arguments, "--window", "120", "--json"]) == 0
        needed.append(json.loads(capsys.readouterr().out)["fixed"]["replicas"]["agent"])
    assert needed[1] < 0.6 * needed[0]


def test_speeds_have_to_start_at_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = times(tmp_path / "times.json", speed_together={"2": 1.5})
    assert main(["estimate", str(file), "--dialogues-per-day", "1000"]) == 2
    assert "speed_together has to be 1 for one request" in capsys.readouterr().err


def test_a_target_below_the_work_itself_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = times(tmp_path / "times.json")
    assert main(["estimate", str(file), "--dialogues-per-day", "1000", "--p95", "1"]) == 2
    assert "no number of replicas" in capsys.readouterr().err
    assert main(["estimate", str(tmp_path / "none.json"), "--dialogues-per-day", "1"]) == 2
    assert main(["estimate", str(times(tmp_path / "x.json", dialogues=[]))]) == 2
