"""One user turn: the model acts, tools answer, and what the user reads has been checked.

Covers: tool calls up to a limit, those of one message side by side, failed tools as outputs the
model can speak about, answers sent sentence by sentence once grounded, advice in emergencies,
dialogues rebuilt from a client's messages. Does not cover: several user turns at once in one model
(see the engines). The turns of ECG-MTD hold one call each, so a model trained on them never asks
for two tools at a time; one behind an OpenAI-compatible endpoint may.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from ecg_agent_ray.agent.answer import opening, standing_in, unstated
from ecg_agent_ray.agent.asked import value_sentence
from ecg_agent_ray.agent.engine import Engine, Generation, GenerationRequest, Message, Usage
from ecg_agent_ray.agent.events import (
    ContentDelta,
    Event,
    FinalEvent,
    GroundingReport,
    StatusEvent,
    Step,
    ToolCallEvent,
    ToolOutputEvent,
    ToolResult,
)
from ecg_agent_ray.agent.gate import AnswerGate, Gate, StrictGate
from ecg_agent_ray.agent.grammar import CONTENT_MARKER
from ecg_agent_ray.agent.history import Said, TurnMemory, read_messages, rebuild, rendered
from ecg_agent_ray.agent.safety import EMERGENCY_ADVICE, advises_urgent_care, sounds_like_emergency
from ecg_agent_ray.agent.speech import Speech, StrictView
from ecg_agent_ray.agent.toolbox import TOOL_OF_ACTION, Toolbox, failed_result, offered_actions
from ecg_agent_ray.dialogue import (
    Action,
    LeadConfiguration,
    Turn,
    parse_turn,
    system_prompt,
)
from ecg_agent_ray.errors import DialogueError, InputError
from ecg_agent_ray.facts import FactSheet, Level

__all__ = ["Agent"]

_log = logging.getLogger(__name__)

_ACTION_BEGINS = re.compile(r"^(?=Action: )", re.MULTILINE)


class Agent:
    """A model with its tools and rules.

    Parameters
    ----------
    engine
        What writes the turns.
    lead_configuration
        ``"12-lead"``, ``"I"`` or ``"II"``; decides the system prompt.
    level
        CEFR level of the answers (``A``, ``B``, ``C``), None leaves it to the model.
    classifier
        URI of the classifier the agent was made for, None for the shipped one. The agent only
        carries it; whoever makes the toolbox uses it.
    max_tool_calls
        Tool calls in one user turn.
    max_tokens
        Tokens of one assistant message.
    grounding
        Check answers against the tool outputs before they are sent, and add a measured value that
        the user asked for and the answer leaves out.
    safety_advice
        Put an urgent line before the answer where the tools have just given a dangerous value or
        finding, and add advice to seek care at once where the user describes an emergency and the
        answer does not give it.
    speech
        ``strict`` for a model trained on slots, else ``open``; see the module ``speech``.
    """

    def __init__(
        self,
        engine: Engine,
        lead_configuration: LeadConfiguration = "12-lead",
        *,
        level: str | None = None,
        classifier: str | None = None,
        max_tool_calls: int = 3,
        max_tokens: int = 256,
        grounding: bool = True,
        safety_advice: bool = True,
        speech: Speech = "open",
        name: str | None = None,
    ) -> None:
        self.engine = engine
        self.lead_configuration = lead_configuration
        self.classifier = classifier
        self.max_tool_calls = max_tool_calls
        self.max_tokens = max_tokens
        self.grounding = grounding
        self.safety_advice = safety_advice
        self.speech: Speech = speech
        self.level: Level = _register(level)
        self.name = name or engine.name
        self.system: Message = {
            "role": "system",
            "content": system_prompt(lead_configuration, level=level, speech=speech),
        }
        self.memory = TurnMemory()

    def run(
        self,
        messages: Sequence[Mapping[str, Any]],
        toolbox: Toolbox | None = None,
        *,
        steps: Sequence[Step] | None = None,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Iterator[Event]:
        """Answer the last user message.

        Parameters
        ----------
        messages
            OpenAI-shaped user and assistant messages; the last is the user's.
        toolbox
            The tools of the ECG at hand; None when there is no ECG, which the model is told when
            it calls a tool.
        steps
            Earlier tool calls as :meth:`ToolResult.to_step` gave them; None when not kept.

        Yields
        ------
        Event
            As things happen; the last is always a :class:`FinalEvent`.

        Raises
        ------
        InputError
            The messages are malformed, or longer than the model's context.
        """
        said = read_messages(messages)
        request = GenerationRequest(
            max_tokens=max_tokens or self.max_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
        return _UserTurn(self, said, toolbox, steps, request).events()

    def respond(
        self,
        messages: Sequence[Mapping[str, Any]],
        toolbox: Toolbox | None = None,
        *,
        steps: Sequence[Step] | None = None,
    ) -> FinalEvent:
        """:meth:`run` to the end; gives the final event alone."""
        for event in self.run(messages, toolbox, steps=steps):
            if isinstance(event, FinalEvent):
                return event
        raise AssertionError("a turn ended without its final event")

    def write_turn(
        self,
        turns: Sequence[Turn],
        request: GenerationRequest | None = None,
        *,
        beside: Any = None,
    ) -> tuple[Turn, Generation]:
        """The model's next assistant turn after ``turns``, unchecked.

        A strict model's turn holds slots. A tool turn comes back pending. ``beside`` is what the
        tools know beyond the turns' outputs. Raises :class:`DialogueError` if an engine without
        grammar writes something else.
        """
        request = request or GenerationRequest(max_tokens=self.max_tokens)
        messages, slots = self.view(turns, beside)
        generation = self.engine.generate([self.system, *messages], replace(request, slots=slots))
        return parse_turn(generation.text().rstrip("\n")), generation

    def view(
        self, turns: Sequence[Turn], beside: Any = None
    ) -> tuple[list[Message], tuple[str, ...] | None]:
        """A dialogue as this agent's model reads it, and the slots it may write next."""
        if self.speech == "strict":
            view = StrictView.of(turns, beside)
            return list(view.messages), view.slots()
        return [rendered(turn) for turn in turns], None

    def fitted(self, messages: Sequence[Message], request: GenerationRequest) -> list[Message]:
        """System prompt and messages, the oldest user turns left out until all fits the model."""
        messages = list(messages)
        # room for what this turn's tool calls will add
        wanted = replace(request, max_tokens=request.max_tokens + 128 * (1 + self.max_tool_calls))
        while not self.engine.fits([self.system, *messages], wanted):
            begins = [i for i, message in enumerate(messages) if message["role"] == "user"]
            if len(begins) < 2:
                raise InputError("the message is longer than the model can read", hint="shorten it")
            messages = messages[begins[1] :]
        return [self.system, *messages]


