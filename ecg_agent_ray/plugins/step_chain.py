"""Steps as child runs of one parent run; a step whose inputs are unchanged is not run again.

    steps = [Step("prepare", prepare, inputs={"data": digest}),
             Step("train", train, needs=("prepare",), inputs={"epochs": 3})]
    results = run_chain("weekly", steps, experiment="chains")

A step gets the results of those it needs and returns :class:`StepResult`: JSON values for later
steps, and the files it wrote. Its input digest is made of its name, its inputs, the package version
and the output digests of what it needs. Where a finished run of the experiment has the same digest
and its files are still what they were, its result is taken over; the child run then says whose it
is. ``start`` runs that step and all after it whatever the digests say, on the last results of those
before it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.plugins.tracking import TrackedRun, tracked_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = ["ChainResult", "Step", "StepOutcome", "StepResult", "run_chain"]

logger = logging.getLogger(__name__)

_TAG = "chain"
_RESULT_LIMIT = 4500  # characters of a tag that every MLflow store takes


@dataclass(frozen=True)
class StepResult:
    """``values`` go to later steps and into the run's tags; ``files`` (or folders) are digested."""

    values: dict[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()


Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Step:
    """``work`` is called with the results by step name.

    A step that ``tracks_itself`` opens its run with ``tracked_run``, which is given the step's run;
    for the others a run is open while they work.
    """

    name: str
    work: Callable[[Results], StepResult]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    tracks_itself: bool = False


@dataclass(frozen=True)
class StepOutcome:
    """``reused`` is the run whose result was taken over, or None where the step ran."""

    name: str
    run_id: str
    reused: str | None
    values: dict[str, Any]


@dataclass(frozen=True)
class ChainResult:
    run_id: str
    steps: tuple[StepOutcome, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"run_id": self.run_id, "steps": [asdict(step) for step in self.steps]}


def run_chain(
    name: str,
    steps: Sequence[Step],
    *,
    experiment: str,
    start: str | None = None,
    params: Mapping[str, Any] | None = None,
    report: Callable[[StepOutcome], None] | None = None,
) -> ChainResult:
    """Run the steps in order within one parent run.

    Raises
    ------
    ConfigError
        ``start`` is no step, or an earlier step has no finished run to take over.
    """
    names = [step.name for step in steps]
    if start is not None and start not in names:
        raise ConfigError(f"no step {start!r}", hint=f"one of {', '.join(names)}")
    first = names.index(start) if start is not None else len(steps)
    with tracked_run(name, params=params, experiment=experiment) as parent:
        chain = _Chain(parent)
        for place, step in enumerate(steps):
            if start is None:
                outcome = chain.unchanged(step) or chain.run(step)
            else:
                outcome = chain.run(step) if place >= first else chain.last(step)
            if report is not None:
                report(outcome)
        return ChainResult(parent.run_id, tuple(chain.outcomes.values()))


class _Chain:
    def __init__(self, parent: TrackedRun) -> None:
        from mlflow import MlflowClient

        self._parent = parent
        self._client: MlflowClient = MlflowClient()
        self._digests: dict[str, str] = {}
        self.outcomes: dict[str, StepOutcome] = {}

    def unchanged(self, step: Step) -> StepOutcome | None:
        """The result of an earlier run with the same inputs, if there is one."""
        wanted = f"tags.`{_TAG}.input_digest` = '{self._input_digest(step)}'"
        return self._taken_over(step, wanted)

    def last(self, step: Step) -> StepOutcome:
        found = self._taken_over(step, None)
        if found is None:
            raise ConfigError(
                f"cannot start after step {step.name!r}: it has no finished run here",
                hint="start there, or leave the start out",
            )
        return found

    def run(self, step: Step) -> StepOutcome:
        run_id = self._new_run(step)
        results = {name: outcome.values for name, outcome in self.outcomes.items()}
        os.environ["MLFLOW_RUN_ID"] = run_id  # as `mlflow run` does it: the next run opened is this
        try:
            if step.tracks_itself:
                result = step.work(results)
            else:
                with tracked_run(step.name):
                    result = step.work(results)
        finally:
            os.environ.pop("MLFLOW_RUN_ID", None)
            self._end_unused(run_id)
        digest = _output_digest(result)
        stored = json.dumps({"values": result.values, "files": list(result.files)})
        if len(stored) > _RESULT_LIMIT:
            raise ConfigError(f"the result of step {step.name} is too long for a tag")
        self._tag(run_id, {"result": stored, "output_digest": digest})
        return self._keep(StepOutcome(step.name, run_id, None, dict(result.values)), digest)

    def _taken_over(self, step: Step, condition: str | None) -> StepOutcome | None:
        found = self._earlier(step.name, condition)
        if found is None:
            return None
        stored = json.loads(found.data.tags[f"{_TAG}.result"])
        digest = found.data.tags[f"{_TAG}.output_digest"]
        result = StepResult(stored["values"], tuple(stored["files"]))
        if _output_digest(result) != digest:
            logger.info("step %s: its files have changed or gone since", step.name)
            return None
        run_id = self._new_run(step)
        self._tag(run_id, {"reused_run": found.info.run_id})
        self._client.set_terminated(run_id, "FINISHED")
        outcome = StepOutcome(step.name, run_id, found.info.run_id, result.values)
        return self._keep(outcome, digest)

    def _earlier(self, step: str, condition: str | None) -> Run | None:
        own = f"tags.`{_TAG}.step` = '{step}' and attributes.status = 'FINISHED'"
        found = self._client.search_runs(
            [self._parent.experiment_id],
            filter_string=" and ".join(filter(None, [own, condition])),
            order_by=["attributes.start_time DESC"],
            max_results=100,
        )
        # those that took over a result have none of their own
        return next((run for run in found if f"{_TAG}.result" in run.data.tags), None)

    def _new_run(self, step: Step) -> str:
        from mlflow.tracking.context.registry import resolve_tags

        tags = {
            **resolve_tags(),
            "mlflow.parentRunId": self._parent.run_id,
            "mlflow.runName": step.name,
            f"{_TAG}.step": step.name,
            f"{_TAG}.input_digest": self._input_digest(step),
        }
        run = self._client.create_run(self._parent.experiment_id, tags=tags)
        return str(run.info.run_id)

    def _end_unused(self, run_id: str) -> None:
        """A step that failed before it opened its run leaves it open."""
        if self._client.get_run(run_id).info.status == "RUNNING":
            self._client.set_terminated(run_id, "FAILED")

    def _input_digest(self, step: Step) -> str:
        given = {
            "step": step.name,
            "version": metadata.version("ecg-agent-ray"),
            "inputs": dict(step.inputs),
            "needs": {name: self._digests[name] for name in step.needs},
        }
        text = json.dumps(given, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:36]

    def _tag(self, run_id: str, values: Mapping[str, str]) -> None:
        for key, value in values.items():
            self._client.set_tag(run_id, f"{_TAG}.{key}", value)

    def _keep(self, outcome: StepOutcome, digest: str) -> StepOutcome:
        self.outcomes[outcome.name] = outcome
        self._digests[outcome.name] = digest
        return outcome


def _output_digest(result: StepResult) -> str:
    """Of the values and of every file's name and bytes; a file that is gone changes it."""
    total = hashlib.sha256(json.dumps(result.values, sort_keys=True).encode())
    for given in map(Path, result.files):
        inner = sorted(p for p in given.rglob("*") if p.is_file()) if given.is_dir() else [given]
        for path in inner:
            total.update(os.path.relpath(path, given.parent).encode() + b"\0")
            if path.is_file():
                with path.open("rb") as handle:
                    total.update(hashlib.file_digest(handle, "sha256").digest())
    return total.hexdigest()[:36]
