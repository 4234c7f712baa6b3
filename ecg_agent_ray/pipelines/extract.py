"""Run one of the tools over every recording below a folder, with Ray Data.

    summary = extract(make_config(tool="measurements", ecg_dir="ptb-xl", output_dir="out"))

Each recording's result is on disk before the next one starts, so that a run that is killed goes on
where it stopped (:mod:`ecg_agent_ray.pipelines.extract_state`). A recording that cannot be read or
worked on goes to ``errors.csv`` and is tried again by the next run. Ray is local unless
``RAY_ADDRESS`` names a cluster, whose nodes must then see both folders.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ecg_agent_ray import ecg, tools
from ecg_agent_ray.ecg import ReadingOptions
from ecg_agent_ray.errors import ConfigError, ToolError
from ecg_agent_ray.pipelines.extract_config import ExtractConfig
from ecg_agent_ray.pipelines.extract_files import find_recordings
from ecg_agent_ray.pipelines.extract_state import ExtractState
from ecg_agent_ray.pipelines.extract_tables import write_errors, write_tables
from ecg_agent_ray.settings import load_settings

__all__ = ["extract"]

_SHOWN_ERRORS = 20
Progress = Callable[[int, int], None]


def extract(config: ExtractConfig, *, progress: Progress | None = None) -> dict[str, Any]:
    """Run ``config.tool`` and write its tables.

    Parameters
    ----------
    progress
        Called with recordings done and in all, first with those that an earlier run did.

    Returns
    -------
    dict
        ``tool, output_dir, n_files, n_extracted, n_errors, errors, tables, n_resumed, seconds,
        records_per_s``; ``errors`` has the first twenty, ``n_resumed`` were there before,
        ``records_per_s`` is of this run's.

    Raises
    ------
    ConfigError
        No recordings, a model that does not know the label or the leads, or a folder whose rows
        were made with other options.
    ModelNotFoundError, CheckpointError, UnsafeCheckpointError, MissingDependencyError
        The model, or the package a method needs, cannot be had.
    RefusedError
        Another process is writing to ``output_dir``.
    ToolError
        Ray lost the workers for good; the finished rows are kept.
    """
    output = config.output_dir
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output-dir {output} is a file, not a folder")
    names = find_recordings(config.ecg_dir, without=output)
    options, identity = _worker_options(config)
    state = ExtractState(output, config.tool)
    start = time.perf_counter()
    with state.opened(identity, resume=config.resume), _tracked(config) as run:
        index = state.index()
        todo = [name for name in names if name not in index or index[name].failed]
        if todo:
            state.prepare(index)
            _work(todo, options, state, config, _offset(progress, len(names) - len(todo)))
        elif progress is not None:
            progress(len(names), len(names))
        summary = _finish(config, names, state)
        seconds = time.perf_counter() - start
        summary |= {
            "n_resumed": len(names) - len(todo),
            "seconds": round(seconds, 3),
            "records_per_s": round(len(todo) / seconds, 2),
        }
        if run is not None:
            run.log_metrics({k: v for k, v in summary.items() if isinstance(v, int | float)})
    return summary


def _offset(progress: Progress | None, before: int) -> Progress:
    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(before + done, before + total)

    return report


def _worker_options(config: ExtractConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """What workers get, and what tells whether rows belong together.

    The tool is tried here: a model is found, loaded and asked for the leads and the label, a method
    measures a shipped recording. What is missing is one error then and not one a recording.
    """
    options = {name: getattr(config, name) for name in ("tool", "lead", "method", "leads", "label")}
    options["ecg_dir"] = str(config.ecg_dir.resolve())
    options["reading"] = config.reading
    ReadingOptions(**config.reading)  # raises for options that contradict each other
    identity = config.identity()
    if config.tool == "measurements":
        tools.measure(ecg.read(ecg.samples()[0]), method=config.method)
        if config.method == "default" and (network := load_settings().delineator) is not None:
            identity["network_digest"] = _digest(str(network))
        return options, identity
    from ecg_agent_ray.pipelines.extract_worker import load_model
    from ecg_agent_ray.registry import resolve

    uri = config.model
    path = str(resolve(uri)) if uri.startswith("models:/") else uri
    if path != "builtin:" and Path(path).exists():
        path = str(Path(path).resolve())  # workers have another working directory
    options |= {"model": path, "model_uri": uri}
    assessed = load_model(options).assessed_for(config.leads)
    if config.label is not None and config.label not in assessed:
        raise ConfigError(
            f"{uri} does not assess {config.label!r} from {config.leads}",
            hint=f"it assesses {', '.join(assessed)}",
        )
    return options, identity | {"model_digest": _digest(path)}


def _digest(path: str) -> str | None:
    """Of the model's files, since a path or an alias may hold another model tomorrow."""
    from ecg_agent_ray.plugins.tracking import data_digest

    if path == "builtin:":
        return None  # comes with the package, whose version is compared
    files = [Path(path)] if Path(path).is_file() else sorted(Path(path).glob("*.*"))
    return data_digest(file for file in files if file.is_file())


