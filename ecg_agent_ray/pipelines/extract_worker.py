"""The actor that runs a tool on recordings and writes each result down as it is done."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecg_agent_ray.pipelines.extract_state import CurrentRecording, append_row

if TYPE_CHECKING:
    from ecg_agent_ray.classifier import Classifier
    from ecg_agent_ray.ecg import Recording

__all__ = ["ToolWorker", "load_model"]

Item = tuple[str, "Recording | Exception"]
"""A recording by its name, or why it could not be read."""
Outcome = tuple[str, "dict[str, Any] | Exception"]


class ToolWorker:
    """A callable for ``Dataset.map_batches``; a model is loaded once for each actor.

    Parameters
    ----------
    options : fields of :class:`~ecg_agent_ray.pipelines.extract_config.ExtractConfig`; ``model`` is
        a path or ``builtin:`` here, ``model_uri`` what the rows call it
    state : folder that takes this worker's rows
    """

    def __init__(self, options: dict[str, Any], state: str) -> None:
        self._root = Path(options["ecg_dir"])
        self._reading = dict(options.get("reading") or {})
        self._run = _TOOLS[options["tool"]](options)
        worker = uuid.uuid4().hex
        # open as long as the actor lives
        self._stream = (Path(state) / f"part-{worker}.jsonl").open("a", encoding="utf-8")
        self._current = CurrentRecording(Path(state), worker)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        """Work on ``batch["ecg_file_path"]``; gives how many are done and how many failed."""
        failed = 0
        names = [str(name) for name in batch["ecg_file_path"]]
        for name, outcome in self._run(self._recordings(names)):
            row: dict[str, Any] = {"ecg_file_path": name}
            if isinstance(outcome, Exception):
                failed += 1
                row["error"] = _error(name, outcome)
            else:
                row |= outcome
            append_row(self._stream, row)
        self._current.end()
        return {"done": [len(names)], "failed": [failed]}

    def _recordings(self, names: Sequence[str]) -> Iterator[Item]:
        from ecg_agent_ray import ecg

        for name in names:
            try:
                self._current.begin(name)
                yield name, ecg.read(self._root / name, **self._reading)
            except Exception as error:
                yield name, error


def _error(name: str, error: Exception) -> dict[str, str]:
    """On one line, without the file's name, which has a column of its own."""
    text = " ".join(str(error).split()).removeprefix(f"{Path(name).name}: ")
    return {"type": type(error).__name__, "message": text}


def _each(work: Callable[[Recording], dict[str, Any]], items: Iterable[Item]) -> Iterator[Outcome]:
    for name, recording in items:
        if isinstance(recording, Exception):
            yield name, recording
            continue
        try:
            yield name, work(recording)
        except Exception as error:  # whatever a recording makes of a tool, the others go on
            yield name, error


def _measurements(options: dict[str, Any]) -> Callable[..., Iterator[Outcome]]:
    from ecg_agent_ray import tools

    def work(recording: Recording) -> dict[str, Any]:
        return tools.measure(recording, lead=options["lead"], method=options["method"]).to_dict()

    return lambda items: _each(work, items)


def _classification(options: dict[str, Any]) -> Callable[..., Iterator[Outcome]]:
    from ecg_agent_ray.tools.classification import Classification, classify, classify_many

    model, leads = load_model(options), options["leads"]

    def row(result: Classification) -> dict[str, Any]:
        return {"top_classes": result.top_classes(), **result.to_dict()}

    def run(items: Iterable[Item]) -> Iterator[Outcome]:
        batch = []
        for name, recording in items:
            if isinstance(recording, Exception):
                yield name, recording
            else:
                batch.append((name, recording))
        try:
            results = list(classify_many([r for _, r in batch], model, leads=leads))
        except Exception:
            # one of them cannot be classified; alone, each gets its own result or error
            yield from _each(lambda recording: row(classify(recording, model, leads=leads)), batch)
            return
        for (name, _), result in zip(batch, results, strict=True):
            yield name, row(result)

    return run


def _explanation(options: dict[str, Any]) -> Callable[..., Iterator[Outcome]]:
    from ecg_agent_ray.tools import classify, explain

    model, leads = load_model(options), options["leads"]
    lead = None if options["lead"] == "auto" else options["lead"]

    def work(recording: Recording) -> dict[str, Any]:
        label = options["label"]
        if label is None:
            values = classify(recording, model, leads=leads).labels
            label = max(values, key=lambda code: values[code] or 0.0)
        return explain(recording, label, model, leads, lead=lead).to_dict()

    return lambda items: _each(work, items)


_TOOLS: dict[str, Callable[[dict[str, Any]], Callable[..., Iterator[Outcome]]]] = {
    "measurements": _measurements,
    "classification": _classification,
    "explanation": _explanation,
}


def load_model(options: dict[str, Any]) -> Classifier:
    """The classifier of these options, on one thread, since every CPU has a worker of its own."""
    import torch

    from ecg_agent_ray.classifier import load_classifier

    torch.set_num_threads(1)
    classifier = load_classifier(options["model"])
    classifier.uri = options["model_uri"]
    return classifier
