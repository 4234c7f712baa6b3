"""Dialogues in the words of a language model behind an OpenAI-compatible endpoint.

The offline writer's dialogue is the outline: topic, level, the order of actions and the tools' real
outputs stay; the model writes the users' words, thoughts and answers anew. What it writes is
checked (order, clean thoughts, only facts that the tools gave) and asked for again with the faults
named. A ledger of every request makes a stopped run go on where it was and keeps the cost known.

Covers: retries with back-off (the openai client's), requests per minute, a cost limit. Does not
judge whether the text is natural.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ecg_agent_ray.dialogue.actions import Action
from ecg_agent_ray.dialogue.render import render_tool_output
from ecg_agent_ray.dialogue.synthesis.checks import check_answer
from ecg_agent_ray.dialogue.turns import Dialogue, Turn
from ecg_agent_ray.dialogue.validate import validate
from ecg_agent_ray.errors import ConfigError, DialogueError, MissingDependencyError, ServiceError

__all__ = ["EndpointWriter", "Limits", "WritingReport", "rewrite"]

_GENERAL = (Action.RESPONSE_FOLLOWUP, Action.RESPONSE_FAIL, Action.SYSTEM_BYE)
_LEVELS = {
    "A": "short everyday words and sentences (CEFR A)",
    "B": "plain language (CEFR B)",
    "C": "precise, formal language with technical terms (CEFR C)",
}


@dataclass(frozen=True)
class Limits:
    """What a run may use; prices are per million tokens in the currency of ``max_cost``."""

    attempts: int = 3
    in_flight: int = 4
    requests_per_minute: float | None = None
    max_cost: float | None = None
    input_price: float = 0.0
    output_price: float = 0.0
    timeout_s: float = 120.0
    retries: int = 5

    def __post_init__(self) -> None:
        if self.max_cost is not None and not (self.input_price or self.output_price):
            raise ConfigError("a cost limit needs the prices of tokens")


@dataclass
class WritingReport:
    """Counts over all runs on the same file; ``stopped`` says why work is left, if any is."""

    written: int = 0
    rejected: int = 0
    left: int = 0
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    stopped: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class _Words(BaseModel):
    content: str | None = None
    thought: str | None = None


class _Reply(BaseModel):
    turns: list[_Words]


class _StoppedError(Exception):
    pass


@dataclass
class EndpointWriter:
    """A model at ``openai:BASE_URL#MODEL``; the key is ``OPENAI_API_KEY``.

    Raises :class:`ConfigError` for another form of ``uri`` and :class:`MissingDependencyError`
    without the openai package.
    """

    uri: str
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        base_url, _, self.model = self.uri.removeprefix("openai:").partition("#")
        if not self.uri.startswith("openai:http") or not self.model:
            raise ConfigError(
                f"a writer is offline or an endpoint, not {self.uri!r}",
                hint="write openai:http://localhost:8000/v1#MODEL",
            )
        try:
            from openai import OpenAI
        except ImportError as error:
            raise MissingDependencyError(
                "writing by an endpoint needs the openai package",
                hint="pip install 'ecg-agent-ray[judges]'",
            ) from error
        self._client = OpenAI(
            base_url=base_url,
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            timeout=self.limits.timeout_s,
            max_retries=self.limits.retries,
        )
        self._lock = threading.Lock()
        self._next_start = 0.0

    def ask(self, messages: Sequence[Mapping[str, str]]) -> tuple[str, int, int]:
        """The reply's text, input and output tokens; :class:`ServiceError` if there is none."""
        import openai

        self._wait_for_turn()
        plain: Any = list(messages)
        form: Any = {"type": "json_object"}
        try:
            answer = self._client.chat.completions.create(
                model=self.model, messages=plain, response_format=form
            )
        except openai.OpenAIError as error:
            raise ServiceError(f"{self.uri} does not write: {error}") from error
        used = answer.usage
        text = answer.choices[0].message.content if answer.choices else None
        return text or "", used.prompt_tokens if used else 0, used.completion_tokens if used else 0

    def _wait_for_turn(self) -> None:
        if self.limits.requests_per_minute is None:
            return
        with self._lock:
            start = max(time.monotonic(), self._next_start)
            self._next_start = start + 60 / self.limits.requests_per_minute
        time.sleep(max(0.0, start - time.monotonic()))


