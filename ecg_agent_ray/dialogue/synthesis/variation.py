"""Made-up tool outputs, so that a model sees every code and the whole range of every value.

Real recordings repeat themselves: most are sinus rhythm at 60 to 90 bpm, and a model trained on
them alone learns to say so. These outputs have the tools' form and no recording behind them;
dialogues written from them are marked in their metadata and belong into training only.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from ecg_agent_ray.dialogue.synthesis.facts import RecordFacts
from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.facts.statements import STATEMENTS

__all__ = ["vary"]

_NULL_SHARE = 0.12
_SPANS = {  # key -> (low, high, decimals), wider than what is usual on either side
    "heart_rate": (36, 170, 2),
    "pr_interval": (90, 330, 0),
    "qrs_duration": (66, 190, 0),
    "qtc_interval": (330, 560, 2),
}
_RHYTHMS = tuple(code for code, item in STATEMENTS.items() if item.kind == "rhythm")
_OTHERS = tuple(code for code, item in STATEMENTS.items() if item.kind not in ("rhythm", "normal"))


def vary(facts: Sequence[RecordFacts], *, n: int, seed: int) -> list[RecordFacts]:
    """``n`` copies of given recordings with made-up outputs, ``made_up`` set.

    Each keeps its recording's file name and lead configuration. Raises :class:`ConfigError` where
    ``facts`` is empty.
    """
    if not facts:
        raise ConfigError("there is no recording to vary")
    rng = random.Random(f"{seed}:vary")
    return [_varied(facts[number % len(facts)], rng) for number in range(n)]


def _varied(record: RecordFacts, rng: random.Random) -> RecordFacts:
    classification = _classification(rng)
    return replace(
        record,
        measurement={key: _value(key, rng) for key in _SPANS},
        classification=classification,
        explanation={item.split(" ")[0]: _explanation(item, rng) for item in classification[:3]},
        made_up=True,
    )


def _value(key: str, rng: random.Random) -> str | None:
    if rng.random() < _NULL_SHARE:
        return None
    low, high, decimals = _SPANS[key]
    return f"{rng.uniform(low, high):.{decimals}f}"


def _classification(rng: random.Random) -> list[str]:
    kind = rng.random()
    if kind < 0.04:
        codes = []
    elif kind < 0.25:
        codes = ["SR", "NORM"]
    else:
        rhythm = "SR" if rng.random() < 0.4 else rng.choice(_RHYTHMS)
        codes = [rhythm, *rng.sample(_OTHERS, k=rng.choice((0, 1, 1, 2, 2, 3, 4)))]
        rng.shuffle(codes)
    shares = sorted((rng.uniform(50.01, 99.9) for _ in codes), reverse=True)
    return [f"{code} ({share:.2f}%)" for code, share in zip(codes, shares, strict=True)]


def _explanation(item: str, rng: random.Random) -> str:
    if rng.random() < 0.06:
        return f"{item} | explanation unavailable"
    start = rng.randrange(0, 76) * 0.128
    low = rng.randrange(0, 40) * 0.977
    return f"{item} | time={start:.3f}-{start + 0.256:.3f}s, freq={low:.1f}-{low + 0.977:.1f}Hz"
