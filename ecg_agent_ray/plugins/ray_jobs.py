"""A Ray cluster's job server: connect, submit, follow to the end, stop.

Ray's own client gives up at the first hitch; here a job server that is starting, restarting or
briefly out of reach is asked again, since the job itself goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from ecg_agent_ray.errors import ConfigError, ServiceError
from ecg_agent_ray.plugins.environment import variables

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

__all__ = ["connect", "follow", "stop", "submit"]

_START_S = 120.0  # a head node's job agent comes up after its job server
_LOST_S = 300.0  # how long a job server may be away while a job is followed
_STATUS_EVERY_S = 10.0
_OVERRIDE = "RAY_API_SERVER_ADDRESS"


def connect(
    address: str,
    *,
    headers: dict[str, Any] | None = None,
    verify: str | bool = True,
) -> JobSubmissionClient:
    """Client of the job server at ``address``: ``http(s)://HEAD:8265``, ``HEAD:6379`` or ``auto``.

    An explicit address wins over ``RAY_ADDRESS``, which Ray would prefer. A cluster that asks for
    a token gets the one of ``RAY_AUTH_TOKEN`` or ``RAY_AUTH_TOKEN_PATH``.

    Raises
    ------
    ConfigError
        The address is Ray Client's.
    ServiceError
        Nobody answers there, or the token is refused.
    """
    if address.startswith("ray://"):
        raise ConfigError(
            f"{address!r} is a Ray Client address, not a job server's",
            hint="ray:// runs the driver here, so a lost connection would end the job; "
            "give the job server, usually http://HEAD:8265",
        )
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    # tells of each stream that ends
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    try:
        with variables({_OVERRIDE: address}):
            return JobSubmissionClient(address, headers=headers, verify=verify)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise ServiceError(f"no Ray job server answers at {address}: {_first(error)}") from error


def submit(client: JobSubmissionClient, **job: Any) -> str:
    """Submit with the arguments of ``JobSubmissionClient.submit_job``; returns the submission id.

    Raises :class:`ServiceError` when the job server refuses, or has no agent for two minutes.
    """
    deadline = time.monotonic() + _START_S
    while True:
        try:
            return client.submit_job(**job)
        except (ConnectionError, RuntimeError, ValueError) as error:
            starting = "No available agent" in str(error)
            if not starting or time.monotonic() > deadline:
                raise ServiceError(f"the job was not accepted: {_first(error)}") from error
            time.sleep(0.5)


def follow(client: JobSubmissionClient, job_id: str, write: Callable[[str], Any]) -> JobDetails:
    """Pass the job's output to ``write`` as it appears, once and whole; returns how it ended.

    Raises :class:`ServiceError` when the job server is away for five minutes; the job goes on then.
    """
    written = 0

    def show(text: str) -> None:
        nonlocal written
        write(text)
        written += len(text)

    seen = time.monotonic()
    while True:
        try:
            _run(_tail(client, job_id, show, skip=written))
            details = client.get_job_info(job_id)
            seen = time.monotonic()
            if details.status.is_terminal():
                # the tail may end before the last lines are in it
                with contextlib.suppress(RuntimeError):  # ended before it had any output
                    show(client.get_job_logs(job_id)[written:])
                return details
        except (OSError, RuntimeError, _client_error()) as error:
            if time.monotonic() - seen > _LOST_S:
                raise ServiceError(
                    f"lost the Ray job server while job {job_id} was running: {_first(error)}",
                    hint=f"the job may go on; see `ray job status {job_id}`",
                ) from error
        time.sleep(0.5)


def stop(client: JobSubmissionClient, job_id: str, *, timeout_s: float = 60.0) -> JobDetails:
    """Stop a job and wait until it has ended; returns its last known state."""
    client.stop_job(job_id)
    deadline = time.monotonic() + timeout_s
    while True:
        details = client.get_job_info(job_id)
        if details.status.is_terminal() or time.monotonic() > deadline:
            return details
        time.sleep(0.3)


def _run(coroutine: Coroutine[Any, Any, None]) -> None:
    """In a thread of its own: a notebook's has an event loop already. Ctrl-C ends the wait."""
    ended: Future[None] = Future()

    def work() -> None:
        try:
            ended.set_result(asyncio.run(coroutine))
        except BaseException as error:  # raised again where it is waited for
            ended.set_exception(error)

    threading.Thread(target=work, name="job output", daemon=True).start()
    ended.result()


async def _tail(
    client: JobSubmissionClient, job_id: str, show: Callable[[str], None], skip: int
) -> None:
    """Show the output beyond its first ``skip`` characters until the job's stream ends."""
    stream = client.tail_job_logs(job_id).__aiter__()
    waiting: asyncio.Future[str] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(anext(stream))
            done, _ = await asyncio.wait({waiting}, timeout=_STATUS_EVERY_S)
            if not done:
                # a dead connection is silent; so is a job that works, which is asked for here
                state = await asyncio.to_thread(client.get_job_status, job_id)
                if state.is_terminal():
                    return
                continue
            try:
                text = waiting.result()
            except StopAsyncIteration:
                return
            waiting = None
            if skip >= len(text):
                skip -= len(text)
            else:
                show(text[skip:])
                skip = 0
    finally:
        if waiting is not None:
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration, Exception):
                await waiting
        with contextlib.suppress(RuntimeError):
            await stream.aclose()  # type: ignore[attr-defined]


def _client_error() -> type[Exception]:
    import aiohttp

    return aiohttp.ClientError


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
