"""Records by number: ``HR00056.mat`` in the dialogues is ``HR56.mat`` in the paper's CSVs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

__all__ = ["RecordIndex", "record_key"]

_NUMBER = re.compile(r"^(\D*)0*(\d.*)$", re.DOTALL)


def record_key(name: str) -> str:
    """The stem with the zeros before its first number left out: ``HR00056.mat`` -> ``HR56``."""
    return _NUMBER.sub(r"\1\2", PurePosixPath(name).stem)


class RecordIndex:
    """Finds a name among ``names``: as it is written, then by stem, then by record number.

    A stem or number that several names have in different folders or paddings finds the first by
    stem, but none by number: ``HR056`` and ``HR0056`` may be two recordings.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names: set[str] = set()
        self._by_stem: dict[str, str] = {}
        self._by_key: dict[str, str | None] = {}
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        stem = PurePosixPath(name).stem
        self._names.add(name)
        first = self._by_stem.setdefault(stem, name)
        known = self._by_key.setdefault(record_key(name), first)
        if known is not None and PurePosixPath(known).stem != stem:
            self._by_key[record_key(name)] = None

    def find(self, name: str) -> str | None:
        """One of the names, or None."""
        if name in self._names:
            return name
        return self._by_stem.get(PurePosixPath(name).stem) or self._by_key.get(record_key(name))
