"""SCP-ECG (EN 1064, ISO 11073-91064): lead definitions, Huffman tables, reference beat, rhythm.

The patient's section is never looked at. Bimodal compression (fewer samples outside the QRS) is
refused: it cannot be undone exactly.
"""

from __future__ import annotations

import binascii
import logging
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.ecg.formats.parsed import Parsed, check_size, parsed_rows
from ecg_agent_ray.ecg.formats.scp_huffman import HuffmanDecoder, parse_tables
from ecg_agent_ray.ecg.leads import lead_of_code
from ecg_agent_ray.errors import CorruptRecordingError, RecordingError

__all__ = ["is_scp", "parse_scp"]

_logger = logging.getLogger(__name__)
_MARK = b"SCPECG"
_HEADER, _POINTER = struct.Struct("<HHIBB6s"), struct.Struct("<HII")
_RECORD_HEADER_BYTES = 6
_LEAD, _BLOCK_HEAD = struct.Struct("<IIB"), struct.Struct("<HHBB")
_BEATS_HEAD, _SUBTRACTION = struct.Struct("<HHH"), struct.Struct("<HIII")
_HUFFMAN, _LEADS, _BEATS, _REFERENCE, _RHYTHM = 2, 3, 4, 5, 6
_MAX_LEADS = 64
_FEWEST_SAMPLES = 0.98
"""Share of the announced samples that must be there; some devices announce a few too many."""


@dataclass(frozen=True)
class _Lead:
    name: str
    first: int
    """Number of the first sample, counted from 1."""
    n_samples: int


@dataclass(frozen=True)
class _Block:
    """Section 5 or 6: how its samples are stored, and each lead's bytes."""

    nanovolts: int
    interval_us: int
    difference: int
    bimodal: bool
    leads: list[bytes]


def is_scp(data: bytes) -> bool:
    """The mark that section 0 carries, or section 0's own header where a device left it out."""
    if data[16:22] == _MARK:
        return True
    if len(data) < 32:
        return False
    _, number, length, *_ = _HEADER.unpack_from(data, _RECORD_HEADER_BYTES)
    (total,) = struct.unpack_from("<I", data, 2)
    first = _POINTER.unpack_from(data, 22)
    return number == 0 and first == (0, length, 7) and length < total <= len(data)


def parse_scp(data: bytes) -> Parsed:
    """The rhythm section of an SCP-ECG file, the reference beat added where it was taken off.

    A checksum that does not match is logged, not refused, since some devices write none.
    Raises CorruptRecordingError; RecordingError for bimodal compression.
    """
    sections = _sections(data)
    for number, name in ((_LEADS, "lead definition"), (_RHYTHM, "rhythm")):
        if number not in sections:
            raise CorruptRecordingError(f"the SCP-ECG file has no {name} section")
    subtracted, leads = _lead_definitions(sections[_LEADS])
    tables = parse_tables(sections[_HUFFMAN]) if _HUFFMAN in sections else []
    decoder = HuffmanDecoder(tables) if tables else None
    rhythm = _block(sections[_RHYTHM], len(leads), "rhythm")
    reference = None
    if _REFERENCE in sections and (subtracted or rhythm.bimodal):
        reference = _block(sections[_REFERENCE], len(leads), "reference beat")
    if rhythm.bimodal and (reference is None or reference.interval_us != rhythm.interval_us):
        raise RecordingError(
            "SCP-ECG with bimodal compression is not read",
            hint="export it without compression, or as DICOM or HL7 aECG",
        )
    rows = [
        _samples(stored, lead.n_samples, rhythm, decoder)
        for stored, lead in zip(rhythm.leads, leads, strict=True)
    ]
    leads = _at_rhythm_rate(leads, rows, rhythm, sections.get(_REFERENCE, b""))
    signal, begin = _placed(leads, rows, rhythm.nanovolts)
    if subtracted:
        _add_reference_beats(signal, begin, sections, reference, rhythm, decoder)
    return parsed_rows(signal, [lead.name for lead in leads], 1e6 / rhythm.interval_us, "scp-ecg")


