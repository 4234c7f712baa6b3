"""Ray Train V2 reports into one MLflow run.

    callback = MLflowTrainCallback(run_id=run.info.run_id, tracking_uri="http://mlflow:5000")
    trainer = TorchTrainer(loop, run_config=RunConfig(callbacks=[callback]), ...)
    trainer.fit()
    callback.flush()      # only matters if MLflow was away at the end

The callback runs in the controller, which Ray Train places on the driver's node and which outlives
its workers, so a worker restart goes on in the same run. Use
:func:`ecg_agent_ray.plugins.tracking.tracked_run` to open, end and flush the run around ``fit()``.

What it logs: rank 0's numeric metrics at their global step; each checkpoint as a reference (tags)
or as artifacts; every worker exception with its traceback. What it does not: end the run, since
only the driver knows whether the job will be retried.
"""

from __future__ import annotations

import logging
import numbers
import os
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ray.train import UserCallback

from ecg_agent_ray.plugins.spool import RunSpool
from ecg_agent_ray.settings import load_settings

__all__ = ["MLflowTrainCallback", "numeric_metrics"]

logger = logging.getLogger(__name__)


class MLflowTrainCallback(UserCallback):
    """Logs a Ray Train V2 job into the MLflow run ``run_id``.

    Parameters
    ----------
    run_id, tracking_uri
        The open run. The tracking URI must be reachable from the driver's node.
    step_key
        Which reported value is the global step. Without it reports are counted; a job that restarts
        from a checkpoint then cannot tell a repeated step from a new one.
    checkpoints
        ``reference`` tags the run with the checkpoint's path; ``artifact`` uploads a checkpoint
        that lies on a file system of the node (others stay references).
    spool_dir
        Where lines wait for MLflow; default ``$ECG_AGENT_HOME/spool`` as seen by the driver.
    prefix
        Put before every metric name, e.g. ``"pretrain/"``.
    wait_s
        How long one report may wait for a healthy MLflow. While MLflow is away, reports never wait.
    """

    def __init__(
        self,
        run_id: str,
        tracking_uri: str,
        *,
        step_key: str = "global_step",
        checkpoints: Literal["reference", "artifact"] = "reference",
        spool_dir: str | os.PathLike[str] | None = None,
        prefix: str = "",
        wait_s: float = 10.0,
    ) -> None:
        self.run_id = run_id
        self.tracking_uri = tracking_uri
        self.step_key = step_key
        self.checkpoints = checkpoints
        self.prefix = prefix
        self.wait_s = wait_s
        # resolved here: the controller has another working directory
        self.spool_dir = Path(spool_dir or load_settings().home / "spool").resolve()
        self._spool = RunSpool(run_id, tracking_uri, self.spool_dir)
        self._sender: _Sender | None = None
        self._failures = 0

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any | None
    ) -> None:
        """Log rank 0's metrics and the checkpoint. Never raises because of MLflow."""
        rank0 = metrics[0] if metrics else {}
        reported = rank0.get(self.step_key)
        step = int(reported) if isinstance(reported, int | float) else None
        values = numeric_metrics(rank0, prefix=self.prefix)
        values.pop(f"{self.prefix}{self.step_key}", None)
        self._spool.metrics(values, step)
        if checkpoint is not None:
            self._log_checkpoint(checkpoint, step)
        self._deliver()

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Keep each worker's traceback; the run stays open, Ray Train may restart the workers."""
        self._failures += 1
        for rank, error in worker_exceptions.items():
            text = "".join(traceback.format_exception(error))
            self._spool.text(text, f"failures/attempt-{self._failures}-rank-{rank}.txt")
        self._spool.tags(
            {
                "ray.train.failures": str(self._failures),
                "ray.train.failed_ranks": ",".join(map(str, sorted(worker_exceptions))),
            }
        )
        self._deliver()

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Send what is waiting (on the driver, after ``fit()``). True when nothing is left."""
        return self._spool.flush(timeout_s)

    def _log_checkpoint(self, checkpoint: Any, step: int | None) -> None:
        tags = {"ray.train.checkpoint": checkpoint.path}
        if step is not None:
            tags["ray.train.checkpoint_step"] = str(step)
        self._spool.tags(tags)
        if self.checkpoints == "artifact" and Path(checkpoint.path).is_dir():
            self._spool.artifacts(checkpoint.path, f"checkpoints/{Path(checkpoint.path).name}")

    def _deliver(self) -> None:
        if self._sender is None or not self._sender.is_alive():
            self._sender = _Sender(self._spool)
            self._sender.start()
        self._sender.wake(self.wait_s)

    def __getstate__(self) -> dict[str, Any]:
        # the driver's copy is sent to the controller; a thread stays where it is
        return {**self.__dict__, "_sender": None, "_spool": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._spool = RunSpool(self.run_id, self.tracking_uri, self.spool_dir)


class _Sender(threading.Thread):
    """Sends a spool whenever it is woken, and again with growing pauses while MLflow is away."""

    def __init__(self, spool: RunSpool) -> None:
        super().__init__(name=f"mlflow-spool-{spool.run_id[:8]}", daemon=True)
        self._spool = spool
        self._work = threading.Event()
        self._idle = threading.Event()
        self._healthy = True

    def wake(self, wait_s: float) -> None:
        self._idle.clear()
        self._work.set()
        if self._healthy:
            self._idle.wait(wait_s)

    def run(self) -> None:
        pause = 1.0
        while True:
            # while MLflow is away new lines do not shorten the pause: they are safe on disk
            if self._healthy:
                self._work.wait()
            self._work.clear()
            self._healthy = self._spool.send()
            if not self._work.is_set():
                self._idle.set()
            if self._healthy:
                pause = 1.0
            else:
                self._idle.set()
                threading.Event().wait(pause)
                pause = min(pause * 2, 15.0)


def numeric_metrics(values: Mapping[str, Any], *, prefix: str = "") -> dict[str, float]:
    """Numbers of a (nested) report as floats, nested names joined by ``/``; all else is left out.

    One-element tensors and arrays count as numbers.
    """
    result: dict[str, float] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            result.update(numeric_metrics(value, prefix=f"{name}/"))
        elif isinstance(value, numbers.Real):
            result[name] = float(value)
        elif hasattr(value, "item"):
            count = value.numel() if hasattr(value, "numel") else getattr(value, "size", 0)
            if count == 1:
                result[name] = float(value.item())
    return result
