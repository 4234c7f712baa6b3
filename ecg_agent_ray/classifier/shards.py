"""Prepared recordings in Parquet: what a shard holds, and reading one recording of it.

A shard has a row for each recording or segment: ``record_id``, ``segment``, ``patient_id``,
``source``, ``labels`` and ``signal``, the samples of 12 leads one lead after the other, float32
mV at 500 Hz. Each row is a row group of its own, so that training reads any recording for itself,
from a local disk or an object store, and data are shuffled as a whole.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ecg_agent_ray.classifier.preprocessing import SAMPLING_RATE, STANDARD_LEADS
from ecg_agent_ray.ecg import Recording
from ecg_agent_ray.errors import CorruptRecordingError, ModelNotFoundError
from ecg_agent_ray.plugins.fetch import fetched

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["COMPRESSION", "MANIFEST", "SHARDS", "read_row", "shard_schema"]

MANIFEST = "manifest.csv"
SHARDS = "shards"
COMPRESSION = "lz4"
"""Half the size of none, at three quarters of its reading speed."""
_OPEN_SHARDS = 64


def shard_schema() -> pa.Schema:
    """Columns of a shard; its metadata name the leads, the rate and the unit."""
    import pyarrow as pa

    return pa.schema(
        [
            ("record_id", pa.string()),
            ("segment", pa.int32()),
            ("patient_id", pa.string()),
            ("source", pa.string()),
            ("labels", pa.list_(pa.string())),
            ("signal", pa.list_(pa.float32())),
        ],
        metadata={
            "leads": ",".join(STANDARD_LEADS),
            "sampling_rate": f"{SAMPLING_RATE:g}",
            "unit": "mV",
        },
    )


def read_row(shard: str, row: int, record_id: str) -> Recording:
    """Recording of a row; ``shard`` is a path, or a URL, of which a copy is kept on this machine
    (:mod:`ecg_agent_ray.plugins.fetch`).

    Raises
    ------
    CorruptRecordingError
        The shard is not there, or holds no such row.
    """
    try:
        table = _opened(shard).read_row_group(row, columns=["signal"], use_threads=False)
        values = table["signal"].chunk(0).values.to_numpy()
        signal = values.reshape(len(STANDARD_LEADS), -1)
    except (ModelNotFoundError, OSError, ValueError, IndexError, KeyError) as error:
        raise CorruptRecordingError(f"{shard} has no recording in row {row}: {error}") from error
    return Recording(
        signal=np.asarray(signal, dtype=np.float32),
        sampling_rate=SAMPLING_RATE,
        leads=STANDARD_LEADS,
        record_id=record_id,
        format="parquet",
    )


@lru_cache(maxsize=_OPEN_SHARDS)
def _opened(shard: str) -> Any:
    import pyarrow.parquet as pq

    # rows are read in any order, and again in each epoch: whole shards are copied once
    return pq.ParquetFile(fetched(shard), memory_map=True)
