"""The phrase bank: templates in named pools, split before anything is written from them.

A phrase file holds sections ``== pool ==`` with one template a line. In a template ``[a|b|]``
chooses one of its parts (which may nest and may be empty) and ``{slot}`` is filled from the
caller's values, else from the lexicon (``lexicon.txt``: single words and names, which all splits
share).
``A> ``, ``BC> `` before a template bind it to CEFR levels.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal, get_args

from ecg_agent_ray.errors import ConfigError

__all__ = ["SPLITS", "PhraseBank", "Split", "Template", "load_pools"]

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

_SECTION = re.compile(r"^== (?P<name>[\w.]+) ==$")
_LEVELS = re.compile(r"^(?P<levels>[ABC]{1,3})> ")
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")
_HELD_OUT = 0.1  # of a pool's templates, for validation and for test each; at least one


@dataclass(frozen=True, slots=True)
class Template:
    """One template; ``levels`` is the CEFR levels it suits."""

    text: str
    levels: str = "ABC"

    @property
    def id(self) -> str:
        """Short and stable: the same template has it in every process and version."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:8]


@cache
def load_pools() -> dict[str, tuple[Template, ...]]:
    """Every pool of the shipped phrase files; the lexicon's are those without a dot."""
    pools: dict[str, list[Template]] = {}
    folder = resources.files("ecg_agent_ray") / "_data" / "dialogue" / "phrases"
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        name = ""
        for line in file.read_text(encoding="utf-8").splitlines():
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            if section := _SECTION.match(text):
                name = section["name"]
                pools.setdefault(name, [])
            else:
                levels = _LEVELS.match(text)
                template = (
                    Template(text[levels.end() :], levels["levels"]) if levels else Template(text)
                )
                pools[name].append(template)
    return {name: tuple(dict.fromkeys(items)) for name, items in pools.items()}


class PhraseBank:
    """The templates of one split, and a way to fill them.

    A template belongs to one split for good: each pool is ordered by the templates' hashes and cut,
    so adding a template moves few others. ``used_ids`` names what was drawn.
    """

    def __init__(self, split: Split) -> None:
        if split not in SPLITS:
            raise ConfigError(f"split is {split!r}; use one of {', '.join(SPLITS)}")
        self._lexicon = {name: items for name, items in load_pools().items() if "." not in name}
        self._pools = _split_pools(split)
        self._used: set[Template] = set()

    def __contains__(self, pool: str) -> bool:
        return pool in self._pools

    def templates(self, pool: str) -> tuple[Template, ...]:
        """This split's templates of a pool; raises :class:`ConfigError` for an unknown pool."""
        try:
            return self._pools[pool]
        except KeyError:
            raise ConfigError(f"the phrase bank has no pool {pool!r}") from None

    def draw(
        self, rng: random.Random, pool: str, level: str, values: Mapping[str, str] | None = None
    ) -> str:
        """A filled template of ``pool`` that suits ``level`` (any, where none does)."""
        templates = self.templates(pool)
        suited = [item for item in templates if level in item.levels] or list(templates)
        template = rng.choice(suited)
        self._used.add(template)
        return self.fill(rng, template.text, values or {})

    @property
    def used_ids(self) -> list[str]:
        return sorted(template.id for template in self._used)

    def fill(self, rng: random.Random, text: str, values: Mapping[str, str]) -> str:
        """Choose among ``[a|b]`` and put words into ``{slots}``."""
        while _CHOICE.search(text):
            text = _CHOICE.sub(lambda found: rng.choice(found.group(1).split("|")), text)

        def word(found: re.Match[str]) -> str:
            name = found.group(1)
            if name in values:
                return values[name]
            if name not in self._lexicon:
                raise ConfigError(f"template {text!r} has the slot {name!r}, which nothing fills")
            return self.fill(rng, rng.choice(self._lexicon[name]).text, values)

        text = _SLOT.sub(word, text)
        return re.sub(r"\s+([.,?!;:])", r"\1", re.sub(r"\s{2,}", " ", text)).strip()


@cache
def _split_pools(split: Split) -> dict[str, tuple[Template, ...]]:
    return {name: _part(items, split) for name, items in load_pools().items() if "." in name}


def _part(items: tuple[Template, ...], split: Split) -> tuple[Template, ...]:
    if len(items) < len(SPLITS):
        raise ConfigError(f"a pool needs at least {len(SPLITS)} templates: {items}")
    ordered = sorted(items, key=lambda item: item.id)
    held_out = max(1, round(len(ordered) * _HELD_OUT))
    if split == "validation":
        return tuple(ordered[:held_out])
    if split == "test":
        return tuple(ordered[held_out : 2 * held_out])
    return tuple(ordered[2 * held_out :])
