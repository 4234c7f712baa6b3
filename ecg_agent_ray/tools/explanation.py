"""The explanation tool: which time and frequency of a lead the classifier's answer rests on.

The method is SpectralX with feature importance approximation (FIA), combined form (arXiv
2408.03636): the lead's short-time Fourier transform is cut into cells; random sets of cells are
inserted into a background and deleted from the original; the cells whose insertion raises and whose
deletion lowers the probability most are picked greedily. All sets of a round go through the
classifier in one batch.

Places come from the very transform the cells were taken from: a cell is one analysis frame by one
frequency bin, and is reported as the interval it covers, cut to the recording.

Whole-recording ``regions`` tell where the answer sits in time and lead: the drop of probability
when a window of one lead is replaced by its straight line (occlusion, Zeiler & Fergus 2014,
arXiv:1311.2901).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.errors import ConfigError, LeadError, ToolError
from ecg_agent_ray.tools.classification import resolve_classifier
from ecg_agent_ray.tools.spectrogram_cells import FRAME, HOP, rank_cells

if TYPE_CHECKING:
    from ecg_agent_ray.classifier.bundle import Classifier
    from ecg_agent_ray.ecg import Recording

__all__ = [
    "Cell",
    "Explanation",
    "Region",
    "explain",
    "explained_lead",
]

Array = npt.NDArray[np.floating[Any]]

_OCCLUSION_S = 1.0
METHOD = "spectralx-fia-combined"


@dataclass(frozen=True)
class Cell:
    """A place in time (s from the start) and frequency (Hz) with its combined FIA score."""

    start_s: float
    end_s: float
    low_hz: float
    high_hz: float
    score: float


@dataclass(frozen=True)
class Region:
    """A stretch of one lead; ``score`` is the probability lost without it (may be negative)."""

    lead: str
    start_s: float
    end_s: float
    score: float


@dataclass(frozen=True)
class Explanation:
    """Output of the explanation tool. ``lead`` is where ``cells`` are; ``regions`` span all leads.

    ``text`` is ECG-Agent's line, one per cell: ``AFIB (97.12%) | time=a-bs, freq=c-dHz``.
    """

    record_id: str
    label: str
    probability: float
    lead: str
    method: str
    cells: tuple[Cell, ...]
    regions: tuple[Region, ...]
    text: str
    lead_configuration: str
    model: str
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The command line's JSON."""
        values = asdict(self)
        values["cells"] = [asdict(cell) for cell in self.cells]
        values["regions"] = [asdict(region) for region in self.regions]
        values["notes"] = list(self.notes)
        return values

    def to_dialogue(self) -> str:
        """The text of a dialogue's tool output."""
        return self.text


def explain(
    recording: Recording,
    label: str,
    model: Classifier | str | Path | None = None,
    leads: str = "12-lead",
    *,
    lead: str | None = None,
    top_k: int = 1,
) -> Explanation:
    """Explain one label's probability on one recording.

    Parameters
    ----------
    label
        A code the classifier assesses in this configuration.
    model, leads
        As for :func:`ecg_agent_ray.tools.classify`.
    lead
        Lead whose spectrogram is explained; default I for configuration I, else II, else the first
        lead the recording has.
    top_k
        Cells to pick.

    Notes
    -----
    A recording longer than 10 s is explained in the window where the label is most probable; places
    are seconds of the recording. The multi-label head's sigmoid stands where SpectralX has a
    softmax.

    Raises
    ------
    ConfigError
        The label is unknown to the classifier, or ``top_k`` is below 1.
    LeadError
        ``lead`` is not one that the configuration feeds and the recording has.
    ToolError
        The classifier was not taught the label, or the configuration cannot show it.
    """
    from ecg_agent_ray.classifier.preprocessing import SAMPLING_RATE, STANDARD_LEADS, prepare

    if top_k < 1:
        raise ConfigError(f"top_k is {top_k}, at least 1 is needed")
    classifier = resolve_classifier(model)
    column = _column(classifier, label, leads)
    prepared = prepare(recording, leads)
    every = classifier.probabilities(prepared.windows, prepared.padding_mask, leads=leads)
    chosen = int(every[:, column].argmax())
    window, offset = prepared.windows[chosen], prepared.starts_s[chosen]
    mask = None if prepared.padding_mask is None else prepared.padding_mask[chosen]
    score = _Scorer(classifier, column, leads, mask)
    target = explained_lead(prepared.leads, leads, lead)
    row = STANDARD_LEADS.index(target)
    duration = prepared.valid_samples / SAMPLING_RATE
    cells = [
        Cell(*_place(index, offset, duration, SAMPLING_RATE), score=round(value, 4))
        for index, value in rank_cells(window[:, : prepared.valid_samples], row, score, top_k=top_k)
    ]
    probability = round(float(every[chosen, column]), 4)
    regions = _regions(window, prepared.leads, prepared.valid_samples, offset, score)
    return Explanation(
        record_id=recording.record_id,
        label=label,
        probability=probability,
        lead=target,
        method=METHOD,
        cells=tuple(cells),
        regions=regions,
        text="\n".join(_line(label, probability, cell) for cell in cells),
        lead_configuration=leads,
        model=classifier.uri,
        notes=prepared.notes,
    )


