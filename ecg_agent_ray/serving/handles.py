"""Deployment handles behind the interfaces the rest of the package knows.

Every call has a timeout (Serve's default is none), and whatever goes wrong between deployments is a
:class:`ServiceError`, that is a 503 with Retry-After, while the part's own errors pass unchanged.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from typing import Any, TypeVar

import grpc
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from ecg_agent_ray.agent import ToolResult
from ecg_agent_ray.agent.toolbox import TOOL_OF_ACTION, choose_explained_label, failed_result
from ecg_agent_ray.dialogue import Action
from ecg_agent_ray.errors import EcgAgentError, ServiceError, ToolError
from ecg_agent_ray.serving.config import TimeoutsConfig
from ecg_agent_ray.serving.store import EcgMeta
from ecg_agent_ray.serving.tracing import carrier, span

__all__ = ["CALL_FAILURES", "HandleBackend", "HandleToolbox", "as_service_error", "direct"]

_T = TypeVar("_T")
CALL_FAILURES = (RayError, RayServeException, grpc.RpcError, TimeoutError, EcgAgentError)
"""What a call of another deployment fails with, over either of Serve's transports."""
_log = logging.getLogger(__name__)


def direct(handle: DeploymentHandle) -> DeploymentHandle:
    """The handle over gRPC, not through Ray's object store, which small answers do not need.

    Said here, since a handle keeps what was the default where the application was built:
    RAY_SERVE_USE_GRPC_BY_DEFAULT in a replica comes too late for the handles that it is given.
    """
    return handle.options(_by_reference=False)


