"""A lead's typical beat by classical signal processing: what the network is checked against.

The beats of the commonest shape are averaged before waves are sought: noise falls with the root of
their number, and what is not locked to the QRS, such as fibrillatory waves, averages out.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.delineation.points import FIDUCIALS
from ecg_agent_ray.ecg.delineation.waves import PWave, QrsWave, p_waves, qrs_waves, t_waves
from ecg_agent_ray.ecg.filters import fill_gaps, low_passes, median

__all__ = ["ClassicalLead"]

_BEFORE_S, _AFTER_S = 0.50, 1.05
_LOW_HZ = 0.5
_QRS_HZ, _T_HZ, _P_HZ = 45.0, 16.0, 22.0
_ALIKE = 0.90
_ALIGN_S = 0.04
_SHORTEST_RR_S = 0.2
_LONGEST_QTC_S = 0.64
_LONGEST_PR_S = 0.42
_P_MARGIN_S = 0.05
# a P wave is there where single beats follow their average so well, and it is so high; in an
# irregular rhythm, where fibrillatory waves imitate P waves, both must be clearer
_P_CORRELATION, _P_SMALLEST_MV, _P_SHARE_OF_QRS = 0.80, 0.0065, 0.010
_IRREGULAR, _P_CORRELATION_IRREGULAR, _P_SMALLEST_IRREGULAR_MV = 0.12, 0.87, 0.03
_CHAOTIC, _P_CORRELATION_CHAOTIC = 0.25, 0.97


class ClassicalLead:
    """One lead (samples,) at about 500 Hz, filtered once for all that is sought in it."""

    def __init__(self, signal: npt.NDArray[np.floating], rate: float) -> None:
        self.rate = rate
        self._for_qrs, self._for_t, self._for_p = low_passes(
            fill_gaps(signal), rate, _LOW_HZ, [_QRS_HZ, _T_HZ, _P_HZ]
        )

    def align_beats(self, beats: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """The same place in each complex, so that their distances are RR."""
        return _align(self._for_qrs, beats, self.rate)

    def typical_beat(self, anchors: npt.NDArray[np.intp]) -> dict[str, float]:
        """Fiducials of the average of the commonest beats, in samples from their anchor.

        Parameters
        ----------
        anchors : (beats,) sample indices, as of :meth:`align_beats`

        Returns
        -------
        dict : each of ``FIDUCIALS``, NaN for what the beats do not have (for P: do not share)
        """
        rate = self.rate
        before, after = round(_BEFORE_S * rate), round(_AFTER_S * rate)
        raw_qrs = _cut(self._for_qrs, anchors, before, after)
        common = _dominant(raw_qrs, before, rate)
        raw_t = _cut(self._for_t, anchors[common], before, after)
        raw_p = _cut(self._for_p, anchors[common], before, after)
        qrs_row = _average(raw_qrs[common])
        qrs = qrs_waves(qrs_row, before, rate)
        rr_s = _typical_rr(anchors, common, rate)
        t_limit = qrs.onset + round(min(_LONGEST_QTC_S * np.sqrt(rr_s), rr_s - 0.06) * rate)
        t = t_waves(_average(raw_t), qrs, t_limit, np.array([rr_s]), rate)
        p_row = _average(raw_p)
        # P is sought behind the T wave of the beat before
        t_end_before = t.offset - rr_s * rate if t.offset[0] >= 0 else np.array([-np.inf])
        earliest = before - min(_LONGEST_PR_S + 0.06, 0.62 * rr_s) * rate
        sought = np.maximum(np.maximum(earliest, t_end_before + 0.01 * rate), 0).astype(np.intp)
        p = p_waves(p_row, qrs, sought, rate)
        evidence = _p_evidence(raw_p, p_row, p, qrs, rate)
        height, span = float(abs(p.height[0])), float(np.ptp(qrs_row))
        present = _is_p(evidence, height, span, _irregularity(anchors, common))
        columns = [p.onset, p.peak, p.offset] if present else [np.full(1, -1)] * 3
        columns += [qrs.onset, qrs.peak, qrs.offset, t.onset, t.peak, t.offset]
        return {
            name: float(column[0] - before) if column[0] >= 0 else float("nan")
            for name, column in zip(FIDUCIALS, columns, strict=True)
        }


def _average(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """One row, of rows each taken from its own median."""
    level = rows - median(rows)
    return np.asarray(level.mean(axis=0, keepdims=True))


def _typical_rr(anchors: npt.NDArray[np.intp], common: npt.NDArray[np.bool_], rate: float) -> float:
    """Seconds: the median distance of neighbours of the common shape, else of any."""
    rr = np.diff(anchors)
    between = rr[common[1:] & common[:-1]]
    between = between if between.size else rr
    return max(float(np.median(between)) / rate, 0.25) if between.size else 1.0


def _align(
    signal: npt.NDArray[np.float64], beats: npt.NDArray[np.intp], rate: float
) -> npt.NDArray[np.intp]:
    """Shift each beat (by at most 40 ms) to where it best matches the typical beat."""
    half, reach = round(0.10 * rate), round(_ALIGN_S * rate)
    rows = _cut(signal, beats, half + reach, half + reach)
    rows = rows - rows.mean(axis=1, keepdims=True)
    shift = np.full(len(beats), reach)
    template = median(rows[:, reach:-reach].T)[:, 0]
    windows = np.lib.stride_tricks.sliding_window_view(rows, template.size, axis=1)
    norms = np.sqrt(np.einsum("bsw,bsw->bs", windows, windows)) + 1e-9
    for _ in range(2):
        score = windows @ (template - template.mean()) / norms
        shift = np.argmax(score, axis=1)
        template = median(windows[np.arange(len(rows)), shift].T)[:, 0]
    moved = np.clip(beats + shift - reach, 0, signal.size - 1)
    # two close beats must not slide onto one
    clash = np.concatenate(([False], np.diff(moved) < _SHORTEST_RR_S * rate))
    clash[:-1] |= clash[1:]
    return np.asarray(np.where(clash, beats, moved), dtype=np.intp)


def _cut(
    signal: npt.NDArray[np.float64], anchors: npt.NDArray[np.intp], before: int, after: int
) -> npt.NDArray[np.float64]:
    """Rows of ``before + after + 1`` samples around each anchor, ends held."""
    padded = np.pad(signal, (before, after), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, before + after + 1)
    return windows[anchors].copy()


def _shapes(rows: npt.NDArray[np.float64], anchor: int, rate: float) -> npt.NDArray[np.float64]:
    """The QRS of each row, centred and of length one, so that a product of two is a correlation."""
    shape = rows[:, anchor - round(0.12 * rate) : anchor + round(0.16 * rate)]
    shape = shape - shape.mean(axis=1, keepdims=True)
    return np.asarray(shape / (np.linalg.norm(shape, axis=1, keepdims=True) + 1e-9))


def _p_evidence(
    raw: npt.NDArray[np.float64],
    average: npt.NDArray[np.float64],
    p: PWave,
    qrs: QrsWave,
    rate: float,
) -> float:
    """How well single beats follow their average around its P wave: median correlation.

    The window runs from 50 ms before the P wave's onset to 50 ms behind its offset, at most to QRS;
    a straight line is taken off, so that the slope of a T wave or of the baseline is no likeness.
    """
    if p.peak[0] < 0:
        return 0.0
    margin = round(_P_MARGIN_S * rate)
    begin = max(int(p.onset[0]) - margin, 0)
    end = min(int(p.offset[0]) + margin, int(qrs.onset[0])) + 1
    if end - begin < 3:
        return 0.0
    single, mean = _straightened(raw[:, begin:end]), _straightened(average[0, begin:end])
    norm = np.linalg.norm(single, axis=1) * np.linalg.norm(mean)
    seen = norm > 1e-9
    return float(np.median(single[seen] @ mean / norm[seen])) if seen.any() else 0.0


def _straightened(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rows less their least-squares lines."""
    time = np.arange(rows.shape[-1]) - (rows.shape[-1] - 1) / 2
    slope = (rows @ time) / (time @ time)
    mean = rows.mean(axis=-1, keepdims=True)
    return np.asarray(rows - mean - slope[..., np.newaxis] * time)


