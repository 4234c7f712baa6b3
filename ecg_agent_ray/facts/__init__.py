"""What may be said of an ECG: quantities, statements, slots, curated knowledge, what is shown.

Facts are computed and filled in, not recognised in a model's words. Knows no torch and no agent.
"""

from ecg_agent_ray.facts.conflicts import conflicts
from ecg_agent_ray.facts.groups import GROUPS, IMPLIED_BY
from ecg_agent_ray.facts.guard import StrictGuard
from ecg_agent_ray.facts.knowledge import NOT_IN_KNOWLEDGE, Entry, Level, knowledge, sources
from ecg_agent_ray.facts.quantities import ALL_QUANTITIES, QUANTITIES, Quantity, measured, rounded
from ecg_agent_ray.facts.retrieval import ALWAYS, best_entries, retriever, urgent_entry
from ecg_agent_ray.facts.sheet import FactSheet, Finding
from ecg_agent_ray.facts.slotify import slotify, uncurated
from ecg_agent_ray.facts.slots import SLOT, Slot, fill, named_numbers, offered, parse_slot
from ecg_agent_ray.facts.statements import (
    STATEMENTS,
    Statement,
    find_statements,
    statement_name,
)
from ecg_agent_ray.facts.urgent import URGENT_RULES, UrgentRule, urgent_lines

__all__ = [
    "ALL_QUANTITIES",
    "ALWAYS",
    "GROUPS",
    "IMPLIED_BY",
    "NOT_IN_KNOWLEDGE",
    "QUANTITIES",
    "SLOT",
    "STATEMENTS",
    "URGENT_RULES",
    "Entry",
    "FactSheet",
    "Finding",
    "Level",
    "Quantity",
    "Slot",
    "Statement",
    "StrictGuard",
    "UrgentRule",
    "best_entries",
    "conflicts",
    "fill",
    "find_statements",
    "knowledge",
    "measured",
    "named_numbers",
    "offered",
    "parse_slot",
    "retriever",
    "rounded",
    "slotify",
    "sources",
    "statement_name",
    "uncurated",
    "urgent_entry",
    "urgent_lines",
]