def as_service_error(error: Exception, part: str) -> EcgAgentError:
    """What a failed call across the graph means to the caller."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, EcgAgentError):
        return error.cause
    if isinstance(error, EcgAgentError):
        return error
    if isinstance(error, BackPressureError):
        return ServiceError(f"{part} is overloaded", hint="try again in a few seconds")
    if isinstance(error, TimeoutError):
        return ServiceError(f"{part} took too long")
    if isinstance(error, RayTaskError):
        raise error
    return ServiceError(f"{part} is not available", hint="try again in a few seconds")


class HandleBackend:
    """:class:`~ecg_agent_ray.serving.backend.Backend` made of deployment handles."""

    def __init__(
        self,
        *,
        measurement: DeploymentHandle,
        classification: DeploymentHandle,
        agent: DeploymentHandle,
        timeouts: TimeoutsConfig,
    ) -> None:
        self._handles = {
            "measurement": direct(measurement),
            "classification": direct(classification),
            "agent": direct(agent),
        }
        self._timeouts = timeouts

    async def add_ecg(
        self, files: Sequence[tuple[str, bytes]], owner: str, ecg_id: str | None = None
    ) -> EcgMeta:
        handle = self._handles["measurement"]
        return await self._ask(
            "measurement", handle.add_ecg.remote(files, owner, ecg_id), self._timeouts.upload_s
        )

    async def add_sample(self, record_id: str, owner: str) -> EcgMeta:
        handle = self._handles["measurement"]
        return await self._ask(
            "measurement", handle.add_sample.remote(record_id, owner), self._timeouts.upload_s
        )

    async def signal(self, ecg_id: str, options: Mapping[str, Any]) -> bytes:
        method = self._handles["measurement"].signal
        found: bytes = await self._read("measurement", method, ecg_id, options, carrier())
        return found

    async def plot(self, ecg_id: str, options: Mapping[str, Any]) -> bytes:
        method = self._handles["measurement"].plot
        found: bytes = await self._read("measurement", method, ecg_id, options, carrier())
        return found

    async def tool(self, name: str, ecg_id: str, options: Mapping[str, Any]) -> dict[str, Any]:
        part = "measurement" if name == "measurement" else "classification"
        method = getattr(self._handles[part], name)
        result: dict[str, Any] = await self._read(part, method, ecg_id, options, carrier())
        return result

    async def chat(self, turn: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        deadline = time.monotonic() + self._timeouts.chat_s
        handle = self._handles["agent"].options(stream=True)
        stream: Any = handle.chat.remote({**turn, "trace": carrier()})
        try:
            while True:
                left = deadline - time.monotonic()
                try:
                    event = await asyncio.wait_for(anext(stream), max(left, 0.001))
                except StopAsyncIteration:
                    return
                except CALL_FAILURES as error:
                    raise as_service_error(error, "agent") from error
                yield event
        finally:
            # tells the replica to stop generating when the client is gone
            stream.cancel()

    async def status(self) -> dict[str, dict[str, Any]]:
        names = list(self._handles)
        answers = await asyncio.gather(*(self._status_of(name) for name in names))
        return dict(zip(names, answers, strict=True))

    async def _status_of(self, part: str) -> dict[str, Any]:
        try:
            handle = self._handles[part]
            return await self._ask(part, handle.status.remote(), self._timeouts.ready_s)
        except (EcgAgentError, RayError) as error:
            return {"ready": False, "problem": str(error)}

    async def _read(self, part: str, method: Any, *args: Any) -> Any:
        """A call that changes nothing, made again where the replica died under it."""
        try:
            return await self._ask(part, method.remote(*args), self._timeouts.tool_s)
        except ServiceError as error:
            if not isinstance(error.__cause__, ActorDiedError | ActorUnavailableError):
                raise
        return await self._ask(part, method.remote(*args), self._timeouts.tool_s)

    async def _ask(self, part: str, call: Awaitable[_T], timeout_s: float) -> _T:
        try:
            return await asyncio.wait_for(_awaited(call), timeout_s)
        except CALL_FAILURES as error:
            raise as_service_error(error, part) from error


async def _awaited(call: Awaitable[_T]) -> _T:
    return await call


class HandleToolbox:
    """The agent's tools for one stored ECG, each in its own deployment.

    Used from the agent's threads, never from an event loop. ``ecg_id`` None is a dialogue without
    an ECG: every call then fails with the reason, which the agent can say.
    """

    def __init__(
        self,
        *,
        ecg_id: str | None,
        lead_configuration: str,
        measurement: DeploymentHandle,
        classification: DeploymentHandle,
        timeout_s: float,
    ) -> None:
        self.key = f"{ecg_id}/{lead_configuration}" if ecg_id else ""
        """What the agent remembers earlier turns by."""
        self._ecg_id = ecg_id
        self._configuration = lead_configuration
        self._measurement = direct(measurement)
        self._classification = direct(classification)
        self._timeout_s = timeout_s
        self.missing: set[str] = set()
        """Parts of the service that a call of this turn needed and did not get."""

    def call(self, action: Action, *, question: str, previous: Sequence[ToolResult]) -> ToolResult:
        started = time.perf_counter()

        def elapsed_ms() -> float:
            return (time.perf_counter() - started) * 1000

        try:
            result = self._run(action, question, previous)
        except EcgAgentError as error:
            if isinstance(error, ServiceError):
                self.missing.add(TOOL_OF_ACTION[action])
            return failed_result(action, error.message, elapsed_ms())
        except RayError:
            # a fault within a tool takes that tool from the dialogue, not the dialogue itself
            _log.exception("the %s tool failed", TOOL_OF_ACTION[action])
            self.missing.add(TOOL_OF_ACTION[action])
            return failed_result(action, "the tool failed", elapsed_ms())
        return ToolResult(
            tool=TOOL_OF_ACTION[action],
            action=action,
            output=result["output"],
            detail=result["detail"],
            ms=elapsed_ms(),
        )

    def _run(self, action: Action, question: str, previous: Sequence[ToolResult]) -> dict[str, Any]:
        if self._ecg_id is None:
            raise ToolError("no ECG was given with this dialogue")
        if action is Action.CALL_MEASUREMENT:
            single = self._configuration != "12-lead"
            lead = self._configuration if single else "auto"
            return self._ask(self._measurement, "measurement", {"lead": lead})
        if action is Action.CALL_CLASSIFICATION:
            return self._classify()
        if action is Action.CALL_EXPLANATION:
            label = choose_explained_label(question, previous) or self._first_label()
            options = {"label": label, "leads": self._configuration}
            return self._ask(self._classification, "explanation", options)
        raise ToolError(f"{action} calls no tool")

    def _classify(self) -> dict[str, Any]:
        return self._ask(self._classification, "classification", {"leads": self._configuration})

    def _first_label(self) -> str:
        found = self._classify()["detail"]
        assessed = {label: p for label, p in found["labels"].items() if p is not None}
        if not assessed:
            raise ToolError("the classifier assesses no label for these leads")
        return str(next(iter(found["positive"]), None) or max(assessed, key=lambda k: assessed[k]))

    def _ask(self, handle: DeploymentHandle, tool: str, options: dict[str, Any]) -> dict[str, Any]:
        method = getattr(handle, tool)
        try:
            with span(f"call {tool}"):
                try:
                    call = method.remote(self._ecg_id, options, carrier())
                    answer: dict[str, Any] = call.result(timeout_s=self._timeout_s)
                except (ActorDiedError, ActorUnavailableError):
                    # its replica died; tools change nothing, so another one may be asked
                    call = method.remote(self._ecg_id, options, carrier())
                    answer = call.result(timeout_s=self._timeout_s)
        except CALL_FAILURES as error:
            raise as_service_error(error, f"the {tool} tool") from error
        return answer
