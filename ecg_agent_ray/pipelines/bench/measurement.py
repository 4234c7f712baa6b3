"""Speed of the measurement tool against neurokit2 as the published agent calls it, and at its best.

Ours is timed as it is called by everybody: the whole recording goes in, and beats are found, signal
quality is assessed and the lead is delineated. The neurokit2 methods get the bare lead and pay for
nothing of ours. Reading is left out on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ecg_agent_ray import __version__, ecg, tools
from ecg_agent_ray.ecg import Recording
from ecg_agent_ray.errors import ConfigError
from ecg_agent_ray.pipelines.bench.timing import hardware, interleaved, ratio, single_thread
from ecg_agent_ray.pipelines.extract_files import find_recordings

__all__ = ["bench_measurement"]


def bench_measurement(
    directory: str | Path | None = None,
    *,
    lead: str = "II",
    n_records: int | None = None,
    rounds: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Time ``default`` (whole recording), ``default_lead_alone``, ``paper`` and ``neurokit``.

    Parameters
    ----------
    directory
        Folder of recordings, such as LUDB; None takes the shipped ones.
    n_records
        Only the first so many.
    rounds
        How often all methods go over all records.
    progress
        Called with records done and in all; every method on a record counts as one.

    Returns
    -------
    dict
        ``methods`` maps a name to its timing, ``speedup`` has default over paper and neurokit with
        their spread over the rounds, beside lead, records, hardware and versions.

    Raises
    ------
    ConfigError
        No recording in the folder has this lead.
    RecordingError, MissingDependencyError
        A recording cannot be read; neurokit2 is not installed.
    """
    from ecg_agent_ray.tools.measurement_neurokit import neurokit_table, paper_values

    recordings = _recordings(directory, lead, n_records)
    work: dict[str, Callable[[Recording], object]] = {
        "default": lambda r: tools.measure(r, lead=lead),
        "default_lead_alone": lambda r: tools.measure(r.select([lead]), lead=lead),
        "paper": lambda r: paper_values(r.lead(lead), r.sampling_rate),
        "neurokit": lambda r: neurokit_table(r.lead(lead), r.sampling_rate),
    }
    with single_thread():
        timings = interleaved(work, recordings, rounds=rounds, progress=progress)
    return {
        "lead": lead,
        "n_records": len(recordings),
        "seconds_per_record": round(sum(r.duration_s for r in recordings) / len(recordings), 2),
        "rounds": rounds,
        "methods": {name: timing.to_dict() for name, timing in timings.items()},
        "speedup": {
            f"{ours}_over_{other}": ratio(timings[ours], timings[other])
            for ours in ("default", "default_lead_alone")
            for other in ("paper", "neurokit")
        },
        "hardware": hardware(),
        "versions": {"ecg-agent-ray": __version__, "neurokit2": version("neurokit2")},
    }


def _recordings(directory: str | Path | None, lead: str, n_records: int | None) -> list[Recording]:
    paths: Sequence[Path] = ecg.samples()
    if directory is not None:
        paths = [Path(directory) / name for name in find_recordings(Path(directory))]
    if n_records is not None and n_records < 1:
        raise ConfigError(f"{n_records} records cannot be timed")
    found: list[Recording] = []
    for path in paths:
        recording = ecg.read(path)
        if recording.has(lead):
            found.append(recording)
        if len(found) == n_records:
            break
    if not found:
        raise ConfigError(f"no recording has the lead {lead!r}")
    return found
