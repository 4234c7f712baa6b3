"""What a user reads of a strict agent's text: three kinds of sentences, and no other.

*measured*   slots with words of the frame and the names of that clause's own slots
*curated*    an entry of the knowledge base or the meaning of a term, by itself
*courteous*  words of the allow-list alone

A clause that is none of the three is left out. What is shown is true because the program fills it
in, not because a sentence was understood: a name beside a value has to be that value's own, a
rating has to follow what it rates, and no word of the frame can turn, weigh or explain a fact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ecg_agent_ray.facts.allowlist import allowed, phrases
from ecg_agent_ray.facts.knowledge import Level
from ecg_agent_ray.facts.quantities import ALL_QUANTITIES
from ecg_agent_ray.facts.sheet import FactSheet
from ecg_agent_ray.facts.slots import Slot, fill, parse_slot
from ecg_agent_ray.facts.statements import STATEMENTS

__all__ = ["StrictGuard"]

_TOKEN = re.compile(
    r"\{(?P<slot>[^{}\n]*)\}|(?P<word>[A-Za-z]+(?:['’][A-Za-z]+)?)|(?P<space>\s+)"
    r"|(?P<end>[.!?]+|\n+)|(?P<mark>[,;:–—()-])|(?P<other>.)",
    re.DOTALL,
)
_JOINING = frozenset(
    ("so", "because", "but", "although", "though", "while", "whereas", "since", "therefore",
     "hence", "thus", "yet", "however")
)  # fmt: skip
"""Words that open a clause of its own; they are not shown, since they would reason or contrast."""

_RATINGS = ("rating", "vs", "margin")
_MOST_QUOTED = 2
"""Entries in one answer: a third would bury what was asked."""
_ALONE = ("know", "summary", "conflict")
_NOT_A_FINDING = ("know", "summary", "conflict", "check", "explanation")


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    slot: Slot | None = None


@dataclass(slots=True)
class StrictGuard:
    """Fills and filters a text as it is written, sentence by sentence.

    Parameters
    ----------
    sheet
        The facts of the dialogue so far.
    level
        Register of curated sentences.
    question
        What the user asked: "It is {heart_rate.rating}." may answer "Is my pulse too fast?".

    Attributes
    ----------
    kept, dropped
        Characters of the model's text that were shown and left out.
    left_out
        The clauses that were left out, for reports.
    quoted
        Ids of the entries quoted so far; an entry is quoted once.
    """

    sheet: FactSheet
    level: Level = "B"
    question: str = ""
    kept: int = 0
    dropped: int = 0
    left_out: list[str] = field(default_factory=list)
    quoted: set[str] = field(default_factory=set)
    _last: str | None = None

    def __post_init__(self) -> None:
        self._last = self._asked()

    def shown(self, content: str) -> str:
        """What of ``content`` is shown, filled; an empty text if nothing is."""
        return " ".join(filter(None, (self._sentence(s) for s in _sentences(content))))

    def _asked(self) -> str | None:
        """The one quantity that the question names, if it names just one."""
        named = {q for q, _, _ in _named_quantities(_words(self.question))}
        plain = named & {"heart_rate", "pr_interval", "qrs_duration", "qtc_interval"}
        return next(iter(plain)) if len(plain) == 1 else None

    def _sentence(self, tokens: Sequence[_Token]) -> str:
        end = tokens[-1].text if tokens and tokens[-1].kind == "end" else ""
        body = tokens[:-1] if end else tokens
        clauses = [self._clause(clause, end) for clause in _clauses(body)]
        shown = [text for text in clauses if text is not None]
        text = ", ".join(shown) if not _has_alone(body) else ". ".join(map(_capital, shown))
        if not text:
            return ""
        ended = text[-1] in ".!?"
        return _capital(text) + ("" if ended else end.strip()[:1] or ".")

    def _clause(self, tokens: Sequence[_Token], end: str) -> str | None:
        """The clause filled; where it fails as a whole, those of its parts that hold a slot."""
        tokens = _stripped(tokens)
        if not tokens:
            return None
        size = sum(len(token.text) for token in tokens)
        if (text := self._filled(tokens, end)) is not None:
            self.kept += size
            return text
        parts = list(_split(tokens, lambda t: t.kind == "mark" or t.text.lower() == "and"))
        shown = []
        if len(parts) > 1:
            for part in map(_stripped, parts):
                text = self._filled(part, end) if any(t.slot for t in part) else None
                if text is not None:
                    shown.append(text)
                    size -= sum(len(token.text) for token in part)
                    self.kept += sum(len(token.text) for token in part)
        self.dropped += size
        self.left_out.append("".join(token.text for token in tokens).strip())
        return ", ".join(shown) or None

    def _filled(self, tokens: Sequence[_Token], end: str) -> str | None:
        if any(
            token.kind == "other" or (token.kind == "slot" and not token.slot) for token in tokens
        ):
            return None
        slots = [token for token in tokens if token.slot]
        if not slots:
            question = ("question", "frame") if "?" in end else ()
            words = [t.text for t in tokens if t.kind == "word"]
            return _plain(tokens) if _fits(words, "grammar", "courteous", *question) else None
        quoted = {token.slot.subject for token in slots if token.slot and token.slot.head == "know"}
        if quoted & self.quoted or len(quoted | self.quoted) > _MOST_QUOTED:
            return None
        texts = {}
        for token in slots:
            text = fill(token.text[1:-1], self.sheet, level=self.level)
            if text is None:
                return None
            texts[id(token)] = text
        if not self._framed(tokens):
            return None
        self.quoted |= quoted
        self._last = _last_quantity(tokens, self._last)
        return "".join(texts.get(id(token), token.text) for token in tokens).strip()

    def _framed(self, tokens: Sequence[_Token]) -> bool:
        """Whether the words around the slots are of the frame or the slots' own names."""
        slots = [token.slot for token in tokens if token.slot]
        names = _own_names(slots)
        words = [token.text for token in tokens if token.kind == "word"]
        usual = ("usual",) if any(slot.part == "usual" for slot in slots) else ()
        if not _fits(words, "grammar", "frame", *usual, names=names):
            return False
        if any(slot.part == "usual" for slot in slots):
            said = {word.lower() for word in words}
            if not said & allowed("usual") or said & {"your", "you", "his", "her", "their", "my"}:
                return False
        absent = [
            slot
            for slot in slots
            if slot.head == "finding" and slot.part == "meaning" and not self._is_found(slot)
        ]
        if absent and not _defines(words, names):
            return False
        return self._pairs(tokens) and self._rated(tokens)

    def _is_found(self, slot: Slot) -> bool:
        return self.sheet.finding(slot.subject) is not None

    def _pairs(self, tokens: Sequence[_Token]) -> bool:
        """Whether each quantity that is named has its own slot, in order."""
        waiting: list[str] = []
        seen: str | None = None
        for item in _names_and_slots(tokens):
            if isinstance(item, str):
                if item != seen:
                    waiting.append(item)
                continue
            key = item.head if item.quantity else None
            if key is None:
                if waiting:
                    return False
                continue
            if waiting:
                if not _same(waiting[0], key):
                    return False
                waiting.pop(0)
            seen = key
        return not waiting

    def _rated(self, tokens: Sequence[_Token]) -> bool:
        """Whether each rating follows the quantity it rates."""
        last = self._last
        for item in _names_and_slots(tokens):
            if isinstance(item, str):
                last = item
            elif item.quantity is not None:
                if item.part in _RATINGS and (last is None or not _same(last, item.head)):
                    return False
                last = item.head
            elif item.head in ("finding", "findings") and item.part != "meaning":
                last = None
        return True


