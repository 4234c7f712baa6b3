"""Is every number and finding in an answer one that the tools gave?

The same check guards what a user sees and scores faithfulness in evaluation, so that both mean the
same. It is deterministic; what it takes for a claim is said in :mod:`ecg_agent_ray.agent.claims`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from itertools import pairwise
from typing import Any, Literal

from ecg_agent_ray.agent.claims import NumberClaim, number_claims, sentences, statement_claims
from ecg_agent_ray.agent.ratings import misrating, misrating_after, misratings_by_name, only_value
from ecg_agent_ray.dialogue.render import parse_tool_output
from ecg_agent_ray.facts.quantities import QUANTITIES

__all__ = ["Evidence", "Violation", "check_grounding", "correct_rounding", "faithful_sentences"]

_PERCENT_ENTRY = re.compile(r"^\s*(?P<code>.+?)\s*\((?P<percent>\d+(?:\.\d+)?)\s*%\)")
_NUMERAL = re.compile(r"\d+(?:[.,]\d+)?")
_PLACE = re.compile(r"(?P<name>time|freq)=(?P<low>[\d.]+)-(?P<high>[\d.]+)")
_TIME_KEYS = tuple(key for key, item in QUANTITIES.items() if item.unit == "ms")
_DETAIL_KEYS = {item.detail: key for key, item in QUANTITIES.items()}

_IMPLIED_BY_STATEMENT: Mapping[str, tuple[str, ...]] = {
    "SR": ("STACH", "SBRAD", "SARRH"),
    "ISC_": ("ISCAL", "ISCAN", "ISCAS", "ISCIL", "ISCIN", "ISCLA"),
    "NST_": ("STD_", "STE_"),
    "NT_": ("INVT", "LOWT", "TAB_", "NDT"),
    "NDT": ("NT_", "TAB_"),
    "TAB_": ("INVT", "LOWT", "NT_", "NDT"),
    "LVH": ("VCLVH",),
    "PRC(S)": ("PAC", "PVC"),
    "LPR": ("1AVB",),
    "CLBBB": ("ILBBB",),
    "CRBBB": ("IRBBB",),
}
"""A statement whose words a narrower one justifies: sinus tachycardia is a sinus rhythm."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A claim that the tool outputs do not bear out.

    ``sentence`` is where it stands, ``claim`` the words, ``kind`` what it is about, ``reason`` why
    it fails, ``expected`` the tools' value where there is one.
    """

    kind: Literal["number", "statement"]
    claim: str
    sentence: str
    reason: str
    expected: str | None = None

    def __str__(self) -> str:
        return f"{self.claim!r}: {self.reason}"


@dataclass(slots=True)
class Evidence:
    """What the tools gave in a dialogue: values by quantity, probabilities by statement, places."""

    values: dict[str, list[str]] = field(default_factory=dict)
    percents: dict[str, list[str]] = field(default_factory=dict)
    seconds: list[str] = field(default_factory=list)
    hertz: list[str] = field(default_factory=list)

    @classmethod
    def collect(cls, tool_outputs: Iterable[Any]) -> Evidence:
        """Read outputs in ECG-MTD form (or as text, as :class:`ToolResult`, or as a step)."""
        evidence = cls()
        for output in tool_outputs:
            evidence._add(output)
        return evidence

    def _add(self, output: Any) -> None:
        output = getattr(output, "output", output)
        if isinstance(output, tuple) and len(output) == 2:
            output = output[1]  # (action, output), as Dialogue.tool_outputs gives
        if isinstance(output, Mapping) and "tool_output" in output:
            output = output["tool_output"]
        if isinstance(output, str):
            parsed = parse_tool_output(output)
            if isinstance(parsed, str):
                self._add_text(parsed)
                return
            output = parsed
        if isinstance(output, Mapping):
            for key, value in output.items():
                name = _DETAIL_KEYS.get(key, key)
                if value is not None and name in ("heart_rate", *_TIME_KEYS):
                    self.values.setdefault(name, []).append(str(value))
        elif isinstance(output, Sequence):
            for entry in output:
                self._add_text(str(entry))

    def _add_text(self, text: str) -> None:
        for line in text.splitlines():
            for part in line.split(", ") if "|" not in line else [line]:
                if entry := _PERCENT_ENTRY.match(part):
                    self.percents.setdefault(entry["code"].strip(), []).append(entry["percent"])
            for place in _PLACE.finditer(line):
                target = self.seconds if place["name"] == "time" else self.hertz
                target += [place["low"], place["high"]]

    def candidates(self, claim: NumberClaim) -> list[float]:
        """The values, in the claim's unit, that it may be about."""
        if claim.quantity is not None:
            if claim.quantity == "unmeasured":
                return []
            return _floats(self.values.get(claim.quantity, []))
        if claim.dimension == "percent":
            named = [self.percents[code] for code in claim.statements if code in self.percents]
            return _floats(value for values in named or self.percents.values() for value in values)
        if claim.dimension == "rate":
            return _floats(self.values.get("heart_rate", []))
        times = [value for key in _TIME_KEYS for value in self.values.get(key, [])]
        if claim.dimension == "time":
            return _floats(times) + [1000 * value for value in _floats(self.seconds)]
        if claim.dimension == "frequency":
            return _floats(self.hertz)
        if claim.dimension == "any":
            percents = [value for values in self.percents.values() for value in values]
            return _floats([*self.values.get("heart_rate", []), *times, *percents, *self.hertz])
        return []

    def bears_out(self, claim: NumberClaim) -> bool:
        """Whether a value agrees with the claim, to the precision it is printed with."""
        return any(_agrees(claim, value) for value in self.candidates(claim))

    def supports(self, code: str) -> bool:
        """Whether the outputs say that statement ``code`` is present."""
        if code in self.percents:
            return True
        if any(other in self.percents for other in _IMPLIED_BY_STATEMENT.get(code, ())):
            return True
        return any(test(value) for value, test in self._measured_signs(code))

    def _measured_signs(self, code: str) -> Iterable[tuple[float, Any]]:
        # limits as in dialogue.ranges: what a measured value alone justifies saying
        signs = {
            "SBRAD": ("heart_rate", lambda value: value < 60),
            "STACH": ("heart_rate", lambda value: value > 100),
            "LPR": ("pr_interval", lambda value: value > 200),
            "1AVB": ("pr_interval", lambda value: value > 200),
            "LNGQT": ("qtc_interval", lambda value: value > 450),
        }
        if code not in signs:
            return []
        key, test = signs[code]
        return [(value, test) for value in _floats(self.values.get(key, []))]

    def numerals(self) -> tuple[str, ...]:
        """Every numeral that may be said: as given, and rounded to whole numbers."""
        given = [value for values in self.values.values() for value in values]
        given += [value for values in self.percents.values() for value in values]
        given += [*self.seconds, *self.hertz]
        rounded = [str(_rounded(value, 1.0)) for value in _floats(given)]
        return tuple(dict.fromkeys([*given, *rounded]))


