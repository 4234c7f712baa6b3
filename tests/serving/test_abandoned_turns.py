"""A turn that nobody reads on ends at once, whatever it was doing."""

from __future__ import annotations

import gc
import threading
from pathlib import Path

import pytest

from ecg_agent_ray.agent import load_agent


@pytest.mark.parametrize("events", [1, 2, 3])
def test_the_collector_finds_no_running_generation(tiny_agent: Path, events: int) -> None:
    """A generation ended by the collector would take a lock that its own thread may hold."""
    agent = load_agent(tiny_agent)
    drafts = agent.engine.drafts  # type: ignore[attr-defined]
    gc.disable()
    try:
        turn = agent.run([{"role": "user", "content": "Measure it."}])
        for _ in range(events):
            next(turn)
        turn.close()  # type: ignore[attr-defined]
        del turn

        def collect_inside_the_lock() -> None:
            with drafts._lock:
                gc.collect()

        thread = threading.Thread(target=collect_inside_the_lock, daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
    finally:
        gc.enable()