def _same(name: str, key: str) -> bool:
    """Whether a quantity's word may stand for ``key``: "QT" is said of the QTc, too."""
    return name == key or bool(set(ALL_QUANTITIES[name].words) & set(ALL_QUANTITIES[key].words))


def _last_quantity(tokens: Sequence[_Token], before: str | None) -> str | None:
    last = before
    for item in _names_and_slots(tokens):
        if isinstance(item, Slot):
            last = item.head if item.quantity else (None if item.head != "know" else last)
    return last


def _names_and_slots(tokens: Sequence[_Token]) -> Iterable[str | Slot]:
    """Quantities named in words, as keys, and slots, in order."""
    run: list[_Token] = []
    slots = [token.slot for token in tokens if token.slot]
    keys = [slot.head for slot in slots if slot.quantity]
    for token in [*tokens, _Token("end", "")]:
        if token.kind == "word":
            run.append(token)
            continue
        if token.kind == "space":
            continue
        for key, _, _ in _named_quantities([word.text.lower() for word in run], prefer=keys):
            yield key
        run = []
        if token.slot:
            yield token.slot


def _named_quantities(
    words: Sequence[str], prefer: Sequence[str] = ()
) -> Iterable[tuple[str, int, int]]:
    """Quantities whose words stand in ``words``: key, first word, end; longest names first."""
    order = sorted(ALL_QUANTITIES, key=lambda key: key not in prefer)
    names = sorted(
        ((name.split(), key) for key in order for name in ALL_QUANTITIES[key].words),
        key=lambda item: -len(item[0]),
    )
    at = 0
    while at < len(words):
        for name, key in names:
            if list(words[at : at + len(name)]) == name:
                yield key, at, at + len(name)
                at += len(name)
                break
        else:
            at += 1


