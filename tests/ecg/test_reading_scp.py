"""SCP-ECG in the variants of the standard that the one public example does not use."""

from __future__ import annotations

import binascii
import gzip
import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecg_agent_ray import ecg
from ecg_agent_ray.ecg.formats.scp_huffman import Code, HuffmanDecoder, default_table
from ecg_agent_ray.errors import CorruptRecordingError, RecordingError

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "ecg"
Leads = npt.NDArray[np.int64]
# values -1 to 1 by short codes, others as 8 or 16 bits
SMALL = [Code(0b0, 1, 0, 0), Code(0b100, 3, 0, 1), Code(0b101, 3, 0, -1)]
SMALL += [Code(0b110, 3, 8, 0), Code(0b111, 3, 16, 0)]


def section(number: int, data: bytes) -> bytes:
    data += bytes(len(data) % 2)
    head = struct.pack("<HIBB6s", number, 16 + len(data), 20, 20, b"SCPECG" if number == 0 else b"")
    body = head + data
    return struct.pack("<H", binascii.crc_hqx(body, 0xFFFF)) + body


def scp_file(sections: dict[int, bytes]) -> bytes:
    """A whole file from the data of its sections."""
    blocks = {number: section(number, data) for number, data in sections.items()}
    at = 6 + 16 + 120
    pointers = struct.pack("<HII", 0, 136, 7)
    for number in range(1, 12):
        block = blocks.get(number, b"")
        pointers += struct.pack("<HII", number, len(block), at + 1 if block else 0)
        at += len(block)
    body = struct.pack("<I", at) + section(0, pointers)
    body += b"".join(blocks[n] for n in sorted(blocks))
    return struct.pack("<H", binascii.crc_hqx(body, 0xFFFF)) + body


def differences(row: Leads, order: int) -> Leads:
    return np.concatenate((row[:order], np.diff(row, n=order))) if order else row


