"""The gate between the model's words and the user: whole sentences, each checked when complete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ecg_agent_ray.agent.claims import sentences
from ecg_agent_ray.agent.grounding import check_grounding, correct_rounding

__all__ = ["AnswerGate"]


class AnswerGate:
    """Passes on the sentences that the tool outputs bear out.

    Until :attr:`dropping` is set, the first sentence that fails shuts the gate, so that the caller
    can have the rest generated again; after it, failing sentences are left out and the next go on.

    A sentence said word for word a second time ends the answer (:attr:`repeating`): a weak model
    that has begun to go round does not stop by itself.

    Parameters
    ----------
    tool_outputs
        All outputs of the dialogue so far.
    question
        The user's message.
    enabled
        False passes everything.
    """

    def __init__(
        self, tool_outputs: Sequence[Any], *, question: str = "", enabled: bool = True
    ) -> None:
        self._question = question
        self._outputs = tool_outputs
        self._enabled = enabled
        self._pending = ""
        self._space = ""
        self._last = ""
        self._said: set[str] = set()
        self.sent = ""
        self.shut = False
        self.dropping = False
        self.repeating = False
        self.repaired = 0
        self.dropped = 0
        self.violations: list[str] = []

    def feed(self, text: str) -> str:
        """Take what the model wrote; give what may be sent now."""
        if self.shut or self.repeating:
            return ""
        self._pending += text
        # the last one may go on: "72." can become "72.35"
        *complete, last = [self._pending[b:e] for b, e in sentences(self._pending)] or [""]
        if last and last[-1].isspace() and last.strip()[-1:] in (".", "!", "?"):
            complete.append(last)
            last = ""
        passed = ""
        for number, sentence in enumerate(complete):
            passed += self._check(sentence)
            if self.shut or self.repeating:
                self._pending = "".join(complete[number:]) + last
                return passed
        self._pending = last
        return passed

    def flush(self, *, cut: bool = False) -> str:
        """The end of the text; ``cut`` says that it was ended by the token limit."""
        if self.shut or self.repeating:
            return ""
        last, self._pending = self._pending, ""
        if cut and self.sent:
            return ""  # half a sentence tells nothing
        return self._check(last)

    def reopen(self) -> None:
        """Start again after :attr:`sent`, leaving out what fails from now on."""
        self.shut, self.dropping, self._pending = False, True, ""

    def _check(self, sentence: str) -> str:
        if not sentence.strip():
            self._space += sentence
            return ""
        if sentence.strip() in self._said:
            self.repeating = True
            return ""
        if self._enabled:
            found = check_grounding(
                sentence, self._outputs, question=self._question, before=self._last
            )
            self.violations += [str(violation) for violation in found]
            if found and not self.dropping:
                self.shut = True
                return ""
            if found:
                self.dropped += 1
                return ""
            sentence = self._rounded(sentence)
        body = sentence.rstrip()
        passed = (self._space if self.sent else "") + body
        self._space = sentence[len(body) :]
        self.sent += passed
        self._said.add(body.strip())
        self._last = body.strip()
        return passed

    def _rounded(self, sentence: str) -> str:
        corrected = correct_rounding(sentence, self._outputs)
        self.repaired += corrected != sentence
        return corrected