def _own_names(slots: Sequence[Slot]) -> frozenset[str]:
    """The words that name what these slots hold."""
    names: set[str] = set()
    for slot in slots:
        if slot.quantity is not None:
            names.update(word for name in slot.quantity.words for word in name.split())
            names.update(("interval", "duration", "width", "time"))
    found = [slot for slot in slots if slot.head in ("finding", "check") and slot.part != "meaning"]
    subjects = [STATEMENTS[slot.subject] for slot in found if slot.subject in STATEMENTS]
    if subjects and len(found) == len(subjects) and all(s.kind == "rhythm" for s in subjects):
        names.add("rhythm")
    if any(slot.head == "explanation" for slot in slots):
        names |= {"lead", "place", "seconds"}
    if any(slot.head in ("lead", "quality", "regularity") for slot in slots):
        names |= {"lead", "quality", "signal", "rhythm", "beats"}
    return frozenset(names)


def _defines(words: Sequence[str], names: frozenset[str]) -> bool:
    """Whether a clause only says what a term means: "the term means …", "it stands for …"."""
    said = {word.lower() for word in words}
    return said <= allowed("grammar") | {"term", "word", "means", "mean", "meaning", "stands",
                                         "plain", "words", "name"} and not said & {
        "your", "you", "i", "his", "her", "their", "this", "here", "my", "recording"}  # fmt: skip


def _fits(words: Sequence[str], *parts: str, names: frozenset[str] = frozenset()) -> bool:
    """Whether all words are of these parts of the allow-list, or names."""
    single = allowed(*parts) | names
    said = [word.lower().replace("’", "'") for word in words]
    at = 0
    while at < len(said):
        for phrase in phrases(*parts):
            if tuple(said[at : at + len(phrase)]) == phrase:
                at += len(phrase)
                break
        else:
            if said[at] not in single:
                return False
            at += 1
    return True


def _words(text: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Za-z]+", text)]


def _tokens(content: str) -> list[_Token]:
    tokens = []
    for found in _TOKEN.finditer(content):
        kind = found.lastgroup or "other"
        slot = parse_slot(found["slot"]) if kind == "slot" else None
        tokens.append(_Token(kind, found.group(0), slot))
    return tokens


def _sentences(content: str) -> list[list[_Token]]:
    sentences: list[list[_Token]] = [[]]
    for token in _tokens(content):
        sentences[-1].append(token)
        if token.kind == "end":
            sentences.append([])
    return [s for s in sentences if any(t.kind not in ("space", "end") for t in s)]


def _split(tokens: Sequence[_Token], at: object) -> Iterable[list[_Token]]:
    part: list[_Token] = []
    for token in tokens:
        if at(token):  # type: ignore[operator]
            yield part
            part = []
        else:
            part.append(token)
    yield part


def _clauses(tokens: Sequence[_Token]) -> Iterable[list[_Token]]:
    def opens(token: _Token) -> bool:
        return token.text in (";", "(", ")", "—", "–") or (
            token.kind == "word" and token.text.lower() in _JOINING
        ) or bool(token.slot and token.slot.head in _ALONE)  # fmt: skip

    part: list[_Token] = []
    for token in tokens:
        if not opens(token):
            part.append(token)
            continue
        yield part
        part = []
        if token.slot:
            yield [token]
    yield part


def _has_alone(tokens: Sequence[_Token]) -> bool:
    return any(token.slot and token.slot.head in _ALONE for token in tokens)


def _stripped(tokens: Sequence[_Token]) -> list[_Token]:
    """Without blanks, marks and a joining "and" at either end."""

    def is_edge(token: _Token) -> bool:
        return token.kind in ("space", "mark") or token.text.lower() == "and"

    tokens = list(tokens)
    while tokens and is_edge(tokens[0]):
        tokens.pop(0)
    while tokens and is_edge(tokens[-1]):
        tokens.pop()
    return tokens


def _plain(tokens: Sequence[_Token]) -> str:
    return "".join(token.text for token in tokens).strip()


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
