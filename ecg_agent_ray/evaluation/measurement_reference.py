"""What annotators marked: LUDB and QTDB as fiducials of beats, in the measurement tool's terms.

LUDB has one annotation file for each lead (``.i`` … ``.v6``), QTDB one for both leads (``q1c``, the
first cardiologist), on some thirty beats of fifteen minutes. In both a wave is ``(`` onset, ``p``,
``N`` or ``t`` peak, ``)`` offset; onset or offset may be absent, and QTDB has ``u`` waves too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.delineation import FIDUCIALS
from ecg_agent_ray.errors import ConfigError

__all__ = [
    "DATABASES",
    "AnnotatedRecord",
    "Database",
    "ReferenceBeats",
    "Wave",
    "combine_leads",
    "find_records",
    "read_waves",
]

Database = Literal["ludb", "qtdb"]
DATABASES: tuple[Database, ...] = ("ludb", "qtdb")
Array = npt.NDArray[np.float64]

_PREFIX = {"p": "p", "N": "qrs", "t": "t"}
_PEAK = {"p": "p_peak", "N": "r_peak", "t": "t_peak"}
_LUDB_LEADS = ("i", "ii", "iii", "avr", "avl", "avf", "v1", "v2", "v3", "v4", "v5", "v6")
# marks of one heart beat in several leads lie closer than this, two beats never do
_SAME_BEAT_S = 0.15
# without a list of all beats: a longer RR than this many times the shortest tenth hides a beat
_HIDDEN_BEAT = 1.5
# https://archive.physionet.org/physiobank/annotations.shtml, "Beat annotations"
_BEAT_SYMBOLS = frozenset("NLRBAaJSVrFejnE/fQ?")


@dataclass(frozen=True)
class Wave:
    """A marked P wave, QRS (``N``) or T wave; positions in samples, None where there is no mark."""

    kind: str
    onset: int | None
    peak: int
    offset: int | None


@dataclass(frozen=True)
class ReferenceBeats:
    """Marked beats of a lead; positions in samples at ``rate`` Hz, NaN where there is no mark.

    Attributes
    ----------
    points : fiducial name -> (beats,)
    marks : fiducial name -> every marked position, those of P waves without a QRS too
    rr_before_ms : (beats,), NaN where the beat before was not marked
    complete : whether every beat between the first and the last mark is marked
    judged : fiducials that the annotators set wherever they saw one; where another is absent, it
        may only have been left out
    """

    points: dict[str, Array]
    marks: dict[str, Array]
    rr_before_ms: Array
    rate: float
    complete: bool
    judged: frozenset[str]

    def __len__(self) -> int:
        return len(self.rr_before_ms)

    @property
    def has_p(self) -> bool:
        return len(self.marks["p_peak"]) > 0


@dataclass(frozen=True)
class AnnotatedRecord:
    """A record on disk; ``reference(lead)`` reads its marks for a lead's name or ``global``."""

    record_id: str
    path: Path
    reference: Callable[[str], ReferenceBeats]


def find_records(
    database: Database, directory: str | Path, only: Sequence[str] | None = None
) -> list[AnnotatedRecord]:
    """The annotated records below ``directory``, by number where their names are numbers.

    ``only`` restricts them to these record ids.

    Raises
    ------
    ConfigError
        No such database or directory, no annotated record in it, or not every one of ``only``.
    """
    if database not in DATABASES:
        raise ConfigError(f"no database {database!r}", hint=f"one of {', '.join(DATABASES)}")
    root = Path(directory)
    if not root.is_dir():
        raise ConfigError(f"no folder of {database.upper()} records at {root}")
    extension, read = {"ludb": (".ii", _ludb_reference), "qtdb": (".q1c", _qtdb_reference)}[
        database
    ]
    headers = [h for h in root.rglob("*.hea") if h.with_suffix(extension).is_file()]
    if not headers:
        raise ConfigError(
            f"no {database.upper()} records below {root}",
            hint=f"a record is a .hea, its signal and a {extension} file beside it",
        )
    headers.sort(key=lambda h: (int(h.stem) if h.stem.isdecimal() else 0, h.stem))
    if only is not None:
        missing = sorted(set(only) - {h.stem for h in headers})
        if missing:
            raise ConfigError(f"{root} has no {database.upper()} record {', '.join(missing)}")
        headers = [h for h in headers if h.stem in set(only)]
    return [AnnotatedRecord(h.stem, h, _bound(read, h)) for h in headers]


def _bound(
    read: Callable[[Path, str], ReferenceBeats], header: Path
) -> Callable[[str], ReferenceBeats]:
    return lambda lead: read(header, lead)


def _ludb_reference(header: Path, lead: str) -> ReferenceBeats:
    if lead == "global":
        return combine_leads([_ludb_reference(header, name) for name in _LUDB_LEADS])
    waves, rate = read_waves(header, lead.lower())
    points = _beats_of(waves)
    rr = np.concatenate(([np.nan], np.diff(points["r_peak"])))[: len(points["r_peak"])]
    judged = frozenset(FIDUCIALS)
    return ReferenceBeats(points, _marks_of(waves), rr * 1000.0 / rate, rate, True, judged)


def _qtdb_reference(header: Path, lead: str) -> ReferenceBeats:
    """``lead`` does not matter: the cardiologist marked with both leads in view."""
    waves, rate = read_waves(header, "q1c")
    points = _beats_of(waves)
    peaks = points["r_peak"]
    rr = np.concatenate(([np.nan], np.diff(peaks)))[: len(peaks)]
    rr[~_follows_directly(header, peaks, rate)] = np.nan
    judged = frozenset(FIDUCIALS) - {"t_onset"}
    return ReferenceBeats(points, _marks_of(waves), rr * 1000.0 / rate, rate, False, judged)


