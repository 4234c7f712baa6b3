"""The gate between the model's words and the user: whole sentences, each checked when complete."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from ecg_agent_ray.agent.claims import sentences
from ecg_agent_ray.agent.grounding import check_grounding, correct_rounding
from ecg_agent_ray.facts import SLOT, FactSheet, Level, StrictGuard, fill, urgent_entry

__all__ = ["AnswerGate", "Gate", "StrictGate"]


class Gate(ABC):
    """Passes on sentences as they are completed; those that may not be shown are left out.

    A sentence said word for word a second time ends the answer (:attr:`repeating`): a weak model
    that has begun to go round does not stop by itself.

    Attributes
    ----------
    sent
        What the user has been shown.
    written
        What the model wrote of it.
    dropped
        Sentences left out, wholly or in part.
    repaired
        Sentences that were corrected.
    violations
        Why, a line each.
    """

    def __init__(self) -> None:
        self._pending = ""
        self._space = ""
        self._said: set[str] = set()
        self.sent = ""
        self.written = ""
        self.repeating = False
        self.repaired = 0
        self.dropped = 0
        self.violations: list[str] = []

    @abstractmethod
    def check(self, sentence: str) -> str:
        """What is shown of one sentence without white space around it; empty if nothing."""

    def feed(self, text: str) -> str:
        """Take what the model wrote; give what may be sent now."""
        if self.repeating:
            return ""
        self._pending += text
        # the last one may go on: "72." can become "72.35"
        *complete, last = [self._pending[b:e] for b, e in sentences(self._pending)] or [""]
        if last and last[-1].isspace() and last.strip()[-1:] in (".", "!", "?"):
            complete.append(last)
            last = ""
        self._pending = last
        return "".join(self._pass(sentence) for sentence in complete)

    def flush(self, *, cut: bool = False) -> str:
        """The end of the text; ``cut`` says that it was ended by the token limit."""
        last, self._pending = self._pending, ""
        if self.repeating or (cut and self.sent):
            return ""  # half a sentence tells nothing
        return self._pass(last)

    def _pass(self, sentence: str) -> str:
        body = sentence.strip()
        if not body or self.repeating:
            self._space += sentence
            return ""
        if body in self._said:
            self.repeating = True
            return ""
        self._said.add(body)
        told = self.check(body)
        if not told:
            return ""
        passed = (self._space or " " if self.sent else "") + told
        self._space = sentence[len(sentence.rstrip()) :]
        self.sent += passed
        self.written += (" " if self.written else "") + body
        return passed


class StrictGate(Gate):
    """Fills the slots of a strict model's text and leaves out what is none of the three kinds."""

    def __init__(self, sheet: FactSheet, *, question: str = "", level: Level = "B") -> None:
        super().__init__()
        self.guard = StrictGuard(sheet, level=level, question=question)
        if entry := urgent_entry(question):
            self.guard.quoted.add(entry)  # it has been said before the answer

    def check(self, sentence: str) -> str:
        before = len(self.guard.left_out)
        told = self.guard.shown(sentence)
        left_out = self.guard.left_out[before:]
        self.dropped += bool(left_out)
        self.violations += [f"left out: {clause}" for clause in left_out]
        return told


class AnswerGate(Gate):
    """Fills slots of an open model's text and leaves out sentences that the facts contradict.

    Parameters
    ----------
    tool_outputs
        All outputs of the dialogue so far.
    question
        The user's message.
    enabled
        False passes everything.
    sheet
        The facts of these outputs and what is known beside them; made of the outputs by default.
    """

    def __init__(
        self,
        tool_outputs: Sequence[Any],
        *,
        question: str = "",
        enabled: bool = True,
        sheet: FactSheet | None = None,
        level: Level = "B",
    ) -> None:
        super().__init__()
        self._question = question
        self._outputs = tool_outputs
        self._enabled = enabled
        self._last = ""
        self._sheet = sheet or FactSheet.read(tool_outputs)
        self._guard = StrictGuard(self._sheet, level=level, question=question)
        self._level: Level = level

    def check(self, sentence: str) -> str:
        if not self._enabled:
            return sentence
        if SLOT.search(sentence):
            return self._filled(sentence)
        found = check_grounding(sentence, self._outputs, question=self._question, before=self._last)
        if found:
            self.dropped += 1
            self.violations += [str(violation) for violation in found]
            return ""
        corrected = correct_rounding(sentence, self._outputs)
        self.repaired += corrected != sentence
        self._last = corrected
        return corrected

    def _filled(self, sentence: str) -> str:
        """A sentence with slots: as the strict guard shows it, else filled and checked as text."""
        left_out = len(self._guard.left_out)
        told = self._guard.shown(sentence)
        if told and len(self._guard.left_out) == left_out:
            return told
        texts = {
            slot: fill(slot, self._sheet, level=self._level) for slot in SLOT.findall(sentence)
        }
        if any(text is None for text in texts.values()):
            self.dropped += 1
            self.violations.append(f"left out: {sentence}")
            return ""
        plain = SLOT.sub(lambda found: str(texts[found[1]]), sentence)
        return self.check(plain)
