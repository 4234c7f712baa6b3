"""What an answer says about this ECG: numbers with a unit, and statements of the classifier.

Rules over sentences and clauses, in English. What counts as no claim: negations ("no sign of atrial
fibrillation"), usual ranges and limits ("normal is 60-100 bpm", "below 200 ms"), definitions and
possibilities ("atrial fibrillation is an irregular rhythm", "it can be a sign of …"), questions.
Where a rule is in doubt about a number, the number is a claim; where it is in doubt about a
statement, only an assertion about this ECG makes it one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ecg_agent_ray.facts.quantities import QUANTITIES
from ecg_agent_ray.facts.statements import STATEMENTS, find_statements

__all__ = [
    "Dimension",
    "NumberClaim",
    "StatementClaim",
    "number_claims",
    "sentences",
    "statement_claims",
]

Dimension = Literal["rate", "time", "percent", "frequency", "voltage", "any"]
Comparison = Literal["equal", "below", "above", "between"]


@dataclass(frozen=True, slots=True)
class NumberClaim:
    """A number said of this ECG.

    ``value`` is in bpm, ms, %, Hz or mV by ``dimension``; ``step`` is the unit of its last printed
    digit in the same unit, and ``factor`` what the printed numeral was multiplied by; ``upper`` is
    the other end of a range. ``quantity`` is the ECG-MTD key
    it is said of (``pr_interval`` …), ``"unmeasured"`` for one that no tool gives, or None.
    ``judged`` says that the number is rated as it stands ("95 ms is normal"), which
    may be about a number that the user named. ``span`` is the numeral's place in the text searched.
    """

    text: str
    span: tuple[int, int]
    value: float
    step: float
    dimension: Dimension
    quantity: str | None = None
    comparison: Comparison = "equal"
    upper: float | None = None
    factor: float = 1.0
    judged: bool = False
    statements: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StatementClaim:
    """A classifier statement said to be present."""

    text: str
    code: str


_SENTENCE_END = re.compile(
    r"(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)(?<!\bapprox)[.!?]+[\"')\]]*(?=\s|$)|\n+"
)
_CLAUSE_BREAK = re.compile(
    r";|,?\s+\b(?:but|however|although|though|while|whereas|yet)\b|,\s+which\b"
    r"|,?\s+and\s+(?=(?:\S+\s+){0,6}?(?:is|are|was|were|shows?|has|have|measures?|lies)\b)",
    re.IGNORECASE,
)

_NUMERAL = r"\d+(?:[.,]\d+)?"
_UNITS: dict[str, tuple[Dimension, float]] = {
    r"bpm|beats?\s*(?:per|a|/|each)\s*min(?:ute)?|/\s?min\b|per\s+minute": ("rate", 1.0),
    r"ms|msecs?|milli-?seconds?": ("time", 1.0),
    r"s|secs?|seconds?": ("time", 1000.0),
    r"%|per\s?cent": ("percent", 1.0),
    r"hz|hertz": ("frequency", 1.0),
    r"mv|millivolts?": ("voltage", 1.0),
}
_UNIT = "|".join(f"(?P<u{number}>{words})" for number, words in enumerate(_UNITS))
_RANGE_JOINT = r"(?:\s*[-–—]\s*|\s+(?:to|and|through)\s+)"
_NUMBER_WITH_UNIT = re.compile(
    rf"(?<![\w.])(?P<low>{_NUMERAL})"
    rf"(?:\s*(?:{'|'.join(_UNITS)})?{_RANGE_JOINT}(?P<high>{_NUMERAL}))?"
    rf"(?P<joint>[\s-]*)(?:{_UNIT})(?![\w])",
    re.IGNORECASE,
)
_BARE_NUMBER = re.compile(
    rf"(?<![\w.])(?P<low>{_NUMERAL})(?:{_RANGE_JOINT}(?P<high>{_NUMERAL}))?(?![\w%°/]|[.,]\d|-\w)"
)
_QUANTITIES: dict[str, tuple[str, Dimension]] = {
    "heart_rate": (r"heart\s?rate|pulse(?:\s+rate)?|ventricular rate|\bHR\b|\brate\b", "rate"),
    "pr_interval": (r"\bP-?[RQ]\b(?:\s+(?:interval|time|duration))?", "time"),
    "qrs_duration": (r"\bQRS\b", "time"),
    "qtc_interval": (r"\bQTc?\b", "time"),
    "unmeasured": (r"\bRR\b|\bP[\s-]wave|\bT[\s-]wave|\bST\b|blood pressure|\bQRS axis\b", "time"),
}
_PROBABILITY = re.compile(r"probabilit|confiden|likelihood|certain|score", re.IGNORECASE)

_GENERAL = re.compile(
    r"\b(?:normal(?:ly)?|typical(?:ly)?|usual(?:ly)?|healthy|average|reference|ranges?|limits?"
    r"|generally|in general|expected|adults?|athletes?|people|should be|would be|considered|if"
    r"|for example|e\.g|guidelines?|cut-?offs?|thresholds?|squares?|box(?:es)?|paper|defined|means?"
    r"|when)\b",
    re.IGNORECASE,
)
# For a single number the word has to govern it: "a normal heart rate is 75 bpm" speaks of people in
# general, "the heart rate is normal (75 bpm)" of this ECG.
_GENERIC = re.compile(
    r"\b(?:normal|typical|usual|healthy|average|reference|expected)\s+(?:(?:adult|resting|human)\s+)*"
    r"(?:heart|pulse|rate|pr|qrs|qtc?|intervals?|values?|durations?|limits?|ranges?|persons?|adults?"
    r"|people)\b"
    r"|^\W*normal\s+(?:is|are|lies)\b"
    r"|\b(?:normally|typically|usually|generally|in general|adults|athletes|people|should be"
    r"|would be|considered|if|for example|e\.g|guidelines?|cut-?offs?|thresholds?|squares?"
    r"|box(?:es)?|paper|defined|means?|when|an?\s+(?:athlete|adult|person|child))\b",
    re.IGNORECASE,
)
_LIMIT_SLACK = 10.0
"""Guidelines differ by so much in bpm or ms: a QTc below 460 ms, a QRS below 120 or 110 ms."""
_IN_GENERAL = re.compile(r"\b(?:in general|generally|overall)\b", re.IGNORECASE)
_OWN = re.compile(
    r"\b(?:your|yours|you have|you've|this (?:ecg|recording|trace|tracing|signal|one|is|value)|here"
    r"|the (?:ecg|recording|trace|tracing|tool|measurement|classifier|analysis)|measured|measures"
    r"|we (?:see|found|have)|i (?:see|found|measured))\b",
    re.IGNORECASE,
)
_IS = re.compile(
    r"(?:\s+(?:interval|duration|time))?\s+(?:is|was|lies|stays|remains)"
    r"(?:\s+(?:\w+ly|now|well|just|far|still|a bit|a little))*\s*",
    re.IGNORECASE,
)
_BELOW = re.compile(
    r"(?:\b(?:below|under|less than|lower than|shorter than|up to|at most|no more than|within"
    r"|not (?:above|over|exceed)|maximum of|upper limit of|slower than)|[<≤])\s*(?:about|the)?\s*$",
    re.IGNORECASE,
)
_ABOVE = re.compile(
    r"(?:\b(?:above|over|more than|greater than|higher than|longer than|at least|exceed(?:s|ing)?"
    r"|beyond|no less than|faster than|minimum of|lower limit of)|[>≥])\s*(?:about|the)?\s*$",
    re.IGNORECASE,
)
_LIMIT = re.compile(
    r"\b(?:limit|cut-?off|threshold|range)\b[^,;]{0,20}$"
    r"|\b(?:in|for)\s+(?:adult\s+)?(?:women|men|females|males|adults|children|athletes)\s*$",
    re.IGNORECASE,
)
_BARE_BEFORE = re.compile(
    r"(?:\b(?:is|are|was|were|of|at|reads|equals|about|around|approximately|roughly)|[:=≈~])\s*$",
    re.IGNORECASE,
)
_JUDGED = re.compile(
    r"^\s*(?:is|was|would be|counts as|falls|lies)\b(?!\s*(?:what|the\s+(?:heart|pr|qrs|qt)))",
    re.IGNORECASE,
)
_OTHER_PERCENT = re.compile(
    r"^\s*(?:of\s+(?:all\s+)?(?:people|patients|adults|cases|men|women|persons|those|the\s+(?:time|"
    r"population))|sure|certain|accurate|reliable|confident|safe)\b",
    re.IGNORECASE,
)
_RECORDING_LENGTH = re.compile(
    r"^\s*(?:of\s+)?(?:long\s+)?(?:recording|ecg|strip|trace|tracing|snapshot|segment)",
    re.IGNORECASE,
)
# of the list: how long a recording runs, said by the user's file and not by a tool

_FORWARD_NEGATION = re.compile(
    r"\b(?:no|not|without|never|neither|nor|none|cannot|absence of|free of|negative for|rather than"
    r"|instead of|rules? out|ruled out|lacks?|exclude[sd]?)\b|n't\b",
    re.IGNORECASE,
)
_BACKWARD_NEGATION = re.compile(
    r"\b(?:is|are|was|were|has been|have been|does|do|did|could|can)\s*(?:not|n't)\b"
    r"|(?:is|are|was|were|wasn|isn|aren|weren)(?:n't|'t)\b"
    r"|\b(?:absent|ruled out|excluded|unlikely|not (?:seen|found|detected|present|among))\b",
    re.IGNORECASE,
)
_LEADING_NO = re.compile(r"^\s*(?:no|not quite|nope)\s*[,.;:–-]\s*", re.IGNORECASE)
_HYPOTHETICAL = re.compile(
    r"\b(?:if|would|could|can|may|might|such as|for example|e\.g|called|known as|stands for"
    r"|refers? to|means?|meaning|defined|happens?|occurs?|causes?|caused|types? of|kinds? of|people"
    r"|patients|when|whether|checks?|look(?:s|ing)? for|assess(?:es)?|definition|describes?|term"
    r"|understands?|understood|in general"
    r"|generally|unlike|compared|different from|risk of|screen|treat(?:ed|ment)?)\b",
    re.IGNORECASE,
)
_DEFINITION = re.compile(
    r"^\W*(?:[\w\s']{1,30}[:,]\s*)?(?:an?\s+|the\s+)?(?P<term>[\w\s()/'-]{2,60}?)"
    r"\s+(?:is|are)\s+(?:an?|the|when|one of|where|often|usually|just|simply)\b",
    re.IGNORECASE,
)
_ASSERTION = re.compile(
    r"\b(?:shows?|showed|found|finds?|findings?|detect(?:s|ed)|indicates?|reveals?|suggests?"
    r"|points? to|consistent with|positive for|there (?:is|are)|you have|your|present"
    r"|this (?:ecg|recording|is)|the (?:ecg|recording|classifier|tool|rhythm|trace)|classified"
    r"|identified|reports?|reported|see|seen|result|labels?|diagnos\w+|it is|it's|likely"
    r"|probability|confidence|noted|evidence of|signs? of|main|top)\b",
    re.IGNORECASE,
)
_VERB = re.compile(r"\b(?:is|are|was|were|has|have|means?|does|do|will|would)\b", re.IGNORECASE)


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Places of the sentences in ``text``, trailing white space included; they cover all of it."""
    begin = 0
    for end in _SENTENCE_END.finditer(text):
        stop = end.end()
        while stop < len(text) and text[stop].isspace():
            stop += 1
        if stop > begin:
            yield begin, stop
            begin = stop
    if begin < len(text):
        yield begin, len(text)