def encoded(numbers: Leads, table: Sequence[Code] | None) -> bytes:
    if table is None:
        return numbers.astype("<i2").tobytes()
    exact = {code.value: code for code in table if code.extra_bits == 0 and not code.switches}
    wide = sorted((code for code in table if code.extra_bits), key=lambda code: code.extra_bits)
    bits = []
    for value in numbers.tolist():
        if value in exact:
            bits.append(format(exact[value].prefix, f"0{exact[value].prefix_bits}b"))
            continue
        code = next(c for c in wide if -(1 << c.extra_bits - 1) <= value < 1 << c.extra_bits - 1)
        bits.append(format(code.prefix, f"0{code.prefix_bits}b"))
        bits.append(format(value & ((1 << code.extra_bits) - 1), f"0{code.extra_bits}b"))
    joined = "".join(bits)
    joined += "1" * (-len(joined) % 8)
    return int(joined, 2).to_bytes(len(joined) // 8, "big") if joined else b""


def block(
    leads: Sequence[Leads], table: Sequence[Code] | None, order: int, interval_us: int, bimodal: int
) -> bytes:
    stored = [encoded(differences(lead, order), table) for lead in leads]
    head = struct.pack("<HHBB", 5000, interval_us, order, bimodal)
    return head + struct.pack(f"<{len(leads)}H", *map(len, stored)) + b"".join(stored)


def table_section(tables: Sequence[Sequence[Code]]) -> bytes:
    data = struct.pack("<H", len(tables))
    for table in tables:
        data += struct.pack("<H", len(table))
        for code in table:
            reverse = int(format(code.prefix, f"0{code.prefix_bits}b")[::-1], 2)
            data += struct.pack(
                "<BBBhI",
                code.prefix_bits,
                code.prefix_bits + code.extra_bits,
                0 if code.switches else 1,
                code.value,
                reverse,
            )
    return data


@dataclass
class Scp:
    """What to write; 500 Hz, 5 uV a bit."""

    leads: Sequence[Leads]
    table: Sequence[Code] | None = None
    order: int = 0
    firsts: Sequence[int] | None = None
    codes: Sequence[int] = (1, 2, 3, 4, 5, 6, 7, 8)
    flags: int = 0
    bimodal: int = 0
    interval_us: int = 2000
    count_factor: int = 1
    reference: Sequence[Leads] | None = None
    beats: Sequence[tuple[int, int, int, int]] = ()

    def sections(self) -> dict[int, bytes]:
        firsts = self.firsts or [1] * len(self.leads)
        found = {3: struct.pack("<BB", len(self.leads), self.flags)}
        for lead, first, code in zip(self.leads, firsts, self.codes, strict=False):
            found[3] += struct.pack("<IIB", first, first - 1 + self.count_factor * len(lead), code)
        found[6] = block(self.leads, self.table, self.order, self.interval_us, self.bimodal)
        if self.table is not None:
            plain = list(self.table) == default_table()
            found[2] = struct.pack("<H", 19999) if plain else table_section([self.table])
        if self.reference is not None:
            found[5] = block(self.reference, self.table, self.order, 2000, 0)
            found[4] = struct.pack("<HHH", 2 * len(self.reference[0]), 11, len(self.beats))
            found[4] += b"".join(struct.pack("<HIII", *beat) for beat in self.beats)
        return found

    def data(self) -> bytes:
        return scp_file(self.sections())


def leads_of(seed: int, n_leads: int = 3, n_samples: int = 700) -> Leads:
    steps = np.random.default_rng(seed).normal(0, 12, (n_leads, n_samples))
    return np.clip(np.cumsum(steps, axis=1), -8000, 8000).astype(np.int64)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("table", [None, default_table(), SMALL], ids=["plain", "default", "own"])
def test_codes_and_differences(table: Sequence[Code] | None, order: int) -> None:
    leads = leads_of(order)
    recording = ecg.read(Scp(leads, table, order).data())
    assert (recording.format, recording.sampling_rate) == ("scp-ecg", 500)
    for row, name in zip(leads, ("I", "II", "V1"), strict=True):
        assert np.allclose(recording.lead(name), row * 5e-3, atol=1e-6)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    values=st.lists(st.integers(-32768, 32767) | st.integers(-9, 9), min_size=1, max_size=400),
    own=st.booleans(),
)
def test_huffman_round_trip(values: list[int], own: bool) -> None:
    table = SMALL if own else default_table()
    decoder = HuffmanDecoder([table])
    numbers = np.array(values)
    assert decoder.decode(encoded(numbers, table), len(values)).tolist() == values


def test_default_table_is_that_of_the_standard() -> None:
    """Its 19 codes, as bits: values, signs, and the two prefixes of 8 and 16 bits."""
    codes = {
        format(c.prefix, f"0{c.prefix_bits}b"): (c.value, c.extra_bits) for c in default_table()
    }
    expected = {"0": (0, 0), "1" * 9 + "0": (0, 8), "1" * 9 + "1": (0, 16)}
    for size in range(1, 9):
        expected |= {"1" * size + "00": (size, 0), "1" * size + "01": (-size, 0)}
    assert codes == expected
    assert sum(2.0 ** -len(bits) for bits in codes) == 1, "every sequence of bits is a code"


def test_switching_between_tables() -> None:
    switch = Code(0b11, 2, 0, 2, switches=True)
    first = [Code(0b0, 1, 0, 5), Code(0b10, 2, 0, -5), switch]
    second = [Code(0b0, 1, 0, 100), Code(0b1, 1, 0, 1, switches=True)]
    bits = "0" + "10" + "11" + "0" + "0" + "1" + "10" + "1" * 6
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    assert HuffmanDecoder([first, second]).decode(data, 5).tolist() == [5, -5, 100, 100, -5]
    back_and_forth = [Code(0b0, 1, 0, 2, switches=True), Code(0b1, 1, 0, 2, switches=True)]
    assert HuffmanDecoder([back_and_forth, back_and_forth]).decode(bytes(5000), 9).size == 0


