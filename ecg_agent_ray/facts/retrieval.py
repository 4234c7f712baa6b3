"""Which knowledge entries a question may be about: the best few by meaning and by words.

A small sentence encoder (MiniLM, fine-tuned on the entries' own questions and quantised to 8 bits;
ONNX Runtime, no torch) compares the question with every wording an entry is known by. A follow-up
such as "and does tea do that?" says little by itself, so the question is also read together with
the user's message before it. Entries that always stand ready say that nothing fits.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ecg_agent_ray.facts.knowledge import NOT_IN_KNOWLEDGE, knowledge

__all__ = ["ALWAYS", "Retriever", "best_entries", "retriever", "urgent_entry"]

ALWAYS = (NOT_IN_KNOWLEDGE, "off_topic")
"""Entries that a model may quote whatever the question."""

_SURE = 0.6
"""Cosine from which a question is taken for the emergency that an entry speaks of."""
_MAX_TOKENS = 64
_CONTEXT_WEIGHT = 0.85
"""How much the question read with the message before it counts against the question alone."""


class Retriever:
    """Ranks entries for a question. Thread-safe.

    Parameters
    ----------
    folder
        ``model.onnx``, ``tokenizer.json``, ``index.npz`` (``vectors`` int8 (wordings, width),
        ``scale``, ``entry`` (wordings,) positions in ``ids``) and ``ids.json``.
    """

    def __init__(self, folder: Path) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # a question takes milliseconds; its threads would linger
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(_MAX_TOKENS)
        self._tokenizer.enable_padding()
        self._lock = threading.Lock()
        with np.load(folder / "index.npz") as index:
            self._vectors = index["vectors"].astype(np.float32) * float(index["scale"])
            self._entry = index["entry"]
        self.ids: list[str] = json.loads((folder / "ids.json").read_text(encoding="utf-8"))

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors (texts, width)."""
        with self._lock:
            encoded = self._tokenizer.encode_batch(list(texts))
        feed: dict[str, Any] = {
            "input_ids": np.array([item.ids for item in encoded], dtype=np.int64),
            "attention_mask": np.array([item.attention_mask for item in encoded], dtype=np.int64),
        }
        (vectors,) = self._session.run(["embedding"], feed)
        return np.asarray(vectors, dtype=np.float32)

    def scores(self, question: str, before: str = "") -> npt.NDArray[np.float32]:
        """Cosine (entries,) of the best wording of each entry, in the order of :attr:`ids`."""
        texts = [question, f"{before} {question}"] if before else [question]
        cosines = self.embed(texts) @ self._vectors.T
        best = cosines[0]
        if before:
            best = np.maximum(best, _CONTEXT_WEIGHT * cosines[1])
        scores = np.full(len(self.ids), -1.0, dtype=np.float32)
        np.maximum.at(scores, self._entry, best)
        return scores

    def best(self, question: str, *, before: str = "", n: int = 5) -> list[str]:
        """Ids of the ``n`` entries that fit best, those of :data:`ALWAYS` apart."""
        order = np.argsort(-self.scores(question, before), kind="stable")
        ranked = [self.ids[i] for i in order[: n + len(ALWAYS)]]
        return [entry for entry in ranked if entry not in ALWAYS][:n]


@cache
def retriever() -> Retriever:
    """The shipped one."""
    files = resources.files("ecg_agent_ray") / "_data" / "facts" / "retriever"
    with resources.as_file(files) as folder:
        return Retriever(folder)


@lru_cache(maxsize=4096)
def best_entries(question: str, before: str = "", n: int = 5) -> tuple[str, ...]:
    """Ids of the entries to put before the model for a question; see :class:`Retriever`."""
    known = knowledge()
    return tuple(e for e in retriever().best(question, before=before, n=n) if e in known)


@lru_cache(maxsize=4096)
def urgent_entry(question: str) -> str | None:
    """The emergency entry that fits a message best of all entries, None where another does."""
    found = retriever()
    scores = found.scores(question)
    best = int(np.argmax(scores))
    entry = knowledge().get(found.ids[best])
    return entry.id if entry is not None and entry.urgent and scores[best] >= _SURE else None
