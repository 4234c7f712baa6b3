"""What an answer says of a value's place in its usual range: low, normal or high.

A rating counts where it stands next to a value of this ECG ("62 bpm is a little low", "slow, at 62
bpm"), sets it against the usual range ("62 bpm, over the usual range"), or opens the next sentence
("That is a little low."), and where a measured quantity is named without its value ("the heart rate
is below the usual range"). Talk of other people, conditions and negations rate nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from ecg_agent_ray.agent.claims import NumberClaim, number_claims
from ecg_agent_ray.facts.quantities import QUANTITIES, Rating, rounded

__all__ = ["misrating", "misrating_after", "misratings_by_name", "only_value"]

# "below the usual limit" and "below the usual 120 ms" speak of one end, not of the range
_USUAL = (
    r" (?:the |its |your )?(?:usual|normal|customary|typical)"
    r"(?!(?: upper| lower)? (?:limit|maximum|minimum|bound))(?! \d+ ?(?:ms|bpm))"
)
_AGAINST_RANGE: Mapping[Rating, re.Pattern[str]] = {
    "high": re.compile(rf"\b(?:over|above|beyond|(?:higher|faster|longer) than){_USUAL}", re.I),
    "low": re.compile(rf"\b(?:under|below|(?:lower|slower|shorter) than){_USUAL}", re.I),
}

_DEGREE = (
    r"(?:(?:a|an|the|little|bit|tad|touch|slightly|somewhat|rather|quite|very|too|mildly"
    r"|moderately|markedly|fairly|just|still|relatively|abnormally|unusually|perfectly|completely"
    r"|well|also|on|side|considered)\s+)*"
)
_WORDS: Mapping[Rating, str] = {
    "low": r"low|slow|short|shortened|reduced|decreased|bradycardic",
    "high": r"high|fast|long|prolonged|elevated|increased|raised|wide|widened|tachycardic",
    "normal": r"normal|within (?:the |its )?(?:usual|normal|healthy)(?: adult)? (?:range|limits?)",
}
_NOT_A_RATING = r"(?!\s+(?:end|risk|limit|normal|voltage|frequency|enough|for|in)\b|-)"
_IS = r"(?:is|was|looks?|seems?|appears?|lies|falls)\s+"
_AFTER = {
    rating: re.compile(
        rf"^\s*\)?(?:,?\s*(?:which|that|and(?:\s+(?:that|this|it))?|this|it))?\s*,?\s*"
        rf"(?:{_IS}{_DEGREE}|[,(–-]\s*{_DEGREE})(?:{words})\b{_NOT_A_RATING}",
        re.IGNORECASE,
    )
    for rating, words in _WORDS.items()
}
_BEFORE = {
    rating: re.compile(
        rf"\b(?:{_IS}|looking\s+)?{_DEGREE}\b(?:{words})(?:\s+(?:side|heart rate|pulse|rate))?"
        r"\s*(?:,?\s*(?:at|with)|[:,(–-])\s*(?:about|around|only|just)?\s*$",
        re.IGNORECASE,
    )
    for rating, words in _WORDS.items()
}
_NEXT = {
    rating: re.compile(
        rf"^\W*(?:(?:that|this|it|which)(?:\s+(?:value|number|rate|heart rate|interval|duration))?"
        rf"\s+{_IS}|that's\s+|it's\s+){_DEGREE}(?:{words})\b{_NOT_A_RATING}",
        re.IGNORECASE,
    )
    for rating, words in _WORDS.items()
}
# "a heart rate below the usual range" is anybody's; "the" and "your" one are this ECG's
_NAMED: Mapping[str, re.Pattern[str]] = {
    key: re.compile(
        rf"\b(?:the|your) {name}\s+{_IS}{_DEGREE}"
        r"(?P<said>(?:under|below|over|above|beyond|(?:low|slow|short|high|fast|long)er than)"
        rf"{_USUAL})",
        re.IGNORECASE,
    )
    for key, name in (
        ("heart_rate", r"(?:heart |pulse )?rate"),
        ("pr_interval", r"PR(?: interval)?"),
        ("qrs_duration", r"QRS(?: duration)?"),
        ("qtc_interval", r"QTc(?: interval)?"),
    )
}
_WHEN = re.compile(r"\bwhen(?:ever)?\b", re.IGNORECASE)
_CONDITION = re.compile(
    r"\b(?:if|would|could|can|may|might|athletes?|children|some people|for example|not|n't|never"
    r"|neither|nor|women)\b|n't\b",
    re.IGNORECASE,
)
_QTC_OF_WOMEN = (450, 460)
"""Between the limits for men and for women a QTc may be called either; see dialogue.ranges."""


def misrating(claim: NumberClaim, sentence: str) -> str | None:
    """Why a right value is rated wrongly in its ``sentence``; None if it is not.

    Sentences with several numbers of this ECG are left alone: whose rating it is cannot be told.
    """
    if claim.comparison != "equal" or only_value(sentence) is None:
        return None
    said = _said_beside(claim, sentence)
    return _fault(claim, said)


def misrating_after(claim: NumberClaim, sentence: str) -> str | None:
    """The same for a ``sentence`` that follows the one with the value: "That is a little low."."""
    if number_claims(sentence) or _CONDITION.search(sentence):
        return None
    return _fault(claim, [r for r, words in _NEXT.items() if words.search(sentence)])


def misratings_by_name(
    sentence: str, values: Mapping[str, Sequence[float]]
) -> Iterator[tuple[str, str]]:
    """Ratings of measured quantities that a sentence without numbers names, each with its fault.

    ``values``: what the tools gave, by quantity; one that none gave is not judged.
    """
    if number_claims(sentence) or _CONDITION.search(sentence) or _WHEN.search(sentence):
        return
    for key, words in _NAMED.items():
        for found in words.finditer(sentence):
            said = [r for r, against in _AGAINST_RANGE.items() if against.search(found["said"])]
            faults = [_fault_of(key, value, said) for value in values.get(key, ())]
            # of several measurements it may mean any
            if faults and all(faults):
                yield found[0], str(faults[0])


def only_value(sentence: str) -> NumberClaim | None:
    """The one value of this ECG that the sentence states; None for none or several."""
    values = [claim for claim in number_claims(sentence) if claim.comparison == "equal"]
    return values[0] if len(values) == 1 else None


def _said_beside(claim: NumberClaim, sentence: str) -> list[Rating]:
    said: list[Rating] = [r for r, words in _AGAINST_RANGE.items() if words.search(sentence)]
    if said or _CONDITION.search(sentence):
        return said
    before, found, after = sentence.partition(claim.text)
    if not found:
        return []
    return [
        rating
        for rating in _WORDS
        if _AFTER[rating].search(after) or _BEFORE[rating].search(before)
    ]


def _fault(claim: NumberClaim, said: list[Rating]) -> str | None:
    key = claim.quantity or ("heart_rate" if claim.dimension == "rate" else None)
    return _fault_of(key, claim.value, said) if key in QUANTITIES else None


def _fault_of(key: str, given: float, said: list[Rating]) -> str | None:
    quantity, value = QUANTITIES[key], rounded(given)
    if key == "qtc_interval" and _QTC_OF_WOMEN[0] < value <= _QTC_OF_WOMEN[1]:
        return None
    rating = quantity.rate(value)
    if not said or rating in said:
        return None
    return f"{given:g} {quantity.unit} is {rating}, usual is {quantity.usual}"
