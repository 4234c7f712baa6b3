"""Where an evaluation's tool outputs come from: the tools, the paper's CSVs, the dialogues."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ecg_agent_ray.agent.events import ToolResult
from ecg_agent_ray.agent.toolbox import TOOL_OF_ACTION, LocalToolbox, Toolbox, failed_result
from ecg_agent_ray.dialogue import Action, Dialogue, RecordIndex
from ecg_agent_ray.errors import InputError, RecordingError

__all__ = ["CsvTools", "GivenToolbox", "LiveTools", "ToolSource", "recorded_tools", "tool_source"]

ToolSource = Callable[[Dialogue], Toolbox]
"""Gives the toolbox for a dialogue's ECG."""


class GivenToolbox:
    """Tool outputs that are known beforehand, in dialogue form."""

    def __init__(self, outputs: Mapping[Action, Any], key: str = "") -> None:
        self.outputs = dict(outputs)
        self.key = key

    def call(self, action: Action, *, question: str, previous: Sequence[ToolResult]) -> ToolResult:
        if action not in self.outputs:
            return failed_result(action, "no output of this tool is known for this ECG")
        return ToolResult(TOOL_OF_ACTION[action], action, self.outputs[action])


def recorded_tools(dialogue: Dialogue) -> Toolbox:
    """The outputs that the reference dialogue holds; needs no ECG."""
    outputs: dict[Action, Any] = {}
    for action, output in dialogue.tool_outputs():
        outputs.setdefault(action, output)
    return GivenToolbox(outputs)


class CsvTools:
    """Outputs from CSV or Parquet files as ``ecg-agent extract`` and the paper write them.

    Files are told apart by their columns: ``top_classes`` is classification, ``Heart_Rate``
    measurement, ``text`` explanation. An ECG is found by ``ecg_file_path`` as it stands, else by
    its stem.

    Raises
    ------
    InputError
        A file cannot be read or has none of these columns.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self._rows: dict[Action, dict[str, Mapping[str, Any]]] = {}
        self._index: dict[Action, RecordIndex] = {}
        for path in paths:
            self._read(Path(path))

    def _read(self, path: Path) -> None:
        import pandas as pd

        try:
            if path.suffix == ".parquet":
                table = pd.read_parquet(path)
            else:
                # a record named 00001 is no number
                table = pd.read_csv(path, dtype={"ecg_file_path": str})
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read tool outputs from {path}: {error}") from error
        columns = {
            "top_classes": Action.CALL_CLASSIFICATION,
            "Heart_Rate": Action.CALL_MEASUREMENT,
            "text": Action.CALL_EXPLANATION,
        }
        action = next((columns[name] for name in columns if name in table.columns), None)
        if action is None or "ecg_file_path" not in table.columns:
            raise InputError(
                f"{path} holds no tool outputs",
                hint="expected ecg_file_path and one of " + ", ".join(columns),
            )
        rows = self._rows.setdefault(action, {})
        for row in table.to_dict("records"):
            name = str(row["ecg_file_path"])
            rows[name] = row
            self._index.setdefault(action, RecordIndex()).add(name)

    def __call__(self, dialogue: Dialogue) -> Toolbox:
        outputs: dict[Action, Any] = {}
        name = dialogue.ecg_files[0] if dialogue.ecg_files else ""
        for action, rows in self._rows.items():
            found = self._index[action].find(name) if action in self._index else None
            if found is not None:
                outputs[action] = _OUTPUT_OF_ROW[action](rows[found])
        return GivenToolbox(outputs, key=f"csv:{name}" if name else "")


def _measurement(row: Mapping[str, Any]) -> dict[str, str | None]:
    def text(column: str, decimals: int) -> str | None:
        value = row.get(column)
        missing = value is None or value != value  # NaN
        return None if missing else f"{float(str(value)):.{decimals}f}"

    return {
        "heart_rate": text("Heart_Rate", 2),
        "pr_interval": text("PR_Interval_ms", 0),
        "qrs_duration": text("QRS_Duration_ms", 0),
        "qtc_interval": text("QTc_ms", 2),
    }


def _classification(row: Mapping[str, Any]) -> list[str]:
    value = row.get("top_classes")
    if not isinstance(value, str) or value.startswith("None"):
        return []
    return [entry.strip() for entry in value.split(", ")]


_OUTPUT_OF_ROW: Mapping[Action, Callable[[Mapping[str, Any]], Any]] = {
    Action.CALL_MEASUREMENT: _measurement,
    Action.CALL_CLASSIFICATION: _classification,
    Action.CALL_EXPLANATION: lambda row: str(row["text"]),
}


class LiveTools:
    """The tools themselves, on the recordings below a folder.

    Parameters
    ----------
    ecg_dir
        Where ``ecg_files`` are found: as the path they give, or by stem anywhere below.
    classifier
        A loaded classifier, a URI or path, or None for the shipped one; loaded once.
    """

    _SUFFIXES = ("", ".hea", ".mat", ".dat", ".dcm", ".xml", ".edf", ".csv", ".scp")

    def __init__(self, ecg_dir: str | Path, classifier: Any = None) -> None:
        self.ecg_dir = Path(ecg_dir)
        if not self.ecg_dir.is_dir():
            raise InputError(f"no folder of recordings at {self.ecg_dir}")
        self._classifier = classifier
        self._lock = threading.Lock()
        self._files: dict[str, Path] | None = None
        self._index = RecordIndex()

    def find(self, name: str) -> Path:
        """The recording's path; raises :class:`RecordingError` if there is none."""
        for suffix in self._SUFFIXES:
            path = self.ecg_dir / f"{name}{suffix}"
            if path.is_file():
                return path
        if self._files is None:
            files = sorted(self.ecg_dir.rglob("*"), key=lambda path: path.suffix != ".hea")
            found: dict[str, Path] = {}
            for path in files:
                if path.suffix in self._SUFFIXES[1:]:
                    found.setdefault(path.stem, path)
            # last, since other threads take it for whole once it is there
            self._index, self._files = RecordIndex(found), found
        stem = self._index.find(PurePosixPath(name).stem)
        if stem is None:
            raise RecordingError(f"no recording {name!r} below {self.ecg_dir}")
        return self._files[stem]

    def __call__(self, dialogue: Dialogue) -> Toolbox:
        from ecg_agent_ray import ecg

        if not dialogue.ecg_files:
            raise RecordingError("the dialogue names no ECG file")
        with self._lock:
            if self._classifier is None or isinstance(self._classifier, str | Path):
                from ecg_agent_ray.classifier import load_classifier

                self._classifier = load_classifier(self._classifier or "builtin:")
        recording = ecg.read(self.find(dialogue.ecg_files[0]))
        return LocalToolbox(recording, self._classifier, dialogue.lead_configuration)


def tool_source(
    tools: str | Sequence[str], *, ecg_dir: str | Path | None = None, classifier: Any = None
) -> ToolSource:
    """``"live"`` (needs ``ecg_dir``), ``"recorded"``, or paths of CSVs.

    Raises :class:`InputError` when live tools have no folder of recordings.
    """
    names = [tools] if isinstance(tools, str) else list(tools)
    if names == ["recorded"]:
        return recorded_tools
    if names == ["live"]:
        if ecg_dir is None:
            raise InputError("live tools need the recordings", hint="give --ecg-dir")
        return LiveTools(ecg_dir, classifier)
    return CsvTools(names)
