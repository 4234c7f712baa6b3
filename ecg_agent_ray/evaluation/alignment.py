"""Reference and generated assistant turns side by side, user turn by user turn.

Turns are paired within one user turn by the alignment with the fewest differing, missing and extra
turns, so that one extra tool call costs one error there and does not shift all that follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["align_turns", "aligned_records", "by_user_turn"]

TurnDict = Mapping[str, Any]


def by_user_turn(dialogue: Sequence[TurnDict]) -> list[tuple[TurnDict, list[TurnDict]]]:
    """Each user turn with the assistant turns after it; those before the first are left out."""
    groups: list[tuple[TurnDict, list[TurnDict]]] = []
    for turn in dialogue:
        if turn.get("role") == "user":
            groups.append((turn, []))
        elif groups:
            groups[-1][1].append(turn)
    return groups


def align_turns(
    reference: Sequence[str], generated: Sequence[str]
) -> list[tuple[int | None, int | None]]:
    """Pairs of positions with the least edit distance; None stands for a missing or extra turn.

    >>> align_turns(["response"], ["call_measurement_tool", "response"])
    [(None, 0), (0, 1)]
    """
    rows, columns = len(reference), len(generated)
    cost = [[0] * (columns + 1) for _ in range(rows + 1)]
    for i in range(rows, -1, -1):
        for j in range(columns, -1, -1):
            if i == rows or j == columns:
                cost[i][j] = rows - i + columns - j
                continue
            differ = reference[i] != generated[j]
            cost[i][j] = min(cost[i + 1][j + 1] + differ, cost[i + 1][j] + 1, cost[i][j + 1] + 1)
    pairs: list[tuple[int | None, int | None]] = []
    i = j = 0
    while i < rows or j < columns:
        if i < rows and j < columns:
            differ = reference[i] != generated[j]
            if cost[i][j] == cost[i + 1][j + 1] + differ:
                pairs.append((i, j))
                i, j = i + 1, j + 1
                continue
        if j < columns and cost[i][j] == cost[i][j + 1] + 1:
            pairs.append((None, j))
            j += 1
        else:
            pairs.append((i, None))
            i += 1
    return pairs


def aligned_records(
    reference: Sequence[TurnDict], generated: Sequence[TurnDict]
) -> list[dict[str, Any]]:
    """The paper's ``turns``: one object per pair, with ``user_turn`` added.

    ``gt_*`` is None for an extra turn, ``gen_*`` for a missing one.
    """
    records: list[dict[str, Any]] = []
    ours = by_user_turn(generated)
    for number, (user, expected) in enumerate(by_user_turn(reference)):
        made = ours[number][1] if number < len(ours) else []
        pairs = align_turns([_action(turn) for turn in expected], [_action(turn) for turn in made])
        for left, right in pairs:
            gt: TurnDict = expected[left] if left is not None else {}
            gen: TurnDict = made[right] if right is not None else {}
            records.append(
                {
                    "turn_index": len(records),
                    "user_turn": number,
                    "user_content": user.get("content"),
                    **{f"gt_{key}": gt.get(key) for key in _FIELDS},
                    **{f"gen_{key}": gen.get(key) for key in _FIELDS},
                    "action_correct": bool(gt and gen) and _action(gt) == _action(gen),
                    "response_exact_match": bool(gt and gen)
                    and gt.get("content") is not None
                    and gt.get("content") == gen.get("content"),
                }
            )
    return records


_FIELDS = ("action", "thought", "content", "tool_output")


def _action(turn: TurnDict) -> str:
    return str(turn.get("action") or "").strip()
