"""What stands before and after a request: greetings, acknowledgements, context, courtesies."""

from __future__ import annotations

from ecg_agent_ray.dialogue.synthesis.scene import Scene

__all__ = ["before", "tail"]


def before(scene: Scene, context: str) -> str:
    """Words before a request; ``context`` is a pool of reasons for it, empty for none.

    A long and formal text is likelier at level C than at A.
    """
    parts = []
    if scene.is_first:
        if scene.chance(0.3):
            parts.append(scene.draw("user.hello.first"))
    elif scene.chance(0.4):
        parts.append(scene.draw("user.ack.later"))
        leading = scene.leading
        if scene.classified and leading is not None and scene.chance(0.25):
            parts.append(scene.draw("user.mention", finding=leading.name))
    share = {"A": 0.15, "B": 0.25, "C": 0.4}[scene.level] if scene.is_first else 0.1
    if context and scene.chance(share):
        parts.append(scene.draw(context))
    return " ".join(parts)


def tail(scene: Scene) -> str:
    """Words after a request, seldom any."""
    return scene.draw("user.tail") if scene.chance(0.1) else ""
