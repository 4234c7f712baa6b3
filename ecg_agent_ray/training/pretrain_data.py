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
from ecg_agent_ray.classifier.dataset import read_source
from ecg_agent_ray.classifier.preprocessing import SAMPLING_RATE, STANDARD_LEADS
from ecg_agent_ray.errors import ConfigError, CorruptRecordingError
from ecg_agent_ray.training.pretrain_config import PretrainConfig, PretrainSource

__all__ = ["SegmentPair", "SegmentPairs", "find_pairs", "read_cmsc_manifest", "split_pairs"]

SAMPLES = "samples:"
_CACHED_PAIRS = 8000
"""Below this many pairs (2 GB of 5 s segments) signals stay in memory."""


@dataclass(frozen=True)
class SegmentPair:
    """``path`` of a record (then ``first`` is a segment's number and the other follows it), or two
    ``.mat`` files of one segment each."""

    patient_id: str
    path: Path
    first: int = 0
    second_path: Path | None = None


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
    path = ecg.samples()[0].parent if source.path == SAMPLES else Path(source.path)
    pairs = []
    for record in read_source(source.kind, path):
        segments = _samples_at_500(record.path.with_suffix(".hea")) // segment
        pairs += [
            SegmentPair(record.patient_id, record.path, first)
            for first in range(0, segments - 1, 2)
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
        if pair.second_path is None:
            signal = _record_segments(pair, self.segment)
        else:
            signal = np.stack(
                [_mat_segment(p, self.segment) for p in (pair.path, pair.second_path)]
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


def _record_segments(pair: SegmentPair, segment: int) -> npt.NDArray[np.float32]:
    recording = ecg.read(pair.path)
    if recording.sampling_rate != SAMPLING_RATE:
        recording = recording.resample(SAMPLING_RATE)
    signal = np.zeros((2, len(STANDARD_LEADS), segment), dtype=np.float32)
    for row, name in enumerate(STANDARD_LEADS):
        if recording.has(name):
            values = recording.lead(name)
            for half in (0, 1):
                part = values[(pair.first + half) * segment : (pair.first + half + 1) * segment]
                signal[half, row, : len(part)] = part
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