def _sections(data: bytes) -> dict[int, bytes]:
    """Each section's data, without its header, by number."""
    if len(data) < _RECORD_HEADER_BYTES + _HEADER.size:
        raise CorruptRecordingError("the SCP-ECG file is cut off in its first header")
    _check_crc(data, struct.unpack_from("<I", data, 2)[0], "the SCP-ECG file")
    _, _, length, *_ = _HEADER.unpack_from(data, _RECORD_HEADER_BYTES)
    end = min(_RECORD_HEADER_BYTES + length, len(data))
    found: dict[int, bytes] = {}
    for at in range(_RECORD_HEADER_BYTES + _HEADER.size, end - _POINTER.size + 1, _POINTER.size):
        number, length, index = _POINTER.unpack_from(data, at)
        if number not in (_HUFFMAN, _LEADS, _BEATS, _REFERENCE, _RHYTHM):
            continue
        if length <= _HEADER.size or number in found:
            continue
        section = data[max(index - 1, 0) : max(index - 1, 0) + length]
        if len(section) < length:
            raise CorruptRecordingError(
                f"SCP-ECG section {number} announces {length} bytes from {index} on, "
                f"the file has {len(data)} (truncated?)"
            )
        if struct.unpack_from("<H", section, 2)[0] != number:
            raise CorruptRecordingError(f"SCP-ECG section {number} is not where it is said to be")
        _check_crc(section, length, f"SCP-ECG section {number}")
        found[number] = section[_HEADER.size :]
    return found


def _check_crc(data: bytes, length: int, what: str) -> None:
    """CRC-CCITT from all ones over everything behind the checksum itself."""
    (stated,) = struct.unpack_from("<H", data)
    if stated != binascii.crc_hqx(data[2:length], 0xFFFF):
        _logger.warning("%s does not match its checksum", what)


def _lead_definitions(section: bytes) -> tuple[bool, list[_Lead]]:
    """Whether the reference beat was subtracted, and the leads."""
    if len(section) < 2 or not 0 < section[0] * _LEAD.size <= len(section) - 2:
        raise CorruptRecordingError("the SCP-ECG lead definitions are cut off")
    if section[0] > _MAX_LEADS:
        raise CorruptRecordingError(f"an SCP-ECG file of {section[0]} leads")
    leads = []
    for i in range(section[0]):
        first, last, code = _LEAD.unpack_from(section, 2 + i * _LEAD.size)
        if last < first:
            raise CorruptRecordingError(f"an SCP-ECG lead from sample {first} to {last}")
        leads.append(_Lead(lead_of_code(code) or f"lead {code}", first, last - first + 1))
    return bool(section[1] & 1), leads


def _block(section: bytes, n_leads: int, what: str) -> _Block:
    at = _BLOCK_HEAD.size + 2 * n_leads
    if len(section) < at:
        raise CorruptRecordingError(f"the SCP-ECG {what} section is cut off")
    nanovolts, interval_us, difference, bimodal = _BLOCK_HEAD.unpack_from(section)
    lengths = struct.unpack_from(f"<{n_leads}H", section, _BLOCK_HEAD.size)
    if nanovolts == 0 or interval_us == 0 or difference > 2:
        raise CorruptRecordingError(
            f"an SCP-ECG {what} of {nanovolts} nV, {interval_us} us and differences {difference}"
        )
    if at + sum(lengths) > len(section):
        raise CorruptRecordingError(f"the SCP-ECG {what} is shorter than its leads (truncated?)")
    ends = np.cumsum(lengths) + at
    leads = [section[end - n : end] for end, n in zip(ends.tolist(), lengths, strict=True)]
    return _Block(nanovolts, interval_us, difference, bool(bimodal & 1), leads)


