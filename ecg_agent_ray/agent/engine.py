"""What generates text: one small protocol, so that the loop knows neither torch nor HTTP.

An engine takes OpenAI-shaped messages (``role``, ``content``; an assistant's content is a rendered
turn, see :func:`ecg_agent_ray.dialogue.render_turn`) and yields the text of the next assistant
message piece by piece. What the text may look like travels beside the messages in a
:class:`GenerationRequest`: an engine that can constrain its output keeps to it, any other does its
best, and the loop reads whatever comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from ecg_agent_ray.dialogue import Action

__all__ = ["Engine", "Generation", "GenerationRequest", "Message", "Usage"]

Message = Mapping[str, str]
"""``{"role": "system" | "user" | "assistant", "content": text}``."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """How the next assistant message is to be generated.

    Attributes
    ----------
    actions
        The actions the message may take; the grammar offers no other.
    slots
        When not None, the message is a strict agent's: its content holds these slots and words of
        the allow-list, and nothing else. An engine without grammar may ignore it; the guard checks
        again.
    max_tokens
        Bound on the tokens generated for this message. The frame (action, thought, content) is
        completed within it.
    temperature, top_p, seed
        0 is greedy (default). A seed makes sampling repeatable.
    """

    actions: tuple[Action, ...] = tuple(Action)
    slots: tuple[str, ...] | None = None
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(slots=True)
class Usage:
    """Tokens and seconds of one or more generations.

    ``prompt_tokens`` counts the whole prompt, ``cached_tokens`` the part whose keys and values
    were reused, ``forced_tokens`` the generated tokens that the grammar left no choice about, and
    ``forwards`` how often the model was run.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    forced_tokens: int = 0
    forwards: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    generations: int = 0

    def add(self, other: Usage) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__} | {
            "total_tokens": self.prompt_tokens + self.completion_tokens
        }


@dataclass
class Generation:
    """One message being generated: iterate for its text, then read ``usage`` and ``finish_reason``.

    ``finish_reason`` is ``"stop"`` (the message is complete) or ``"length"`` (its content was cut
    at ``max_tokens``). Closing the iterator early ends the generation.
    """

    pieces: Iterator[str]
    usage: Usage = field(default_factory=Usage)
    finish_reason: str = "stop"

    def __iter__(self) -> Iterator[str]:
        return self.pieces

    def close(self) -> None:
        close = getattr(self.pieces, "close", None)
        if close is not None:
            close()

    def text(self) -> str:
        """Run to the end and return everything."""
        return "".join(self.pieces)


@runtime_checkable
class Engine(Protocol):
    """Anything that can write the next assistant message. Thread-safe."""

    name: str
    """Which weights these are, for logs and events."""

    def generate(self, messages: Sequence[Message], request: GenerationRequest) -> Generation:
        """Start generating the assistant message that follows ``messages``."""
        ...

    def fits(self, messages: Sequence[Message], request: GenerationRequest) -> bool:
        """Whether prompt and answer fit the model's context; True where that is unknown."""
        ...

    def warm(self, messages: Sequence[Message], requests: Sequence[GenerationRequest] = ()) -> None:
        """Do beforehand what the first answer would wait for; idempotent, and never needed.

        ``messages`` are what all prompts begin with, ``requests`` of the kinds that will come.
        """
        ...