def rewrite(outlines: Sequence[Dialogue], writer: EndpointWriter, path: Path) -> WritingReport:
    """Have ``outlines`` written anew to the JSON Lines file ``path``, going on where it stopped.

    ``PATH.ledger`` has one line a request and one a finished outline. What was rejected
    ``limits.attempts`` times is counted there and left out. Ends early, without an error, where the
    cost limit is reached; raises :class:`ServiceError` where the endpoint fails for good, and
    :class:`DialogueError` where the files are not of these outlines.
    """
    run = _Run(writer, path, outlines)
    todo = [number for number in range(len(outlines)) if number not in run.done]
    failure: ServiceError | None = None
    with ThreadPoolExecutor(writer.limits.in_flight) as pool:
        for future in [pool.submit(run.write, number) for number in todo]:
            try:
                future.result()
            except _StoppedError:
                run.stop("the cost limit is reached")
            except ServiceError as error:
                failure = failure or error
    if failure is not None:
        raise failure
    return run.report()


class _Run:
    """The files of one run, their lock, and the sums kept over restarts."""

    def __init__(self, writer: EndpointWriter, path: Path, outlines: Sequence[Dialogue]) -> None:
        self.writer, self.path, self.outlines = writer, path, outlines
        self.ledger = path.with_name(path.name + ".ledger")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._sums = WritingReport()
        self.done: set[int] = set()
        for line in _whole_lines(self.ledger):
            self._count(line)
        for row in _whole_lines(path):
            number = json.loads(row["metadata"])["outline"]
            if number >= len(outlines) or _identity(outlines[number]) != _identity(
                Dialogue.from_row(row)
            ):
                raise DialogueError(
                    f"{path} holds dialogues of other recordings or another seed",
                    hint="give another --output, or the arguments it was begun with",
                )
            if number not in self.done:  # killed between the two files
                self._add(self.ledger, {"outline": number, "outcome": "written"})
                self._count({"outline": number, "outcome": "written"})

    def report(self) -> WritingReport:
        self._sums.left = len(self.outlines) - len(self.done)
        return self._sums

    def stop(self, reason: str) -> None:
        with self._lock:
            self._sums.stopped = self._sums.stopped or reason

    def write(self, number: int) -> None:
        """One outline, up to ``attempts`` times; the faults of a try go into the next."""
        outline = self.outlines[number]
        messages = _request(outline)
        for _ in range(self.writer.limits.attempts):
            self._check_budget()
            try:
                text, tokens_in, tokens_out = self.writer.ask(messages)
            except ServiceError as error:
                self.stop(str(error))  # before this thread takes the next outline
                raise
            self._note({"outline": number, "input": tokens_in, "output": tokens_out})
            try:
                dialogue = _read(text, outline, number, self.writer.model)
            except DialogueError as error:
                fault = f"This does not do: {error.message}. Write the whole dialogue again."
                messages = [
                    *_request(outline),
                    {"role": "assistant", "content": text},
                    {"role": "user", "content": fault},
                ]
                continue
            with self._lock:
                self._add(self.path, dialogue.to_row())
            self._note({"outline": number, "outcome": "written"})
            return
        self._note({"outline": number, "outcome": "rejected"})

    def _check_budget(self) -> None:
        with self._lock:
            if self._sums.stopped:
                raise _StoppedError
            limit = self.writer.limits.max_cost
            if limit is not None and self._sums.cost >= limit:
                raise _StoppedError

    def _note(self, entry: dict[str, Any]) -> None:
        with self._lock:
            self._add(self.ledger, entry)
            self._count(entry)

    def _count(self, entry: Mapping[str, Any]) -> None:
        sums, limits = self._sums, self.writer.limits
        if outcome := entry.get("outcome"):
            self.done.add(entry["outline"])
            sums.written += outcome == "written"
            sums.rejected += outcome == "rejected"
            return
        sums.requests += 1
        sums.input_tokens += entry["input"]
        sums.output_tokens += entry["output"]
        sums.cost = (
            sums.input_tokens * limits.input_price + sums.output_tokens * limits.output_price
        ) / 1e6

    @staticmethod
    def _add(path: Path, entry: Mapping[str, Any]) -> None:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; a last one that was being written when the run was killed is cut off."""
    if not path.is_file():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        path.write_bytes(whole)
    return [json.loads(line) for line in whole.decode("utf-8").split("\n") if line.strip()]


def _identity(dialogue: Dialogue) -> tuple[Any, ...]:
    outputs = [output for _, output in dialogue.tool_outputs()]
    return dialogue.ecg_files, dialogue.actions, outputs


def _request(outline: Dialogue) -> list[dict[str, str]]:
    level = _LEVELS[(outline.cefr_level or "B")[:1]]
    plan = []
    for number, turn in enumerate(outline.turns, start=1):
        if turn.role == "user":
            plan.append(f"{number}. user, meaning: {turn.content}")
        elif turn.is_tool_call:
            output = render_tool_output(turn.tool_output)
            plan.append(f"{number}. {turn.action}: thought only. The tool then gives: {output}")
        else:
            plan.append(f"{number}. {turn.action}: thought and content, meaning: {turn.content}")
    system = (
        "You write realistic dialogues between a person who has an ECG recording and an assistant "
        "that reads it with three tools. Follow the plan turn by turn and keep each meaning, but "
        "use your own words: no phrase of the plan. A thought is one sentence on what the person "
        "needs now and why the action fits; it never mentions a plan, actions given in advance or "
        "instructions. Answers state only what the tools gave, values rounded to whole numbers "
        "with their unit, probabilities to whole percent. A value that is null is said to be "
        "missing. The assistant never gives treatment, doses or a definite diagnosis, and advises "
        "urgent care in an emergency. "
        'Reply with JSON: {"turns": [{"content": …} for a user, {"thought": …} for a tool call, '
        '{"thought": …, "content": …} otherwise]}, one for each turn of the plan.'
    )
    user = (
        f"Topic: {outline.source_category}. Recording: {outline.lead_configuration} ECG. The "
        f"person speaks, and is answered, in {level}.\nPlan:\n" + "\n".join(plan)
    )
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def _read(text: str, outline: Dialogue, number: int, model: str) -> Dialogue:
    """The reply as a dialogue; raises :class:`DialogueError` naming every kind of fault."""
    try:
        words = _Reply.model_validate_json(text).turns
    except ValidationError as error:
        raise DialogueError(f"it is not the JSON asked for: {error.errors()[0]['msg']}") from error
    if len(words) != len(outline.turns):
        raise DialogueError(f"it has {len(words)} turns, the plan {len(outline.turns)}")
    turns = [_turn(said, planned) for said, planned in zip(words, outline.turns, strict=True)]
    metadata = {k: v for k, v in outline.metadata.items() if k != "template_ids"}
    dialogue = outline.model_copy(
        update={"turns": turns, "metadata": {**metadata, "writer": model, "outline": number}}
    )
    if problems := validate([dialogue]):
        raise DialogueError("; ".join(problem.message for problem in problems))
    _check_facts(dialogue, outline)
    return dialogue


def _turn(said: _Words, planned: Turn) -> Turn:
    if planned.role == "user":
        return Turn.user((said.content or "").strip())
    thought = " ".join((said.thought or "").split())
    if planned.is_tool_call:
        return Turn.call(planned.assistant_action, thought, planned.tool_output)
    return Turn.answer(planned.assistant_action, thought, (said.content or "").strip())


def _check_facts(dialogue: Dialogue, outline: Dialogue) -> None:
    outputs: list[tuple[Action, Any]] = []
    heard = ""
    for turn, planned in zip(dialogue.turns, outline.turns, strict=True):
        if turn.role == "user":
            heard += f" {turn.content}"
        elif turn.is_tool_call:
            outputs.append((turn.assistant_action, turn.tool_output))
        else:
            general = turn.assistant_action in _GENERAL
            # what the plan says was checked; it may deny a finding that the tools did not give
            known = f"{heard} {planned.content}"
            check_answer(turn.content or "", outputs, heard=known, general=general)