def check_grounding(
    answer: str, tool_outputs: Sequence[Any], *, question: str = "", before: str = ""
) -> list[Violation]:
    """The claims of ``answer`` about this ECG that no tool output bears out.

    Parameters
    ----------
    answer
        What the user is to read.
    tool_outputs
        All tool outputs of the dialogue so far, in ECG-MTD form: a measurement object, a list of
        ``"SR (98.23%)"``, an explanation's text; also accepted as text, as
        :class:`~ecg_agent_ray.agent.ToolResult` or as a step with ``tool_output``.
    question
        What the user asked. A number named there may be rated in the answer ("95 ms is normal").
    before
        The sentence that came before ``answer`` and was checked, if any: "That is a little low."
        speaks of its value.

    Returns
    -------
    list of Violation
        Empty when every claim is borne out. A number agrees when it is the tool's value rounded or
        cut to the precision it is printed with, in any of the units bpm, ms, s, %, Hz.

    Examples
    --------
    >>> check_grounding("Your PR interval is 0.16 s.", [{"pr_interval": "160"}])
    []
    >>> check_grounding("Your PR interval is 180 ms.", [{"pr_interval": "160"}])[0].expected
    '160'
    """
    evidence = Evidence.collect(tool_outputs)
    named = {float(numeral.replace(",", ".")) for numeral in _NUMERAL.findall(question)}
    violations = []
    for claim in number_claims(answer):
        if claim.judged and claim.value / claim.factor in named:
            continue
        sentence = _sentence_at(answer, claim.span[0])
        values = evidence.candidates(claim)
        if not any(_agrees(claim, value) for value in _in_order(answer, claim, values, evidence)):
            expected = f"{values[0]:g}" if values and claim.comparison == "equal" else None
            reason = f"the tools gave {expected}" if expected else "no tool gave it"
            violations.append(Violation("number", claim.text, sentence, reason, expected))
        elif wrong := misrating(claim, sentence):
            violations.append(Violation("number", claim.text, sentence, wrong))
    violations += _misrated_next(f"{before} {answer}" if before else answer, evidence)
    violations += _misrated_by_name(answer, evidence)
    violations += [
        Violation("statement", stated.code, stated.text, "not among the classifier's findings")
        for stated in statement_claims(answer)
        if not evidence.supports(stated.code)
    ]
    return violations


