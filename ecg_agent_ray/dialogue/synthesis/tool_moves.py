"""Moves in which a tool is called: a request, the calls, and the answer from their outputs."""

from __future__ import annotations

from collections.abc import Sequence

from ecg_agent_ray.dialogue.actions import Action
from ecg_agent_ray.dialogue.synthesis.facts import parse_region
from ecg_agent_ray.dialogue.synthesis.frame import before, tail
from ecg_agent_ray.dialogue.synthesis.knowledge import CONDITIONS, Condition
from ecg_agent_ray.dialogue.synthesis.plan import CLASSIFY_WEIGHTS, MEASURE_WEIGHTS
from ecg_agent_ray.dialogue.synthesis.scene import Focus, Scene, capital, joined
from ecg_agent_ray.facts.quantities import QUANTITIES
from ecg_agent_ray.facts.statements import STATEMENTS

__all__ = [
    "both",
    "classify",
    "classify_and_explain",
    "explain",
    "measure",
    "pick_condition",
    "tool_failure",
]

_SHORT_POOL = {
    "heart_rate": "user.measure.hr",
    "pr_interval": "user.measure.pr",
    "qrs_duration": "user.measure.qrs",
    "qtc_interval": "user.measure.qtc",
}
_SERIOUS = frozenset({"infarction", "ischemia", "conduction"})
_SINUS = frozenset({"SR", "SBRAD", "STACH", "SARRH"})
_MOST_LISTED = 4
_ERRORS = (
    "no lead is usable",
    "the recording is too short",
    "the signal is flat",
    "the lead asked for is not in the recording",
    "the file holds no samples",
    "the model could not be loaded",
)


# --- measurement -------------------------------------------------------------------------------
def measure(scene: Scene, *, missing: bool = False) -> None:
    """A request for values; with ``missing``, for at least one that could not be measured."""
    keys = _ask_for_values(scene, missing)
    _call_measurement(scene, keys)
    if missing:
        answer_missing(scene, keys)
        return
    if len(keys) == 1:
        slots = scene.value_slots(keys[0])
        thought = scene.draw("thought.value", **slots)
        answer = scene.draw(f"answer.value.{scene.facts.rating(keys[0])}", **slots)
        scene.answer(Action.RESPONSE, thought, answer)
        scene.focus = Focus("value", keys[0])
    else:
        scene.answer(Action.RESPONSE, scene.draw("thought.values"), *values_sentences(scene, keys))
        scene.focus = Focus("values")


def ask_value(scene: Scene, key: str) -> str:
    """A direct request for one value, in general words or in those of this value."""
    if scene.chance(0.55):
        return scene.draw("user.measure.one", value=scene.user_name(key))
    return scene.draw(_SHORT_POOL[key])


def values_sentences(scene: Scene, keys: Sequence[str]) -> list[str]:
    off = scene.off_list(keys)
    listed = scene.draw("answer.values", list=scene.values_list(keys))
    if off:
        return [listed, scene.draw("answer.values.off", off=off)]
    return [listed, scene.draw("answer.values.normal")]


def answer_missing(scene: Scene, keys: Sequence[str], *, known_before: bool = False) -> None:
    """Say which of ``keys`` could not be measured, and state the others."""
    missing = [key for key in keys if scene.facts.values[key] is None]
    others = [key for key in keys if key not in missing]
    names = joined([QUANTITIES[key].name for key in missing])
    pool = "thought.fail.null_known" if known_before else "thought.null"
    scene.answer(
        Action.RESPONSE_FAIL,
        scene.draw(pool, missing=names),
        scene.draw("answer.null", missing=names),
        scene.draw("answer.null.rest", list=scene.values_list(others)) if others else "",
        scene.draw("answer.null.advice") if scene.chance(0.5) else "",
    )
    scene.focus = Focus("values") if others else None


