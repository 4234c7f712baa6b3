"""What an export of an agent is worth beside the agent: next actions, memory, tokens a second.

Both hold the same dialogues (each turn asked for at its place in the reference, ``with_gt``, the
reference's tool outputs), one after the other, each in a process of its own, so that a peak of
memory is that of one model. A GGUF file is run by transformers, which takes its weights out of
their blocks: its memory and speed here are not those of llama.cpp, its next actions are those of
its quantised weights.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ecg_agent_ray import __version__
from ecg_agent_ray.agent import load_agent
from ecg_agent_ray.agent.engine import Engine, Generation, GenerationRequest, Message, Usage
from ecg_agent_ray.agent.load import read_manifest
from ecg_agent_ray.dialogue import Dialogue, write_dialogues
from ecg_agent_ray.errors import CheckpointError, ConfigError
from ecg_agent_ray.evaluation import evaluate_agent, read_predictions
from ecg_agent_ray.pipelines.bench.agent import bench_dialogues
from ecg_agent_ray.pipelines.bench.timing import hardware

__all__ = ["check_export", "check_path"]

_MIB = 2**20


def check_path(export: Path) -> Path:
    """Where an export's record lies: in its folder, or beside its file."""
    return export / "export_check.json" if export.is_dir() else export.with_suffix(".check.json")


def check_export(
    original: str | Path,
    export: str | Path,
    *,
    dialogues: str | Path | Sequence[Dialogue] | None = None,
    n: int = 20,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Reload an export, hold dialogues with it and with the agent, and write the record.

    Parameters
    ----------
    original
        Folder of the agent.
    export
        Folder of merged weights, or a GGUF file.
    dialogues
        ECG-MTD rows, a path or a hub's data set; None writes some about the shipped recordings, in
        wording that the shipped agent was not trained on.
    n
        At most as many dialogues.
    progress
        Called with turns done and turns in all.

    Returns
    -------
    dict
        ``original`` and ``export``, each with ``next_action_accuracy``, ``file_mib``,
        ``peak_memory_mib`` (resident, of the process), ``load_s``, ``tokens_per_second``
        (generated, their prompts' time included) and ``turns``; ``same_action``: share of the
        reference's turns at which both did the same; ``accuracy_change``. As written to
        :func:`check_path`.

    Raises
    ------
    ConfigError
        There is nothing to compare on.
    CheckpointError
        The export, or the agent, could not be loaded and run.
    """
    held = bench_dialogues(dialogues, n)
    if not held:
        raise ConfigError("an export is compared on dialogues, and there are none")
    models = {"original": str(original), "export": _source(Path(export))}
    result: dict[str, Any] = {}
    actions: dict[str, list[str | None]] = {}
    with tempfile.TemporaryDirectory(prefix="ecg-agent-export-") as folder:
        rows = write_dialogues(Path(folder) / "dialogues.jsonl", held)
        for number, (name, source) in enumerate(models.items()):
            if progress is not None:
                progress(number, len(models))
            result[name], actions[name] = _measure(source, str(original), rows, Path(folder, name))
        if progress is not None:
            progress(len(models), len(models))
    result["export"]["file_mib"] = _mebibytes(Path(export))
    result["original"]["file_mib"] = _mebibytes(Path(original))
    pairs = list(zip(actions["original"], actions["export"], strict=True))
    result |= {
        "same_action": sum(ours == theirs for ours, theirs in pairs) / len(pairs),
        "accuracy_change": result["export"]["next_action_accuracy"]
        - result["original"]["next_action_accuracy"],
        "n_dialogues": len(held),
        "hardware": hardware(),
        "version": __version__,
    }
    check_path(Path(export)).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def _source(export: Path) -> str:
    return str(export) if export.is_dir() else f"base:{export}"


def _mebibytes(path: Path) -> float:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return round(sum(file.stat().st_size for file in files) / _MIB, 3)


def _measure(
    source: str, original: str, rows: Path, output: Path
) -> tuple[dict[str, Any], list[str | None]]:
    """One model in a process of its own, and what it did at each turn of the references."""
    command = [sys.executable, "-m", __name__, source, original, str(rows), str(output)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]
        raise CheckpointError(f"{source} could not be loaded and run: {last[0]}")
    measured = json.loads((output / "measured.json").read_text(encoding="utf-8"))
    turns = [
        turn["gen_action"]
        for record in read_predictions(output / "predictions.jsonl")
        for turn in record["turns"]
        if turn["gt_action"] is not None
    ]
    return measured, turns


class _Counting:
    """An engine that adds up what its generations took."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.name = engine.name
        self._each: list[Usage] = []

    def generate(self, messages: Sequence[Message], request: GenerationRequest) -> Generation:
        generation = self._engine.generate(messages, request)
        self._each.append(generation.usage)
        return generation

    def fits(self, messages: Sequence[Message], request: GenerationRequest) -> bool:
        return self._engine.fits(messages, request)

    def warm(self, messages: Sequence[Message], requests: Sequence[GenerationRequest] = ()) -> None:
        self._engine.warm(messages, requests)

    @property
    def usage(self) -> Usage:
        total = Usage()
        for usage in self._each:
            total.add(usage)
        return total


def _run(source: str, original: str, rows: str, output: str) -> Mapping[str, Any]:
    started = time.perf_counter()
    agent = load_agent(source, lead_configuration=read_manifest(original).lead_configuration)
    loaded = time.perf_counter() - started
    counting = _Counting(agent.engine)
    agent.engine = counting
    metrics = evaluate_agent(rows, agent, "recorded", output=output, history="with_gt")
    usage = counting.usage
    return {
        "next_action_accuracy": metrics["next_action_accuracy"],
        "turns": metrics["n_turns"],
        "tokens_per_second": round(
            usage.completion_tokens / max(usage.prefill_s + usage.decode_s, 1e-9), 2
        ),
        "load_s": round(loaded, 2),
        "peak_memory_mib": round(_peak_mib(), 1),
    }


def _peak_mib() -> float:
    """Most resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():
        # not ru_maxrss: Linux starts it at what the parent had when it started this process
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (_MIB if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    found = _run(*sys.argv[1:5])
    Path(sys.argv[4], "measured.json").write_text(json.dumps(found), encoding="utf-8")
