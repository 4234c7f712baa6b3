"""The entries put before a model for a question."""

from __future__ import annotations

import pytest

from ecg_agent_ray.facts import ALWAYS, best_entries, knowledge


@pytest.mark.parametrize(
    ("question", "before", "entry"),
    [
        ("does coffee make my heart race?", "", "coffee"),
        ("and tea?", "does coffee do anything to it?", "tea"),
        ("my chest hurts right now", "", "chest_pain_now"),
        ("can I fly next week?", "", "cleared_flying"),
        ("what is atrial fibrillation", "", "afib_what"),
    ],
)
def test_a_fitting_entry_is_among_the_five(question: str, before: str, entry: str) -> None:
    found = best_entries(question, before)
    assert len(found) == 5
    assert entry in found
    assert not set(found) & set(ALWAYS)


def test_every_entry_can_be_found() -> None:
    """By the first wording it is known by; a few share their meaning with others."""
    lost = [e.id for e in knowledge().values() if e.id not in best_entries(e.questions[0])]
    assert len(lost) <= 0.03 * len(knowledge()), lost
