"""Faithfulness of what a user reads, by code that shares nothing with :mod:`ecg_agent_ray.facts`.

The product's own guard decides what is shown, so it cannot also be the judge. This module reads
the shown text and the tools' raw outputs anew: every numeral has to be a tool's, the user's or a
usual limit; every statement named has to be listed where it is affirmed and not listed where it is
denied; every rating has to agree with the value of the quantity named last before it. Curated
sentences, recognised by their text in the knowledge file, speak of people in general and are left
out.

It reads the plain English that answers are made of here. It is no judge of other texts.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

__all__ = ["unfaithful_sentences"]

_KEYS = ("heart_rate", "pr_interval", "qrs_duration", "qtc_interval")
_NAMED = {
    "heart_rate": r"heart rate|pulse|\brate\b|\bHR\b",
    "pr_interval": r"\bP[RQ]\b",
    "qrs_duration": r"\bQRS\b",
    "qtc_interval": r"\bQTc?\b",
}
# low and high limits as the AHA/ACCF/HRS recommendations of 2009 give them; the QTc's by sex
_RANGES = {
    "heart_rate": (60, 100),
    "pr_interval": (120, 200),
    "qrs_duration": (60, 119),
    "qtc_interval": (350, 460),
}
_STRICT_QTC = 450
_LIMITS = {40, 60, 71, 100, 120, 130, 200, 330, 350, 450, 460, 500}
_NUMERAL = re.compile(r"-?\d+(?:\.\d+)?")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_DENIED = re.compile(
    r"not among|not reported|no [\w -]+ (?:is|was)|cannot assess|has not been|do not agree", re.I
)
_RATING = re.compile(
    r"(?P<normal>within the usual range)|(?P<low>(?:slower|shorter) than usual)"
    r"|(?P<high>(?:faster|longer) than usual)",
    re.IGNORECASE,
)
_MEANS = re.compile(r"\b(?:means?|stands for|term|the name of)\b", re.IGNORECASE)


def unfaithful_sentences(
    shown: str, tool_outputs: Sequence[Any], *, user_texts: Iterable[str] = ()
) -> list[str]:
    """The sentences of ``shown`` that raw outputs in ECG-MTD's form do not bear out.

    ``user_texts`` are the user's messages so far, whose numbers may be repeated.
    """
    values, findings, other = _read(tool_outputs)
    numbers = _allowed_numbers(values, findings, other, user_texts)
    own = _without_curated(shown)
    last: str | None = _named_last(" ".join(list(user_texts)[-1:]))
    faults = []
    for sentence in filter(None, map(str.strip, _SENTENCE.split(own))):
        if (
            any(abs(float(n)) not in numbers for n in _NUMERAL.findall(sentence))
            or _misstated(sentence, findings)
            or _misrated(sentence, values, last)
        ):
            faults.append(sentence)
        last = _named_last(sentence) or last
    return faults


def _read(outputs: Sequence[Any]) -> tuple[dict[str, int], dict[str, float], list[float]]:
    values: dict[str, int] = {}
    findings: dict[str, float] = {}
    other: list[float] = []
    for output in outputs:
        if isinstance(output, Mapping):
            for key in _KEYS:
                if output.get(key) is not None:
                    values[key] = int(float(output[key]) + 0.5)
        elif isinstance(output, list):
            for entry in output:
                code, _, rest = str(entry).partition(" (")
                findings[code] = float(rest.rstrip("%)"))
        else:
            other += [float(n) for n in _NUMERAL.findall(str(output))]
    return values, findings, other


def _allowed_numbers(
    values: Mapping[str, int],
    findings: Mapping[str, float],
    other: Sequence[float],
    user_texts: Iterable[str],
) -> set[float]:
    numbers = {float(n) for n in _LIMITS} | set(values.values()) | {abs(n) for n in other}
    numbers |= {float(int(percent + 0.5)) for percent in findings.values()}
    numbers |= {abs(float(n)) for text in user_texts for n in _NUMERAL.findall(text)}
    # how far a value lies from a limit
    numbers |= {float(abs(v - limit)) for v in values.values() for limit in _LIMITS}
    return numbers | {float(n) for n in range(72)}  # how many findings are not assessed


def _misstated(sentence: str, findings: Mapping[str, float]) -> bool:
    if _MEANS.search(sentence):
        return False
    for clause in re.split(r"[;,:]| and (?=this)| but | though ", sentence):
        denied = _DENIED.search(clause) is not None
        for name, codes in _names():
            if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", clause, re.IGNORECASE):
                listed = any(code in findings for code in codes)
                if denied == listed and "agree" not in sentence:
                    return True
                break
    return False


def _misrated(sentence: str, values: Mapping[str, int], before: str | None) -> bool:
    for found in _RATING.finditer(sentence):
        key = _named_last(sentence[: found.start()]) or before
        if "Outside the usual range" in sentence or "Within the usual range" in sentence:
            continue
        if key is None or key not in values:
            return True
        low, high = _RANGES[key]
        value, said = values[key], found.lastgroup
        if key == "qtc_interval" and _STRICT_QTC < value <= high:
            continue
        true = "low" if value < low else "high" if value > high else "normal"
        if said != true:
            return True
    return False


def _named_last(text: str) -> str | None:
    places = {
        key: max((m.end() for m in re.finditer(words, text)), default=-1)
        for key, words in _NAMED.items()
    }
    key = max(places, key=lambda name: places[name])
    return key if places[key] >= 0 else None


def _data(name: str) -> str:
    return (resources.files("ecg_agent_ray") / "_data" / "facts" / name).read_text("utf-8")


@cache
def _names() -> list[tuple[str, set[str]]]:
    """Statement names, longest first, each with the codes that bear it."""
    names: dict[str, set[str]] = {}
    for row in csv.DictReader(_data("statements.csv").splitlines()):
        names.setdefault(row["name"], set()).add(row["code"])
    return sorted(names.items(), key=lambda item: -len(item[0]))


@cache
def _curated() -> list[str]:
    texts = []
    for line in _data("knowledge.jsonl").splitlines():
        row = json.loads(line)
        texts += [row[level].rstrip(".") for level in ("A", "B", "C")]
    return sorted(texts, key=len, reverse=True)


def _without_curated(text: str) -> str:
    return "".join(_uncurated(text))


def _uncurated(text: str) -> Iterator[str]:
    small = text.lower()
    for entry in _curated():
        at = small.find(entry.lower())
        if at >= 0:
            yield from _uncurated(text[:at])
            yield from _uncurated(text[at + len(entry) :])
            return
    yield text