def _ask_for_values(scene: Scene, missing: bool) -> list[str]:
    known, absent = scene.facts.known_keys, scene.facts.missing_keys
    if missing:
        kind = scene.choose({"one": 5, "many": 1.5, "all": 2})
        keys = [scene.rng.choice(absent)]
    else:
        weights = {
            name: weight
            for name, weight in MEASURE_WEIGHTS[scene.topic].items()
            if name in known
            or (name == "many" and len(known) > 1)
            or (name == "all" and not absent)
        }
        kind = scene.choose(weights)
        keys = [kind] if kind in known else [scene.rng.choice(known)]
    if kind == "many" and known:
        others = [key for key in known if key not in keys]
        keys += scene.rng.sample(others, k=min(len(others), scene.rng.choice((1, 1, 2))))
    if kind == "all":
        keys = list(QUANTITIES)
        request = scene.draw("user.measure.all")
    elif len(keys) > 1:
        names = [scene.user_name(key) for key in keys]
        request = scene.draw("user.measure.many", values=_user_list(scene, names))
    else:
        request = ask_value(scene, keys[0])
    scene.say(before(scene, "user.measure.context"), request, tail(scene))
    return keys


def _user_list(scene: Scene, names: list[str]) -> str:
    if scene.chance(0.2):
        return scene.rng.choice((" & ", " + ", ", ")).join(names)
    return joined([f"my {name}" for name in names] if scene.chance(0.2) else names)


def _call_measurement(scene: Scene, keys: Sequence[str], pool: str = "") -> None:
    pool = pool or (
        "thought.call_measurement.more" if scene.classified else "thought.call_measurement"
    )
    value = joined([QUANTITIES[key].name for key in keys]) if len(keys) < 3 else "intervals"
    thought = scene.draw(pool, value=value)
    scene.call(Action.CALL_MEASUREMENT, thought, dict(scene.facts.measurement))


# --- classification ----------------------------------------------------------------------------
def classify(scene: Scene) -> None:
    """A request for findings, in one of the ways that people have of making it."""
    kind = scene.choose(CLASSIFY_WEIGHTS[scene.topic])
    condition = pick_condition(scene) if kind == "specific" else None
    values = {} if condition is None else scene.condition_slots(condition)
    request = scene.draw(f"user.classify.{kind}", **values)
    lead_in = "" if kind in ("symptom", "general") else f"user.context.{scene.topic}"
    scene.say(before(scene, lead_in), request, tail(scene))
    _call_classification(scene, kind, values)
    if condition is not None:
        _answer_specific(scene, condition, values)
    elif kind == "rhythm" and scene.facts.findings:
        _answer(scene, *_rhythm_sentences(scene))
    else:
        sentences = class_sentences(scene)
        if kind == "symptom":
            sorry = scene.draw("answer.sorry") if scene.chance(0.35) else ""
            sentences = [sorry, *sentences[:2], scene.draw("answer.symptom")]
        _answer(scene, *sentences)
    scene.focus = Focus("finding", scene.leading.code) if scene.leading else None


def pick_condition(scene: Scene) -> Condition:
    """Something to ask about by name: often what the recording has, else anything."""
    codes = {item.code for item in scene.facts.findings}
    present = [item for item in CONDITIONS if item.codes & codes]
    if present and scene.chance(0.45):
        return scene.rng.choice(present)
    return scene.rng.choice(CONDITIONS[:2] if scene.chance(0.25) else CONDITIONS)


def findings_list(scene: Scene) -> str:
    return joined([item.shown for item in scene.facts.findings[:_MOST_LISTED]])


def class_sentences(scene: Scene) -> list[str]:
    """What the classification says, and for an abnormal finding what it means."""
    findings = scene.facts.findings
    if not findings:
        return [scene.draw("answer.class.none")]
    abnormal = [item for item in findings if not item.is_benign]
    if not abnormal:
        pool = "normal" if any(item.code == "NORM" for item in findings) else "benign"
        return [scene.draw(f"answer.class.{pool}", findings=findings_list(scene))]
    leading = abnormal[0]
    sentences = [scene.draw("answer.class.abnormal", findings=findings_list(scene))]
    if leading.code in STATEMENTS and scene.chance(0.6):
        meaning = STATEMENTS[leading.code].meaning
        slots = {"finding": leading.name, "finding_cap": capital(leading.name)}
        sentences.append(scene.draw("answer.class.meaning", meaning=meaning, **slots))
    kinds = {STATEMENTS[item.code].kind for item in abnormal if item.code in STATEMENTS}
    if kinds & _SERIOUS or scene.chance(0.5):
        sentences.append(scene.draw("answer.class.advice"))
    return sentences


