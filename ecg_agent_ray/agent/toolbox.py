"""The tools of one recording, as the agent calls them.

A toolbox turns an action into a :class:`ToolResult` and never raises for a recording that cannot be
measured or classified: a failure is an output like any other, which the model can speak about.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from ecg_agent_ray.agent.asked import all_measured
from ecg_agent_ray.agent.events import ToolResult
from ecg_agent_ray.dialogue import Action
from ecg_agent_ray.errors import EcgAgentError, ToolError
from ecg_agent_ray.facts.quantities import QUANTITIES
from ecg_agent_ray.facts.statements import statement_name

if TYPE_CHECKING:
    from ecg_agent_ray.ecg import Recording

__all__ = [
    "TOOL_OF_ACTION",
    "LocalToolbox",
    "Toolbox",
    "choose_explained_label",
    "failed_result",
    "in_words",
    "offered_actions",
]

TOOL_OF_ACTION: Mapping[Action, str] = {
    Action.CALL_CLASSIFICATION: "classification",
    Action.CALL_MEASUREMENT: "measurement",
    Action.CALL_EXPLANATION: "explanation",
}
"""The tool behind each tool action."""

_STATEMENT_OF_OUTPUT = re.compile(r"^\s*(\S+)\s*\(")


class Toolbox(Protocol):
    """The tools for one ECG. ``call`` may be used from several threads.

    A toolbox may have a ``key``, text that is the same for the same ECG and tools and no other;
    with it the agent remembers its own turns of a dialogue between requests.
    """

    def call(self, action: Action, *, question: str, previous: Sequence[ToolResult]) -> ToolResult:
        """Run the tool behind ``action``.

        ``question`` is the user's last message and ``previous`` the dialogue's earlier results, in
        order; together they say what is to be explained. Does not raise for a failed tool.
        """
        ...


def failed_result(action: Action, reason: str, ms: float = 0.0) -> ToolResult:
    """The output the model reads when a tool gave none."""
    output: Any
    if action is Action.CALL_EXPLANATION:
        output = f"Explanation error: {reason}"
    else:
        output = {"error": reason}
    return ToolResult(
        tool=TOOL_OF_ACTION[action], action=action, output=output, ms=ms, error=reason
    )


def offered_actions(
    called: Sequence[Action],
    max_tool_calls: int,
    *,
    question: str = "",
    outputs: Sequence[Any] = (),
) -> tuple[Action, ...]:
    """What the model may do after the tools ``called`` in this user turn.

    A call made already would give the same again, so it is not offered twice; after
    ``max_tool_calls`` only answers are. Where this turn's ``outputs`` hold all values that the
    ``question`` asks for, to say that they cannot be had would contradict the tool; where the
    measurement alone was called and one of them is null, to answer as if it were there would.
    """
    may_call = len(called) < max_tool_calls
    measured = all_measured(question, outputs)
    contradicted = {
        *([Action.RESPONSE_FAIL] if measured else ()),
        *([Action.RESPONSE] if measured is False and len(called) == 1 else ()),
    }
    return tuple(
        action
        for action in Action
        if (not action.is_tool_call or (may_call and action not in called))
        and action not in contradicted
    )


def choose_explained_label(question: str, previous: Sequence[ToolResult]) -> str | None:
    """The statement to explain.

    A label of the last classification output that ``question`` names, by code or by plain name
    (case-insensitive), else that output's first label; None without a classification.
    """
    from ecg_agent_ray.facts.statements import find_statements

    for result in reversed(previous):
        if result.tool != "classification" or not isinstance(result.output, Sequence):
            continue
        labels = [m[1] for entry in result.output if (m := _STATEMENT_OF_OUTPUT.match(str(entry)))]
        if not labels:
            continue
        named = find_statements(question)
        return next((label for label in labels if label in named), labels[0])
    return None


def in_words(result: ToolResult) -> str:
    """The result as a plain listing, for when the model gives no usable sentence."""
    output = result.output
    if result.error is not None:
        return f"{result.tool} failed ({result.error})"
    if isinstance(output, Mapping):
        values = [
            f"{quantity.name} {output[key]} {quantity.unit}"
            for key, quantity in QUANTITIES.items()
            if output.get(key) is not None
        ]
        return ", ".join(values) or "no value could be measured"
    if isinstance(output, Sequence) and not isinstance(output, str):
        return ", ".join(_named(str(entry)) for entry in output) or "no finding above the threshold"
    return ""


def _named(entry: str) -> str:
    code, _, rest = entry.partition(" ")
    return f"{statement_name(code)} {rest}".strip()


class LocalToolbox:
    """The tools in this process, on one recording; each result is computed once.

    Parameters
    ----------
    recording
        What the tools look at.
    classifier
        A loaded classifier, a URI or path, or None for the shipped one; passed on to
        :func:`ecg_agent_ray.tools.classify` and :func:`ecg_agent_ray.tools.explain`.
    lead_configuration
        ``"12-lead"``, ``"I"`` or ``"II"``. With a single lead, measurements are taken on that lead.
    """

    def __init__(
        self,
        recording: Recording,
        classifier: Any = None,
        lead_configuration: str = "12-lead",
    ) -> None:
        self.recording = recording
        # a failure's message names the recording, and whoever made the file named it: its words
        # are none that the model should read
        self._nameless = replace(recording, record_id="the recording")
        self.classifier = classifier
        self.lead_configuration = lead_configuration
        self._results: dict[tuple[Action, str], ToolResult] = {}
        self._lock = threading.Lock()
        self._locks: dict[tuple[Action, str], threading.Lock] = {}
        digest = hashlib.sha256(recording.signal.tobytes()).hexdigest()[:16]
        self.key = f"{recording.record_id}:{digest}:{lead_configuration}:{classifier}"

    def call(self, action: Action, *, question: str, previous: Sequence[ToolResult]) -> ToolResult:
        label = ""
        if action is Action.CALL_EXPLANATION:
            label = choose_explained_label(question, previous) or ""
        with self._lock:
            lock = self._locks.setdefault((action, label), threading.Lock())
        with lock:  # the same call waits for the first, other tools run beside it
            known = self._results.get((action, label))
            if known is not None:
                return replace(known, ms=0.0)
            result = self._run(action, label)
            self._results[(action, label)] = result
            return result

    def _run(self, action: Action, label: str) -> ToolResult:
        started = time.perf_counter()
        runners: dict[Action, Callable[[str], Any]] = {
            Action.CALL_MEASUREMENT: self._measure,
            Action.CALL_CLASSIFICATION: self._classify,
            Action.CALL_EXPLANATION: self._explain,
        }
        if action not in runners:
            raise ToolError(f"{action} calls no tool")
        try:
            output = runners[action](label)
        except EcgAgentError as error:
            return failed_result(action, error.message, (time.perf_counter() - started) * 1000)
        return ToolResult(
            tool=TOOL_OF_ACTION[action],
            action=action,
            output=output.to_dialogue(),
            detail=output.to_dict() | {"record_id": self.recording.record_id},
            ms=(time.perf_counter() - started) * 1000,
        )

    def _measure(self, _: str) -> Any:
        from ecg_agent_ray import tools

        lead = "auto" if self.lead_configuration == "12-lead" else self.lead_configuration
        return tools.measure(self._nameless, lead=lead)

    def _classify(self, _: str) -> Any:
        from ecg_agent_ray import tools

        return tools.classify(self._nameless, self.classifier, leads=self.lead_configuration)

    def _explain(self, label: str) -> Any:
        from ecg_agent_ray import tools

        if not label:
            found = self._classify("").to_dict()
            label = next(iter(found["positive"]), "") or _most_probable(found["labels"])
        return tools.explain(
            self._nameless, label, model=self.classifier, leads=self.lead_configuration
        )


def _most_probable(probabilities: Mapping[str, float | None]) -> str:
    assessed = {label: p for label, p in probabilities.items() if p is not None}
    if not assessed:
        raise ToolError("the classifier assesses no statement for these leads")
    return max(assessed, key=lambda label: assessed[label])
