"""Writing prepared recordings: one Ray Data task a shard, which nothing but whole shards survives.

A task reads its records and writes a Parquet shard, ``.mat`` files, or both. A shard is written
beside its name and then renamed, and counts once ``prepared.jsonl`` lists its records: what a
killed job left that is not listed is removed when the next one starts.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ecg_agent_ray import ecg
from ecg_agent_ray.classifier.preprocessing import SAMPLING_RATE, STANDARD_LEADS
from ecg_agent_ray.classifier.shards import COMPRESSION, SHARDS, shard_schema
from ecg_agent_ray.errors import CorruptRecordingError, EcgAgentError, LeadError, ToolError

__all__ = ["Format", "Options", "PreparedRecord", "Record", "Split", "prepare_all"]

Split = Literal["train", "valid", "test"]
Format = Literal["parquet", "mat"]
_LARGEST_SHARD = 256
"""Records; about 30 MB of 10 s recordings."""


@dataclass(frozen=True)
class Record:
    """A recording to prepare. ``name`` is the stem of its files, ``labels`` its class codes."""

    name: str
    path: str
    patient_id: str
    source: str
    split: Split
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class PreparedRecord:
    """What was written for a record: ``segments`` of ``samples`` each, in ``shard`` from ``row`` on
    where it is a Parquet shard; or an ``error``."""

    name: str
    segments: int = 0
    samples: int = 0
    error: str | None = None
    shard: str | None = None
    row: int = 0


@dataclass(frozen=True)
class Options:
    """See ``pipelines.prepare.write_segments``."""

    output: str
    segment: int | None
    resample: bool
    classes: tuple[str, ...]
    formats: tuple[Format, ...]


def prepare_all(
    records: Sequence[Record], options: Options, workers: int
) -> Iterator[list[PreparedRecord]]:
    """Outcomes of a shard's records at a time, as shards are done; ``workers`` at once.

    Raises
    ------
    ToolError
        Ray lost the workers for good; what was yielded is kept.
    """
    size = min(_LARGEST_SHARD, max(1, -(-len(records) // (4 * workers))))
    parts = [list(records[i : i + size]) for i in range(0, len(records), size)]
    if workers == 1 or len(parts) == 1:
        # not worth a cluster
        yield from (prepare_shard(part, options) for part in parts)
        return
    from ecg_agent_ray.plugins.local_cluster import local_ray

    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with local_ray(num_cpus=workers, env_vars={"OMP_NUM_THREADS": "1"}) as ray:
        try:
            yield from _by_ray_data(parts, options, workers)
        except ray.exceptions.RayError as error:
            raise ToolError(
                f"the workers were lost: {type(error).__name__}: {str(error).splitlines()[0]}",
                hint="what is done is kept; run the same again to continue",
            ) from error


def _by_ray_data(
    parts: Sequence[list[Record]], options: Options, workers: int
) -> Iterator[list[PreparedRecord]]:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # its messages at this level tell of every plan and operator
    logging.getLogger("ray.data").setLevel(logging.ERROR)

    def work(row: dict[str, Any]) -> dict[str, Any]:
        return {"done": [asdict(done) for done in prepare_shard(parts[row["part"]], options)]}

    items = [{"part": index} for index in range(len(parts))]
    data = ray.data.from_items(items, override_num_blocks=len(parts)).map(
        work, num_cpus=1, concurrency=workers
    )
    for row in data.iter_rows():
        yield [PreparedRecord(**values) for values in row["done"]]


def prepare_shard(records: Sequence[Record], options: Options) -> list[PreparedRecord]:
    """Write the files of ``records``; what cannot be used has an error."""
    output = Path(options.output)
    rows: list[tuple[Record, int, npt.NDArray[np.float32]]] = []
    done: list[PreparedRecord] = []
    name = hashlib.sha256("\n".join(record.name for record in records).encode()).hexdigest()[:16]
    shard = f"{SHARDS}/{name}.parquet" if "parquet" in options.formats else None
    for record in records:
        try:
            signal = _signal(record, options.resample)
            length = options.segment or signal.shape[1]
            count = signal.shape[1] // length
            if not count:
                seconds = signal.shape[1] / SAMPLING_RATE
                raise CorruptRecordingError(f"{seconds:.2f} s are shorter than a segment")
        except (EcgAgentError, OSError) as error:
            done.append(PreparedRecord(record.name, error=f"{type(error).__name__}: {error}"))
            continue
        done.append(PreparedRecord(record.name, count, length, None, shard, len(rows)))
        parts = [signal[:, n * length : (n + 1) * length] for n in range(count)]
        rows += [(record, number, part) for number, part in enumerate(parts)]
        if "mat" in options.formats:
            for number, part in enumerate(parts):
                stem = record.name if options.segment is None else f"{record.name}_{number}"
                _write_mat(output / f"{stem}.mat", record, part, options.classes)
    if shard is not None and rows:
        _write_shard(output / shard, rows)
    return done


def _write_shard(path: Path, rows: Sequence[tuple[Record, int, npt.NDArray[np.float32]]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = shard_schema()
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    with pq.ParquetWriter(
        unfinished, schema, compression=COMPRESSION, use_dictionary=False, write_statistics=False
    ) as writer:
        for record, number, signal in rows:
            row = {
                "record_id": [record.name],
                "segment": [number],
                "patient_id": [record.patient_id],
                "source": [record.source],
                "labels": [list(record.labels)],
                "signal": pa.array([signal.ravel()], type=pa.list_(pa.float32())),
            }
            writer.write_table(pa.table(row, schema=schema))
    unfinished.replace(path)


def _write_mat(
    path: Path, record: Record, signal: npt.NDArray[np.float32], classes: Sequence[str]
) -> None:
    from scipy.io import savemat

    patient: Any = int(record.patient_id) if record.patient_id.isdigit() else record.patient_id
    values = {
        "feats": signal,
        "curr_sample_rate": int(SAMPLING_RATE),
        "patient_id": patient,
        "label": np.array([[code in record.labels for code in classes]], dtype=np.float32),
    }
    # a killed job leaves no half file under the final name
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    with unfinished.open("wb") as handle:
        savemat(handle, values)
    unfinished.replace(path)


def _signal(record: Record, resample: bool) -> npt.NDArray[np.float32]:
    """(12, samples) mV at 500 Hz."""
    recording = ecg.read(record.path)
    absent = [lead for lead in STANDARD_LEADS if not recording.has(lead)]
    if absent:
        raise LeadError(f"{record.path} has no lead {', '.join(absent)}")
    signal = np.stack([recording.lead(lead) for lead in STANDARD_LEADS])
    if not np.isfinite(signal).all():
        raise CorruptRecordingError(f"{record.path} has missing samples")
    rate = recording.sampling_rate
    if rate != SAMPLING_RATE:
        if not resample:
            raise CorruptRecordingError(
                f"{record.path} is sampled at {rate:g} Hz, not 500", hint="--resample takes it"
            )
        old = np.arange(signal.shape[1]) / rate
        new = np.arange(int(signal.shape[1] * SAMPLING_RATE / rate)) / SAMPLING_RATE
        signal = np.stack([np.interp(new, old, lead) for lead in signal])
    return np.ascontiguousarray(signal, dtype=np.float32)
