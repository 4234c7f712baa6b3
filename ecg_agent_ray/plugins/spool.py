"""What is to reach an MLflow run, kept on disk until MLflow has taken it.

Every operation (metrics, tags, a text or file artifact, the final status) is one JSON line, written
and synced before anything goes over the network. A tracking server that is away for minutes or a
process that dies half way therefore loses nothing: the next :meth:`RunSpool.send`, from this
process or any other on the node, goes on where the last one stopped. Times are taken when the line
is written, so a line that is sent twice is the same metric to MLflow and is stored once.

A metric whose step is not above the highest one its key has in the run is dropped. That is what
makes a restart from a checkpoint repeat no steps.

Not covered: nodes without a POSIX ``flock``; artifacts whose file is gone before MLflow is back.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ecg_agent_ray.plugins.stores import server_answers

__all__ = ["RunSpool", "resend"]

logger = logging.getLogger(__name__)

# MLflow's own limit for one log_batch call (mlflow.utils.validation.MAX_METRICS_PER_BATCH)
_BATCH = 1000
# statuses after which the same request can succeed: not signed in yet, timed out, throttled
_TRANSIENT_4XX = {401, 403, 408, 429}


class RunSpool:
    """The spool of one run; cheap to make, safe with several processes of one node."""

    def __init__(self, run_id: str, tracking_uri: str, directory: str | os.PathLike[str]) -> None:
        self.run_id = run_id
        self.tracking_uri = tracking_uri
        self.directory = Path(directory)
        self.path = self.directory / f"{run_id}.jsonl"
        self._offset_path = self.directory / f"{run_id}.offset"
        self._highest: dict[str, int] | None = None
        self._client: Any = None

    # -- writing ---------------------------------------------------------------------------------

    def metrics(self, values: Mapping[str, float], step: int | None) -> None:
        """Add metrics; ``step=None`` is given the run's next free step when it is sent."""
        if values:
            self._append({"op": "metrics", "values": dict(values), "step": step})

    def tags(self, values: Mapping[str, str]) -> None:
        if values:
            self._append({"op": "tags", "values": {k: str(v) for k, v in values.items()}})

    def text(self, text: str, artifact_file: str) -> None:
        self._append({"op": "text", "text": text, "artifact_file": artifact_file})

    def artifacts(self, path: str | os.PathLike[str], artifact_path: str) -> None:
        """Add a local directory; it is read when it is sent, so it has to stay until then."""
        self._append({"op": "artifacts", "path": os.fspath(path), "artifact_path": artifact_path})

    def status(self, status: str) -> None:
        """End the run with ``FINISHED``, ``FAILED`` or ``KILLED``."""
        self._append({"op": "status", "status": status})

    def _append(self, operation: dict[str, Any]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        lines = json.dumps({"t": int(time.time() * 1000), **operation}) + "\n"
        with self._lock("write"), self.path.open("ab+") as out:
            if out.tell() == 0:
                lines = json.dumps({"op": "open", "tracking_uri": self.tracking_uri}) + "\n" + lines
            else:
                out.seek(-1, os.SEEK_END)
                if out.read(1) != b"\n":  # a writer died within its line
                    lines = "\n" + lines
            out.write(lines.encode())
            out.flush()
            os.fsync(out.fileno())

    # -- sending ---------------------------------------------------------------------------------

    def send(self) -> bool:
        """Send what is waiting; True when nothing is left, False when MLflow did not take it."""
        if not self.path.exists():
            return True
        with self._lock("send"):
            try:
                if not server_answers(self.tracking_uri):
                    return False
                while not self._remove_if_sent():
                    for operations, end in self._pending():
                        self._deliver(operations)
                        self._offset_path.write_text(str(end), encoding="ascii")
                return True
            except Exception as error:
                # whatever MLflow, SQLAlchemy or the network raised: the lines are still on disk
                logger.warning(
                    "MLflow run %s: kept in %s: %s", self.run_id, self.path, _first_line(error)
                )
                self._client = None
                return False

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Send until nothing is left or the time is over."""
        deadline = time.monotonic() + timeout_s
        pause = 0.2
        while not self.send():
            if time.monotonic() + pause > deadline:
                return False
            time.sleep(pause)
            pause = min(pause * 2, 5.0)
        return True

    def _pending(self) -> Iterator[tuple[list[dict[str, Any]], int]]:
        """Consecutive metrics as one batch, anything else alone, each with the offset after it."""
        batch: list[dict[str, Any]] = []
        size = end = 0
        for operation, after in self._lines():
            if operation["op"] == "metrics":
                if size + len(operation["values"]) > _BATCH and batch:
                    yield batch, end
                    batch, size = [], 0
                batch.append(operation)
                size += len(operation["values"])
            else:
                if batch:
                    yield batch, end
                    batch, size = [], 0
                yield [operation], after
            end = after
        if batch:
            yield batch, end

    def _lines(self) -> Iterator[tuple[dict[str, Any], int]]:
        start = self._offset()
        with self.path.open("rb") as lines:
            lines.seek(start)
            for line in lines:
                if not line.endswith(b"\n"):
                    return  # still being written
                start += len(line)
                try:
                    operation = json.loads(line)
                except json.JSONDecodeError:
                    operation = {"op": "torn"}
                yield operation, start

    def _deliver(self, operations: list[dict[str, Any]]) -> None:
        from mlflow.exceptions import MlflowException

        first = operations[0]
        if first["op"] in ("open", "torn"):
            return
        try:
            if first["op"] == "metrics":
                self._deliver_metrics(operations)
            else:
                self._deliver_one(first)
        except MlflowException as error:
            code = error.get_http_status_code()
            if not 400 <= code < 500 or code in _TRANSIENT_4XX:
                raise
            # refused for good (run deleted, bad key): keep it for a person, do not block the rest
            rejected = self.path.with_suffix(".rejected.jsonl")
            with rejected.open("a", encoding="utf-8") as out:
                out.writelines(json.dumps(operation) + "\n" for operation in operations)
            logger.error(
                "MLflow run %s refused data, kept in %s: %s",
                self.run_id,
                rejected,
                _first_line(error),
            )

    def _deliver_metrics(self, operations: Iterable[dict[str, Any]]) -> None:
        from mlflow.entities import Metric

        client = self._mlflow()
        if self._highest is None:
            # RunData.metrics has no steps; the entity list behind it is what `runs/get` returned
            latest = client.get_run(self.run_id).data._metric_objs
            self._highest = {metric.key: metric.step for metric in latest}
        highest = dict(self._highest)
        metrics: list[Metric] = []
        for operation in operations:
            step = operation["step"]
            if step is None:
                step = max((highest.get(key, -1) for key in operation["values"]), default=-1) + 1
            for key, value in operation["values"].items():
                if step > highest.get(key, -1):
                    metrics.append(Metric(key, value, operation["t"], step))
                    highest[key] = step
        for start in range(0, len(metrics), _BATCH):
            client.log_batch(self.run_id, metrics=metrics[start : start + _BATCH], synchronous=True)
        self._highest = highest

    def _deliver_one(self, operation: dict[str, Any]) -> None:
        client = self._mlflow()
        match operation["op"]:
            case "tags":
                from mlflow.entities import RunTag

                tags = [RunTag(key, value) for key, value in operation["values"].items()]
                client.log_batch(self.run_id, tags=tags, synchronous=True)
            case "text":
                client.log_text(self.run_id, operation["text"], operation["artifact_file"])
            case "artifacts":
                if Path(operation["path"]).is_dir():
                    client.log_artifacts(self.run_id, operation["path"], operation["artifact_path"])
                else:
                    logger.warning("%s was removed before it could be uploaded", operation["path"])
            case "status":
                client.set_terminated(self.run_id, operation["status"], operation["t"])

    def _mlflow(self) -> Any:
        if self._client is None:
            from mlflow import MlflowClient

            self._client = MlflowClient(tracking_uri=self.tracking_uri)
        return self._client

    def _offset(self) -> int:
        """Bytes of the file that MLflow has taken."""
        return int(self._offset_path.read_text("ascii")) if self._offset_path.exists() else 0

    def _remove_if_sent(self) -> bool:
        with self._lock("write"):
            if not self.path.exists():
                return True
            with self.path.open("rb") as lines:
                lines.seek(self._offset())
                if b"\n" in lines.read():
                    return False
            self.path.unlink()
            self._offset_path.unlink(missing_ok=True)
        return True

    @contextlib.contextmanager
    def _lock(self, kind: str) -> Iterator[None]:
        """``write`` is held for one append, ``send`` for a whole pass over the network."""
        with (self.directory / f"{self.run_id}.{kind}.lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def resend(directory: str | os.PathLike[str]) -> dict[str, bool]:
    """Send what earlier processes left in ``directory``: run id -> whether all of it was taken."""
    results: dict[str, bool] = {}
    for path in sorted(Path(directory).glob("*.jsonl")):
        if path.name.endswith(".rejected.jsonl"):
            continue
        with path.open(encoding="utf-8") as lines:
            header = json.loads(lines.readline())
        spool = RunSpool(path.stem, header["tracking_uri"], directory)
        results[path.stem] = spool.send()
    return results


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
