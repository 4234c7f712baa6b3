"""Generation by an OpenAI-compatible endpoint: vLLM, SGLang, Ray Serve LLM, llama.cpp's server.

Covers: streamed chat completions, a stop where a tool's output would begin, the grammar for servers
that take vLLM's ``structured_outputs``; over HTTP here, over another transport where a subclass of
:class:`ChatCompletionsEngine` has one. Without a grammar the model may write anything; the loop
reads what it can and says so where it cannot.
"""

from __future__ import annotations

import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import httpx

from ecg_agent_ray.agent.chat_format import TOOL_OUTPUT_MARKER
from ecg_agent_ray.agent.engine import Generation, GenerationRequest, Message
from ecg_agent_ray.agent.grammar import CONTENT_MARKER, message_grammar
from ecg_agent_ray.dialogue import Action
from ecg_agent_ray.errors import ConfigError, ServiceError

__all__ = ["ChatCompletionsEngine", "OpenAIEngine"]

Grammar = Literal["none", "vllm"]

_PURPOSE = {
    Action.CALL_CLASSIFICATION: "Findings of this ECG, with probabilities.",
    Action.CALL_MEASUREMENT: "Heart rate, PR interval, QRS duration and QTc of this ECG.",
    Action.CALL_EXPLANATION: "Where in the signal the classifier sees a finding.",
}


class ChatCompletionsEngine(ABC):
    """An :class:`~ecg_agent_ray.agent.engine.Engine` that asks for streamed chat completions.

    Parameters
    ----------
    name
        Which weights these are, for logs and events.
    model
        Name that the endpoint knows.
    grammar
        ``"vllm"`` sends the grammar in ``structured_outputs`` and continues a begun message with
        ``continue_final_message``; ``"none"`` sends neither, since an endpoint refuses fields it
        does not know. Then a constrained second try is not possible, and what fails the number
        check is dropped at once.
    offer_tools
        Send the tools as functions, for a model that calls tools in the endpoint's own way and may
        call several in one message; they run side by side.
    """

    def __init__(
        self, name: str, model: str, *, grammar: Grammar = "none", offer_tools: bool = False
    ) -> None:
        self.name = name
        self._model = model
        self._grammar = grammar
        self._offer_tools = offer_tools

    @abstractmethod
    def chunks(self, body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """Ask, and give the chunks of the stream; raises :class:`ServiceError` where it fails."""

    def fits(self, messages: Sequence[Message], request: GenerationRequest) -> bool:
        """True: the endpoint knows its context, and refuses what is too long."""
        return True

    def warm(  # noqa: B027 - a method that does nothing, for all endpoints
        self, messages: Sequence[Message], requests: Sequence[GenerationRequest] = ()
    ) -> None:
        """Nothing: the endpoint keeps its own prefixes."""

    def generate(self, messages: Sequence[Message], request: GenerationRequest) -> Generation:
        """Start the next message; the request is sent when the result is iterated."""
        grammar = message_grammar(request)  # also checks the request
        generation = Generation(pieces=iter(()))
        generation.usage.generations = 1
        generation.pieces = self._stream(self._body(messages, request, grammar), generation)
        return generation

    def _body(
        self, messages: Sequence[Message], request: GenerationRequest, grammar: str
    ) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [dict(message) for message in messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "stop": [TOOL_OUTPUT_MARKER],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if request.seed is not None:
            body["seed"] = request.seed
        if self._offer_tools and (calls := [a for a in request.actions if a.is_tool_call]):
            body["tools"] = [_function(action) for action in calls]
        if self._grammar == "vllm":
            body["structured_outputs"] = {"grammar": grammar}
        return body

    def _stream(self, body: dict[str, Any], generation: Generation) -> Iterator[str]:
        started = time.perf_counter()
        text = ""
        try:
            for chunk in self.chunks(body):
                # a call behind an answer that is being shown comes too late to be made
                late = CONTENT_MARKER in text
                for piece in self._read(chunk, generation, calls=not late):
                    new = piece if text else piece.lstrip("\n")
                    text += new
                    if new:
                        yield new
        finally:
            generation.usage.decode_s = time.perf_counter() - started

    @staticmethod
    def _read(
        chunk: Mapping[str, Any], generation: Generation, *, calls: bool = True
    ) -> Iterator[str]:
        usage = chunk.get("usage")
        if usage:
            details = usage.get("prompt_tokens_details") or {}
            generation.usage.prompt_tokens = int(usage.get("prompt_tokens", 0))
            generation.usage.completion_tokens = int(usage.get("completion_tokens", 0))
            generation.usage.cached_tokens = int(details.get("cached_tokens") or 0)
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if text := delta.get("content"):
                yield text
            for call in (delta.get("tool_calls") or ()) if calls else ():
                # the name comes once, arguments in further pieces; ours take none
                if name := (call.get("function") or {}).get("name"):
                    yield f"\nAction: {name}\nThought: The tool is needed.\n"
            if reason := choice.get("finish_reason"):
                generation.finish_reason = "length" if reason == "length" else "stop"


class OpenAIEngine(ChatCompletionsEngine):
    """A :class:`ChatCompletionsEngine` over HTTP. Thread-safe.

    Parameters
    ----------
    base_url
        Up to and with the version, for example ``http://localhost:8000/v1``.
    model, grammar, offer_tools
        See :class:`ChatCompletionsEngine`.
    api_key
        Bearer token; None takes ``OPENAI_API_KEY``, and sends none without it.
    timeout_s
        Longest silence of the endpoint in seconds.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        grammar: Grammar = "none",
        offer_tools: bool = False,
        timeout_s: float = 60.0,
    ) -> None:
        if not base_url.startswith(("http://", "https://")) or not model:
            raise ConfigError(
                f"an endpoint is a http(s) URL and a model's name, not {base_url!r} and {model!r}",
                hint="write openai:http://localhost:8000/v1#MODEL",
            )
        super().__init__(f"{base_url}#{model}", model, grammar=grammar, offer_tools=offer_tools)
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        key = api_key or os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(timeout=timeout_s, headers=headers)

    def chunks(self, body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        try:
            with self._client.stream("POST", self._url, json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise ServiceError(
                        f"{self._url} answered {response.status_code}: {response.text[:300]}"
                    )
                for line in response.iter_lines():
                    data = line.removeprefix("data:").strip()
                    if line.startswith("data:") and data != "[DONE]":
                        yield json.loads(data)
        except (httpx.HTTPError, json.JSONDecodeError) as error:
            raise ServiceError(f"{self._url} did not answer: {error}") from error


def _function(action: Action) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": str(action),
            "description": _PURPOSE[action],
            "parameters": {"type": "object", "properties": {}},
        },
    }
