"""Philips Sierra ECG XML (``restingecgdata``), versions 1.03, 1.04 and 1.04.01.

Samples are base64 of little-endian int16, one lead after the other, often compressed (see `xli`);
with compression the four leads that follow from I and II are stored as what they differ from
Einthoven's and Goldberger's formulas. Of the patient nothing is read.
"""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.formats.markup import decode_base64, number, parse_document
from ecg_agent_ray.ecg.formats.parsed import Parsed, check_size, default_leads, parsed_rows
from ecg_agent_ray.ecg.formats.xli import decode_xli
from ecg_agent_ray.ecg.leads import STANDARD_LEADS
from ecg_agent_ray.ecg.recording import MAX_LEADS, MAX_VALUES
from ecg_agent_ray.errors import CorruptRecordingError

__all__ = ["parse_philips"]

_DEFAULT_MICROVOLTS = 5.0
_FEWEST_PULSE_SAMPLES = 10


def parse_philips(data: bytes) -> Parsed:
    """The continuous leads of a Philips export; its representative beats are no recording.

    What follows the signal (zeros, then a calibration pulse of 1 mV in all leads at once) becomes a
    gap, since it would be taken for a beat. Raises CorruptRecordingError.
    """
    root = parse_document(data)
    waveforms = root.find(".//{*}parsedwaveforms")
    if waveforms is None:
        raise CorruptRecordingError("the Philips file holds no parsedwaveforms")
    facts = root.find(".//{*}signalcharacteristics")
    rate = _fact(waveforms, facts, ("samplespersecond",), ("samplingrate",))
    microvolts = _fact(
        waveforms, facts, ("resolution",), ("resolution", "signalresolution"), _DEFAULT_MICROVOLTS
    )
    zero = _fact(waveforms, facts, ("signaloffset",), ("signaloffset",), 0.0)
    bits = _fact(waveforms, facts, ("bitspersample", "nbitspersample"), ("bitspersample",), 16.0)
    if bits != 16 or not rate > 0 or not microvolts > 0:
        raise CorruptRecordingError(
            f"Philips samples of {bits:g} bits, {microvolts:g} uV, {rate:g} Hz"
        )
    names = _lead_names(waveforms, facts)
    units = _samples(waveforms, names, rate)
    check_size(len(units), units.shape[1], "the Philips file")
    padding = _padding_start(units, round(1000 / microvolts))
    signal = ((units - zero) * (microvolts / 1000)).astype(np.float32)
    signal[:, padding:] = np.nan
    return parsed_rows(signal, names[: len(units)], rate, "philips-xml")


def _fact(
    waveforms: ElementTree.Element,
    facts: ElementTree.Element | None,
    attributes: tuple[str, ...],
    elements: tuple[str, ...],
    default: float | None = None,
) -> float:
    """A number that 1.04 has as an attribute beside the samples and 1.03 among the signal's facts.

    The 1.03 element that a later version renamed is tried under both names.
    """
    texts = [waveforms.get(name) for name in attributes]
    if facts is not None:
        texts += [facts.findtext(f"{{*}}{name}") for name in elements]
    text = next((text for text in texts if text and text.strip()), None)
    return number(text, f"the Philips {elements[0]}", default)


def _lead_names(waveforms: ElementTree.Element, facts: ElementTree.Element | None) -> list[str]:
    labels = (waveforms.get("leadlabels") or "").split()
    texts = [waveforms.get("numberofleads")]
    if facts is not None:
        texts += [facts.findtext(f"{{*}}numberchannels{kind}") for kind in ("valid", "allocated")]
    text = next((text for text in texts if text and text.strip()), None)
    n_leads = number(text, "the Philips number of leads", float(len(labels) or 12))
    if not 1 <= n_leads <= MAX_LEADS:
        raise CorruptRecordingError(f"a Philips file of {n_leads:g} leads")
    if labels:
        return labels[: int(n_leads)]
    standard = list(STANDARD_LEADS)
    extra = [f"lead {i + 1}" for i in range(len(standard), int(n_leads))]
    return default_leads(int(n_leads)) if n_leads < len(standard) else standard + extra


