"""Hidden states of the frozen lower layers, computed once and kept in a memory-mapped file.

Layers below the lowest trained one give a dialogue the same states in every epoch. They are run
once under ``no_grad``; training steps then start from the file. Kept are the states of every token
of every distinct dialogue, a system message's once, so rows may be packed anew in each epoch.

The file is keyed by tokens, weights and type, so a job that goes on uses it and another one does
not. It is filled row by row, each marked when it is whole: a killed job goes on with the rest.
Covers decoders whose layers take and give hidden states, in one process or several of a node.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

from ecg_agent_ray.agent.chat_format import EncodedDialogue
from ecg_agent_ray.errors import TrainingError
from ecg_agent_ray.training.llm_attention import spans_of, takes_spans
from ecg_agent_ray.training.llm_model import decoder_of
from ecg_agent_ray.training.packing import Pack, make_packs, truncate

__all__ = ["LowerStates", "skip_lower_layers"]

logger = logging.getLogger(__name__)


class _Skipped(nn.Module):
    """In the place of a layer that is not run."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states


class LowerStates:
    """The states below layer ``first`` for ``dialogues``.

    Parameters
    ----------
    model
        The whole model, before :func:`skip_lower_layers`.
    dialogues
        All that rows are made of; their place in this list is a piece's ``dialogue``.
    first
        Index of the lowest trained layer.
    folder
        Where the files lie, on this node.
    dtype
        ``float16`` (finer), ``bfloat16`` (wider) or ``float32``.
    max_tokens
        Length of the rows, and of the longest dialogue.
    """

    def __init__(
        self,
        model: Any,
        dialogues: Sequence[EncodedDialogue],
        first: int,
        folder: Path,
        *,
        dtype: str,
        max_tokens: int,
    ) -> None:
        self._model, self._first = model, first
        self._dialogues = [truncate(dialogue, max_tokens) for dialogue in dialogues]
        self._max_tokens = max_tokens
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._lay_out()
        self.width = int(decoder_of(model).config.hidden_size)
        self.name = self._digest(dtype)
        self._rows = make_packs(self._unique, max_tokens, seed=0, share_prefix=takes_spans(model))
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "files.lock"):  # who comes second must not see half a size
            self._states = torch.from_file(
                str(folder / f"{self.name}.states"),
                shared=True,
                size=self.tokens * self.width,
                dtype=self._dtype,
            ).view(self.tokens, self.width)
            self._done = torch.from_file(
                str(folder / f"{self.name}.done"),
                shared=True,
                size=len(self._rows),
                dtype=torch.uint8,
            )

    def _lay_out(self) -> None:
        """Give each distinct system message and each distinct rest its place in the file."""
        places: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
        self._places: list[tuple[int, int]] = []
        self._unique: list[EncodedDialogue] = []
        self._place_of_unique: list[int] = []
        self.tokens = 0
        seen: set[int] = set()
        for index, dialogue in enumerate(self._dialogues):
            prefix = tuple(dialogue.input_ids[: dialogue.prefix])
            rest = tuple(dialogue.input_ids[dialogue.prefix :])
            place = []
            for key in ((prefix, ()), (prefix, rest)):
                if key not in places:
                    places[key] = self.tokens
                    self.tokens += len(key[1] or key[0])
                place.append(places[key])
            self._places.append((place[0], place[1]))
            if place[1] not in seen:
                seen.add(place[1])
                self._unique.append(dialogue)
                self._place_of_unique.append(index)

    def _digest(self, dtype: str) -> str:
        total = hashlib.sha256(f"1 {dtype} {self._first} {self._max_tokens}".encode())
        for dialogue in self._unique:
            total.update(f" {dialogue.prefix} {len(dialogue.input_ids)} ".encode())
            total.update(np.asarray(dialogue.input_ids, dtype=np.int64).tobytes())
        for name, parameter in self._lower_parameters():
            total.update(name.encode())
            total.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return total.hexdigest()[:24]

    def _lower_parameters(self) -> Iterable[tuple[str, Any]]:
        decoder = decoder_of(self._model)
        yield from decoder.get_input_embeddings().named_parameters()
        for layer in decoder.layers[: self._first]:
            yield from layer.named_parameters()

    @property
    def missing(self) -> int:
        """Rows that are not filled yet."""
        return len(self._rows) - int(self._done.sum())

    def fill(self, rank: int, world: int, device: Any) -> None:
        """Run the lower layers over every ``world``-th row that is not filled yet.

        Raises :class:`TrainingError` where states are too large for the file's type.
        """
        decoder = decoder_of(self._model)
        layers, norm = decoder.layers, decoder.norm
        own = [n for n in range(rank, len(self._rows), world) if not self._done[n]]
        started, tokens = time.perf_counter(), 0
        decoder.layers = nn.ModuleList(
            layer if index < self._first else _Skipped() for index, layer in enumerate(layers)
        )
        decoder.norm = _Skipped()
        try:
            for row in own:
                self._fill_row(decoder, row, device)
                tokens += len(self._rows[row].input_ids)
        finally:
            decoder.layers, decoder.norm = layers, norm
        if own:
            speed = tokens / (time.perf_counter() - started)
            logger.info("ran %d lower layers over %d tokens, %.0f/s", self._first, tokens, speed)

    def _fill_row(self, decoder: Any, row: int, device: Any) -> None:
        pack = self._rows[row]
        arguments = {"spans": spans_of(pack, device)} if takes_spans(self._model) else {}
        with torch.no_grad():
            states = decoder(
                input_ids=torch.tensor([pack.input_ids], device=device),
                position_ids=torch.tensor([pack.position_ids], device=device),
                use_cache=False,
                **arguments,
            ).last_hidden_state[0]
        kept = states.to(self._dtype).cpu()
        if not kept.isfinite().all():
            raise TrainingError(
                f"hidden states up to {states.abs().max():.0f} do not fit {self._dtype}; "
                "set cache_dtype=bfloat16"
            )
        for piece in pack.pieces:
            index = self._place_of_unique[piece.dialogue]
            at = piece.start
            for start, stop in self._slices(index, piece.begin, piece.end):
                self._states[start:stop] = kept[at : at + stop - start]
                at += stop - start
        self._done[row] = 1

    def _slices(self, index: int, begin: int, end: int) -> list[tuple[int, int]]:
        """Where tokens ``begin`` to ``end`` of a dialogue lie in the file."""
        prefix = self._dialogues[index].prefix
        shared, rest = self._places[index]
        found = []
        if begin < prefix:
            found.append((shared + begin, shared + min(end, prefix)))
        if end > prefix:
            found.append((rest + max(begin, prefix) - prefix, rest + end - prefix))
        return found

    def of(self, pack: Pack, device: Any, dtype: torch.dtype) -> Tensor:
        """(1, tokens, hidden) states of a row made of ``dialogues``, for ``inputs_embeds``."""
        slices = [
            self._states[start:stop]
            for piece in pack.pieces
            for start, stop in self._slices(piece.dialogue, piece.begin, piece.end)
        ]
        return torch.cat(slices).to(device=device, dtype=dtype).unsqueeze(0)


def skip_lower_layers(model: Any, first: int) -> None:
    """Drop the weights of the layers below ``first``; the rest take their states as embeddings.

    Names of the others stay, so an adapter is saved as if all were here.
    """
    layers = decoder_of(model).layers
    for index in range(first):
        layers[index] = _Skipped()