def _clauses(text: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
    start = begin
    for found in _CLAUSE_BREAK.finditer(text, begin, end):
        if found.start() > start:
            yield start, found.start()
        start = found.start()
    yield start, end


def number_claims(text: str) -> list[NumberClaim]:
    """The numbers that ``text`` says of this ECG, in order."""
    claims: list[NumberClaim] = []
    for begin, end in sentences(text):
        for clause_begin, clause_end in _clauses(text, begin, end):
            clause = _Clause(text, begin, clause_begin, clause_end)
            taken: list[tuple[int, int]] = []
            for found in _NUMBER_WITH_UNIT.finditer(text, clause_begin, clause_end):
                taken.append(found.span())
                claims += clause.with_unit(found)
            for found in _BARE_NUMBER.finditer(text, clause_begin, clause_end):
                if not any(low < found.end() and found.start() < high for low, high in taken):
                    claims += clause.bare(found)
    return claims


class _Clause:
    """Reads the numbers of one clause, with the sentence before it as context."""

    def __init__(self, text: str, sentence: int, begin: int, end: int) -> None:
        self.text, self.sentence, self.begin, self.end = text, sentence, begin, end

    def with_unit(self, found: re.Match[str]) -> list[NumberClaim]:
        group = next(name for name, value in found.groupdict().items() if name[0] == "u" and value)
        dimension, factor = list(_UNITS.values())[int(group[1:])]
        after = self.text[found.end() : self.end]
        if dimension == "percent" and _OTHER_PERCENT.match(after):
            return []
        if factor == 1000.0 and ("-" in found["joint"] or _RECORDING_LENGTH.match(after)):
            return []
        return self._claim(found, dimension, factor)

    def bare(self, found: re.Match[str]) -> list[NumberClaim]:
        """A number without unit is a claim where it is given as a quantity's value."""
        before = self.text[self.begin : found.start()]
        value = _value(found["low"])
        if _PROBABILITY.search(before) and 0 < value < 1:
            return self._claim(found, "percent", 100.0)
        quantity = self._quantity(found.start(), found.end(), None, look_ahead=False)
        if quantity is None:
            after = self.text[found.end() : self.end].lstrip()
            given = (
                value >= 20 and _BARE_BEFORE.search(before) and (not after or after[0] in ".,;!)")
            )
            return self._claim(found, "any", 1.0) if given else []
        if not _BARE_BEFORE.search(before):
            return []
        return self._claim(found, _QUANTITIES[quantity][1], 1.0)

    def _claim(
        self, found: re.Match[str], dimension: Dimension, factor: float
    ) -> list[NumberClaim]:
        before = self.text[self.begin : found.start()]
        low, high = _value(found["low"]) * factor, found["high"]
        comparison: Comparison = "equal"
        upper = None
        if high is not None:
            comparison, upper = "between", _value(high) * factor
        elif _BELOW.search(before):
            comparison = "below"
        elif _ABOVE.search(before):
            comparison = "above"
        quantity = self._quantity(found.start(), found.end(), dimension)
        own = _OWN.search(before) is not None
        if self._only_sounds_general(before, low, comparison, quantity):
            before, own = _IN_GENERAL.sub("", before), True
        statements = self._statements(found.start())
        general = _GENERAL.search(before) is not None or _LIMIT.search(before) is not None
        if dimension == "percent" and statements:
            general = False  # "a normal ECG (95%)" names a finding, no usual range
        if comparison == "equal":
            if general and not own and (_GENERIC.search(before) or _LIMIT.search(before)):
                return []
            if _LIMIT.search(before):
                return []
        elif (
            general
            or not (own or _OWN.search(self.text[self.sentence : self.begin]))
            or _GENERAL.search(self.text[found.end() : self.end])
        ):
            return []
        decimals = len(re.split("[.,]", found["low"])[1]) if re.search("[.,]", found["low"]) else 0
        return [
            NumberClaim(
                text=found.group(0),
                span=found.span("low"),
                value=low,
                step=factor * 10.0**-decimals,
                dimension=dimension,
                quantity=quantity,
                comparison=comparison,
                upper=upper,
                factor=factor,
                judged=self._is_judged(found),
                statements=statements,
            )
        ]

    @staticmethod
    def _only_sounds_general(
        before: str, value: float, comparison: Comparison, quantity: str | None
    ) -> bool:
        """Whether "in general, the heart rate is below 60 bpm" speaks of this ECG after all.

        It does where the quantity itself is said to be so, unless the number is a usual limit, on
        its usual side: "generally, the PR interval is below 200 ms" is true of people, and so is
        "the PR interval is prolonged above 200 ms".
        """
        if quantity is None or comparison == "between" or not _IN_GENERAL.search(before):
            return False
        words = _QUANTITIES[quantity][0]
        named = re.search(rf"\b(?:the|your)\s+(?:{words})", before, re.IGNORECASE)
        if named is None or _GENERIC.search(_IN_GENERAL.sub("", before)):
            return False
        compared = {"below": _BELOW, "above": _ABOVE}.get(comparison)
        bound = compared.search(before) if compared else None
        if bound is not None and not _IS.fullmatch(before[named.end() : bound.start()]):
            return False
        usual = QUANTITIES.get(quantity)
        limit = None if usual is None else {"below": usual.high, "above": usual.low}.get(comparison)
        return limit is None or abs(value - limit) > _LIMIT_SLACK

    def _statements(self, start: int) -> tuple[str, ...]:
        """The statement named last since the number before, else all of the clause."""
        past = [number.end() for number in _NUMBER_WITH_UNIT.finditer(self.text, self.begin, start)]
        nearest = find_statements(self.text[max([self.begin, *past]) : start])
        return tuple(nearest[-1:] or find_statements(self.text[self.begin : self.end]))

    def _is_judged(self, found: re.Match[str]) -> bool:
        start = self.text[self.sentence : found.start()].strip().lower()
        return (
            (start in ("", "a", "a value of") or start.endswith(","))
            and _JUDGED.search(self.text[found.end() : self.end]) is not None
            and _OWN.search(self.text[self.sentence : self.end]) is None
        )

    def _quantity(
        self, start: int, end: int, dimension: Dimension | None, *, look_ahead: bool = True
    ) -> str | None:
        """The quantity named last before the number, else first after it in the clause."""
        best: tuple[int, str] | None = None
        for key, (words, kind) in _QUANTITIES.items():
            if dimension not in (None, "any", kind):
                continue
            for past in re.finditer(words, self.text[self.sentence : start], re.IGNORECASE):
                if best is None or past.start() > best[0]:
                    best = (past.start(), key)
        if best is not None:
            return best[1]
        if not look_ahead:
            return None
        following = self.text[end : self.end]
        ahead = [
            (named.start(), key)
            for key, (words, kind) in _QUANTITIES.items()
            if dimension in (None, "any", kind)
            and (named := re.search(words, following, re.IGNORECASE))
        ]
        return min(ahead)[1] if ahead else None


def _value(numeral: str) -> float:
    return float(numeral.replace(",", "."))


def statement_claims(text: str) -> list[StatementClaim]:
    """The classifier statements that ``text`` says are present in this ECG."""
    claims: list[StatementClaim] = []
    for begin, end in sentences(text):
        sentence = text[begin:end]
        if sentence.rstrip().endswith("?"):
            continue
        own = _ASSERTION.search(sentence) is not None
        for clause_begin, clause_end in _clauses(text, begin, end):
            clause = _LEADING_NO.sub("", text[clause_begin:clause_end])
            claims += [
                StatementClaim(sentence.strip(), code)
                for code in _asserted(clause, own)
                if code in STATEMENTS
            ]
    return claims


def _asserted(clause: str, sentence_asserts: bool) -> list[str]:
    codes = find_statements(clause)
    if not codes or _HYPOTHETICAL.search(clause):
        return []
    defined = _DEFINITION.match(clause)
    if defined and find_statements(defined["term"]) and not _OWN.search(clause):
        return []
    if not (sentence_asserts or "%" in clause or not _VERB.search(clause)):
        return []
    if negation := _FORWARD_NEGATION.search(clause):
        denied = find_statements(clause[negation.end() :])
        codes = [code for code in codes if code not in denied]
    if denial := _BACKWARD_NEGATION.search(clause):
        absent = find_statements(clause[: denial.start()])
        codes = [code for code in codes if code not in absent]
    return codes
