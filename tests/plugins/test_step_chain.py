"""Chains of child runs on a real MLflow store: skipping, restarting, failing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest

from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.plugins.step_chain import ChainResult, Results, Step, StepResult, run_chain
from ecg_agent_ray.plugins.tracking import tracked_run


@pytest.fixture
def chain(store: str, tmp_path: Path) -> Callable[..., ChainResult]:
    """Three steps: a file, its length times ``factor`` (which tracks itself), and a check."""

    def write(results: Results) -> StepResult:
        path = tmp_path / "text"
        path.write_text("four")
        return StepResult({"path": str(path)}, (str(path),))

    def count(results: Results) -> StepResult:
        with tracked_run("count", experiment="tests") as run:
            number = len(Path(results["write"]["path"]).read_text()) * chosen["factor"]
            run.log_metrics({"number": number})
        return StepResult({"number": number})

    def check(results: Results) -> StepResult:
        if results["count"]["number"] < 0:
            raise ZeroDivisionError("negative")
        return StepResult()

    chosen: dict[str, Any] = {}

    def run(factor: int = 1, start: str | None = None) -> ChainResult:
        chosen["factor"] = factor
        steps = [
            Step("write", write),
            Step("count", count, {"factor": factor}, needs=("write",), tracks_itself=True),
            Step("check", check, needs=("count",)),
        ]
        return run_chain("chain", steps, experiment="tests", start=start)

    return run


def ran(result: ChainResult) -> list[str]:
    return [step.name for step in result.steps if step.reused is None]


def test_steps_are_finished_child_runs(chain: Callable[..., ChainResult]) -> None:
    result = chain()
    assert ran(result) == ["write", "count", "check"]
    assert mlflow.get_run(result.run_id).info.status == "FINISHED"
    for step in result.steps:
        found = mlflow.get_run(step.run_id)
        assert found.info.status == "FINISHED"
        assert found.info.run_name == step.name
        assert found.data.tags["mlflow.parentRunId"] == result.run_id
    assert mlflow.get_run(result.steps[1].run_id).data.metrics == {"number": 4}
    assert mlflow.active_run() is None


def test_unchanged_steps_are_taken_over_and_changed_ones_run(
    chain: Callable[..., ChainResult], tmp_path: Path
) -> None:
    first = chain()
    again = chain()
    assert ran(again) == []
    assert [step.reused for step in again.steps] == [step.run_id for step in first.steps]
    assert again.steps[1].values == {"number": 4}
    assert ran(chain(factor=2)) == ["count", "check"]
    (tmp_path / "text").write_text("changed by somebody")
    # written anew it is the same file, so what follows is unchanged
    assert ran(chain(factor=2)) == ["write"]
    assert ran(chain()) == []


def test_a_chain_starts_at_any_step(chain: Callable[..., ChainResult]) -> None:
    with pytest.raises(ConfigError, match="write"):
        chain(start="count")
    chain()
    assert ran(chain(start="count")) == ["count", "check"]
    assert ran(chain(factor=3, start="check")) == ["check"]
    with pytest.raises(ConfigError, match="one of write, count, check"):
        chain(start="nowhere")


def test_after_a_failure_the_chain_goes_on_where_it_failed(
    chain: Callable[..., ChainResult],
) -> None:
    with pytest.raises(ZeroDivisionError):
        chain(factor=-1)
    failed = mlflow.search_runs(filter_string="attributes.status = 'FAILED'", output_format="list")
    assert sorted(run.info.run_name for run in failed) == ["chain", "check"]
    with pytest.raises(ZeroDivisionError):
        chain(factor=-1)
    runs = mlflow.search_runs(
        filter_string="tags.`chain.step` = 'count' and tags.`chain.result` LIKE '%'",
        output_format="list",
    )
    assert len(runs) == 1