def _samples(
    stored: bytes, n_samples: int, block: _Block, decoder: HuffmanDecoder | None
) -> npt.NDArray[np.int16]:
    """At most ``n_samples`` samples in stored units, differences undone."""
    if decoder is None:
        numbers = np.frombuffer(stored, "<i2", min(n_samples, len(stored) // 2)).astype(np.int64)
    else:
        numbers = decoder.decode(stored, n_samples)
    if block.difference == 1:
        numbers = np.cumsum(numbers)
    elif block.difference == 2 and len(numbers) > 1:
        slopes = np.concatenate(([numbers[1] - numbers[0]], numbers[2:]))
        numbers = np.cumsum(np.concatenate((numbers[:1], np.cumsum(slopes))))
    # devices count in sixteen bits
    return numbers.astype(np.int16)


def _at_rhythm_rate(
    leads: list[_Lead], rows: list[npt.NDArray[np.int16]], rhythm: _Block, reference: bytes
) -> list[_Lead]:
    """The leads as they are stored: some devices count them at the reference beat's higher rate."""
    ratio = 1
    if len(reference) >= _BLOCK_HEAD.size:
        (_, interval_us, *_) = _BLOCK_HEAD.unpack_from(reference)
        ratio = max(round(rhythm.interval_us / max(interval_us, 1)), 1)
    short = all(
        len(row) < _FEWEST_SAMPLES * lead.n_samples for lead, row in zip(leads, rows, strict=True)
    )
    if ratio > 1 and short:
        leads = [
            _Lead(lead.name, (lead.first - 1) // ratio + 1, max(lead.n_samples // ratio, 1))
            for lead in leads
        ]
    for lead, row in zip(leads, rows, strict=True):
        if len(row) < _FEWEST_SAMPLES * lead.n_samples:
            raise CorruptRecordingError(
                f"{len(row)} of {lead.n_samples} samples in SCP-ECG lead {lead.name} (truncated?)"
            )
    return leads


def _placed(
    leads: list[_Lead], rows: list[npt.NDArray[np.int16]], nanovolts: int
) -> tuple[npt.NDArray[np.float32], int]:
    """mV (leads, samples) with each lead in its place, and the number of the first sample."""
    begin = min(lead.first for lead in leads)
    span = max(lead.first + lead.n_samples for lead in leads) - begin
    if span > sum(lead.n_samples for lead in leads):
        raise CorruptRecordingError("SCP-ECG leads that lie further apart than they are long")
    check_size(len(leads), span, "the SCP-ECG file")
    signal = np.full((len(leads), span), np.nan, dtype=np.float32)
    for target, lead, row in zip(signal, leads, rows, strict=True):
        values = row[: lead.n_samples]
        target[lead.first - begin :][: len(values)] = values * (nanovolts * 1e-6)
    return signal, begin


def _add_reference_beats(
    signal: npt.NDArray[np.float32],
    begin: int,
    sections: dict[int, bytes],
    reference: _Block | None,
    rhythm: _Block,
    decoder: HuffmanDecoder | None,
) -> None:
    """Add the reference beat, in mV, at each beat of type 0; ``begin`` numbers the first sample."""
    beats = sections.get(_BEATS, b"")
    if reference is None or len(beats) < _BEATS_HEAD.size:
        raise CorruptRecordingError("the SCP-ECG reference beat was subtracted and is not there")
    if reference.interval_us != rhythm.interval_us:
        raise CorruptRecordingError("the SCP-ECG reference beat has another rate than the rhythm")
    length_ms, fiducial, n_beats = _BEATS_HEAD.unpack_from(beats)
    if _BEATS_HEAD.size + n_beats * _SUBTRACTION.size > len(beats):
        raise CorruptRecordingError("the SCP-ECG beat locations are cut off")
    n_samples = length_ms * 1000 // reference.interval_us
    templates = [
        _samples(stored, n_samples, reference, decoder) * (reference.nanovolts * 1e-6)
        for stored in reference.leads
    ]
    for i in range(n_beats):
        kind, first, beat, last = _SUBTRACTION.unpack_from(
            beats, _BEATS_HEAD.size + i * _SUBTRACTION.size
        )
        if kind != 0:
            continue
        offset = fiducial - 1 - (beat - begin)
        start, end = max(first - begin, -offset, 0), min(last - begin + 1, signal.shape[1])
        for row, template in zip(signal, templates, strict=True):
            stop = min(end, len(template) - offset)
            if stop > start:
                row[start:stop] += template[start + offset : stop + offset]
