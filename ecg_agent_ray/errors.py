"""Every exception this package raises on purpose.

    EcgAgentError                    exit 1   ran and failed
    ├── InputError                   exit 2   bad input or configuration; HTTP 4xx
    │   ├── RecordingError           a file that is no usable ECG
    │   │   ├── UnsupportedFormatError   the bytes are of no format we read
    │   │   └── CorruptRecordingError    the format is known, the content is broken
    │   ├── LeadError                a lead that is unknown, absent or unusable for what was asked
    │   ├── ConfigError              settings or YAML; carries every problem at once
    │   ├── DialogueError            a dialogue file or turn that breaks the schema
    │   ├── CheckpointError          weights that cannot be read as what they claim to be
    │   │   └── UnsafeCheckpointError    reading them would need code to run
    │   ├── ModelNotFoundError       no such registered model, alias, path or base model
    │   │   └── WeightsUnavailableError  exit 1   known weights that no source gave
    │   └── MissingDependencyError   an optional package or system tool is absent
    ├── RefusedError                 exit 3   a rule said no; nothing was changed
    │   ├── GateNotMetError          the candidate's metrics are below the gate
    │   ├── ChampionChangedError     someone else promoted first
    │   └── PlanDoesNotFitError      the training plan needs more than there is
    ├── ToolError                    a tool could not give an output for this recording
    ├── TrainingError                a training job failed
    └── ServiceError                 the service did not start or did not answer

An error says what is wrong, where, and how to mend it. ``hint`` holds the mend when it is not part
of the sentence; the command line prints it after the message, the HTTP API puts it in the problem
body.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = [
    "ChampionChangedError",
    "CheckpointError",
    "ConfigError",
    "CorruptRecordingError",
    "DialogueError",
    "EcgAgentError",
    "GateNotMetError",
    "InputError",
    "LeadError",
    "MissingDependencyError",
    "ModelNotFoundError",
    "PlanDoesNotFitError",
    "RecordingError",
    "RefusedError",
    "ServiceError",
    "ToolError",
    "TrainingError",
    "UnsafeCheckpointError",
    "UnsupportedFormatError",
    "WeightsUnavailableError",
]


class EcgAgentError(Exception):
    """Base of all; ``exit_code`` is what the command line ends with."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InputError(EcgAgentError):
    exit_code = 2


class RecordingError(InputError):
    pass


class UnsupportedFormatError(RecordingError):
    pass


class CorruptRecordingError(RecordingError):
    pass


class LeadError(InputError):
    pass


class ConfigError(InputError):
    """``problems`` lists every fault found, one line each."""

    def __init__(
        self, message: str, *, problems: tuple[str, ...] = (), hint: str | None = None
    ) -> None:
        super().__init__(
            message if not problems else f"{message}: " + "; ".join(problems), hint=hint
        )
        self.problems = problems


class DialogueError(InputError):
    pass


class CheckpointError(InputError):
    pass


class UnsafeCheckpointError(CheckpointError):
    pass


class ModelNotFoundError(InputError):
    pass


class WeightsUnavailableError(ModelNotFoundError):
    """The request was right; what failed was to reach a copy, which may do another time."""

    exit_code = 1


class MissingDependencyError(InputError):
    pass


class RefusedError(EcgAgentError):
    exit_code = 3


class GateNotMetError(RefusedError):
    """``report`` is the gate's table: each requirement, the value, and by how much it misses."""

    def __init__(
        self, message: str, *, report: Mapping[str, Any] | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.report = report


class ChampionChangedError(RefusedError):
    pass


class PlanDoesNotFitError(RefusedError):
    pass


class ToolError(EcgAgentError):
    pass


class TrainingError(EcgAgentError):
    pass


class ServiceError(EcgAgentError):
    pass
