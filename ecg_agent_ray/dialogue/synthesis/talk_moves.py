"""Moves without a tool: follow-ups, requests that cannot be met, greetings and goodbyes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ecg_agent_ray.dialogue.actions import Action
from ecg_agent_ray.dialogue.synthesis.frame import before, tail
from ecg_agent_ray.dialogue.synthesis.knowledge import (
    CONDITION_TERMS,
    TERMS,
    number_near_limit,
)
from ecg_agent_ray.dialogue.synthesis.plan import FAIL_WEIGHTS, GENERAL_WEIGHTS
from ecg_agent_ray.dialogue.synthesis.scene import Focus, Scene, capital, joined
from ecg_agent_ray.dialogue.synthesis.tool_moves import (
    answer_missing,
    ask_value,
    class_sentences,
    findings_list,
    pick_condition,
)
from ecg_agent_ray.facts.quantities import QUANTITIES
from ecg_agent_ray.facts.statements import STATEMENTS

__all__ = ["ask_for_known_null", "bye", "emergency", "fail", "follow_up", "hello"]

_RECORDINGS = {
    "12-lead": "a 12-lead ECG",
    "I": "a single-lead ECG, lead I",
    "II": "a single-lead ECG, lead II",
}
_LEXICON_TOPICS = ("drug", "habit", "sport")


def hello(scene: Scene) -> None:
    pool = "greet" if scene.chance(0.75) else "capability"
    scene.say(scene.draw(f"user.followup.{pool}"))
    _reply(scene, pool, pool)


def bye(scene: Scene, *, early: bool = False) -> None:
    scene.say(scene.draw("user.bye_early" if early and scene.chance(0.6) else "user.bye"))
    scene.answer(Action.SYSTEM_BYE, scene.draw("thought.bye"), scene.draw("answer.bye"))


def emergency(scene: Scene) -> None:
    scene.say(scene.draw("user.fail.emergency"))
    _refuse(scene, "emergency")


def fail(scene: Scene) -> None:
    """A request beyond the tools, the data or what an assistant may decide."""
    weights = dict(FAIL_WEIGHTS[scene.topic])
    if scene.facts.lead_configuration != "12-lead":
        weights["lead"] = 1.5
    if scene.measured and scene.facts.missing_keys:
        weights["null_known"] = 4.0
    kind = scene.choose(weights)
    if kind == "null_known":
        ask_for_known_null(scene)
        return
    scene.focus = None
    context = f"user.context.{scene.topic}" if scene.is_first else ""
    scene.say(before(scene, context), scene.draw(f"user.fail.{kind}"), tail(scene))
    _refuse(scene, kind)


def follow_up(scene: Scene) -> None:
    """A question whose answer needs no new tool call, from what the dialogue has got to."""
    weights = {f"general.{name}": weight for name, weight in GENERAL_WEIGHTS[scene.topic].items()}
    known = scene.measured or scene.classified
    scale = 0.35 if known else 1.0
    weights = {name: weight * scale for name, weight in weights.items()}
    if not scene.is_first:
        weights["chat"] = 3.0
    if scene.measured and scene.facts.known_keys:
        weights |= {"reask_value": 7.0, "value_meaning": 4.0}
        if scene.focus is not None and scene.focus.kind == "value":
            weights |= {"judge": 7.0, "worry_value": 2.0}
        if scene.focus is not None and scene.focus.kind == "values":
            weights |= {"all_in_range": 6.0, "worry_value": 2.0}
    if scene.classified:
        weights |= {"reask_finding": 4.0, "summary": 5.0}
        if scene.focus is not None and scene.focus.kind == "finding":
            weights |= {"finding": 9.0, "cause": 4.0, "worry_finding": 5.0, "confidence": 3.0}
        elif scene.facts.findings:
            weights["finding"] = 3.0
    if scene.focus is not None and scene.focus.kind == "explanation":
        weights["explanation"] = 8.0
    name = scene.choose(weights)
    if name.startswith("general."):
        _general(scene, name.removeprefix("general."))
        scene.focus = None
    else:
        _FOLLOW_UPS[name](scene)


# --- general knowledge -------------------------------------------------------------------------
def _general(scene: Scene, kind: str) -> None:
    slots: dict[str, str] = {}
    if kind in ("term", "risk", "differ"):
        slots = _term_slots(scene, kind)
        _ask(scene, kind, **slots)
        _reply(scene, kind, "term", slots, general=True)
    elif kind == "range":
        _ask_range(scene)
    elif kind == "leads":
        _ask(scene, kind)
        recording = _RECORDINGS[scene.facts.lead_configuration]
        _reply(scene, kind, kind, {"recording": recording})
    else:
        if kind in _LEXICON_TOPICS or kind == "drug_general":
            word = kind.removesuffix("_general")
            filled = scene.bank.fill(scene.rng, f"{{{word}}}", {})
            slots = {word: filled, f"{word}_cap": capital(filled)}
        _ask(scene, kind, **slots)
        thought = "capability" if kind == "capability" else "general"
        _reply(scene, kind, thought, slots, general=True)


def _term_slots(scene: Scene, kind: str) -> dict[str, str]:
    terms = list(CONDITION_TERMS if kind == "risk" else TERMS)
    term, other = scene.rng.sample(terms, k=2)
    return {
        "term": term,
        "term_cap": capital(term),
        "definition": TERMS[term],
        "other": other,
        "other_cap": capital(other),
        "other_definition": TERMS[other],
    }


def _ask_range(scene: Scene) -> None:
    key = scene.rng.choice(list(QUANTITIES))
    quantity = QUANTITIES[key]
    number, rating = number_near_limit(key, scene.rng)
    _ask(scene, "range", value=scene.user_name(key), number=number)
    asked_number = number.split()[0] in (scene.turns[-1].content or "")
    slots = {"name": quantity.name, "usual": quantity.usual, "number": number, "rating": rating}
    _reply(scene, "range.number" if asked_number else "range", "range", slots)


# --- about measured values ---------------------------------------------------------------------
def _value_meaning(scene: Scene) -> None:
    key = _focus_key(scene)
    _ask(scene, "value_meaning", value=scene.user_name(key))
    _reply(scene, "value_meaning", "value_meaning", scene.value_slots(key))


def _judge(scene: Scene) -> None:
    key = _focus_key(scene)
    _ask(scene, "judge_that")
    slots = scene.value_slots(key)
    _reply(scene, f"judge.{scene.facts.rating(key)}", "judge", slots)


def _reask_value(scene: Scene) -> None:
    """A value is asked for that the earlier measurement holds: no second call."""
    key = scene.rng.choice(scene.facts.known_keys)
    if scene.chance(0.5):
        _ask(scene, "reask_value", value=scene.user_name(key))
    else:
        scene.say(before(scene, ""), ask_value(scene, key), tail(scene))
    slots = scene.value_slots(key)
    pool = f"judge.{scene.facts.rating(key)}" if scene.chance(0.3) else "reask_value"
    _reply(scene, pool, "reask_value", slots)
    scene.focus = Focus("value", key)


def _all_in_range(scene: Scene) -> None:
    keys = scene.facts.known_keys
    _ask(scene, "all_in_range")
    off = scene.off_list(keys)
    pool, slots = ("answer.values.off", {"off": off}) if off else ("answer.values.normal", {})
    scene.answer(
        Action.RESPONSE_FOLLOWUP,
        scene.draw("thought.followup.all_in_range"),
        scene.draw("answer.followup.summary.values", list=scene.values_list(keys)),
        scene.draw(pool, **slots),
    )


def _worry_value(scene: Scene) -> None:
    keys = scene.facts.known_keys
    _ask(scene, "worry")
    off = scene.off_list(keys)
    _reply(scene, "worry.off" if off else "worry.value", "worry", {"off": off})


def ask_for_known_null(scene: Scene) -> None:
    """A value is asked for that an earlier measurement could not give: no second call."""
    key = scene.rng.choice(scene.facts.missing_keys)
    if scene.chance(0.5):
        _ask(scene, "reask_value", value=scene.user_name(key))
    else:
        scene.say(before(scene, ""), ask_value(scene, key), tail(scene))
    answer_missing(scene, [key], known_before=True)


# --- about findings ----------------------------------------------------------------------------
def _finding(scene: Scene) -> None:
    code = _focus_code(scene)
    slots = _finding_slots(scene, code)
    spoken = scene.rng.choice((slots["finding"], slots["finding"], code))
    # "that" would mean something else where the talk has moved on
    named = scene.focus is None or scene.focus.kind != "finding" or scene.chance(0.5)
    kind = "finding_named" if named else "finding_meaning"
    _ask(scene, kind, finding=spoken)
    scene.focus = Focus("finding", code)
    _reply(scene, "finding", "finding", slots, general=True)


def _cause(scene: Scene) -> None:
    code = _focus_code(scene)
    _ask(scene, "cause", finding=_finding_slots(scene, code)["finding"])
    benign = scene.finding(code).is_benign
    _reply(scene, "cause.benign" if benign else "cause.finding", "cause")


def _worry_finding(scene: Scene) -> None:
    code = _focus_code(scene)
    _ask(scene, "worry")
    benign = scene.finding(code).is_benign
    pool = "worry.benign" if benign else "worry.finding"
    _reply(scene, pool, "worry", _finding_slots(scene, code))


def _confidence(scene: Scene) -> None:
    slots = _finding_slots(scene, _focus_code(scene))
    _ask(scene, "confidence", percent=slots["percent"])
    _reply(scene, "confidence", "confidence", slots)


def _reask_finding(scene: Scene) -> None:
    """A condition is asked about and the classification is there already: no second call."""
    condition = pick_condition(scene)
    slots = scene.condition_slots(condition)
    if scene.chance(0.5):
        _ask(scene, "reask_finding", **slots)
    else:
        scene.say(before(scene, ""), scene.draw("user.classify.specific", **slots))
    hits = [item for item in scene.facts.findings if item.code in condition.codes]
    _reply(
        scene,
        "reask_finding.yes" if hits else "reask_finding.no",
        "reask_finding",
        {
            **slots,
            "hit": joined([item.shown for item in hits]),
            "findings": findings_list(scene) or "none above the threshold",
        },
    )


def _summary(scene: Scene) -> None:
    """The result is asked for again, in words for it or as it was first asked for.

    An order to run the tool or read the ECG ("classify it") is no such question.
    """
    kind = scene.choose({"reask_summary": 4, "rhythm": 1, "abnormal": 1})
    pool = "user.followup.reask_summary" if kind == "reask_summary" else f"user.classify.{kind}"
    scene.say(before(scene, ""), scene.draw(pool), tail(scene))
    if scene.facts.findings:
        sentences = [scene.draw("answer.followup.summary.class", findings=findings_list(scene))]
    else:
        sentences = class_sentences(scene)
    if scene.measured and scene.facts.known_keys and kind == "reask_summary":
        listed = scene.values_list(scene.facts.known_keys)
        sentences.append(scene.draw("answer.followup.summary.values", list=listed))
    thought = scene.draw("thought.followup.summary")
    scene.answer(Action.RESPONSE_FOLLOWUP, thought, *sentences)
    scene.focus = Focus("finding", scene.leading.code) if scene.leading else None


def _explanation(scene: Scene) -> None:
    _ask(scene, "explanation")
    _reply(scene, "explanation", "explanation")


def _chat(scene: Scene) -> None:
    scene.say(scene.draw("user.followup.chat"))
    _reply(scene, "chat", "chat")


_FOLLOW_UPS: dict[str, Callable[[Scene], None]] = {
    "all_in_range": _all_in_range,
    "cause": _cause,
    "chat": _chat,
    "confidence": _confidence,
    "explanation": _explanation,
    "finding": _finding,
    "judge": _judge,
    "reask_finding": _reask_finding,
    "reask_value": _reask_value,
    "summary": _summary,
    "value_meaning": _value_meaning,
    "worry_finding": _worry_finding,
    "worry_value": _worry_value,
}


# --- shared ------------------------------------------------------------------------------------
def _ask(scene: Scene, kind: str, **values: str) -> None:
    request = scene.draw(f"user.followup.{kind}", **values)
    scene.say(before(scene, ""), request, tail(scene))


def _reply(
    scene: Scene,
    pool: str,
    thought: str,
    values: Mapping[str, str] | None = None,
    *,
    general: bool = False,
) -> None:
    values = values or {}
    scene.answer(
        Action.RESPONSE_FOLLOWUP,
        scene.draw(f"thought.followup.{thought}", **values),
        scene.draw(f"answer.followup.{pool}", **values),
        general=general,
    )


def _refuse(scene: Scene, kind: str) -> None:
    scene.answer(
        Action.RESPONSE_FAIL,
        scene.draw(f"thought.fail.{kind}"),
        scene.draw(f"answer.fail.{kind}", lead=scene.facts.lead_configuration),
    )


def _focus_key(scene: Scene) -> str:
    if scene.focus is not None and scene.focus.kind == "value":
        return scene.focus.key
    return scene.rng.choice(scene.facts.known_keys)


def _focus_code(scene: Scene) -> str:
    if scene.focus is not None and scene.focus.kind == "finding":
        return scene.focus.key
    return scene.facts.findings[0].code


def _finding_slots(scene: Scene, code: str) -> dict[str, str]:
    found = scene.finding(code)
    meaning = STATEMENTS[code].meaning if code in STATEMENTS else "the tool reported this code"
    return {
        "finding": found.name,
        "finding_cap": capital(found.name),
        "meaning": meaning,
        "percent": f"{found.percent}%",
    }
