"""Pairs of successive segments of one patient, and reading them.

A record of L samples gives floor(L / segment) segments without overlap; successive ones are paired
(0, 1), (2, 3), …; a record with a single segment gives no pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ecg_agent_ray import ecg
from ecg_agent_ray.classifier.dataset import LabelledRecord, read_recording, read_source
from ecg_agent_ray.classifier.preprocessing import SAMPLING_RATE, STANDARD_LEADS
from ecg_agent_ray.ecg import Recording
from ecg_agent_ray.errors import ConfigError, CorruptRecordingError
from ecg_agent_ray.training.pretrain_config import PretrainConfig, PretrainSource

__all__ = ["SegmentPair", "SegmentPairs", "find_pairs", "read_cmsc_manifest", "split_pairs"]

SAMPLES = "samples:"
_CACHED_PAIRS = 8000
"""Below this many pairs (2 GB of 5 s segments) signals stay in memory."""


@dataclass(frozen=True)
class SegmentPair:
    """Two segments of one patient: two successive ones of ``record``, the first being number
    ``first``; or, with ``second``, one of ``record`` and one of ``second``; or two ``.mat`` files
    of one segment each."""

    patient_id: str
    path: Path
    first: int = 0
    second_path: Path | None = None
    record: LabelledRecord | None = None
    second: LabelledRecord | None = None

    @property
    def files(self) -> list[Path]:
        """Local files that hold the signals."""
        if self.record is not None and self.record.shard is not None:
            candidates = [Path(self.record.shard)]
        elif self.second_path is not None:
            candidates = [self.path, self.second_path]
        else:
            candidates = [self.path.with_suffix(suffix) for suffix in (".dat", ".mat")]
        return [file for file in candidates if file.is_file()]


def find_pairs(config: PretrainConfig) -> list[SegmentPair]:
    """All pairs of the configured sources, in the order of their tables; no signal is read.

    Raises
    ------
    ConfigError
        A source is absent or malformed, or there are fewer pairs than two.
    """
    pairs: list[SegmentPair] = []
    for source in config.data:
        if source.kind == "cmsc":
            pairs += read_cmsc_manifest(Path(source.path))
        else:
            pairs += _record_pairs(source, config.segment_samples)
    if len(pairs) < 2:
        raise ConfigError(f"{len(pairs)} pairs of segments: nothing to contrast")
    return pairs


def _record_pairs(source: PretrainSource, segment: int) -> list[SegmentPair]:
    assert source.kind != "cmsc"
    if source.kind == "prepared":
        return _prepared_pairs(read_source(source.kind, source.path), segment)
    path = ecg.samples()[0].parent if source.path == SAMPLES else Path(source.path)
    pairs = []
    for record in read_source(source.kind, path):
        segments = _samples_at_500(record.path.with_suffix(".hea")) // segment
        pairs += [
            SegmentPair(record.patient_id, record.path, first, record=record)
            for first in range(0, segments - 1, 2)
        ]
    return pairs


def _prepared_pairs(rows: Sequence[LabelledRecord], segment: int) -> list[SegmentPair]:
    """Pairs of the training split: of a whole record, or of the segments that it was cut into."""
    pairs = []
    by_record: dict[str, list[LabelledRecord]] = {}
    for row in rows:
        if row.split == "train":
            by_record.setdefault(row.source_record or row.record_id, []).append(row)
    for parts in by_record.values():
        segments = parts[0].samples // segment
        if segments > 1:
            pairs += [
                SegmentPair(part.patient_id, part.path, first, record=part)
                for part in parts
                for first in range(0, part.samples // segment - 1, 2)
            ]
        elif segments == 1:
            pairs += [
                SegmentPair(one.patient_id, one.path, record=one, second=other)
                for one, other in zip(parts[::2], parts[1::2], strict=False)
            ]
    return pairs


def _samples_at_500(header: Path) -> int:
    """Length of a record by its header's first line: name, leads, rate, samples."""
    parts = header.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0].split()
    try:
        return int(int(parts[3]) * SAMPLING_RATE / float(parts[2].split("/")[0]))
    except (IndexError, ValueError, ZeroDivisionError):
        return 0


