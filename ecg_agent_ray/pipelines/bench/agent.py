"""Seconds per assistant turn of the agent's engines against the published agent's loop.

At every assistant position of the reference dialogues, given the reference's history, each engine
and the loop write one turn, one after the other and in another order each time, so that a busy
machine falls on all of them alike. Tools are not run: their recorded outputs are in the history.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from ecg_agent_ray import __version__, ecg
from ecg_agent_ray.agent import Agent, GenerationRequest, load_agent
from ecg_agent_ray.agent.engine import Message
from ecg_agent_ray.agent.grammar import CONTENT_MARKER
from ecg_agent_ray.agent.load import agent_weights
from ecg_agent_ray.agent.toolbox import offered_actions
from ecg_agent_ray.dialogue import Action, Dialogue, parse_turn, read_dialogues, render_turn
from ecg_agent_ray.dialogue.synthesis import synthesize
from ecg_agent_ray.errors import ConfigError, DialogueError, MissingDependencyError
from ecg_agent_ray.evaluation.protocol import predict
from ecg_agent_ray.evaluation.tool_sources import recorded_tools
from ecg_agent_ray.pipelines.bench.paper_loop import MAX_NEW_TOKENS, PaperLoop
from ecg_agent_ray.pipelines.bench.timing import hardware
from ecg_agent_ray.pipelines.bench.turn_times import TurnTime, ratio_of_medians, summarised

__all__ = ["PAPER", "bench_agent", "bench_dialogues"]

_log = logging.getLogger(__name__)

PAPER = "paper_loop"
_DTYPES = ("float32", "bfloat16")
_CALIBRATION_TURNS = 2


@dataclass(frozen=True, slots=True)
class _Position:
    """A place in a dialogue where the model is to write: what is before it, what is wanted."""

    messages: list[Message]
    offered: tuple[Action, ...]
    wanted: str


def bench_agent(
    dialogues: str | Path | Sequence[Dialogue] | None = None,
    model: str = "builtin:",
    *,
    engines: Sequence[str] | None = None,
    n_dialogues: int = 10,
    in_flight: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Time the engines and the loop on the same dialogues with the same weights, on the CPU.

    Parameters
    ----------
    dialogues
        ECG-MTD rows, or a file of them; None writes some about the shipped recordings, whose
        patients and wording the shipped agent was not trained on.
    model
        An agent with local weights, as :func:`~ecg_agent_ray.agent.load_agent` takes it.
    engines
        Names of engines; None takes all that are installed.
    n_dialogues
        Only the first so many.
    in_flight
        Dialogues held at a time in the comparison with one at a time; 1 leaves it out.
    progress
        Called with turns done and in all; every engine's turn counts.

    Returns
    -------
    dict
        ``engines`` maps a name to its medians (seconds) and its next-action accuracy, ``speedup``
        how many times as long the loop takes for each of the medians, beside hardware and versions.

    Raises
    ------
    ConfigError
        The model has no local weights, or an engine is unknown.
    MissingDependencyError
        An engine asked for is not installed.
    """
    weights = agent_weights(model)
    agents = _agents(model, engines)
    held = bench_dialogues(dialogues, n_dialogues)
    positions = list(_positions(held, next(iter(agents.values()))))
    if not positions:
        raise ConfigError("the dialogues have no assistant turn")
    loop, calibration = _faster_loop(*weights, positions)
    writers: dict[str, Callable[[_Position], TurnTime]] = {
        PAPER: lambda at: loop.write(at.messages)
    }
    for name, agent in agents.items():
        writers[name] = _writer(agent)
    for write in writers.values():  # imports, the grammar, the system prompt's keys and values
        write(_Position([positions[0].messages[0], _HELLO], tuple(Action), ""))
    times = _take_turns(writers, positions, progress)
    wanted = [at.wanted for at in positions]
    results = {name: summarised(turns, wanted) for name, turns in times.items()}
    results[PAPER] |= {"dtype": loop.dtype, "max_new_tokens": MAX_NEW_TOKENS}
    return {
        "model": model,
        "n_dialogues": len(held),
        "n_turns": len(positions),
        "engines": results,
        "speedup": {name: ratio_of_medians(results[PAPER], results[name]) for name in agents},
        "batch": (_batch(next(iter(agents.values())), held, in_flight) if in_flight > 1 else None),
        "paper_loop_calibration_s": calibration,
        "hardware": hardware(),
        "versions": {
            "ecg-agent-ray": __version__,
            **{name: version(name) for name in ("torch", "transformers", "xgrammar")},
        },
    }


_HELLO: Message = {"role": "user", "content": "Hello, what can you do?"}


