"""Lead names as the whole package writes them, and the limb leads that follow from two others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = [
    "KNOWN_LEADS",
    "LIMB_LEADS",
    "STANDARD_LEADS",
    "derive_limb_leads",
    "lead_of_code",
    "normalise_lead",
    "standard_order",
    "unique_leads",
]

LIMB_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF")
STANDARD_LEADS = (*LIMB_LEADS, "V1", "V2", "V3", "V4", "V5", "V6")

# posterior and right-sided chest leads
_FURTHER = ("V7", "V8", "V9", *(f"V{i}R" for i in range(2, 10)))
KNOWN_LEADS = frozenset((*STANDARD_LEADS, *_FURTHER))
_BY_UPPER = {name.upper(): name for name in KNOWN_LEADS}
_OTHER = {f"{prefix}{numeral}": numeral for prefix in ("ML", "D") for numeral in ("I", "II", "III")}
_OTHER |= {"D1": "I", "D2": "II", "D3": "III"}
# the word before a lead's name, also in German, French, Spanish, Italian and Portuguese
_PREFIX = re.compile(
    r"^(?:MDC_ECG_)?(?:(?:ECG|EKG|LEAD|CHANNEL|ABLEITUNG|D[EÉ]RIVATION|DERIVACI[OÓ]N|DERIVAZIONE|"
    r"DERIVA[CÇ][AÃ]O)[\s_\-:.]*)+(?=\S)",
    re.I,
)
_MAX_NAME = 32
# leads by number as EN 1064 (SCP-ECG, table 5) and ISO/IEEE 11073-10101 count them
_BY_NUMBER = {1: "I", 2: "II", 61: "III", 62: "aVR", 63: "aVL", 64: "aVF", 65: "-aVR"}
_BY_NUMBER |= {2 + i: f"V{i}" for i in range(1, 8)} | {8 + i: f"V{i}R" for i in range(2, 8)}
_BY_NUMBER |= {16: "X", 17: "Y", 18: "Z", 66: "V8", 67: "V9", 68: "V8R", 69: "V9R"}
_BY_NUMBER |= {70: "D", 71: "A", 72: "J"}
_CODE = re.compile(r"^(?:2:|5\.6\.3-9-)?(?P<number>\d{1,6})$")
_ECG_PARTITION = 2 << 16


@lru_cache(maxsize=4096)
def normalise_lead(name: str) -> str:
    """The package's spelling of a lead: ``I II III aVR aVL aVF V1..V9 V2R..V9R``, or as it is.

    Prefixes that formats add (``MDC_ECG_LEAD_``, ``ECG``, ``Lead``), case, blanks and the modified
    Holter leads (``MLII`` is read as ``II``) are taken care of.

    >>> [normalise_lead(n) for n in ("MDC_ECG_LEAD_AVR", "lead ii", "EKG V1", "vx")]
    ['aVR', 'II', 'V1', 'vx']
    """
    cleaned = " ".join(str(name).split())[:_MAX_NAME]
    bare = re.sub(r"[\s_\-.]", "", _PREFIX.sub("", cleaned)).upper()
    if bare.startswith("A") and bare[1:] in ("VR", "VL", "VF"):
        bare = "A" + bare[1:]
    return _BY_UPPER.get(bare) or _OTHER.get(bare) or cleaned or "ECG"


def lead_of_code(code: str | int) -> str | None:
    """The lead of a standard's code; None where the code is no lead's.

    Codes of SCP-ECG (``5.6.3-9-61``) and of ISO/IEEE 11073-10101, the latter by partition and
    number (``2:61``), as one number (``131133``) or by reference identifier.

    >>> [lead_of_code(c) for c in ("5.6.3-9-1", "2:61", "131133", "MDC_ECG_LEAD_aVF", "T1")]
    ['I', 'III', 'III', 'aVF', None]
    """
    text = str(code).strip()
    if text.upper().startswith("MDC_ECG_LEAD_"):
        lead = normalise_lead(text)
        return lead if lead in KNOWN_LEADS else text[len("MDC_ECG_LEAD_") :]
    match = _CODE.match(text)
    if match is None:
        return None
    number = int(match["number"])
    return _BY_NUMBER.get(number - _ECG_PARTITION if number > _ECG_PARTITION else number)


def unique_leads(names: Sequence[str]) -> tuple[str, ...]:
    """Normalised names; the second of two equal ones keeps its own spelling or gets a number."""
    taken: list[str] = []
    for raw in names:
        name = normalise_lead(raw)
        if name in taken:
            own = " ".join(str(raw).split())[:_MAX_NAME] or name
            name = own if own not in taken else f"{own}_{len(taken) + 1}"
        taken.append(name)
    return tuple(taken)


def derive_limb_leads(
    signal: npt.NDArray[np.float32], leads: tuple[str, ...]
) -> tuple[npt.NDArray[np.float32], tuple[str, ...]]:
    """Add the limb leads that are absent, from any two of I, II, III (Einthoven, Goldberger).

    ``signal`` is (leads, samples) in mV. Unchanged where fewer than two of the three are there or
    none is missing; else the leads come back in standard order, further leads behind.
    """
    have = dict(zip(leads, signal, strict=True))
    if sum(name in have for name in ("I", "II", "III")) < 2:
        return signal, leads
    if all(name in have for name in LIMB_LEADS):
        return signal, leads
    one = have["I"] if "I" in have else have["II"] - have["III"]
    two = have["II"] if "II" in have else one + have["III"]
    have = {
        "I": one,
        "II": two,
        "III": two - one,
        "aVR": -(one + two) / 2,
        "aVL": one - two / 2,
        "aVF": two - one / 2,
    } | have
    return standard_order(np.stack(list(have.values())), tuple(have))


def standard_order(
    signal: npt.NDArray[np.float32], leads: tuple[str, ...]
) -> tuple[npt.NDArray[np.float32], tuple[str, ...]]:
    """Rows and names with the standard leads in their order, further leads behind."""
    order = [n for n in STANDARD_LEADS if n in leads] + [
        n for n in leads if n not in STANDARD_LEADS
    ]
    return signal[[leads.index(name) for name in order]], tuple(order)
