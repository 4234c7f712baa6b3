"""Dialogues about ECGs: actions, turns, rendering and parsing, files, checks, synthesis."""

from ecg_agent_ray.dialogue.actions import Action
from ecg_agent_ray.dialogue.io import (
    DialogueFile,
    RowProblem,
    dialogue_files,
    load_dialogues,
    read_dialogues,
    write_dialogues,
)
from ecg_agent_ray.dialogue.prompt import PROMPT_VERSION, system_prompt
from ecg_agent_ray.dialogue.records import RecordIndex, record_key
from ecg_agent_ray.dialogue.render import dialogue_messages, parse_turn, render_turn
from ecg_agent_ray.dialogue.turns import (
    LEAD_CONFIGURATIONS,
    Dialogue,
    LeadConfiguration,
    Turn,
)
from ecg_agent_ray.dialogue.validate import DialogueStats, Problem, clean_report, stats, validate

__all__ = [
    "LEAD_CONFIGURATIONS",
    "PROMPT_VERSION",
    "Action",
    "Dialogue",
    "DialogueFile",
    "DialogueStats",
    "LeadConfiguration",
    "Problem",
    "RecordIndex",
    "RowProblem",
    "Turn",
    "clean_report",
    "dialogue_files",
    "dialogue_messages",
    "load_dialogues",
    "parse_turn",
    "read_dialogues",
    "record_key",
    "render_turn",
    "stats",
    "system_prompt",
    "validate",
    "write_dialogues",
]