def _misrated_next(text: str, values: Evidence) -> Iterator[Violation]:
    """Sentences that rate the value of the sentence before them."""
    spans = [text[begin:end].strip() for begin, end in sentences(text)]
    for said, sentence in pairwise(spans):
        claim = only_value(said)
        if claim is None or not values.bears_out(claim):
            continue
        if reason := misrating_after(claim, sentence):
            yield Violation("number", sentence, sentence, reason)


def _misrated_by_name(answer: str, evidence: Evidence) -> Iterator[Violation]:
    """Sentences that rate a measured quantity without its value."""
    values = {key: _floats(given) for key, given in evidence.values.items()}
    for begin, end in sentences(answer):
        sentence = answer[begin:end].strip()
        for said, reason in misratings_by_name(sentence, values):
            yield Violation("number", said, sentence, reason)


def correct_rounding(answer: str, tool_outputs: Sequence[Any]) -> str:
    """``answer`` with numbers that were cut off replaced by the rightly rounded ones."""
    evidence = Evidence.collect(tool_outputs)
    corrected = answer
    for claim in reversed(number_claims(answer)):
        values = evidence.candidates(claim)
        if claim.comparison != "equal" or any(_is_rounded(claim, value) for value in values):
            continue
        near = [value for value in values if _agrees(claim, value)]
        if near:
            begin, end = claim.span
            new = _rounded(near[0] / claim.factor, claim.step / claim.factor)
            corrected = corrected[:begin] + str(new) + corrected[end:]
    return corrected


def faithful_sentences(answer: str, tool_outputs: Sequence[Any]) -> tuple[str, list[Violation]]:
    """``answer`` without the sentences that hold a violation, and the violations."""
    kept, violations = [], []
    for begin, end in sentences(answer):
        found = check_grounding(answer[begin:end], tool_outputs)
        violations += found
        if not found:
            kept.append(answer[begin:end])
    return "".join(kept).strip(), violations


def _in_order(
    answer: str, claim: NumberClaim, values: list[float], evidence: Evidence
) -> list[float]:
    """Values for "PR and QRS are 160 and 92 ms, respectively": names and numbers pair by order."""
    if "respectively" not in _sentence_at(answer, claim.span[0]).lower():
        return values
    times = [value for key in _TIME_KEYS for value in evidence.values.get(key, [])]
    return values + (_floats(times) if claim.dimension == "time" else [])


def _agrees(claim: NumberClaim, value: float) -> bool:
    if claim.comparison == "below":
        return value <= claim.value
    if claim.comparison == "above":
        return value >= claim.value
    if claim.comparison == "between" and claim.upper is not None:
        return claim.value - claim.step <= value <= claim.upper + claim.step
    return _is_rounded(claim, value) or 0 <= value - claim.value < claim.step - 1e-9


def _is_rounded(claim: NumberClaim, value: float) -> bool:
    return abs(value - claim.value) <= 0.5 * claim.step + 1e-9


def _rounded(value: float, step: float) -> Decimal:
    quantum = Decimal(1).scaleb(round(Decimal(repr(step)).adjusted()))
    return Decimal(repr(value)).quantize(quantum, ROUND_HALF_UP)


def _floats(values: Iterable[str]) -> list[float]:
    numbers = []
    for value in values:
        try:
            numbers.append(float(value))
        except ValueError:
            continue  # a tool's word for a missing value
    return numbers


def _sentence_at(text: str, position: int) -> str:
    for begin, end in sentences(text):
        if begin <= position < end:
            return text[begin:end].strip()
    return text.strip()
