"""Environment variables for the time of a block: Ray and MLflow read theirs where they start."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

__all__ = ["variables"]


@contextlib.contextmanager
def variables(wanted: Mapping[str, str | None], *, keep: bool = False) -> Iterator[None]:
    """Set these, None unsets one; afterwards they are as they were.

    With ``keep``, what the user has set stays as it is.
    """
    chosen = {name: v for name, v in wanted.items() if not (keep and name in os.environ)}
    before = {name: os.environ.get(name) for name in chosen}
    _put(chosen)
    try:
        yield
    finally:
        _put(before)


def _put(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
