"""Bearer tokens of the HTTP API.

The tokens file holds one ``name:sha256:scopes`` line per token; the token itself is shown once and
never stored. Scopes are ``read`` (ECGs and tools), ``chat`` and ``admin`` (both of them). The file
is read again when it changes, so that tokens are made and revoked without a restart. Ray's own
token covers only its control plane, hence this one.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ecg_agent_ray.errors import ConfigError, InputError

__all__ = ["LOCAL_CALLER", "SCOPES", "Caller", "TokenFile"]

SCOPES = ("read", "chat", "admin")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PREFIX = "ecga_"


@dataclass(frozen=True)
class Caller:
    """Who makes a request: the token's name owns what it uploads."""

    name: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes


LOCAL_CALLER = Caller("local", frozenset(SCOPES))
"""The one caller there is while no tokens exist."""


class TokenFile:
    """The tokens file, re-read on change.

    Args:
        path: the file; it need not exist, and then it holds no token.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp: tuple[int, int, int] | None = None
        self._by_digest: dict[str, Caller] = {}

    def find(self, token: str) -> Caller | None:
        """The caller a token belongs to, or None.

        Raises:
            ConfigError: the file breaks its format (nobody is let in by half a file).
        """
        self._refresh()
        digest = _digest(token)
        found = None
        # all entries are compared, in constant time each, so that timing tells nothing
        for known, caller in self._by_digest.items():
            if hmac.compare_digest(known, digest):
                found = caller
        return found

    def callers(self) -> list[Caller]:
        """Every token's name and scopes, in the file's order."""
        self._refresh()
        return list(self._by_digest.values())

    def create(self, name: str, scopes: Iterable[str]) -> str:
        """Add a token and return it; it cannot be shown again.

        Raises:
            InputError: the name is taken or malformed, or a scope is unknown.
        """
        wanted = tuple(dict.fromkeys(scopes))
        unknown = [scope for scope in wanted if scope not in SCOPES]
        if unknown or not wanted:
            raise InputError(
                f"unknown scopes: {', '.join(unknown) or '(none given)'}",
                hint=f"there are: {', '.join(SCOPES)}",
            )
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{name!r} is no token name", hint="letters, digits and . _ -, at most 64"
            )
        if any(caller.name == name for caller in self.callers()):
            raise InputError(f"there is a token named {name!r}", hint="revoke it first")
        token = _PREFIX + secrets.token_urlsafe(32)
        self._write([*self._lines(), f"{name}:{_digest(token)}:{','.join(wanted)}"])
        return token

    def revoke(self, name: str) -> None:
        """Remove a token; raises :class:`InputError` if there is none of that name."""
        lines = self._lines()
        kept = [line for line in lines if line.split(":")[0] != name]
        if len(kept) == len(lines):
            raise InputError(
                f"there is no token named {name!r}", hint="see `ecg-agent tokens list`"
            )
        self._write(kept)

    def _lines(self) -> list[str]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the tokens file {self.path}: {error}") from error
        lines = (line.strip() for line in text.splitlines())
        return [line for line in lines if line and not line.startswith("#")]

    def _write(self, lines: list[str]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # written beside and moved into place: a reader sees the old file or the new one
        descriptor, scratch = tempfile.mkstemp(dir=self.path.parent, prefix=".tokens-")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
        Path(scratch).replace(self.path)

    def _refresh(self) -> None:
        try:
            stat = self.path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        except FileNotFoundError:
            stamp = (0, 0, 0)
        if stamp == self._stamp:
            return
        self._by_digest = dict(self._parse(line) for line in self._lines())
        self._stamp = stamp

    def _parse(self, line: str) -> tuple[str, Caller]:
        name, _, rest = line.partition(":")
        digest, _, scopes = rest.partition(":")
        granted = frozenset(scope for scope in scopes.split(",") if scope)
        well_formed = (
            _NAME.fullmatch(name)
            and re.fullmatch(r"[0-9a-f]{64}", digest)
            and granted
            and granted <= set(SCOPES)
        )
        if not well_formed:
            raise ConfigError(
                f"{self.path} has a line that is not name:sha256:scopes (name {name[:64]!r})"
            )
        return digest, Caller(name, granted)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
