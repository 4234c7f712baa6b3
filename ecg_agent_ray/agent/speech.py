"""How an agent speaks: ``strict`` in slots, ``open`` in its own words.

A strict model reads and writes slots. This module turns a dialogue into what such a model is shown
(the same in training, generation and evaluation) and what it writes into what the user reads.
:func:`shown` is the one place that decides what an answer becomes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from ecg_agent_ray.dialogue import Turn, render_turn
from ecg_agent_ray.facts import (
    ALWAYS,
    SLOT,
    FactSheet,
    Level,
    StrictGuard,
    best_entries,
    fill,
    knowledge,
    named_numbers,
    offered,
    slotify,
    urgent_lines,
)

__all__ = ["SPEECHES", "Speech", "StrictView", "filled", "shown", "urgent"]

Speech = Literal["strict", "open"]
SPEECHES: tuple[Speech, ...] = ("strict", "open")


def shown(
    content: str,
    tool_outputs: Sequence[Any],
    *,
    beside: Any = None,
    question: str = "",
    history: Sequence[str] = (),
    speech: Speech = "strict",
    level: Level = "B",
) -> str:
    """What the user reads where the model writes ``content``.

    Parameters
    ----------
    content
        The model's text: with slots where it is strict.
    tool_outputs
        All outputs of the dialogue so far, in ECG-MTD's form.
    beside
        The tools' full JSON and what is known of the person (``sex``, ``age``), nested in any way.
    question
        The user's last message.
    history
        What was said before; an open answer may go on from its last item.
    speech
        ``strict``: slots are filled, and clauses that are not measured, curated or courteous are
        left out. ``open``: slots are filled, and sentences that the recogniser contradicts are.
    level
        Register of curated sentences.

    Returns
    -------
    str
        Empty if nothing is left.
    """
    sheet = FactSheet.read(tool_outputs, beside)
    if speech == "strict":
        return StrictGuard(sheet, level=level, question=question).shown(content)
    from ecg_agent_ray.agent.gate import AnswerGate

    gate = AnswerGate(tool_outputs, question=question, sheet=sheet, level=level)
    said = gate.feed(content)
    return (said + gate.flush()).strip()


def filled(
    content: str, tool_outputs: Sequence[Any], *, beside: Any = None, level: Level = "B"
) -> str:
    """``content`` with every slot filled and nothing left out: the model's own text.

    A slot without a text becomes its own name in brackets.
    """
    sheet = FactSheet.read(tool_outputs, beside)
    return SLOT.sub(lambda found: fill(found[1], sheet, level=level) or f"[{found[1]}]", content)


def urgent(tool_outputs: Sequence[Any], beside: Any = None) -> str:
    """What has to be said first of dangerous values and findings; empty if there are none."""
    return " ".join(urgent_lines(FactSheet.read(tool_outputs, beside)))


class StrictView:
    """A dialogue as a strict model reads it, grown turn by turn.

    Parameters
    ----------
    beside
        What the tools know beyond the dialogue's own outputs, as for :func:`shown`.
    """

    def __init__(self, beside: Any = None) -> None:
        self.beside = beside
        self.outputs: list[Any] = []
        self.asked: list[str] = []
        self.entries: tuple[str, ...] = ()
        self.messages: list[dict[str, str]] = []

    def sheet(self) -> FactSheet:
        return FactSheet.read(self.outputs, self.beside)

    def slots(self) -> tuple[str, ...]:
        """The slots that the next answer may hold."""
        entries = (*self.entries, *ALWAYS)
        return offered(self.sheet(), numbers=named_numbers(self.asked), entries=entries)

    def add_user(self, content: str, *, quoted: Iterable[str] = ()) -> None:
        """A user's message, with the knowledge that may answer it.

        ``quoted`` are entries that the answers to come are known to quote (training): one that was
        not found takes the place of one that was. The order tells nothing, so that a model has to
        read the titles.
        """
        before = self.asked[-1] if self.asked else ""
        entries = list(best_entries(content, before))
        missing = [e for e in quoted if e not in entries and e not in ALWAYS and e in knowledge()]
        if missing:
            entries = entries[: max(0, 5 - len(missing))] + missing
        entries.sort()
        self.entries = tuple(entries)
        self.asked.append(content)
        # an entry's id is a short title; the long ones would cost a third more tokens a dialogue
        text = f"{content}\n[{', '.join(entries)}]" if entries else content
        self.messages.append({"role": "user", "content": text})

    def add_assistant(self, turn: Turn) -> None:
        """An assistant turn; filled text is slotified by the facts known at that point."""
        if turn.is_tool_call:
            if not turn.is_pending:
                self.outputs.append(turn.tool_output)
        else:
            content = slotify(turn.content or "", self.sheet(), numbers=named_numbers(self.asked))
            turn = Turn.answer(turn.assistant_action, turn.thought or "", content)
        self.messages.append({"role": "assistant", "content": render_turn(turn)})

    @classmethod
    def of(cls, turns: Sequence[Turn], beside: Any = None) -> StrictView:
        """The view of a whole dialogue."""
        view = cls(beside)
        for position, turn in enumerate(turns):
            if turn.role == "user":
                view.add_user(turn.content or "", quoted=_quoted(turns[position + 1 :]))
            else:
                view.add_assistant(turn)
        return view


def _quoted(turns: Sequence[Turn]) -> list[str]:
    """The entries that the answer after a user's message quotes."""
    for turn in turns:
        if turn.role == "user":
            break
        if not turn.is_tool_call:
            slots = SLOT.findall(turn.content or "")
            return [slot.removeprefix("know.") for slot in slots if slot.startswith("know.")]
    return []
