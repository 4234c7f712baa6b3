"""What a dialogue is about: topics, the sequences of moves, and how likely each request is."""

from __future__ import annotations

import random

from ecg_agent_ray.dialogue.synthesis.facts import RecordFacts

__all__ = [
    "CLASSIFY_WEIGHTS",
    "FAIL_WEIGHTS",
    "GENERAL_WEIGHTS",
    "LEVELS",
    "MEASURE_WEIGHTS",
    "SEQUENCES",
    "TOPICS",
    "is_possible",
    "random_sequence",
]

LEVELS = ("A", "B", "C")

TOPICS = {
    "heart_rate": "Heart Rate Concerns",
    "chest_pain": "Chest Pain Symptoms",
    "arrhythmia": "Arrhythmias",
    "intervals": "ECG Interval Analysis",
    "treatment": "Treatment and Medication Concerns",
    "lifestyle": "Lifestyle and Anxiety Management",
    "prevention": "General Preventive Health and Monitoring",
}
"""Short name -> the data sets' ``source_category``."""

# C classify, M measure, X measure what is missing, B both tools, E explain, D classify and explain,
# F follow-up, N cannot be met, H hello, Y emergency, K the tool fails, Z goodbye, Q goodbye all of
# a sudden
_SEQUENCES = """
CFZ MFZ CMZ MCZ CFMFZ MFCFZ CFFFZ MFFFZ CEZ CEFMZ CFNZ MNZ NCZ HCMZ HMFCZ BFZ
BFFNZ BEZ XFZ XCFZ CXZ CFXNZ CQ MQ FMZ FFCZ NNZ Y CY MYZ DFZ MDZ CMEFZ CNMFZ
MNCF HFCEMNZ CMFF C M HQ FNMZ CFMNFZ MFCENZ MCFF NZ FFZ CENZ DMFZ XNZ BXZ HBFZ
NMZ FCFMZ NFZ CNFZ MFNFZ CFFMFFZ FZ KZ CMFFZ MCFFZ HFCZ HNZ NFC MCFNF
"""
SEQUENCES = tuple(_SEQUENCES.split())
"""The fixed sequences, one letter a user turn; half of the dialogues walk at random instead."""


def _table(text: str) -> dict[str, dict[str, float]]:
    """``name: topic weights`` in the order of TOPICS."""
    table: dict[str, dict[str, float]] = {topic: {} for topic in TOPICS}
    for line in text.strip().splitlines():
        name, numbers = line.split(":")
        for topic, number in zip(TOPICS, numbers.split(), strict=True):
            table[topic][name.strip()] = float(number)
    return table


CLASSIFY_WEIGHTS = _table(
    """
    rhythm:   3 1 5 2 1 1 2
    abnormal: 2 3 3 3 3 3 4
    summary:  2 2 2 4 2 2 4
    specific: 2 3 5 2 2 2 2
    symptom:  3 6 4 1 1 3 1
    general:  1 1 1 1 4 4 4
    """
)
MEASURE_WEIGHTS = _table(
    """
    heart_rate:   6 4 4 1 3 4 4
    pr_interval:  1 1 2 3 2 1 1
    qrs_duration: 1 1 2 3 1 1 1
    qtc_interval: 1 1 2 3 4 1 1
    many:         1 1 1 3 1 1 1
    all:          1 1 1 4 1 1 2
    """
)
GENERAL_WEIGHTS = _table(
    """
    term:         2 2 5 4 2 2 2
    risk:         1 1 3 .5 1 1 1
    differ:       1 1 2 2 .5 .5 .5
    range:        4 1 1 5 1 2 2
    capability:   1 1 1 1 1 1 1
    leads:        .6 .6 .6 1 .4 .4 .6
    drug_general: 1 1 1 1 6 1 1
    habit:        3 2 2 1 1 6 2
    sport:        1 1 1 .5 1 4 2
    tips:         1 1 1 .5 1 4 3
    often:        1 1 1 1 1 1 4
    limits:       1 2 1 1 .6 1 3
    how_ecg:      1 1 1 2 .6 1 2
    """
)
FAIL_WEIGHTS = _table(
    """
    treatment:       2 2 3 1 8 2 1
    dose:            1 1 1 .5 5 1 .5
    diagnosis:       2 4 3 1 2 2 3
    other_test:      3 3 2 2 2 2 4
    not_measured:    2 1 1 4 1 1 1
    prognosis:       1 2 2 1 1 2 3
    other_recording: 2 1 1 2 1 1 3
    off_topic:       2 2 2 2 2 3 3
    injection:       .5 .5 .5 .5 .5 .5 .5
    """
)


def is_possible(moves: str, facts: RecordFacts) -> bool:
    """Whether the recording has what the moves need."""
    return (
        ("X" not in moves or bool(facts.missing_keys))
        and (not set("ED") & set(moves) or facts.can_explain)
        and (not set("M") & set(moves) or bool(facts.known_keys))
    )


def random_sequence(rng: random.Random, facts: RecordFacts) -> str:
    """A walk of one to six user turns that calls each tool at most once."""
    moves = ""
    for _ in range(rng.choice((1, 2, 3, 3, 4, 4, 5, 5, 6))):
        options = {"F": 4.0, "N": 2.0, "Y": 0.25}
        if not set("CBD") & set(moves):
            options |= {"C": 5.0, "D": 0.5 if facts.can_explain else 0.0}
            options["B"] = 0.0 if set("MX") & set(moves) else 0.9
        elif facts.can_explain and not set("ED") & set(moves):
            options["E"] = 2.0
        if not set("MXB") & set(moves):
            options["M"] = 4.5 if facts.known_keys else 0.0
            options["X"] = 6.0 if facts.missing_keys else 0.0
        if not set("CBDMX") & set(moves):
            options["K"] = 0.25
        if not moves:
            options |= {"H": 0.5, "F": 1.5}
        moves += rng.choices(list(options), list(options.values()))[0]
        if moves[-1] in "YK":
            break
    return moves + rng.choices(("Z", "Q", ""), (0.7, 0.08, 0.22))[0]
