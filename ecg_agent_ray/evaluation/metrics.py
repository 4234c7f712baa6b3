"""What predictions are worth: next actions, tool calls, faithfulness, the asked value stated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ecg_agent_ray.agent.asked import unstated_values
from ecg_agent_ray.agent.grounding import check_grounding
from ecg_agent_ray.dialogue import Action
from ecg_agent_ray.evaluation.alignment import aligned_records, by_user_turn
from ecg_agent_ray.evaluation.independent import unfaithful_sentences
from ecg_agent_ray.facts import uncurated

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "RATIOS",
    "Tally",
    "count_dialogue",
    "count_table",
    "ratios_of",
    "score",
]


@dataclass(slots=True)
class Tally:
    """Counts of one dialogue; sums of them are counts of many."""

    correct: int = 0
    pairs: int = 0
    missing: int = 0
    extra: int = 0
    reference: int = 0
    calls_made: int = 0
    calls_wanted: int = 0
    calls_right: int = 0
    answers: int = 0
    faithful: int = 0
    asked: int = 0
    stated: int = 0
    sentences: int = 0
    borne_out: int = 0
    by_action: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def errors(self) -> int:
        """Wrong, missing and extra turns, unfaithful answers, asked values that were not stated."""
        return self.pairs - self.correct + self.answers - self.faithful + self.asked - self.stated

    def __iadd__(self, other: Tally) -> Tally:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


RATIOS: Mapping[str, Callable[[Tally], float | None]] = {
    "next_action_accuracy": lambda t: _share(t.correct, t.pairs),
    "tool_precision": lambda t: _share(t.calls_right, t.calls_made),
    "tool_recall": lambda t: _share(t.calls_right, t.calls_wanted),
    "faithfulness": lambda t: _share(t.faithful, t.answers),
    "asked_value_stated": lambda t: _share(t.stated, t.asked),
}

SHOWN_RATIOS = ("faithfulness", "asked_value_stated")


def score(
    predictions: Sequence[Mapping[str, Any]], *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Metrics of a predictions file.

    Parameters
    ----------
    predictions
        Records in the paper's schema. Turns are aligned anew from the dialogues, since the paper's
        own files pair them by position in the whole dialogue.
    resamples, seed
        Of the bootstrap over dialogues.

    Returns
    -------
    dict
        ``next_action_accuracy``: right actions over all pairs, where a missing or an extra turn is
        a wrong pair. ``per_action``: by the reference's action ``{total, correct, accuracy}``, and
        ``extra`` by the generated one. ``tool_precision``, ``tool_recall``. ``faithfulness``:
        answers of action ``response`` or with a claim about the ECG that have no claim the tool
        outputs do not bear out, over all such answers. ``asked_value_stated``: answers that give
        every value the user named which a successful measurement holds, over all such user turns;
        no answer counts as not stated. ``n_dialogues``, ``n_turns`` (assistant turns of the
        references), ``missing_turns``, ``extra_turns``. ``as_shown``, where the predictions hold
        what a user would have read: ``faithfulness`` and ``asked_value_stated`` of that,
        ``independent_faithfulness`` (share of answers in which
        :mod:`ecg_agent_ray.evaluation.independent` finds no fault), ``dropped_share`` (characters
        of the model's answers left out, mean over dialogues). ``intervals``: 95 % by percentile
        bootstrap over dialogues. A ratio without cases is None.
    """
    tallies = [count_dialogue(record) for record in predictions]
    total = Tally()
    for tally in tallies:
        total += tally
    result: dict[str, Any] = {name: metric(total) for name, metric in RATIOS.items()}
    result["per_action"] = _per_action(total)
    result |= {
        "n_dialogues": len(tallies),
        "n_turns": total.reference,
        "missing_turns": total.missing,
        "extra_turns": total.extra,
        "intervals": _intervals(tallies, resamples, seed),
    }
    if as_shown := _as_shown(predictions):
        result["as_shown"] = as_shown
    return result


