"""A file over HTTP(S), gone on with where an earlier download ended.

Where nothing answers it gives up within seconds: a machine without network should not hold up
whoever asks. ``HTTPS_PROXY`` and its kin, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` hold.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit
from urllib.request import getproxies

from ecg_agent_ray.weights.table import HubFile
from ecg_agent_ray.weights.transfer import CHUNK, SourceFailed

if TYPE_CHECKING:
    import httpx

__all__ = ["download", "hub_cached", "hub_url"]

_CONNECT_S = 5.0
_SILENCE_S = 20.0
"""Without a byte for so long, a connection is given up."""
_TRIES = 5


def hub_url(source: HubFile) -> str:
    """The file's URL; raises :class:`SourceFailed` where the hub is switched off."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        raise SourceFailed("HF_HUB_OFFLINE is set")
    path = f"{source.repository}/resolve/{source.revision}/{source.file}"
    return f"{constants.ENDPOINT}/{quote(path)}"


def hub_cached(source: HubFile) -> Path | None:
    """The file in the hub's own cache (``HF_HOME``), where another program put it."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.repository, source.file, revision=source.revision)
    return Path(found) if isinstance(found, str) else None


def download(url: str, partial: Path, size: int, tell: Callable[[int], None]) -> None:
    """Complete ``partial`` to ``size`` bytes; raises :class:`SourceFailed`."""
    import httpx

    if not _host_is_known(url):
        raise SourceFailed(f"the name {urlsplit(url).hostname} is not resolved from here")
    timeout = httpx.Timeout(_SILENCE_S, connect=_CONNECT_S)
    with httpx.Client(timeout=timeout, follow_redirects=True) as client:
        for attempt in range(_TRIES):
            before = partial.stat().st_size if partial.is_file() else 0
            try:
                _stream(client, url, partial, size, tell)
                return
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                gained = partial.is_file() and partial.stat().st_size > before
                # a connection that broke on the way is taken up again, one that never gave is not
                if not gained or attempt == _TRIES - 1:
                    said = str(error) or type(error).__name__
                    raise SourceFailed(f"did not answer: {said}") from error


def _stream(
    client: httpx.Client, url: str, partial: Path, size: int, tell: Callable[[int], None]
) -> None:
    import httpx

    held = partial.stat().st_size if partial.is_file() else 0
    if held == size:
        return
    # compressed on the way, bytes could not be counted from the middle of the file
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={held}-"} if held else {})
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            partial.unlink()
            raise SourceFailed("its file is shorter than what an earlier download had")
        if not response.is_success:
            raise SourceFailed(f"answered {response.status_code} {response.reason_phrase}")
        resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
        with partial.open("ab" if resumed else "wb") as target:
            for block in response.iter_bytes(CHUNK):
                if target.tell() + len(block) > size:
                    raise SourceFailed(f"gave more than the {size} bytes it should")
                target.write(block)
                tell(target.tell())


def _host_is_known(url: str) -> bool:
    """Whether the name has an address: looked up aside, since no timeout bounds a look-up."""
    if getproxies():
        return True  # the proxy looks it up
    known = threading.Event()

    def look_up() -> None:
        with contextlib.suppress(OSError):
            socket.getaddrinfo(urlsplit(url).hostname, None)
            known.set()

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(_CONNECT_S)
    return known.is_set()
