"""What a Ray Train worker needs for DeepSpeed: compiled ops, environment, safe reading of state."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ecg_agent_ray.errors import MissingDependencyError
from ecg_agent_ray.settings import load_settings

__all__ = [
    "check_compiler",
    "clear_dead_builds",
    "deepspeed_environment",
    "safe_deepspeed_globals",
]

logger = logging.getLogger(__name__)

_BUILD_S = 600
"""No build of an op takes as long: half a minute was seen, minutes on a busy machine."""


def check_compiler() -> None:
    """DeepSpeed compiles its CPU collectives at first use; say what is missing before that."""
    missing = [tool for tool in ("g++", "ninja") if shutil.which(tool, path=_path()) is None]
    if missing:
        raise MissingDependencyError(
            f"DeepSpeed's ops need {' and '.join(missing)}, not found on PATH",
            hint="install them, on Debian: apt-get install g++ ninja-build",
        )


def _path() -> str:
    """PATH with this environment's own programs first: pip puts ninja there, activated or not."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def deepspeed_environment(*, gpu: bool) -> dict[str, str]:
    """Environment variables of a worker."""
    environment = {
        "PATH": _path(),
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
        # a build directory that lasts: compiling takes half a minute, loading half a second
        "TORCH_EXTENSIONS_DIR": str(load_settings().cache_dir / "torch-extensions"),
    }
    return environment if gpu else {**environment, "DS_ACCELERATOR": "cpu"}


def clear_dead_builds() -> None:
    """Remove the locks that killed builds of DeepSpeed's ops left in ``TORCH_EXTENSIONS_DIR``.

    torch waits for such a lock without end and without a word. To be called on each node before
    DeepSpeed is started; a build that may still be under way, which writes into its folder, keeps
    its lock.
    """
    folder = os.environ.get("TORCH_EXTENSIONS_DIR")
    for lock in Path(folder).glob("*/lock") if folder else ():
        with contextlib.suppress(OSError):
            written = max(path.stat().st_mtime for path in lock.parent.iterdir())
            if time.time() - written > _BUILD_S:
                lock.unlink()
                logger.warning("removed %s, left by a build that was killed", lock)


@contextlib.contextmanager
def safe_deepspeed_globals() -> Iterator[None]:
    """The three classes DeepSpeed's optimiser shards name, allowed for this load alone.

    DeepSpeed asks torch for unrestricted unpickling; TORCH_FORCE_WEIGHTS_ONLY_LOAD, which the job
    sets for its workers, overrules it, so a tampered checkpoint store cannot run code here.
    """
    import torch
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
        yield