def _call_classification(scene: Scene, kind: str, values: dict[str, str], pool: str = "") -> None:
    if not pool:
        pool = "thought.call_classification"
        if kind in ("symptom", "specific"):
            pool += f".{kind}"
        elif scene.measured:
            pool += ".more"
    thought = scene.draw(pool, **values)
    scene.call(Action.CALL_CLASSIFICATION, thought, list(scene.facts.classification))


def _answer(scene: Scene, *sentences: str) -> None:
    codes = joined([item.code for item in scene.facts.findings[:_MOST_LISTED]])
    thought = (
        scene.draw("thought.class", codes=codes) if codes else scene.draw("thought.class.none")
    )
    scene.answer(Action.RESPONSE, thought, *sentences)


def _rhythm_sentences(scene: Scene) -> list[str]:
    rhythms = [item for item in scene.facts.findings if item.is_rhythm]
    if not rhythms:
        return [scene.draw("answer.rhythm.none", findings=findings_list(scene))]
    rest = [item for item in scene.facts.findings[:_MOST_LISTED] if not item.is_rhythm]
    sentences = [scene.draw("answer.rhythm.yes", rhythm=joined([item.shown for item in rhythms]))]
    if [item.code for item in rhythms] == ["SR"]:
        sentences.append(scene.draw("answer.rhythm.ok"))
    elif not _SINUS & {item.code for item in rhythms}:
        sentences.append(scene.draw("answer.rhythm.other"))
    if rest and (scene.chance(0.6) or any(not item.is_benign for item in rest)):
        listed = joined([item.shown for item in rest])
        sentences.append(scene.draw("answer.rest", rest=listed))
    return sentences


def _answer_specific(scene: Scene, condition: Condition, slots: dict[str, str]) -> None:
    hits = [item for item in scene.facts.findings if item.code in condition.codes]
    rest = [item for item in scene.facts.findings[:_MOST_LISTED] if item not in hits]
    if hits:
        hit = joined([item.shown for item in hits])
        sentences = [scene.draw("answer.specific.yes", hit=hit)]
        if rest and scene.chance(0.6):
            listed = joined([item.shown for item in rest])
            sentences.append(scene.draw("answer.rest", rest=listed))
        sentences.append(scene.draw("answer.class.advice") if scene.chance(0.5) else "")
    else:
        pool = "no" if scene.facts.findings else "none"
        findings = findings_list(scene)
        sentences = [scene.draw(f"answer.specific.{pool}", findings=findings, **slots)]
        if scene.facts.lead_configuration != "12-lead" and scene.chance(0.5):
            sentences.append(scene.draw("answer.lead_limit"))
    codes = joined([item.code for item in scene.facts.findings[:_MOST_LISTED]]) or "none"
    result = {
        "was_or_not": "include" if hits else "do not include",
        "hit_or_miss": "it is there" if hits else "it is not there",
    }
    thought = scene.draw("thought.specific", codes=codes, **slots, **result)
    scene.answer(Action.RESPONSE, thought, *sentences)


