"""What a Ray Train worker needs for DeepSpeed: compiled ops, environment, safe reading of state."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from ecg_agent_ray.errors import MissingDependencyError
from ecg_agent_ray.settings import load_settings

__all__ = [
    "build_ops",
    "check_compiler",
    "deepspeed_environment",
    "safe_deepspeed_globals",
]

logger = logging.getLogger(__name__)


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


def build_ops() -> None:
    """Compile and load what DeepSpeed's CPU collectives need; to be called before it is started.

    torch marks a build by a file and waits for another's file without end and without a word, so
    one killed half way holds up every later job. Here the builds of a machine take turns under a
    lock that ends with its process; whoever holds it knows that any such file is a dead build's.
    DeepSpeed then finds the op loaded. With ``DS_ACCELERATOR`` other than ``cpu`` nothing is built.
    """
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    if accelerator.device_name() != "cpu":
        return
    folder = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "builds.lock"):
        for lock in folder.glob("*/lock"):
            lock.unlink()
            logger.warning("removed %s, left by a build that was killed", lock)
        accelerator.create_op_builder("ShareMemCommBuilder").load(verbose=False)


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
