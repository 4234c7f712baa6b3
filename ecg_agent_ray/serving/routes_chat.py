"""Chat completions in OpenAI's form, whole or as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from ecg_agent_ray.errors import EcgAgentError, InputError, ServiceError
from ecg_agent_ray.serving.access import Services, Talker, find_owned, services_of
from ecg_agent_ray.serving.openapi import CHAT_ANSWER
from ecg_agent_ray.serving.problems import status_of
from ecg_agent_ray.serving.routes_ecgs import lead_configuration_of
from ecg_agent_ray.serving.schemas import ChatRequest, LeadConfiguration

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["Chat"])
_log = logging.getLogger(__name__)

_LEADS_OF_MODEL: dict[str, LeadConfiguration] = {
    "ecg-agent-lead-I": "I",
    "ecg-agent-lead-II": "II",
}

KEEP_ALIVE_S = 15.0
"""A comment is sent after this much silence, since proxies drop connections that say nothing."""


@router.post(
    "/chat/completions", response_model=None, response_class=Response, responses=CHAT_ANSWER
)
async def chat_completions(body: ChatRequest, request: Request, caller: Talker) -> Response:
    """The agent's answer to the last user message, given the whole dialogue.

    With `stream` the answer comes as server-sent events ending with `data: [DONE]`. With
    `ecg_agent.include_steps` the body, or the last chunk, carries `ecg_agent.steps` and
    `ecg_agent.grounding`; streamed, each step comes as it happens, too.
    """
    services = services_of(request)
    turn = _turn(body, services)
    if body.ecg_agent.ecg_id is not None:
        if not caller.may("read"):
            raise HTTPException(403, "a dialogue about an ECG needs the scope 'read', too")
        meta = await find_owned(request, caller, body.ecg_agent.ecg_id)
        wanted = body.ecg_agent.lead_configuration or _LEADS_OF_MODEL.get(body.model)
        turn["lead_configuration"] = lead_configuration_of(meta, wanted)
    events = services.backend.chat(turn)
    # waiting for the first event turns early failures into proper statuses
    first = await anext(events)
    writer = _Completion(body, services)
    if body.stream:
        return StreamingResponse(
            writer.stream(_chain(first, events)),
            media_type="text/event-stream",
            headers={"X-Accel-Buffering": "no"},
        )
    return await writer.whole(_chain(first, events))


def _turn(body: ChatRequest, services: Services) -> dict[str, Any]:
    limits = services.config.limits
    if len(body.messages) > limits.messages:
        raise InputError(
            f"the dialogue has {len(body.messages)} messages; at most {limits.messages} are taken",
            hint="leave out the oldest turns",
        )
    messages = []
    for position, message in enumerate(body.messages):
        text = message.text()
        if len(text) > limits.message_chars:
            raise InputError(
                f"message {position} has {len(text)} characters; at most {limits.message_chars} "
                "are taken"
            )
        if message.has_other_parts():
            raise InputError(
                f"message {position} holds something other than text",
                hint="upload ECGs at /v1/ecgs and name them in ecg_agent.ecg_id",
            )
        if message.role in ("user", "assistant"):
            messages.append({"role": message.role, "content": text})
    if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise InputError("the last message must be the user's and hold words")
    return {
        "model": body.model,
        "messages": messages,
        "ecg_id": body.ecg_agent.ecg_id,
        "lead_configuration": body.ecg_agent.lead_configuration,
        "steps": body.ecg_agent.steps,
        "sampling": body.sampling(),
        "sent_at": time.time(),
    }


async def _chain(
    first: dict[str, Any], rest: AsyncIterator[dict[str, Any]]
) -> AsyncGenerator[dict[str, Any], None]:
    yield first
    async for event in rest:
        yield event


class _Completion:
    """One answer being written in OpenAI's form."""

    def __init__(self, body: ChatRequest, services: Services) -> None:
        self._body = body
        self._metrics = services.metrics
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": body.model,
        }

    async def whole(self, events: AsyncIterator[dict[str, Any]]) -> JSONResponse:
        final = None
        async for event in events:
            if event["type"] == "final":
                final = event
        if final is None:
            raise ServiceError("the agent ended its turn without an answer")
        self._metrics.observe_turn(final)
        message = {"role": "assistant", "content": final["content"], "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": final["finish_reason"],
            "logprobs": None,
        }
        body = {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": _usage(final),
        }
        if self._body.ecg_agent.include_steps:
            body["ecg_agent"] = _report(final)
        return JSONResponse(body)

    async def stream(self, events: AsyncGenerator[dict[str, Any], None]) -> AsyncIterator[str]:
        yield self._chunk({"role": "assistant", "content": ""})
        try:
            async for event in _with_pauses(events):
                if event is None:
                    yield ": still working\n\n"
                elif event["type"] == "content":
                    yield self._chunk({"content": event["text"]})
                elif event["type"] == "final":
                    self._metrics.observe_turn(event)
                    for chunk in self._closing(event):
                        yield chunk
                elif self._body.ecg_agent.include_steps:
                    yield self._chunk({}, ecg_agent={"event": event})
        except EcgAgentError as error:
            # the status line is gone already; OpenAI's clients raise on a chunk with `error`
            yield _sse({"error": {"message": error.message, "code": status_of(error)}})
        except Exception:
            _log.exception("a streamed turn failed")
            yield _sse({"error": {"message": "the service failed on this turn", "code": 500}})
        yield "data: [DONE]\n\n"

    def _closing(self, final: dict[str, Any]) -> list[str]:
        report = {"ecg_agent": _report(final)} if self._body.ecg_agent.include_steps else {}
        options = self._body.stream_options
        with_usage = options is not None and options.include_usage
        chunks = [self._chunk({}, finish=final["finish_reason"], **report)]
        if with_usage:
            usage = {
                **self._head,
                "object": "chat.completion.chunk",
                "choices": [],
                "usage": _usage(final),
            }
            chunks.append(_sse(usage | report))
        return chunks

    def _chunk(self, delta: dict[str, Any], finish: str | None = None, **extra: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _sse({**self._head, "object": "chat.completion.chunk", "choices": [choice]} | extra)


async def _with_pauses(
    events: AsyncGenerator[dict[str, Any], None],
) -> AsyncIterator[dict[str, Any] | None]:
    """The events, and None after every KEEP_ALIVE_S without one."""
    pending: asyncio.Task[dict[str, Any]] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait({pending}, timeout=KEEP_ALIVE_S)
            if not done:
                yield None
                continue
            finished, pending = pending, None
            try:
                yield finished.result()
            except StopAsyncIteration:
                return
    finally:
        # the client left, or all is said: either way the agent must not go on generating
        if pending is not None:
            pending.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration, EcgAgentError):
                await pending
        await events.aclose()


def _usage(final: Mapping[str, Any]) -> dict[str, Any]:
    usage = final["usage"]
    return {
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage["completion_tokens"],
        "total_tokens": usage["total_tokens"],
        "prompt_tokens_details": {"cached_tokens": usage.get("cached_tokens", 0)},
    }


def _report(final: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "action": final["action"],
        "steps": final["steps"],
        "grounding": final["grounding"],
        "timings": final["timings"],
        "degraded": final["degraded"],
        "version": final["version"],
    }


def _sse(body: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
