"""Publishing, resolving, promoting and rolling back on a real MLflow SQLite store."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import mlflow
import numpy as np
import pytest
from safetensors.numpy import save_file

from ecg_agent_ray.errors import (
    ChampionChangedError,
    CheckpointError,
    ConfigError,
    GateNotMetError,
    InputError,
    ModelNotFoundError,
    RefusedError,
)
from ecg_agent_ray.plugins.tracking import tracked_run
from ecg_agent_ray.registry import (
    Gate,
    attach_evaluation,
    diff,
    export,
    list_models,
    load_gate,
    log_agent,
    log_classifier,
    model_name,
    promote,
    resolve,
    rollback,
    show,
)
from ecg_agent_ray.registry import lock as lock_module
from ecg_agent_ray.registry.promotion import read_audit
from ecg_agent_ray.registry.store import registry_client

GATE = Gate.model_validate(
    {
        "name": "test",
        "rules": [
            {
                "metric": "next_action_accuracy",
                "threshold": 0.8,
                "allowed_regression": 0.02,
                "sample_size": "n_turns",
                "minimum_samples": 100,
            }
        ],
    }
)


def classifier_directory(path: Path, *, width: int = 4) -> Path:
    path.mkdir(parents=True)
    save_file({"weight": np.zeros((2, width), np.float32)}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"architecture": "compact", "width": width}))
    (path / "README.md").write_text("# A classifier\n")
    return path


def agent_directory(path: Path) -> Path:
    path.mkdir(parents=True)
    save_file({"lora_A": np.zeros((2, 4), np.float32)}, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({"r": 16}))
    about = {"base_model": "package:llm/x.gguf", "lead_configuration": "12-lead"}
    (path / "ecg_agent.json").write_text(json.dumps({**about, "prompt_version": "1"}))
    (path / "README.md").write_text("# An agent\n")
    return path


@pytest.fixture
def run_id(store: str) -> str:
    with tracked_run("train", params={"lr": 1}) as run:
        pass
    return run.run_id


def three_bare_versions(name: str = "ecg-agent", *accuracies: float) -> None:
    """Versions without artifacts, which promotion never looks at."""
    client = registry_client(create=True)
    client.create_registered_model(name)
    for accuracy in accuracies or (0.9, 0.9, 0.9):
        made = client.create_model_version(name, source="file:///nowhere")
        attach_evaluation(
            name, int(made.version), {"next_action_accuracy": accuracy, "n_turns": 200}
        )


def test_classifier_is_published_resolved_and_shown(run_id: str, tmp_path: Path) -> None:
    folder = classifier_directory(tmp_path / "c")
    started = time.perf_counter()
    version = log_classifier(
        folder, run_id=run_id, metrics={"macro_auroc": 0.9, "n_records": 12}, data_digest="d1"
    )
    print(f"registering took {time.perf_counter() - started:.1f} s")
    assert (version.name, version.version, version.aliases) == (
        "ecg-classifier",
        1,
        ("challenger",),
    )
    assert version.tags["lead_configuration"] == "12-lead"
    assert version.tags["base_model"] == "compact"
    assert version.tags["data_digest"] == "d1"
    assert version.metrics == {"macro_auroc": 0.9, "n_records": 12}
    assert version.run_id == run_id
    got = resolve("models:/ecg-classifier@challenger", kind="classifier")
    assert (got / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert resolve("models:/ecg-classifier/1") == got
    model = got.parents[1]
    files = [p.name for p in model.rglob("*") if p.is_file()]
    assert not [name for name in files if name.endswith((".pkl", ".bin", ".pt"))]
    required = (model / "requirements.txt").read_text()
    assert f"mlflow=={mlflow.__version__}" in required
    assert "+cpu" not in required
    about = mlflow.models.get_model_info(str(model))
    assert about.signature.inputs.input_names()[:2] == ["file", "signal"]
    assert mlflow.get_run(run_id).info.status == "FINISHED"
    (listed,) = list_models()
    assert listed == show("ecg-classifier", "challenger")


def test_agent_pins_the_classifier_it_was_evaluated_with(run_id: str, tmp_path: Path) -> None:
    log_classifier(classifier_directory(tmp_path / "c"), run_id=run_id, alias="champion")
    version = log_agent(
        agent_directory(tmp_path / "a"),
        run_id=run_id,
        classifier_uri="models:/ecg-classifier@champion",
    )
    assert version.name == "ecg-agent"
    assert version.tags["classifier"] == "models:/ecg-classifier/1"
    assert version.tags["base_model"] == "package:llm/x.gguf"
    folder = resolve(version.uri, kind="agent")
    about = json.loads((folder / "ecg_agent.json").read_text())
    assert about["classifier"] == "models:/ecg-classifier/1"
    # a question without an ECG is answered without loading a language model
    model = mlflow.pyfunc.load_model(folder.parents[1].as_uri())
    answer = model.predict({"input": [{"role": "user", "content": "Heart rate?"}]})
    assert "custom_inputs.ecg" in answer["output"][0]["content"][0]["text"]


def test_what_is_no_model_directory_is_refused(run_id: str, tmp_path: Path) -> None:
    folder = classifier_directory(tmp_path / "c")
    (folder / "old.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"old\.pt"):
        log_classifier(folder, run_id=run_id)
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors"):
        log_agent(folder, run_id=run_id)


def test_resolve_names_what_exists(run_id: str, tmp_path: Path) -> None:
    three_bare_versions()
    registry_client().set_registered_model_alias("ecg-agent", "champion", "2")
    with pytest.raises(ModelNotFoundError, match="registered are: ecg-agent"):
        resolve("models:/ecg-classifier@champion")
    with pytest.raises(ModelNotFoundError, match="versions: 1, 2, 3; aliases: champion=2"):
        resolve("models:/ecg-agent@challenger")
    with pytest.raises(ModelNotFoundError, match="no version 9"):
        resolve("models:/ecg-agent/9")
    with pytest.raises(InputError, match="no model URI"):
        resolve("models:/ecg-agent")
    with pytest.raises(InputError, match="is no classifier"):
        resolve("models:/ecg-agent/1", kind="classifier")
    with pytest.raises(InputError, match="agent or a classifier"):
        resolve("builtin:")
    with pytest.raises(ModelNotFoundError, match="no model at"):
        resolve(str(tmp_path / "missing"))
    assert resolve(str(tmp_path)) == tmp_path


def test_an_absent_registry_is_not_made_by_looking(store: str, tmp_path: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/none/mlflow.db")
    assert list_models() == []
    with pytest.raises(ModelNotFoundError, match="no model registry"):
        show("ecg-agent")
    assert not (tmp_path / "none").exists()


def test_promotion_refused_passed_forced_and_rolled_back(run_id: str) -> None:
    three_bare_versions("ecg-agent", 0.90, 0.70, 0.95)
    first = promote("ecg-agent", 1, gate=GATE, actor="ann", expect_champion="none")
    assert (first.version, first.previous) == (1, None)

    with pytest.raises(GateNotMetError, match=r"misses by 0\.1") as refused:
        promote("ecg-agent", 2, gate=GATE)
    assert refused.value.report is not None
    failed = [row for row in refused.value.report["results"] if not row["passed"]]
    assert [round(row["missed_by"], 6) for row in failed] == [0.1, 0.18]
    assert show("ecg-agent").version == 1
    assert show("ecg-agent", 2).tags["gate_result"].startswith("failed: next_action_accuracy")

    with pytest.raises(ConfigError, match="reason"):
        promote("ecg-agent", 2, gate=GATE, force=True)
    forced = promote("ecg-agent", 2, gate=GATE, force=True, reason="hot fix", actor="bob")
    assert forced.forced
    assert show("ecg-agent").tags["promotion_reason"] == "hot fix"
    assert show("ecg-agent", "previous-champion").version == 1

    promote("ecg-agent", 3, gate=GATE, actor="ann")
    back = rollback("ecg-agent", reason="complaints", actor="eve")
    assert (back.version, back.previous) == (2, 3)
    assert show("ecg-agent", "champion").version == 2
    assert show("ecg-agent", "previous-champion").version == 3
    with pytest.raises(ChampionChangedError, match="champion changed"):
        rollback("ecg-agent", expect_champion=3)

    events = [(e["event"], e["version"], e["actor"]) for e in read_audit("ecg-agent")]
    assert [event[:2] for event in events] == [
        ("promoted", 1),
        ("refused", 2),
        ("promoted", 2),
        ("promoted", 3),
        ("rolled back", 2),
    ]
    assert events[-1][2] == "eve"
    tags = registry_client().get_registered_model("ecg-agent").tags
    assert sum(key.startswith("audit.") for key in tags) == 5


def test_promotion_takes_challenger_away_and_needs_an_evaluation(run_id: str) -> None:
    client = registry_client(create=True)
    three_bare_versions("ecg-agent", 0.9)
    client.create_model_version("ecg-agent", source="file:///nowhere")
    client.set_registered_model_alias("ecg-agent", "challenger", "2")
    with pytest.raises(GateNotMetError, match="not in the evaluation"):
        promote("ecg-agent", "challenger", gate=GATE)
    values = {"next_action_accuracy": 0.85, "n_turns": 150}
    done = promote("ecg-agent", "challenger", gate=GATE, metrics=values)
    assert done.version == 2
    assert set(client.get_registered_model("ecg-agent").aliases) == {"champion"}
    with pytest.raises(RefusedError, match="no previous-champion"):
        rollback("ecg-agent")


def test_versions_evaluated_on_other_data_are_not_compared(run_id: str) -> None:
    three_bare_versions("ecg-agent", 0.9, 0.9)
    attach_evaluation("ecg-agent", 1, {}, data_digest="a")
    attach_evaluation("ecg-agent", 2, {}, data_digest="b")
    promote("ecg-agent", 1, gate=GATE)
    with pytest.raises(GateNotMetError, match="evaluated on other data"):
        promote("ecg-agent", 2, gate=GATE)


def test_ten_racing_promotions_have_one_winner(run_id: str, tmp_path: Path) -> None:
    """Ten threads, each with its own client, as ten processes would be with a server."""
    three_bare_versions("ecg-agent", *([0.9] * 11))
    promote("ecg-agent", 1, gate=GATE)
    answers: list[tuple[str, int]] = []
    barrier = threading.Barrier(10)

    def race(version: int) -> None:
        barrier.wait()
        try:
            promote("ecg-agent", version, gate=GATE, expect_champion=1)
            answers.append(("won", version))
        except ChampionChangedError:
            answers.append(("changed", version))

    threads = [threading.Thread(target=race, args=(version,)) for version in range(2, 12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    winners = [version for result, version in answers if result == "won"]
    assert len(answers) == 10
    assert len(winners) == 1
    assert show("ecg-agent").version == winners[0]
    assert show("ecg-agent", "previous-champion").version == 1
    assert [v.name for v in list_models()] == ["ecg-agent"] * 11


RACER = """
import sys, time
import mlflow
from ecg_agent_ray.errors import ChampionChangedError
from ecg_agent_ray.registry import promote
from ecg_agent_ray.registry.store import aliased_version, registry_client