def read_cmsc_manifest(path: Path) -> list[SegmentPair]:
    """Pairs of a fairseq-signals CMSC manifest: root, extension, then
    ``record<TAB>length<TAB>0<TAB>i,j``. A record stands for its patient, since the manifest names
    none; that two records may be one patient's makes such pairs wrong negatives.

    Raises
    ------
    ConfigError
        The manifest is absent or malformed.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"no CMSC manifest at {path}") from error
    pairs = []
    try:
        root, extension = Path(lines[0].strip()), lines[1].strip().lstrip(".")
        for line in lines[2:]:
            record, _, _, numbers = line.rstrip("\n").split("\t")
            first, second = (int(number) for number in numbers.split(","))
            one, other = (root / f"{record}_{n}.{extension}" for n in (first, second))
            pairs.append(SegmentPair(record, one, 0, other))
    except (IndexError, ValueError) as error:
        raise ConfigError(f"{path} is no CMSC manifest: {error}") from error
    return pairs


def split_pairs(
    pairs: Sequence[SegmentPair], fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Indices to train on and to validate on, by patient."""
    patients = sorted({pair.patient_id for pair in pairs})
    np.random.default_rng(seed).shuffle(patients)
    held_out = set(patients[: round(len(patients) * fraction)])
    inside = [i for i, pair in enumerate(pairs) if pair.patient_id in held_out]
    outside = [i for i, pair in enumerate(pairs) if pair.patient_id not in held_out]
    return outside, inside


class SegmentPairs:
    """Signals of pairs, read when first used."""

    def __init__(self, pairs: Sequence[SegmentPair], segment: int) -> None:
        self.pairs, self.segment = pairs, segment
        numbers = {p: n for n, p in enumerate(sorted({pair.patient_id for pair in pairs}))}
        self.patients = [numbers[pair.patient_id] for pair in pairs]
        self._cache: dict[int, Tensor] = {}

    def __getitem__(self, index: int) -> Tensor:
        """(2, 12, segment) mV."""
        if index in self._cache:
            return self._cache[index]
        pair = self.pairs[index]
        if pair.second_path is not None:
            signal = np.stack(
                [_mat_segment(p, self.segment) for p in (pair.path, pair.second_path)]
            )
        elif pair.second is not None:
            assert pair.record is not None
            signal = np.stack(
                [_segment(read_recording(r), 0, self.segment) for r in (pair.record, pair.second)]
            )
        else:
            assert pair.record is not None
            recording = read_recording(pair.record)
            signal = np.stack(
                [_segment(recording, pair.first + half, self.segment) for half in (0, 1)]
            )
        # a gap is fed as a lead that is not there
        values = torch.from_numpy(np.nan_to_num(signal, nan=0.0, posinf=0.0, neginf=0.0))
        if len(self.pairs) <= _CACHED_PAIRS:
            self._cache[index] = values
        return values

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """``source`` (2 x pairs, 12, samples) with a pair's segments side by side, ``patients`` and
        ``segments`` (2 x pairs,)."""
        source = torch.cat([self[index] for index in indices])
        patients = torch.tensor([self.patients[index] for index in indices]).repeat_interleave(2)
        return source, patients, torch.arange(len(source)) % 2


def _segment(recording: Recording, number: int, samples: int) -> npt.NDArray[np.float32]:
    """(12, samples) at 500 Hz, absent leads and what lies beyond the end zero."""
    if recording.sampling_rate != SAMPLING_RATE:
        recording = recording.resample(SAMPLING_RATE)
    signal = np.zeros((len(STANDARD_LEADS), samples), dtype=np.float32)
    for row, name in enumerate(STANDARD_LEADS):
        if recording.has(name):
            part = recording.lead(name)[number * samples : (number + 1) * samples]
            signal[row, : len(part)] = part
    return signal


def _mat_segment(path: Path, segment: int) -> npt.NDArray[np.float32]:
    from scipy.io import loadmat

    try:
        feats = np.asarray(loadmat(path, variable_names=["feats"])["feats"], dtype=np.float32)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise CorruptRecordingError(f"{path} is no segment with feats: {error}") from error
    if feats.ndim != 2 or feats.shape[0] != len(STANDARD_LEADS) or feats.shape[1] < segment:
        raise CorruptRecordingError(f"{path}: feats {feats.shape} hold no 12 x {segment} segment")
    return feats[:, :segment]