def _is_p(evidence: float, height: float, qrs_span: float, irregularity: float) -> bool:
    needed, smallest = _P_CORRELATION, max(_P_SMALLEST_MV, _P_SHARE_OF_QRS * qrs_span)
    if irregularity > _IRREGULAR:
        needed, smallest = _P_CORRELATION_IRREGULAR, max(smallest, _P_SMALLEST_IRREGULAR_MV)
    if irregularity > _CHAOTIC:
        needed = _P_CORRELATION_CHAOTIC
    return evidence >= needed and height >= smallest


def _dominant(rows: npt.NDArray[np.float64], anchor: int, rate: float) -> npt.NDArray[np.bool_]:
    """Beats of the commonest shape: those like the beat that most others are like."""
    shape = _shapes(rows, anchor, rate)
    some = shape[:: max(1, len(shape) // 200)]
    like = some @ shape.T >= _ALIKE
    return np.asarray(like[np.argmax(like.sum(axis=1))])


def _irregularity(anchors: npt.NDArray[np.intp], dominant: npt.NDArray[np.bool_]) -> float:
    """Median change of RR from beat to beat as a share of the median RR.

    Only intervals between two beats of the common shape count, so that premature beats and the
    pauses behind them do not make a regular rhythm irregular.
    """
    rr = np.diff(anchors)[dominant[1:] & dominant[:-1]]
    if rr.size < 3:
        return 0.0
    return float(np.median(np.abs(np.diff(rr))) / np.median(rr))