def bench_dialogues(given: str | Path | Sequence[Dialogue] | None, n: int) -> list[Dialogue]:
    """The first ``n`` of the given ones; None writes some about the shipped recordings.

    Their wording is of the phrase bank's ``test`` part.
    """
    if given is None:
        from ecg_agent_ray.pipelines.facts import collect_facts

        found = collect_facts(ecg.samples(), explain=2)
        return synthesize(found.facts, n=n, seed=11, split="test")
    read = read_dialogues(given) if isinstance(given, str | Path) else list(given)
    return list(islice(read, n))


def _positions(dialogues: Sequence[Dialogue], agent: Agent) -> Iterator[_Position]:
    for dialogue in dialogues:
        messages: list[Message] = [agent.system]
        called: list[Action] = []
        for turn in dialogue.turns:
            if turn.role == "user":
                called = []
                messages = [*messages, {"role": "user", "content": turn.content or ""}]
                continue
            if len(messages) > 1:
                offered = offered_actions(called, agent.max_tool_calls)
                yield _Position(messages, offered, str(turn.action))
            if turn.is_tool_call:
                called.append(turn.assistant_action)
            messages = [*messages, {"role": "assistant", "content": render_turn(turn)}]


def _agents(model: str, engines: Sequence[str] | None) -> dict[str, Agent]:
    from ecg_agent_ray.agent.load import ENGINES

    agents = {}
    for name in engines if engines is not None else ENGINES:
        try:
            agents[name] = load_agent(model, engine=name, device="cpu")
        except MissingDependencyError as error:
            if engines is not None:
                raise
            _log.warning("left out %s: %s", name, error)
    return agents


def _faster_loop(
    base_model: str, adapter: Path | None, positions: Sequence[_Position]
) -> tuple[PaperLoop, dict[str, float]]:
    """The loop in the faster of fp32 and bf16 by the turns it takes first, and their seconds."""
    loops = {dtype: PaperLoop(base_model, adapter, dtype) for dtype in _DTYPES}
    seconds = dict.fromkeys(loops, 0.0)
    for loop in loops.values():
        loop.write(positions[0].messages)
    for at in positions[:_CALIBRATION_TURNS]:
        for dtype, loop in loops.items():
            turn = loop.write(at.messages)
            seconds[dtype] += turn.seconds / turn.tokens
    fastest = min(seconds, key=lambda dtype: seconds[dtype])
    shown = {
        f"{dtype}_s_per_token": round(value / min(_CALIBRATION_TURNS, len(positions)), 4)
        for dtype, value in seconds.items()
    }
    return loops[fastest], shown


def _writer(agent: Agent) -> Callable[[_Position], TurnTime]:
    def write(at: _Position) -> TurnTime:
        started = time.perf_counter()
        request = GenerationRequest(actions=at.offered, max_tokens=agent.max_tokens)
        generation = agent.engine.generate(at.messages, request)
        text, action_s, answer_s = "", None, None
        for piece in generation:
            text += piece
            passed = time.perf_counter() - started
            if action_s is None and "\n" in text:
                action_s = passed
            if answer_s is None and text.partition(CONTENT_MARKER)[2].strip():
                answer_s = passed
        seconds = time.perf_counter() - started
        try:
            action = str(parse_turn(text.rstrip("\n")).action)
        except DialogueError:
            action = None
        return TurnTime(
            seconds, action_s, answer_s, seconds, action, generation.usage.completion_tokens
        )

    return write


def _batch(agent: Agent, dialogues: Sequence[Dialogue], in_flight: int) -> dict[str, Any]:
    """Dialogues a second as the evaluation writes them, one at a time and several."""
    rates = {}
    for most in (1, in_flight):
        clear = getattr(agent.engine, "clear_cache", None)
        if clear is not None:
            clear()
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            predict(
                dialogues,
                agent,
                recorded_tools,
                history="with_gt",
                path=Path(folder) / "predictions.jsonl",
                in_flight=most,
            )
            rates[most] = len(dialogues) / (time.perf_counter() - started)
    return {
        "in_flight": in_flight,
        "dialogues_per_s": round(rates[in_flight], 3),
        "one_at_a_time_dialogues_per_s": round(rates[1], 3),
        "ratio": round(rates[in_flight] / rates[1], 2),
    }


def _take_turns(
    writers: dict[str, Callable[[_Position], TurnTime]],
    positions: Sequence[_Position],
    progress: Callable[[int, int], None] | None,
) -> dict[str, list[TurnTime]]:
    times: dict[str, list[TurnTime]] = {name: [] for name in writers}
    names = list(writers)
    for number, at in enumerate(positions):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(writers[name](at))
        if progress is not None:
            progress((number + 1) * len(names), len(positions) * len(names))
    return times