mlflow.set_tracking_uri(sys.argv[1])
expected = aliased_version(registry_client(), "ecg-agent", "champion")
print("ready", flush=True)
for line in sys.stdin:
    expected = int(line)
    try:
        done = promote("ecg-agent", sys.argv[2], gate=sys.argv[3], expect_champion=expected)
        print("won", done.version, flush=True)
    except ChampionChangedError:
        print("changed", flush=True)
    except Exception as error:
        print(repr(error), flush=True)
"""


@pytest.mark.slow
def test_ten_processes_race_in_each_round(run_id: str, store: str, tmp_path: Path) -> None:
    """Separate processes on one SQLite file: every round has one winner and nine refusals."""
    three_bare_versions("ecg-agent", *([0.9] * 11))
    promote("ecg-agent", 11, gate=GATE)
    gate = tmp_path / "gate.yaml"
    gate.write_text("rules: [{metric: next_action_accuracy, threshold: 0.8}]\n")
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, store, str(version), str(gate)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for version in range(1, 11)
    ]
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for _ in range(3):
            champion = show("ecg-agent").version
            for racer in racers:
                assert racer.stdin is not None
                racer.stdin.write(f"{champion}\n")
                racer.stdin.flush()
            answers = [racer.stdout.readline().split() for racer in racers if racer.stdout]
            winners = [answer for answer in answers if answer[0] == "won"]
            assert len(winners) == 1
            assert sum(answer == ["changed"] for answer in answers) == 9, answers
            assert show("ecg-agent").version == int(winners[0][1])
    finally:
        for racer in racers:
            racer.communicate(timeout=60)


def test_a_dead_promotions_lock_expires(run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    three_bare_versions("ecg-agent", 0.9, 0.9)
    client = registry_client()
    name = "ecg-agent.promotion-lock"
    client.create_registered_model(name, tags={"owner": "dead", "created": str(time.time() - 60)})
    with (
        pytest.raises(RefusedError, match="under way"),
        lock_module.promotion_lock(client, "ecg-agent", wait_s=0.3),
    ):
        pass
    monkeypatch.setattr(lock_module, "EXPIRES_AFTER_S", 30.0)
    assert promote("ecg-agent", 1, gate=GATE).version == 1
    names = [model.name for model in client.search_registered_models()]
    assert sorted(names) == ["ecg-agent", f"{name}.dead"]
    # who still holds the dead lock's reading cannot clear the one that came after it
    with lock_module.promotion_lock(client, "ecg-agent"):
        from mlflow.exceptions import MlflowException

        with pytest.raises(MlflowException, match="already exists"):
            client.rename_registered_model(name, f"{name}.dead")


def test_a_slow_holder_keeps_its_lock_and_a_robbed_one_notices(
    run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    three_bare_versions("ecg-agent", 0.9)
    client = registry_client()
    monkeypatch.setattr(lock_module, "EXPIRES_AFTER_S", 2.0)
    with lock_module.promotion_lock(client, "ecg-agent") as still_ours:
        with (
            pytest.raises(RefusedError, match="under way"),
            lock_module.promotion_lock(client, "ecg-agent", wait_s=4.0),
        ):
            pass
        still_ours()
        client.rename_registered_model("ecg-agent.promotion-lock", "ecg-agent.promotion-lock.x")
        with pytest.raises(ChampionChangedError, match="lost its lock"):
            still_ours()


def test_diff_and_export(run_id: str, tmp_path: Path) -> None:
    for width, auroc in ((4, 0.8), (8, 0.9)):
        log_classifier(
            classifier_directory(tmp_path / f"c{width}", width=width),
            run_id=run_id,
            metrics={"macro_auroc": auroc, "ece": 0.1},
            data_digest=f"data-{width}",
        )
    found = diff("ecg-classifier", 1, "challenger")
    assert found.versions == (1, 2)
    assert found.config == {"config.width": (4, 8)}
    assert found.data == {"data_digest": ("data-4", "data-8")}
    assert found.metrics == {"macro_auroc": (0.8, 0.9)}
    out = export("models:/ecg-classifier/2", tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["width"] == 8
    with pytest.raises(InputError, match="not empty"):
        export("models:/ecg-classifier/1", tmp_path / "out")


def test_names_of_all_lead_configurations() -> None:
    assert [model_name("agent", leads) for leads in ("12-lead", "I", "II")] == [
        "ecg-agent",
        "ecg-agent-lead-I",
        "ecg-agent-lead-II",
    ]
    assert load_gate("agent").rules


def test_every_shipped_gate_loads() -> None:
    folder = Path(__file__).parents[2] / "mlflow_projects" / "evaluation" / "gates"
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    assert names == ["agent", "classifier", "demo-agent", "demo-classifier"]
    for name in names:
        assert load_gate(name).name == name


def test_gate_problems_are_listed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "g.yaml"
    path.write_text("rules:\n  - metric: a\n  - {metric: b, threshold: x, oops: 1}\n")
    with pytest.raises(ConfigError) as caught:
        load_gate(path)
    text = "\n".join(caught.value.problems)
    for part in ("give threshold, allowed_regression or both", "valid number", "rules.1.oops"):
        assert part in text


def test_significance_forgives_only_what_may_be_chance() -> None:
    rule = {
        "metric": "acc",
        "allowed_regression": 0.0,
        "sample_size": "n",
        "significance": 0.05,
    }
    gate = Gate.model_validate({"name": "g", "rules": [rule]})
    small = gate.check({"acc": 0.78, "n": 50}, {"acc": 0.80, "n": 50})
    large = gate.check({"acc": 0.78, "n": 50_000}, {"acc": 0.80, "n": 50_000})
    assert small.passed
    assert not large.passed
    assert large.results[0].missed_by == pytest.approx(0.02)
