"""How many requests a replica of the tools works on at once, and how many wait for it."""

from __future__ import annotations

import functools
import math
from collections.abc import Awaitable, Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from anyio import CapacityLimiter, to_thread

from ecg_agent_ray.errors import ServiceError
from ecg_agent_ray.serving.config import DeploymentConfig

__all__ = ["WorkQueue", "in_turn"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


class WorkQueue:
    """Runs calls in threads, first come first served.

    Serve's own bound on a replica's requests counts its status, too, and a router that finds all
    replicas at that bound asks them again and again. Hence Serve lets in all that may wait, and a
    status besides (:meth:`DeploymentConfig.options`), and the bound on the work is kept here.

    Args:
        size: ``max_ongoing_requests`` calls run at once, ``max_queued_requests`` wait.
    """

    def __init__(self, size: DeploymentConfig) -> None:
        queued = size.max_queued_requests
        self._most = size.max_ongoing_requests + queued if queued >= 0 else math.inf
        self._held = 0
        self._limiter = CapacityLimiter(size.max_ongoing_requests)

    async def run(self, call: Callable[[], _T]) -> _T:
        """``call()`` in a thread, when its turn has come.

        Raises:
            ServiceError: too many wait already.
        """
        if self._held >= self._most:
            raise ServiceError("too many requests wait", hint="try again in a few seconds")
        self._held += 1
        try:
            return await to_thread.run_sync(call, limiter=self._limiter)
        finally:
            self._held -= 1


class _Working(Protocol):
    @property
    def work(self) -> WorkQueue: ...


_R = TypeVar("_R", bound=_Working)


def in_turn(
    method: Callable[Concatenate[_R, _P], _T],
) -> Callable[Concatenate[_R, _P], Awaitable[_T]]:
    """A method of a replica that runs in its ``work`` queue."""

    @functools.wraps(method)
    async def within(self: _R, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await self.work.run(lambda: method(self, *args, **kwargs))

    return within