# --- both --------------------------------------------------------------------------------------
def both(scene: Scene) -> None:
    """One request that needs classification and measurement: two calls, then one answer."""
    # only values that were measured are asked for by name; a report on all names what is missing
    key = scene.rng.choice(scene.facts.known_keys or list(QUANTITIES))
    condition = pick_condition(scene)
    values = {
        "value": scene.user_name(key),
        "hr": scene.user_name("heart_rate"),
        **scene.condition_slots(condition),
    }
    request = scene.draw("user.both", **values)
    scene.say(before(scene, f"user.context.{scene.topic}"), request)
    named = [(key, values["value"]), ("heart_rate", values["hr"])]
    asked = [name for name, word in named if word in request][:1] or list(QUANTITIES)
    _call_classification(scene, "both", {}, "thought.both.first")
    _call_measurement(scene, asked, "thought.both.second")
    absent = [name for name in asked if name in scene.facts.missing_keys]
    known = [name for name in asked if name not in absent]
    sentences = class_sentences(scene)[:1]
    if known:
        sentences += values_sentences(scene, known)
    if absent:
        names = joined([QUANTITIES[name].name for name in absent])
        sentences.append(scene.draw("answer.null", missing=names))
    scene.answer(Action.RESPONSE, scene.draw("thought.both.answer"), *sentences)
    scene.focus = Focus("finding", scene.leading.code) if scene.leading else Focus("values")


# --- failure -----------------------------------------------------------------------------------
def tool_failure(scene: Scene) -> None:
    """A request whose tool gives an error instead of an output."""
    reason = scene.rng.choice(_ERRORS)
    if scene.chance(0.5):
        scene.say(before(scene, ""), scene.draw("user.classify.summary"))
        thought = scene.draw("thought.call_classification")
        scene.call(Action.CALL_CLASSIFICATION, thought, {"error": reason})
    else:
        key = scene.rng.choice(list(QUANTITIES))
        scene.say(before(scene, ""), ask_value(scene, key))
        thought = scene.draw("thought.call_measurement", value=QUANTITIES[key].name)
        scene.call(Action.CALL_MEASUREMENT, thought, {"error": reason})
    answer = scene.draw("answer.fail.tool")
    scene.answer(Action.RESPONSE_FAIL, scene.draw("thought.fail.tool"), answer)


# --- explanation -------------------------------------------------------------------------------
def explain(scene: Scene) -> None:
    """ "Where do you see that?" after a classification."""
    codes = scene.facts.explained_codes
    named = scene.focus is None or scene.focus.kind != "finding" or scene.chance(0.45)
    code = scene.rng.choice(codes) if named and scene.chance(0.4) else codes[0]
    name = scene.finding(code).name
    if named:
        spoken = scene.rng.choice((name, name, code, *STATEMENTS[code].aliases[:2]))
        request = scene.draw("user.explain.named", finding=spoken)
    else:
        request = scene.draw("user.explain.that")
    scene.say(before(scene, ""), request, tail(scene))
    _explain(scene, code)


def classify_and_explain(scene: Scene) -> None:
    """What is there and where: a classification, then an explanation of the leading finding."""
    condition = next(
        (item for item in CONDITIONS if scene.facts.findings[0].code in item.codes),
        pick_condition(scene),
    )
    values = scene.condition_slots(condition)
    scene.say(before(scene, f"user.context.{scene.topic}"),
              scene.draw("user.classify_explain", **values), tail(scene))  # fmt: skip
    _call_classification(scene, "explain", {})
    _explain(scene, scene.facts.findings[0].code, with_findings=True)


def _explain(scene: Scene, code: str, *, with_findings: bool = False) -> None:
    line = (scene.facts.explanation or {})[code]
    name = scene.finding(code).name
    slots = {"finding": name, "finding_cap": capital(name)}
    thought = scene.draw("thought.call_explanation", **slots)
    scene.call(Action.CALL_EXPLANATION, thought, line)
    region = parse_region(line)
    listed = class_sentences(scene)[:1] if with_findings else []
    if region is None:
        thought = scene.draw("thought.explain.fail")
        failed = scene.draw("answer.explain.fail", **slots)
        action = Action.RESPONSE if with_findings else Action.RESPONSE_FAIL
        scene.answer(action, thought, *listed, failed)
        scene.focus = Focus("finding", code)
        return
    where = {"percent": f"{region.percent}%", "when_s": region.when, "freq": region.freq}
    answer = scene.draw("answer.explain", **slots, **where)
    scene.answer(Action.RESPONSE, scene.draw("thought.explain"), *listed, answer)
    scene.focus = Focus("explanation", code)
