"""The published agent's way to write a turn, as the baseline that the engines are timed against.

Each turn is one call of ``model.generate`` on the whole history: greedy, unconstrained, keys and
values kept within the call alone, ended by the end token or after 512 tokens. What follows
``Tool_Output:`` in a tool turn is therefore written by the model and thrown away; how long the turn
would have taken without that is noted beside it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ecg_agent_ray.agent.chat_format import TOOL_OUTPUT_MARKER
from ecg_agent_ray.agent.engine import Message
from ecg_agent_ray.agent.grammar import CONTENT_MARKER
from ecg_agent_ray.agent.transformers_engine import TransformersEngine
from ecg_agent_ray.dialogue import parse_turn
from ecg_agent_ray.errors import DialogueError
from ecg_agent_ray.pipelines.bench.turn_times import TurnTime

__all__ = ["MAX_NEW_TOKENS", "PaperLoop"]

MAX_NEW_TOKENS = 512


class PaperLoop:
    """``generate`` of transformers on weights that the engines use too.

    Parameters
    ----------
    base_model, adapter, dtype
        As :class:`~ecg_agent_ray.agent.TransformersEngine` takes them; the adapter is merged, which
        the published script does not do and which makes it faster.
    """

    def __init__(self, base_model: str, adapter: Path | None, dtype: str) -> None:
        # only for its weights and its template: nothing of the engine runs
        engine = TransformersEngine(
            base_model, adapter, device="cpu", dtype=dtype, cache_entries=0, draft_tokens=0
        )
        self.dtype = dtype
        self._format, self._model, self._tokenizer = engine.format, engine.model, engine.tokenizer

    def write(self, messages: Sequence[Message]) -> TurnTime:
        """The turn after ``messages``, of which the first is the system's."""
        import torch

        started = time.perf_counter()
        ids = torch.tensor([self._format.encode_prompt(messages)])
        clock = _Clock()
        with torch.inference_mode():
            output = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=MAX_NEW_TOKENS,
                eos_token_id=self._format.end_token_id,
                pad_token_id=self._format.end_token_id,
                streamer=clock,
            )
        tokens = output[0, ids.shape[1] :].tolist()
        text = self._decode(tokens)
        seconds = time.perf_counter() - started
        return TurnTime(
            seconds=seconds,
            action_s=self._when("\n", tokens, clock, started),
            answer_s=self._when(CONTENT_MARKER, tokens, clock, started, after=True),
            to_tool_output_s=self._when(TOOL_OUTPUT_MARKER, tokens, clock, started) or seconds,
            action=_action(text),
            tokens=len(tokens),
        )

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _when(
        self, mark: str, tokens: Sequence[int], clock: _Clock, started: float, after: bool = False
    ) -> float | None:
        """Seconds from the start to the token that completes ``mark``, or to the one after it."""
        for number in range(1, len(tokens) + 1):
            text = self._decode(tokens[:number])
            if mark in text and (not after or text.partition(mark)[2].strip()):
                return clock.times[number - 1] - started
        return None


class _Clock:
    """A streamer of transformers that only notes when each new token came."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        if self._prompt_seen:
            self.times.append(time.perf_counter())
        self._prompt_seen = True

    def end(self) -> None:
        """Called when generation is over; its end is timed elsewhere."""


def _action(text: str) -> str | None:
    """What the turn does; None where it cannot be read."""
    own = text.partition(TOOL_OUTPUT_MARKER)[0]
    try:
        return str(parse_turn(own.rstrip("\n")).action)
    except DialogueError:
        return None
