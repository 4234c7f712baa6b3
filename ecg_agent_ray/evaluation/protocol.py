"""Dialogues generated as the paper's protocol has it, one prediction file.

``without_gt`` lets the model live with its own history: each user turn of the reference is put to
it, and its own turns stay in the dialogue. ``with_gt`` asks for one turn at every assistant
position of the reference, given the reference's history up to exactly there, whatever was
generated before. A user turn's ``action`` is never shown. The model's own words are scored: no
sentence is dropped and no advice added; what a user would have read stands beside them in
``shown_dialogue``.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from ecg_agent_ray.agent.engine import GenerationRequest
from ecg_agent_ray.agent.loop import Agent
from ecg_agent_ray.agent.toolbox import Toolbox, offered_actions
from ecg_agent_ray.dialogue import Dialogue, Turn
from ecg_agent_ray.errors import ConfigError, DialogueError, InputError
from ecg_agent_ray.evaluation.alignment import aligned_records
from ecg_agent_ray.evaluation.as_shown import ShownAnswers
from ecg_agent_ray.evaluation.tool_sources import GivenToolbox, ToolSource

__all__ = ["HISTORIES", "Generated", "History", "generate_dialogue", "predict", "read_predictions"]

_log = logging.getLogger(__name__)

History = Literal["without_gt", "with_gt"]
Item = TypeVar("Item")
Result = TypeVar("Result")
HISTORIES: tuple[History, ...] = ("without_gt", "with_gt")


class _Writer:
    """Writes the turns of one dialogue with one agent."""

    def __init__(
        self, agent: Agent, toolbox: Toolbox, max_tokens: int, beside: Sequence[Any] = ()
    ) -> None:
        self.agent, self.toolbox, self.max_tokens = agent, toolbox, max_tokens
        self.beside = list(beside)

    def next_turn(self, before: Sequence[Turn], since_user: Sequence[Turn]) -> Turn | None:
        """The turn after ``before`` + ``since_user``; None if the model wrote nothing readable."""
        called = [turn.assistant_action for turn in since_user if turn.is_tool_call]
        question = next(
            (item.content or "" for item in reversed(before) if item.role == "user"), ""
        )
        offered = offered_actions(
            called,
            self.agent.max_tool_calls,
            question=question,
            outputs=[turn.tool_output for turn in since_user if turn.is_tool_call],
        )
        request = GenerationRequest(actions=offered, max_tokens=self.max_tokens)
        try:
            turns = [*before, *since_user]
            turn, _ = self.agent.write_turn(turns, request, beside=self.beside)
        except DialogueError as error:
            _log.warning("unreadable turn counted as missing: %s", error)
            return None
        if not turn.is_pending:
            return turn
        result = self.toolbox.call(turn.assistant_action, question=question, previous=())
        self.beside.append(result.detail)
        return Turn.call(turn.assistant_action, turn.thought or "", result.output)

    def until_answer(self, before: Sequence[Turn], since_user: Sequence[Turn]) -> list[Turn]:
        """Turns up to and with the first that is no tool call."""
        written: list[Turn] = []
        for _ in range(self.agent.max_tool_calls + 1):
            turn = self.next_turn(before, [*since_user, *written])
            if turn is None:
                break
            written.append(turn)
            if not turn.is_tool_call:
                break
        return written


@dataclass(slots=True)
class Generated:
    """A dialogue that an agent held: its own text, and what a user would have read of it."""

    turns: list[Turn] = field(default_factory=list)
    shown: list[Turn] = field(default_factory=list)
    dropped_share: float | None = None


def generate_dialogue(
    dialogue: Dialogue, agent: Agent, toolbox: Toolbox, *, history: History, max_tokens: int = 256
) -> Generated:
    """The dialogue as the agent would have held it: the reference's user turns, its own answers."""
    given = dialogue.metadata.get("beside") if isinstance(toolbox, GivenToolbox) else None
    writer = _Writer(agent, toolbox, max_tokens, [given, getattr(toolbox, "person", None)])
    answers = ShownAnswers(agent, writer.beside)
    made = Generated()
    known: list[Turn] = []  # what the model is shown
    for position, turn in enumerate(dialogue.turns):
        written: list[Turn] = []
        if turn.role == "user":
            user = Turn.user(turn.content or "")
            made.turns.append(user)
            made.shown.append(user)
            known.append(user)
            if history == "without_gt":
                written = writer.until_answer(known, ())
                _record(made, answers, known, written)
                known += written
        elif history == "with_gt" or not made.turns:
            if made.turns:
                _record(made, answers, known, _at_position(writer, dialogue, position, known))
            known.append(turn)
    made.dropped_share = answers.dropped_share
    return made


def _record(
    made: Generated, answers: ShownAnswers, known: Sequence[Turn], written: Sequence[Turn]
) -> None:
    """Add what was ``written`` after ``known``, as its own text and as it is shown."""
    last_user = max(i for i, turn in enumerate(known) if turn.role == "user")
    before = [turn.tool_output for turn in known[:last_user] if turn.is_tool_call]
    question = known[last_user].content or ""
    fresh = [turn.tool_output for turn in known[last_user:] if turn.is_tool_call]
    for turn in written:
        if turn.is_tool_call:
            fresh.append(turn.tool_output)
        made.turns.append(answers.own(turn, [*before, *fresh]))
        made.shown.append(answers.read(turn, question, before, fresh))


