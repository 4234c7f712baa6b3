"""Speed of classifier training: epochs of two Ray Train workers against one, and the loader alone.

Both jobs train the same network on the same records in the same global batches, one torch thread
to a worker. An epoch's time is the worker's own, from its first batch to its last update: the
cluster's start, imports, each job's first epoch, which reads the signals, and validation and
checkpoint, which are at a job's end, are left out. Workers run at the priority of this process, not
at Ray's lower one, so that what else runs on the machine disturbs both jobs alike.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecg_agent_ray import __version__, ecg
from ecg_agent_ray.pipelines.bench.timing import hardware, single_thread
from ecg_agent_ray.plugins.environment import variables

if TYPE_CHECKING:
    from ecg_agent_ray.classifier.dataset import LabelledRecord

__all__ = ["bench_training"]

_NETWORK = {
    "layers": 3,
    "width": 128,
    "ffn": 512,
    "heads": 4,
    "conv_layers": [[64, 2, 2]] * 4,
}


def bench_training(
    ptbxl: str | Path | None = None,
    *,
    workers: Sequence[int] = (1, 2),
    epochs: int = 3,
    batch_size: int = 32,
    rounds: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Time epochs of an ECG transformer and reading prepared records.

    Parameters
    ----------
    ptbxl
        PTB-XL tree; None takes the shipped records, whose epochs are a few batches.
    workers
        Numbers of workers to compare, in turn; the first is what the others are compared with.
    epochs
        Timed epochs of a job; one more comes first.
    batch_size
        Of all workers together.
    rounds
        Jobs for each number of workers.

    Returns
    -------
    dict
        ``epoch_s`` maps a number of workers to the median seconds of an epoch and their range,
        ``ratio`` has each over the first, ``loader`` records/s of one core.

    Raises
    ------
    ConfigError
        The records are not there, or too few for a batch.
    TrainingError
        A job failed.
    """
    times: dict[int, list[float]] = {count: [] for count in workers}
    jobs = [count for _ in range(rounds) for count in workers]
    with tempfile.TemporaryDirectory() as scratch:
        for number, count in enumerate(jobs):
            folder = Path(scratch) / str(number)
            with _apart(Path(scratch)):
                times[count] += _epochs(ptbxl, folder, count, epochs, batch_size)
            if progress is not None:
                progress(number + 1, len(jobs))
        loader = _loader(Path(scratch) / "prepared")
    medians = {count: statistics.median(seconds) for count, seconds in times.items()}
    return {
        "network": _NETWORK,
        "batch_size": batch_size,
        "data": "shipped" if ptbxl is None else "ptbxl",
        "epoch_s": {
            str(count): {
                "median": round(medians[count], 3),
                "min": round(min(seconds), 3),
                "max": round(max(seconds), 3),
                "n": len(seconds),
            }
            for count, seconds in times.items()
        },
        "ratio": {
            f"{count}_over_{workers[0]}": round(medians[count] / medians[workers[0]], 3)
            for count in workers[1:]
        },
        "loader": loader,
        "hardware": hardware(),
        "versions": {"ecg-agent-ray": __version__},
    }


@contextlib.contextmanager
def _apart(home: Path) -> Iterator[None]:
    """Runs of a benchmark are not for the user's MLflow, nor its workers for the least priority."""
    import mlflow

    own = {"ECG_AGENT_HOME": str(home / "state"), "MLFLOW_TRACKING_URI": None}
    uri = mlflow.get_tracking_uri()
    with variables({**own, "RAY_worker_niceness": "0"}):
        try:
            yield
        finally:
            mlflow.set_tracking_uri(uri)


def _epochs(
    ptbxl: str | Path | None, folder: Path, workers: int, epochs: int, batch_size: int
) -> list[float]:
    """Seconds of each epoch of a job but the first."""
    from ecg_agent_ray.training.classifier import finetune_classifier
    from ecg_agent_ray.training.classifier_config import ClassifierFinetuneConfig

    source = {"kind": "ptbxl", "path": str(Path(ptbxl).resolve())} if ptbxl else None
    config = ClassifierFinetuneConfig.model_validate(
        {
            "name": f"bench-{workers}",
            "output": str(folder / "out"),
            "init": None,
            "network": {"architecture": "ecg_transformer", "sizes": _NETWORK},
            "data": [source or {"kind": "manifest", "path": "samples:"}],
            "validation": {"fraction": 0.1},
            "min_positives": 2,
            "epochs": epochs + 1,
            "report_every": epochs + 1,
            "batch_size": batch_size,
            "distributed": {"num_workers": workers, "threads_per_worker": 1, "max_failures": 0},
        }
    )
    history = finetune_classifier(config).history
    return [float(epoch["epoch_s"]) for epoch in history[1:]]


def _loader(folder: Path, seconds: float = 2.0) -> dict[str, Any]:
    """Records/s of one core from Parquet shards in the page cache, and kept in memory."""
    from ecg_agent_ray.classifier.dataset import read_recording
    from ecg_agent_ray.classifier.preprocessing import prepare
    from ecg_agent_ray.training.classifier_loop import Signals

    records = _prepared(folder)
    held = Signals(records)

    def from_shards(index: int) -> None:
        prepare(read_recording(records[index]))

    def from_memory(index: int) -> None:
        held.batch([index])

    rates = {}
    with single_thread():
        for name, read in (("shards", from_shards), ("memory", from_memory)):
            for index in range(len(records)):
                read(index)
            count, started = 0, time.process_time()
            while time.process_time() - started < seconds:
                read(count % len(records))
                count += 1
            rates[name] = round(count / (time.process_time() - started))
    return {"records_per_s_per_core": rates, "samples": 5000, "n_records": len(records)}


def _prepared(folder: Path, copies: int = 16) -> list[LabelledRecord]:
    """The shipped records, each several times, as ``data prepare`` writes them."""
    from ecg_agent_ray.classifier.dataset import LabelledRecord
    from ecg_agent_ray.pipelines.prepare_shards import Options, Record, prepare_shard

    sources = [
        Record(f"{path.stem}-{copy}", str(path), path.stem, "samples", "train")
        for copy in range(copies)
        for path in ecg.samples()
    ]
    options = Options(str(folder), None, False, (), ("parquet",))
    return [
        LabelledRecord(
            record_id=done.name,
            patient_id=done.name,
            path=Path(done.name),
            positives=frozenset(),
            assessed=frozenset(),
            shard=f"{folder}/{done.shard}",
            row=done.row,
            samples=done.samples,
        )
        for done in prepare_shard(sources, options)
        if done.error is None
    ]