def _as_shown(predictions: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Metrics of what a user would have read, where the predictions hold it."""
    records = [record for record in predictions if record.get("shown_dialogue")]
    if not records:
        return None
    total = Tally()
    for record in records:
        total += count_dialogue({**record, "generated_dialogue": record["shown_dialogue"]})
        for shown, outputs, asked in _shown_answers(record["shown_dialogue"]):
            total.sentences += 1
            total.borne_out += not unfaithful_sentences(shown, outputs, user_texts=asked)
    shares = [r["dropped_share"] for r in records if r.get("dropped_share") is not None]
    return {
        **{name: RATIOS[name](total) for name in SHOWN_RATIOS},
        "independent_faithfulness": _share(total.borne_out, total.sentences),
        "dropped_share": sum(shares) / len(shares) if shares else None,
    }


def _shown_answers(
    turns: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[str, list[Any], list[str]]]:
    """Each answer with the outputs and the user's messages before it."""
    outputs: list[Any] = []
    asked: list[str] = []
    for turn in turns:
        if turn.get("role") == "user":
            asked.append(str(turn.get("content", "")))
        elif turn.get("tool_output") is not None:
            outputs.append(turn["tool_output"])
        elif turn.get("content"):
            yield str(turn["content"]), list(outputs), list(asked)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _per_action(total: Tally) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for action in Action:
        wanted = total.by_action[str(action), "total"]
        extra = total.by_action[str(action), "extra"]
        if wanted or extra:
            correct = total.by_action[str(action), "correct"]
            rows[str(action)] = {
                "total": wanted,
                "correct": correct,
                "accuracy": _share(correct, wanted),
                "extra": extra,
            }
    return rows


_COUNTS = tuple(name for name in Tally.__slots__ if name != "by_action")


def count_table(tallies: Sequence[Tally]) -> npt.NDArray[np.int64]:
    """(dialogues, counts): a row a dialogue, whose sums :func:`ratios_of` takes."""
    import numpy as np

    return np.array([[getattr(tally, name) for name in _COUNTS] for tally in tallies])


def ratios_of(sums: Sequence[int] | npt.NDArray[np.int64]) -> dict[str, float | None]:
    """Every ratio of summed rows of a :func:`count_table`."""
    total = Tally()
    for name, value in zip(_COUNTS, sums, strict=True):
        setattr(total, name, int(value))
    return {name: metric(total) for name, metric in RATIOS.items()}


def _intervals(
    tallies: Sequence[Tally], resamples: int, seed: int
) -> dict[str, list[float] | None]:
    import numpy as np

    if not len(tallies) or resamples < 1:
        return dict.fromkeys(RATIOS)
    counts = count_table(tallies)
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in RATIOS}
    for _ in range(resamples):
        sums = counts[generator.integers(0, len(tallies), len(tallies))].sum(axis=0)
        for name, value in ratios_of(sums).items():
            if value is not None:
                drawn[name].append(value)
    return {
        name: [float(bound) for bound in np.percentile(values, [2.5, 97.5])] if values else None
        for name, values in drawn.items()
    }


def count_dialogue(record: Mapping[str, Any]) -> Tally:
    """The counts of one record of a predictions file, from which every ratio is made."""
    tally = Tally()
    reference = record["ground_truth_dialogue"]
    generated = record.get("generated_dialogue") or []
    for turn in aligned_records(reference, generated):
        _count_pair(tally, turn["gt_action"], turn["gen_action"])
    with_gt = record.get("summary", {}).get("history") == "with_gt"
    outputs: list[Any] = []
    made = by_user_turn(generated)
    for number, (user, expected) in enumerate(by_user_turn(reference)):
        turns = made[number][1] if number < len(made) else []
        fresh = _outputs(expected) if with_gt else []
        fresh += _outputs(turns)
        question = str(user.get("content", ""))
        _count_answers(tally, question, turns, [*outputs, *fresh])
        _count_asked(tally, question, turns, fresh)
        outputs += _outputs(expected) if with_gt else fresh
    return tally


def _count_pair(tally: Tally, expected: str | None, made: str | None) -> None:
    tally.pairs += 1
    if expected is None:
        tally.extra += 1
        tally.by_action[str(made), "extra"] += 1
    else:
        tally.reference += 1
        tally.by_action[str(expected), "total"] += 1
        tally.missing += made is None
        if expected == made:
            tally.correct += 1
            tally.by_action[str(expected), "correct"] += 1
            tally.calls_right += expected.startswith("call_")
        tally.calls_wanted += expected.startswith("call_")
    tally.calls_made += made is not None and made.startswith("call_")


def _outputs(turns: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [turn["tool_output"] for turn in turns if turn.get("tool_output") is not None]


def _count_answers(
    tally: Tally, question: str, turns: Sequence[Mapping[str, Any]], outputs: Sequence[Any]
) -> None:
    for turn in turns:
        content = turn.get("content")
        if not content:
            continue
        content = uncurated(content)  # entries speak of people in general
        violations = check_grounding(content, outputs, question=question)
        claims = violations or check_grounding(content, (), question=question)
        if claims or turn.get("action") == Action.RESPONSE:
            tally.answers += 1
            tally.faithful += not violations


def _count_asked(
    tally: Tally, question: str, turns: Sequence[Mapping[str, Any]], fresh: Sequence[Any]
) -> None:
    answer = " ".join(str(turn["content"]) for turn in turns if turn.get("content"))
    missing = unstated_values(question, fresh, answer)
    if missing is not None:
        tally.asked += 1
        tally.stated += not missing