@pytest.mark.parametrize("table", [None, default_table()], ids=["plain", "default"])
def test_reference_beats_are_added_back(table: Sequence[Code] | None) -> None:
    """Beats at the first, a middle and the last samples; one of another kind stays as it is."""
    whole = leads_of(7)
    beat = leads_of(8, n_samples=40)
    # first sample, fiducial, last sample, counted from 1; the beat's own fiducial is its 11th
    beats = [(0, 1, 5, 30), (0, 190, 200, 229), (1, 400, 410, 439), (0, 680, 690, 700)]
    residual = whole.copy()
    for kind, first, fiducial, last in beats:
        if kind == 0:
            start = 11 - fiducial + first - 1
            residual[:, first - 1 : last] -= beat[:, start : start + last - first + 1]
    written = Scp(residual, table, 2, flags=1, reference=list(beat), beats=beats)
    recording = ecg.read(written.data())
    for row, name in zip(whole, ("I", "II", "V1"), strict=True):
        assert np.allclose(recording.lead(name), row * 5e-3, atol=1e-6)
    written.flags = 0
    assert np.allclose(ecg.read(written.data()).lead("V1"), residual[2] * 5e-3, atol=1e-6)


def test_leads_recorded_one_after_the_other() -> None:
    leads = leads_of(9)
    recording = ecg.read(Scp(leads, None, firsts=[1, 701, 1401]).data())
    assert recording.signal.shape[1] == 2100
    assert np.allclose(recording.lead("V1")[1400:], leads[2] * 5e-3, atol=1e-6)
    assert np.isnan(recording.lead("V1")[:1400]).all()


def test_leads_counted_at_the_rate_of_the_reference_beat() -> None:
    leads = leads_of(10)
    written = Scp(leads, default_table(), 1, reference=list(leads_of(1, n_samples=40)))
    written.interval_us, written.count_factor = 4000, 2
    recording = ecg.read(written.data())
    assert (recording.sampling_rate, recording.n_samples) == (250, 700)
    assert np.allclose(recording.lead("II"), leads[1] * 5e-3, atol=1e-6)


def test_bimodal_compression_is_refused() -> None:
    with pytest.raises(RecordingError, match="bimodal") as caught:
        ecg.read(Scp(leads_of(1), bimodal=1).data())
    assert not isinstance(caught.value, CorruptRecordingError)


def test_truncation_anywhere_is_noticed() -> None:
    data = gzip.decompress((FIXTURES / "ecgtoolkit_example.scp.gz").read_bytes())
    for length in itertools.chain(range(23, 400, 7), range(400, len(data) - 300, 997)):
        with pytest.raises(RecordingError):
            ecg.read(data[:length])


@pytest.mark.parametrize(
    ("number", "at", "new", "message"),
    [
        (3, 0, b"\xff", "cut off"),
        (3, 0, bytes((200, 0, *bytes(2000))), "200 leads"),
        (3, 2, struct.pack("<II", 500, 1), "from sample 500 to 1"),
        (3, 2, struct.pack("<II", 1, 4_000_000_000), "truncated"),
        (3, 11, struct.pack("<II", 100_000_001, 100_000_700), "further apart"),
        (6, 0, b"\0\0", "0 nV"),
        (6, 2, b"\0\0", "0 us"),
        (6, 4, b"\x05", "differences 5"),
        (6, 6, b"\xff\xff", "shorter than its leads"),
        (2, 0, b"\x09\0", "9 Huffman tables"),
        (2, 2, b"\xff\xff", "cut off"),
        (2, 4, b"\x00\x00", "0 prefix bits"),
        (2, 4, b"\x01\xff", "255 bits in all"),
    ],
)
def test_broken_sections_are_refused(number: int, at: int, new: bytes, message: str) -> None:
    sections = Scp(leads_of(2), SMALL, 1).sections()
    damaged = sections[number][:at] + new + sections[number][at + len(new) :]
    with pytest.raises(CorruptRecordingError, match=message):
        ecg.read(scp_file(sections | {number: damaged}))


def test_a_wrong_checksum_is_reported_and_read(reader_log: list[str]) -> None:
    data = Scp(leads_of(3)).data()
    assert ecg.read(data) == ecg.read(b"\0\0" + data[2:])
    assert "the SCP-ECG file does not match its checksum" in reader_log