def _samples(
    waveforms: ElementTree.Element, names: list[str], rate: float
) -> npt.NDArray[np.int64]:
    """(leads, samples) in stored units."""
    text = "".join(waveforms.itertext())
    encoding = (waveforms.get("dataencoding") or "Base64").lower()
    duration_ms = number(waveforms.get("durationperchannel"), "the Philips duration", 0.0)
    claimed = round(duration_ms * rate / 1000)
    check_size(len(names), max(claimed, 1), "the Philips file")
    if encoding == "plain":
        return _split(_plain_numbers(text), len(names), claimed)
    if encoding != "base64":
        raise CorruptRecordingError(f"Philips samples encoded as {encoding[:40]!r}")
    data = decode_base64(text, "the Philips waveform")
    method = waveforms.get("compression") or waveforms.get("compressmethod") or "none"
    if (waveforms.get("compressflag") or "true").lower() != "true":
        method = "none"
    if method.lower() in ("", "none", "uncompressed"):
        values = np.frombuffer(data, "<i2", len(data) // 2).astype(np.int64)
        return _split(values, len(names), claimed)
    if method.upper() != "XLI":
        raise CorruptRecordingError(
            f"Philips samples compressed by {method[:40]!r}, only XLI is read"
        )
    leads = decode_xli(data, len(names), claimed or MAX_VALUES // len(names) // 8)
    if len(leads) < len(names) or len({len(lead) for lead in leads}) != 1:
        raise CorruptRecordingError(
            f"{len(leads)} of {len(names)} Philips leads, or leads of unlike length (truncated?)"
        )
    if claimed and len(leads[0]) != claimed:
        raise CorruptRecordingError(
            f"Philips leads of {len(leads[0])} samples, {claimed} announced (truncated?)"
        )
    return _restore_limb_leads(np.stack(leads), names)


def _plain_numbers(text: str) -> npt.NDArray[np.int64]:
    try:
        return np.array(text.split(), dtype=np.int16).astype(np.int64)
    except (ValueError, OverflowError) as error:
        raise CorruptRecordingError(f"Philips samples that are no numbers: {error}") from error


def _split(values: npt.NDArray[np.int64], n_leads: int, claimed: int) -> npt.NDArray[np.int64]:
    """One lead after the other; channels beyond the leads in use are left out."""
    length = claimed or len(values) // n_leads
    if length < 1 or n_leads * length > len(values):
        raise CorruptRecordingError(
            f"{n_leads} Philips leads of {length} samples announced, {len(values)} samples there"
        )
    return values[: n_leads * length].reshape(n_leads, length)


def _restore_limb_leads(leads: npt.NDArray[np.int64], names: list[str]) -> npt.NDArray[np.int64]:
    """What is stored for III, aVR, aVL, aVF is the formula's value less the lead's."""
    if [name.upper() for name in names[:6]] != [name.upper() for name in STANDARD_LEADS[:6]]:
        return leads
    one, two = leads[0], leads[1]
    leads[2] = two - one - leads[2]
    leads[3] = _half(-one - two) - leads[3]
    leads[4] = _half(one - leads[2]) - leads[4]
    leads[5] = _half(two + leads[2]) - leads[5]
    return leads


def _half(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Half of whole numbers, cut towards zero as the devices do."""
    halves: npt.NDArray[np.int64] = np.sign(values) * (np.abs(values) // 2)
    return halves


def _padding_start(units: npt.NDArray[np.int64], pulse: int) -> int:
    """The sample where zeros and the calibration pulse begin; the length where there is none."""
    n_leads, length = units.shape
    same = np.all(units == units[0], axis=0) & np.isin(units[0], (0, pulse))
    signal = np.flatnonzero(~same)
    start = int(signal[-1]) + 1 if signal.size else length
    pulsed = int(np.count_nonzero(units[0, start:] == pulse)) >= _FEWEST_PULSE_SAMPLES
    return start if n_leads > 1 and pulsed else length