@dataclass(frozen=True, slots=True)
class _Head:
    """What a message began with: up to and into its content, or all of a tool turn."""

    text: str
    content_begun: bool


@dataclass
class _UserTurn:
    """The state of one run."""

    agent: Agent
    said: list[Said]
    toolbox: Toolbox | None
    steps: Sequence[Step] | None
    request: GenerationRequest
    usage: Usage = field(default_factory=Usage)
    report: GroundingReport = field(default_factory=GroundingReport)
    results: list[ToolResult] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=lambda: {"tools_s": 0.0})
    finish_reason: str = "stop"
    urgent: str = ""
    urgent_said: bool = False

    def events(self) -> Iterator[Event]:
        self.started = time.perf_counter()
        self.history = rebuild(self.said, self.steps, self.toolbox, self.agent.memory)
        yield StatusEvent("thinking")
        for _ in range(self.agent.max_tool_calls + 1):
            generation = self._generate()
            try:
                head = yield from self._read_head(generation)
                if head.content_begun:
                    yield from self._answer(head.text, generation)
                    return
            finally:
                # whoever abandons the turn ends the generation here: left to the garbage
                # collector it would end inside whatever lock a thread holds at that moment
                generation.close()
            self.usage.add(generation.usage)
            calls = self._asked(head.text)
            if not calls:
                break
            yield from self._call(calls)
        yield from self._finish(Action.RESPONSE_FAIL, "", "")

    def _generate(self) -> Generation:
        called = [result.action for result in self.results]
        offered = offered_actions(
            called,
            self.agent.max_tool_calls,
            question=self.history.question,
            outputs=[result.output for result in self.results],
        )
        messages, slots = self.agent.view([*self.history.turns, *self.turns], self._beside())
        return self.agent.engine.generate(
            self.agent.fitted(messages, self.request),
            replace(self.request, actions=offered, slots=slots),
        )

    def _all_results(self) -> list[ToolResult]:
        return [*self.history.results, *self.results]

    def _beside(self) -> list[Any]:
        """What is known beyond the outputs in ECG-MTD's form."""
        person = getattr(self.toolbox, "person", None)
        return [person, *(result.detail for result in self._all_results())]

    def _sheet(self) -> FactSheet:
        return FactSheet.read([r.output for r in self._all_results()], self._beside())

    def _mark(self, name: str) -> None:
        self.timings.setdefault(name, time.perf_counter() - self.started)

    def _read_head(self, generation: Generation) -> Generator[Event, None, _Head]:
        text = ""
        announced = False
        for piece in generation:
            text += piece
            if not announced and "\n" in text:
                announced = True
                self._mark("first_action_s")
                calls = text.startswith("Action: call_")
                yield StatusEvent("calling_tool" if calls else "answering")
            if CONTENT_MARKER in text:
                return _Head(text, content_begun=True)
        return _Head(text, content_begun=False)

    def _asked(self, text: str) -> list[Turn]:
        """The tool calls of one message; several where an endpoint's model asks for several."""
        turns = [_parsed(part) for part in _ACTION_BEGINS.split(text) if part.strip()]
        calls = {turn.assistant_action: turn for turn in turns if turn and turn.is_tool_call}
        room = max(0, self.agent.max_tool_calls - len(self.results))
        return list(calls.values())[:room]

    def _call(self, calls: Sequence[Turn]) -> Iterator[Event]:
        """Run what one message asks for, side by side; outputs follow in the order of the calls."""
        for turn in calls:
            action = turn.assistant_action
            yield ToolCallEvent(action, TOOL_OF_ACTION[action])
        started = time.perf_counter()
        if len(calls) == 1:
            results = [self._result(calls[0].assistant_action)]
        else:
            with ThreadPoolExecutor(len(calls)) as pool:
                # MLflow's spans and the like are found through context variables
                running = [
                    pool.submit(copy_context().run, self._result, turn.assistant_action)
                    for turn in calls
                ]
                results = [future.result() for future in running]
        self.timings["tools_s"] += time.perf_counter() - started
        for turn, (result, reused) in zip(calls, results, strict=True):
            self.results.append(result)
            done = Turn.call(turn.assistant_action, turn.thought or "", result.output)
            self.turns.append(done)
            yield ToolOutputEvent(result, reused=reused)

    def _result(self, action: Action) -> tuple[ToolResult, bool]:
        """What the tool gives, and whether it had been asked in this user turn before."""
        known = next((result for result in self.results if result.action is action), None)
        if known is not None:
            result = replace(known, ms=0.0)
        elif self.toolbox is None:
            result = failed_result(action, "no ECG has been given; ask the user to provide one")
        else:
            result = self.toolbox.call(
                action,
                question=self.history.question,
                previous=[*self.history.results, *self.results],
            )
        return replace(result, turn=self.history.turn), known is not None

    def _answer(self, head: str, generation: Generation) -> Iterator[Event]:
        """Send the content as it passes the gate."""
        before, _, content = head.partition(CONTENT_MARKER)
        gate = self._gate()
        yield from self._through(gate, content, generation)
        self.report.repaired += gate.repaired
        self.report.dropped += gate.dropped
        self.report.violations += gate.violations
        turn = _parsed(f"{before}{CONTENT_MARKER}{gate.written}")
        action = turn.assistant_action if turn else Action.RESPONSE_FAIL
        yield from self._finish(action, (turn.thought or "") if turn else "", gate.sent)

    def _gate(self) -> Gate:
        question, sheet = self.history.question, self._sheet()
        if self.agent.speech == "strict":
            return StrictGate(sheet, question=question, level=self.agent.level)
        outputs = [result.output for result in self._all_results()]
        return AnswerGate(
            outputs,
            question=question,
            enabled=self.agent.grounding,
            sheet=sheet,
            level=self.agent.level,
        )

    def _through(self, gate: Gate, content: str, generation: Generation) -> Iterator[Event]:
        try:
            for piece in chain([content], generation):
                yield from self._send(gate, gate.feed(piece))
                if gate.repeating:
                    break
            else:
                self.finish_reason = generation.finish_reason
                yield from self._send(gate, gate.flush(cut=generation.finish_reason == "length"))
        finally:
            generation.close()
        self.usage.add(generation.usage)

    def _send(self, gate: Gate, passed: str) -> Iterator[Event]:
        """Content for the user, the urgent line before the first of it."""
        if not passed:
            return
        if not self.urgent_said:
            yield from self._urgent()
            passed = f"{' ' if self.urgent else ''}{passed}"
        self._mark("first_content_s")
        yield ContentDelta(passed)

    def _urgent(self) -> Iterator[Event]:
        """What has to be said before the answer, once."""
        self.urgent_said = True
        if not self.agent.safety_advice:
            return
        known = FactSheet.read([result.output for result in self.history.results])
        self.urgent = opening(self.history.question, self._sheet(), known, self.agent.level)
        if self.urgent:
            self._mark("first_content_s")
            yield ContentDelta(self.urgent)

    def _finish(self, action: Action, thought: str, sent: str) -> Iterator[Event]:
        if not sent:
            if not self.urgent_said:
                yield from self._urgent()
            sent = self._fallback()
            self._mark("first_content_s")
            yield ContentDelta(f"{' ' if self.urgent else ''}{sent}")
        emergency = self.agent.safety_advice and sounds_like_emergency(self.history.question)
        advise = emergency and not advises_urgent_care(f"{self.urgent} {sent}")
        if advise:
            advice = f" {EMERGENCY_ADVICE}"
            sent += advice
            yield ContentDelta(advice)
        missing = {} if advise or not self.agent.grounding else self._unstated(sent)
        if missing:
            more = f" {value_sentence(missing)}"
            sent += more
            yield ContentDelta(more)
        self.turns.append(Turn.answer(action, thought, sent))
        whole = f"{self.urgent} {sent}" if self.urgent else sent
        if ecg := str(getattr(self.toolbox, "key", "")):
            self.agent.memory.remember([*self.said, Said("assistant", whole)], ecg, self.turns)
        self.timings["total_s"] = time.perf_counter() - self.started
        yield FinalEvent(
            content=whole,
            action=action,
            steps=tuple(self.results),
            grounding=self.report,
            safety_advice_added=advise or bool(self.urgent),
            values_added=tuple(missing),
            finish_reason=self.finish_reason,
            usage=self.usage,
            timings=self.timings,
            turns=tuple(self.turns),
        )

    def _unstated(self, sent: str) -> dict[str, str]:
        outputs = [result.output for result in self.results if result.error is None]
        return unstated(self.history.question, outputs, sent)

    def _fallback(self) -> str:
        return standing_in(
            self.history.question,
            self._sheet(),
            fresh=bool(self.results),
            failure=self.results[-1].error if self.results else None,
            level=self.agent.level,
        )


def _register(level: str | None) -> Level:
    """The register of curated sentences for a CEFR level; everyday language by default."""
    first = (level or "B")[:1].upper()
    return "A" if first == "A" else "C" if first == "C" else "B"


def _parsed(text: str) -> Turn | None:
    try:
        return parse_turn(text.rstrip("\n"))
    except DialogueError:
        # the error quotes the text, which may repeat what the user said
        _log.warning("unreadable turn of %d characters", len(text))
        return None