def _column(classifier: Classifier, label: str, leads: str) -> int:
    if label not in classifier.labels:
        raise ConfigError(
            f"{classifier.uri} has no label {label!r}",
            hint=f"it assesses {', '.join(classifier.assessed_for(leads))}",
        )
    if label not in classifier.assessed_for(leads):
        raise ToolError(
            f"{label} is not assessed by {classifier.uri} from {leads}, so there is nothing to "
            "explain",
            hint=f"it assesses {', '.join(classifier.assessed_for(leads))}",
        )
    return classifier.labels.index(label)


def explained_lead(present: Sequence[str], leads: str, wanted: str | None = None) -> str:
    """``wanted``, else I for configuration I, else II, else the first of those present.

    Raises
    ------
    LeadError
        ``wanted`` is not present.
    """
    if wanted is not None:
        if wanted not in present:
            raise LeadError(
                f"lead {wanted} is not among those the classifier sees here",
                hint=f"one of {', '.join(present)}",
            )
        return wanted
    usual = "I" if leads == "I" else "II"
    return usual if usual in present else present[0]


class _Scorer:
    """Probability of one label for a batch of windows (n, 12, samples), padded as the original."""

    def __init__(
        self,
        classifier: Classifier,
        column: int,
        leads: str,
        padding: npt.NDArray[np.bool_] | None,
    ) -> None:
        self.classifier, self.column, self.leads, self.padding = classifier, column, leads, padding

    def __call__(self, windows: Array) -> Array:
        mask = None
        if self.padding is not None:
            missing = len(self.padding) - windows.shape[-1]
            windows = np.pad(windows, ((0, 0), (0, 0), (0, missing)))
            mask = np.broadcast_to(self.padding, (len(windows), len(self.padding)))
        batch = windows.astype(np.float32)
        values: Array = self.classifier.probabilities(batch, mask, leads=self.leads)
        return values[:, self.column]


def _line(label: str, probability: float, cell: Cell) -> str:
    return (
        f"{label} ({probability:.2%}) | time={cell.start_s:.3f}-{cell.end_s:.3f}s, "
        f"freq={cell.low_hz:.1f}-{cell.high_hz:.1f}Hz"
    )


def _place(
    index: tuple[int, int], offset: float, duration: float, rate: float
) -> tuple[float, float, float, float]:
    """(start_s, end_s, low_hz, high_hz) that cell (frequency bin, frame) covers.

    A frame is centred at its time and answers for one hop around it, a bin for one bin width.
    """
    bin_, frame = index
    centre, half = frame * HOP / rate, HOP / rate / 2
    width = rate / FRAME
    return (
        round(offset + max(0.0, centre - half), 3),
        round(offset + min(duration, centre + half), 3),
        round(max(0.0, (bin_ - 0.5) * width), 2),
        round((bin_ + 0.5) * width, 2),
    )


def _regions(
    window: Array, leads: Sequence[str], valid: int, offset: float, score: _Scorer
) -> tuple[Region, ...]:
    """Occlusion of each lead second by second, greatest loss first."""
    from ecg_agent_ray.classifier.preprocessing import SAMPLING_RATE, STANDARD_LEADS

    step = round(_OCCLUSION_S * SAMPLING_RATE)
    places = [
        (name, start, min(start + step, valid))
        for name in leads
        for start in range(0, valid, step)
        if min(start + step, valid) - start > step // 4
    ]
    cut = window[:, :valid]
    whole = float(score(cut[None])[0])
    lost = []
    for begin in range(0, len(places), 32):
        part = places[begin : begin + 32]
        batch = np.repeat(cut[None], len(part), axis=0)
        for item, (name, start, end) in zip(batch, part, strict=True):
            line = item[STANDARD_LEADS.index(name)]
            line[start:end] = np.linspace(line[start], line[end - 1], end - start)
        lost += [whole - float(p) for p in score(batch)]
    regions = [
        Region(
            name,
            round(offset + start / SAMPLING_RATE, 3),
            round(offset + end / SAMPLING_RATE, 3),
            round(value, 4),
        )
        for (name, start, end), value in zip(places, lost, strict=True)
    ]
    return tuple(sorted(regions, key=lambda region: -region.score))
