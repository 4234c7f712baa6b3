"""General knowledge that users ask about: terms, conditions by name, numbers near limits."""

from __future__ import annotations

import random
from dataclasses import dataclass

from ecg_agent_ray.facts.quantities import QUANTITIES
from ecg_agent_ray.facts.statements import STATEMENTS

__all__ = ["CONDITIONS", "CONDITION_TERMS", "TERMS", "Condition", "number_near_limit"]


@dataclass(frozen=True, slots=True)
class Condition:
    """What a user may ask about by name, and the statements that would mean it is there."""

    names: tuple[str, ...]
    codes: frozenset[str]


def _of_kind(*kinds: str) -> frozenset[str]:
    return frozenset(code for code, item in STATEMENTS.items() if item.kind in kinds)


CONDITIONS: tuple[Condition, ...] = (
    Condition(
        ("atrial fibrillation", "AFib", "afib", "a-fib", "atrial fib"), frozenset({"AFIB"})
    ),
    Condition(("atrial flutter", "flutter"), frozenset({"AFLT"})),
    Condition(
        ("an old heart attack", "a past heart attack", "a previous myocardial infarction",
         "a silent heart attack in the past", "an old infarction"),
        frozenset(code for code in _of_kind("infarction") if code.endswith("MI")) | {"QWAVE"},
    ),
    Condition(("ischemia", "signs of poor blood supply", "ischaemia"), _of_kind("ischemia")),
    Condition(("a left bundle branch block", "LBBB"), frozenset({"CLBBB", "ILBBB"})),
    Condition(("a right bundle branch block", "RBBB"), frozenset({"CRBBB", "IRBBB"})),
    Condition(
        ("a bundle branch block",), frozenset({"CLBBB", "ILBBB", "CRBBB", "IRBBB"})
    ),
    Condition(("an AV block", "a heart block"), frozenset({"1AVB", "2AVB", "3AVB"})),
    Condition(
        ("a thickened heart muscle", "left ventricular hypertrophy", "LVH", "a thick heart wall"),
        frozenset({"LVH", "VCLVH", "SEHYP"}),
    ),
    Condition(
        ("extra beats", "premature beats", "ectopic beats", "extrasystoles"),
        frozenset({"PVC", "PAC", "PRC(S)", "BIGU", "TRIGU"}),
    ),
    Condition(("PVCs", "ventricular extra beats"), frozenset({"PVC"})),
    Condition(("WPW", "Wolff-Parkinson-White", "an extra pathway"), frozenset({"WPW"})),
    Condition(("sinus bradycardia",), frozenset({"SBRAD"})),
    Condition(("sinus tachycardia",), frozenset({"STACH"})),
    Condition(
        ("SVT", "supraventricular tachycardia"), frozenset({"SVTAC", "PSVT", "SVARR"})
    ),
    Condition(("ST elevation", "an elevated ST segment"), frozenset({"STE_"})),
    Condition(("ST depression", "a lowered ST segment"), frozenset({"STD_"})),
    Condition(
        ("T wave changes", "abnormal T waves", "inverted T waves"),
        frozenset({"NT_", "NDT", "INVT", "TAB_", "LOWT"}),
    ),
    Condition(("a pacemaker rhythm", "paced beats"), frozenset({"PACE"})),
    Condition(("sinus arrhythmia",), frozenset({"SARRH"})),
    Condition(("a fascicular block", "LAFB", "a hemiblock"), frozenset({"LAFB", "LPFB"})),
)  # fmt: skip

TERMS: dict[str, str] = {
    "atrial fibrillation": "an irregular rhythm in which the upper chambers quiver",
    "AFib": "short for atrial fibrillation, an irregular rhythm of the upper chambers",
    "sinus rhythm": "the normal rhythm set by the heart's own pacemaker",
    "a bundle branch block": "a delay of the signal to one of the lower chambers",
    "the QRS complex": "the tall spike of each beat, when the lower chambers contract",
    "the PR interval": "the time the signal takes from the upper to the lower chambers",
    "the QT interval": "the time the lower chambers need to discharge and recharge",
    "QTc": "the QT interval corrected for the heart rate",
    "a P wave": "the small first wave of a beat, from the upper chambers",
    "a T wave": "the last wave of a beat, when the lower chambers recharge",
    "the ST segment": "the flat part between the QRS spike and the T wave",
    "bradycardia": "a heart rate below 60 bpm",
    "tachycardia": "a heart rate above 100 bpm",
    "an arrhythmia": "any rhythm that is not the normal one",
    "a premature beat": "a heartbeat that comes earlier than expected",
    "left ventricular hypertrophy": "a thicker wall of the main pumping chamber",
    "an AV block": "a delay or stop of the signal between upper and lower chambers",
    "atrial flutter": "a fast, regular circuit of signals in the upper chambers",
    "a lead": "one viewing direction from which the ECG records the heart",
    "heart rate variability": "how much the time between heartbeats varies",
    "ST depression": "an ST segment that lies lower than usual",
    "an inverted T wave": "a T wave that points down instead of up",
    "WPW": "an extra pathway that lets the signal reach the lower chambers early",
    "sinus arrhythmia": "a normal rhythm that varies a little, often with breathing",
    "sinus tachycardia": "a normal rhythm that is faster than usual",
    "a right bundle branch block": "a delay of the signal to the right lower chamber",
    "a left bundle branch block": "a delay of the signal to the left lower chamber",
    "a heart attack": "damage to heart muscle from a blocked blood supply",
    "a pacemaker": "a small implanted device that sets the heartbeat",
    "sinus bradycardia": "a normal rhythm that is slower than usual",
    "ischemia": "too little blood supply to the heart muscle",
    "bpm": "beats per minute, the unit of heart rate",
    "a millisecond": "a thousandth of a second, the unit of ECG intervals",
    "ectopic beat": "an extra beat that starts outside the natural pacemaker",
    "the sinus node": "the heart's natural pacemaker in the right upper chamber",
    "Bazett's formula": "a way to correct the QT interval for heart rate",
    "palpitation": "the feeling of one's own heartbeat, fast, strong or irregular",
}
"""Term -> definition that reads after "is"."""

CONDITION_TERMS = (
    "atrial fibrillation",
    "AFib",
    "a bundle branch block",
    "bradycardia",
    "tachycardia",
    "an arrhythmia",
    "a premature beat",
    "left ventricular hypertrophy",
    "an AV block",
    "atrial flutter",
    "ST depression",
    "an inverted T wave",
    "WPW",
    "sinus arrhythmia",
    "sinus tachycardia",
    "a right bundle branch block",
    "a left bundle branch block",
    "sinus bradycardia",
    "ischemia",
)
"""Those terms of which one may ask how dangerous or common they are."""

_NEAR = {
    "heart_rate": (45, 52, 58, 62, 70, 75, 80, 88, 95, 99, 105, 110, 120, 140),
    "pr_interval": (100, 110, 130, 150, 160, 180, 190, 210, 220, 240),
    "qrs_duration": (80, 90, 95, 100, 110, 115, 125, 130, 140, 160),
    "qtc_interval": (380, 400, 410, 420, 430, 440, 470, 480, 500),
}


def number_near_limit(key: str, rng: random.Random) -> tuple[str, str]:
    """A number with its unit to ask about ("is 120 ms normal?"), and how it rates in words."""
    quantity = QUANTITIES[key]
    value = rng.choice(_NEAR[key])
    words = {"low": "lower than usual", "normal": "normal", "high": "higher than usual"}
    return f"{value} {quantity.unit}", words[quantity.rate(value)]
