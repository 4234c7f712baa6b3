"""The dialogue as a user would have read it, beside the model's own text.

Each answer goes through what the service does: slots filled, clauses that may not be shown left
out, the urgent line, what stands in for an empty text, a measured value that was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ecg_agent_ray.agent.answer import opening, standing_in, unstated
from ecg_agent_ray.agent.asked import value_sentence
from ecg_agent_ray.agent.gate import AnswerGate, Gate, StrictGate
from ecg_agent_ray.agent.loop import Agent
from ecg_agent_ray.agent.speech import filled
from ecg_agent_ray.dialogue import Turn
from ecg_agent_ray.facts import FactSheet

__all__ = ["ShownAnswers"]


class ShownAnswers:
    """Turns what a model wrote in one dialogue into what is scored and what is read.

    Parameters
    ----------
    agent
        Whose speech and level decide.
    beside
        What is known beyond the dialogue's outputs; grows with the toolbox's results.
    """

    def __init__(self, agent: Agent, beside: list[Any]) -> None:
        self.agent, self.beside = agent, beside
        self.written = 0
        self.left_out = 0

    def own(self, turn: Turn, outputs: Sequence[Any]) -> Turn:
        """The turn with the model's own text, slots filled."""
        if turn.is_tool_call:
            return turn
        text = filled(turn.content or "", outputs, beside=self.beside, level=self.agent.level)
        return Turn.answer(turn.assistant_action, turn.thought or "", text)

    def read(self, turn: Turn, question: str, before: Sequence[Any], fresh: Sequence[Any]) -> Turn:
        """The turn as the user reads it; ``before`` and ``fresh`` are outputs up to this user turn
        and of it."""
        if turn.is_tool_call:
            return turn
        sheet = FactSheet.read([*before, *fresh], self.beside)
        gate = self._gate(sheet, [*before, *fresh], question)
        sent = gate.feed(turn.content or "") + gate.flush()
        self._count(gate, turn.content or "")
        if not sent:
            sent = standing_in(
                question, sheet, fresh=bool(fresh), failure=None, level=self.agent.level
            )
        if missing := unstated(question, fresh, sent):
            sent += f" {value_sentence(missing)}"
        first = opening(question, sheet, FactSheet.read(before), self.agent.level)
        text = f"{first} {sent}" if first else sent
        return Turn.answer(turn.assistant_action, turn.thought or "", text)

    @property
    def dropped_share(self) -> float | None:
        """Characters of the model's answers that were left out, over all."""
        return self.left_out / self.written if self.written else None

    def _gate(self, sheet: FactSheet, outputs: Sequence[Any], question: str) -> Gate:
        if self.agent.speech == "strict":
            return StrictGate(sheet, question=question, level=self.agent.level)
        return AnswerGate(outputs, question=question, sheet=sheet, level=self.agent.level)

    def _count(self, gate: Gate, content: str) -> None:
        if isinstance(gate, StrictGate):
            self.written += gate.guard.kept + gate.guard.dropped
            self.left_out += gate.guard.dropped
            return
        self.written += len(content)
        self.left_out += max(0, len(content) - len(gate.written))