def _follows_directly(header: Path, peaks: Array, rate: float) -> npt.NDArray[np.bool_]:
    """Whether a marked beat is the next one after the marked beat before it, by the list of all
    beats (``atr``) where the record has one, else by an RR that leaves no room for another."""
    if header.with_suffix(".atr").is_file():
        import wfdb

        listed = wfdb.rdann(str(header.with_suffix("")), "atr")
        symbols = zip(listed.sample.tolist(), listed.symbol, strict=True)
        beats = np.sort([sample for sample, symbol in symbols if symbol in _BEAT_SYMBOLS])
        margin = _SAME_BEAT_S * rate
        between = np.searchsorted(beats, peaks[1:] - margin) - np.searchsorted(
            beats, peaks[:-1] + margin
        )
        return np.concatenate(([False], between == 0))[: len(peaks)]
    rr = np.diff(peaks)
    longest = _HIDDEN_BEAT * np.percentile(rr, 10) if rr.size else 0.0
    return np.concatenate(([False], rr <= longest))[: len(peaks)]


def read_waves(header: Path, extension: str) -> tuple[list[Wave], float]:
    """The waves of an annotation file in order, and its rate in Hz; ``extension`` is a lead's in
    LUDB, ``q1c`` in QTDB. A bracket belongs to the peak it is next to.

    Raises ConfigError for a file that is missing or no annotation.
    """
    import wfdb

    try:
        annotation = wfdb.rdann(str(header.with_suffix("")), extension)
        rate = float(annotation.fs or wfdb.rdheader(str(header.with_suffix(""))).fs)
    except (OSError, ValueError, IndexError, TypeError) as error:
        raise ConfigError(
            f"cannot read the annotations {header.with_suffix('.' + extension)}: {error}"
        ) from error
    waves: list[Wave] = []
    onset: int | None = None
    open_wave = False
    for sample, symbol in zip(annotation.sample.tolist(), annotation.symbol, strict=True):
        if symbol == "(":
            onset, open_wave = sample, False
        elif symbol in _PREFIX or symbol == "u":
            waves.append(Wave(symbol, onset, sample, None))
            onset, open_wave = None, True
        elif symbol == ")":
            if open_wave:
                last = waves[-1]
                waves[-1] = Wave(last.kind, last.onset, last.peak, sample)
            onset, open_wave = None, False
    return [wave for wave in waves if wave.kind in _PREFIX], rate


def _beats_of(waves: Sequence[Wave]) -> dict[str, Array]:
    """A beat is a QRS with the last P since the beat before it and the first T before the next."""
    complexes = [i for i, wave in enumerate(waves) if wave.kind == "N"]
    points = {name: np.full(len(complexes), np.nan) for name in FIDUCIALS}
    for beat, index in enumerate(complexes):
        before = waves[complexes[beat - 1] + 1 : index] if beat else waves[:index]
        after = waves[index + 1 : complexes[beat + 1] if beat + 1 < len(complexes) else None]
        own = [waves[index]]
        own += [wave for wave in before if wave.kind == "p"][-1:]
        own += [wave for wave in after if wave.kind == "t"][:1]
        for wave in own:
            for name, position in _named(wave):
                points[name][beat] = position
    return points


def _named(wave: Wave) -> list[tuple[str, int]]:
    prefix = _PREFIX[wave.kind]
    every = [
        (f"{prefix}_onset", wave.onset),
        (_PEAK[wave.kind], wave.peak),
        (f"{prefix}_offset", wave.offset),
    ]
    return [(name, position) for name, position in every if position is not None]


def _marks_of(waves: Sequence[Wave]) -> dict[str, Array]:
    marks: dict[str, list[int]] = {name: [] for name in FIDUCIALS}
    for wave in waves:
        for name, position in _named(wave):
            marks[name].append(position)
    return {name: np.sort(np.array(found, dtype=np.float64)) for name, found in marks.items()}


def combine_leads(leads: Sequence[ReferenceBeats]) -> ReferenceBeats:
    """The beats of all leads together: earliest onset, latest offset, median peak.

    Global intervals run from the earliest onset to the latest offset in any lead (IEC 60601-2-25).
    A beat counts where at least half of the leads have it.
    """
    order = np.concatenate([np.arange(len(lead)) for lead in leads])
    owner = np.concatenate([np.full(len(lead), i) for i, lead in enumerate(leads)])
    peaks = np.concatenate([lead.points["r_peak"] for lead in leads])
    by_time = np.argsort(peaks, kind="stable")
    rate = leads[0].rate
    new_beat = np.concatenate(([True], np.diff(peaks[by_time]) > _SAME_BEAT_S * rate))
    groups = np.split(by_time, np.flatnonzero(new_beat)[1:]) if len(by_time) else []
    groups = [group for group in groups if 2 * len(set(owner[group])) >= len(leads)]
    points = {name: np.full(len(groups), np.nan) for name in FIDUCIALS}
    for beat, group in enumerate(groups):
        for name in FIDUCIALS:
            found = np.array([leads[owner[i]].points[name][order[i]] for i in group])
            found = found[np.isfinite(found)]
            if found.size:
                points[name][beat] = _outermost(name, found)
    rr = np.concatenate(([np.nan], np.diff(points["r_peak"])))[: len(groups)]
    marks = {name: np.sort(p[np.isfinite(p)]) for name, p in points.items()}
    return ReferenceBeats(points, marks, rr * 1000.0 / rate, rate, True, frozenset(FIDUCIALS))


def _outermost(name: str, positions: Array) -> float:
    if name.endswith("onset"):
        return float(positions.min())
    return float(positions.max() if name.endswith("offset") else np.median(positions))