def _work(
    names: Sequence[str],
    options: dict[str, Any],
    state: ExtractState,
    config: ExtractConfig,
    report: Progress,
) -> None:
    from ecg_agent_ray.plugins.local_cluster import local_ray

    # Ray says at every start of an actor that losing the driver would lose its arguments
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    done = 0
    env_vars = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if (network := load_settings().delineator) is not None:
        env_vars["ECG_AGENT_DELINEATOR"] = str(network.resolve())
    with local_ray(env_vars=env_vars) as ray:
        report(0, len(names))
        cpus = int(ray.cluster_resources().get("CPU", 1))
        batches = -(-len(names) // config.records_a_batch)
        workers = max(1, min(config.workers or cpus, cpus, batches))
        try:
            for batch in _batches(names, options, state, workers, config.records_a_batch):
                done += batch
                report(done, len(names))
        except ray.exceptions.RayError as error:
            raise ToolError(
                f"the workers were lost after {done} of {len(names)} recordings: "
                f"{type(error).__name__}: {str(error).splitlines()[0]}",
                hint="what is done is kept; run the same again to continue",
            ) from error


def _batches(
    names: Sequence[str], options: dict[str, Any], state: ExtractState, workers: int, size: int
) -> Iterator[int]:
    """The number of recordings of each batch, as it is done."""
    import ray.data

    from ecg_agent_ray.pipelines.extract_worker import ToolWorker

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # its messages at this level tell of every plan and operator
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    items = [{"ecg_file_path": name} for name in names]
    data = ray.data.from_items(items, override_num_blocks=-(-len(items) // size)).map_batches(
        ToolWorker,
        fn_constructor_kwargs={"options": options, "state": str(state.folder)},
        batch_size=None,  # a block is a batch
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
    )
    for row in data.iter_rows():
        yield int(row["done"])


def _finish(config: ExtractConfig, names: Sequence[str], state: ExtractState) -> dict[str, Any]:
    index = state.index()
    places = [index[name] for name in names if name in index]
    good = [place for place in places if not place.failed]
    bad = list(state.read(place for place in places if place.failed))
    tables = write_tables(config.tool, state.read(good), config.output_dir)
    tables.append(write_errors(config.tool, bad, config.output_dir))
    return {
        "tool": config.tool,
        "output_dir": str(config.output_dir),
        "n_files": len(names),
        "n_extracted": len(good),
        "n_errors": len(bad),
        "errors": [{"file": row["ecg_file_path"], **row["error"]} for row in bad[:_SHOWN_ERRORS]],
        "tables": [str(path) for path in tables],
    }


def _tracked(config: ExtractConfig) -> Any:
    if not config.track:
        return nullcontext()
    from ecg_agent_ray.plugins.tracking import tracked_run

    params = config.identity() | {"output_dir": str(config.output_dir)}
    return tracked_run(f"extract-{config.tool}", params=params, experiment="tool-outputs")