def _at_position(
    writer: _Writer, dialogue: Dialogue, position: int, known: list[Turn]
) -> list[Turn]:
    """What is written where the reference has turn ``position``, given the reference before it."""
    last_user = max(i for i, turn in enumerate(known) if turn.role == "user")
    before, since_user = known[: last_user + 1], known[last_user + 1 :]
    if dialogue.turns[position].is_tool_call:
        turn = writer.next_turn(before, since_user)
        return [] if turn is None else [turn]
    return writer.until_answer(before, since_user)


def predict(
    dialogues: Iterable[Dialogue],
    agent: Agent,
    tools: ToolSource,
    *,
    history: History,
    path: Path,
    max_tokens: int = 256,
    in_flight: int = 1,
    progress: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Generate every dialogue that ``path`` does not hold yet and append it there.

    A ``sample_id`` is the dialogue's position. A dialogue whose ECG cannot be had is written with
    an ``error`` and no generated turns, so that its turns count as missing. With several dialogues
    ``in_flight`` at a time, an engine that can joins their forwards; in low precision greedy text
    may then differ in places from one run to the next.

    Returns
    -------
    list of dict
        All predictions of the file, in order.

    Raises
    ------
    ConfigError
        The file was begun with another agent or history.
    """
    if history not in HISTORIES:
        raise ConfigError(f"history is {history!r}; use one of {', '.join(HISTORIES)}")
    done = {item["sample_id"]: item for item in _resumable(path, agent, history)}
    path.parent.mkdir(parents=True, exist_ok=True)
    if in_flight < 1:
        raise ConfigError(f"{in_flight} dialogues cannot be in flight")

    def write(item: tuple[int, Dialogue]) -> tuple[int, dict[str, Any]]:
        number, dialogue = item
        return number, done.get(number) or _predict_one(
            number, dialogue, agent, tools, history, max_tokens
        )

    with path.open("a", encoding="utf-8") as stream, ThreadPoolExecutor(in_flight) as pool:
        for number, record in _as_they_end(pool, write, enumerate(dialogues), in_flight):
            if number not in done:
                stream.write(json.dumps(record, ensure_ascii=False) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
                done[number] = record
            if progress is not None:
                progress(number)
    return [done[number] for number in sorted(done)]


def _as_they_end(
    pool: Executor, work: Callable[[Item], Result], items: Iterable[Item], most: int
) -> Iterator[Result]:
    """Results in the order in which they are ready, at most ``most`` items begun at a time."""
    left = iter(items)
    running = {pool.submit(work, item) for item in islice(left, most)}
    try:
        while running:
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(work, item) for item in islice(left, len(ended))}
            for future in ended:
                yield future.result()
    finally:
        for future in running:
            future.cancel()


def _predict_one(
    number: int,
    dialogue: Dialogue,
    agent: Agent,
    tools: ToolSource,
    history: History,
    max_tokens: int,
) -> dict[str, Any]:
    reference = [turn.to_dict() for turn in dialogue.turns]
    error = None
    made = Generated()
    try:
        made = generate_dialogue(
            dialogue, agent, tools(dialogue), history=history, max_tokens=max_tokens
        )
    except InputError as failure:
        error = str(failure)
        _log.warning("dialogue %d could not be generated: %s", number, error)
    generated = [turn.to_dict() for turn in made.turns]
    record: dict[str, Any] = {
        "sample_id": number,
        "ecg_file": dialogue.ecg_files[0] if dialogue.ecg_files else None,
        "source_category": dialogue.source_category,
        "turns": aligned_records(reference, generated),
        "generated_dialogue": generated,
        "shown_dialogue": [turn.to_dict() for turn in made.shown],
        "dropped_share": made.dropped_share,
        "ground_truth_dialogue": reference,
        "summary": {
            "num_gt_assistant_turns": sum(turn["role"] == "assistant" for turn in reference),
            "num_generated_assistant_turns": sum(turn["role"] == "assistant" for turn in generated),
            "history": history,
            "agent": agent.name,
            "cefr_level": dialogue.cefr_level,
        },
    }
    return record if error is None else {**record, "error": error}


def read_predictions(path: str | Path) -> list[dict[str, Any]]:
    """The records of a predictions file, ours or the paper's.

    Raises :class:`InputError` where it cannot be read or a line is no prediction.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"cannot read predictions from {path}: {error}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: no JSON ({error.msg})") from error
        if not isinstance(record, dict) or "ground_truth_dialogue" not in record:
            raise InputError(f"{path}, line {number}: no ground_truth_dialogue")
        records.append(record)
    return records


def _resumable(path: Path, agent: Agent, history: History) -> Iterator[dict[str, Any]]:
    """Records of an earlier run of the same evaluation; a line cut off by a kill is removed."""
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    for record in read_predictions(path):
        made = record.get("summary", {})
        if (made.get("agent"), made.get("history")) != (agent.name, history):
            raise ConfigError(
                f"{path} was begun with {made.get('agent')} and {made.get('history')}, "
                f"not with {agent.name} and {history}",
                hint="give another output folder",
            )
        yield record
