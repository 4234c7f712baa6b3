"""Generation with transformers, on CPU or GPU: any causal model with a chat template, any adapter.

Covers: grammar-constrained output, text that the grammar forces without asking the model for it,
keys and values of earlier prompts reused, tokens guessed from earlier text and checked several at
once, an adapter merged into the weights in memory. Does not cover: batches of several dialogues,
quantised weights.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import xgrammar

from ecg_agent_ray.agent.base_model import load_base_model, load_tokenizer
from ecg_agent_ray.agent.chat_format import ChatFormat
from ecg_agent_ray.agent.drafts import DraftMemory, PromptDrafts
from ecg_agent_ray.agent.engine import Generation, GenerationRequest, Message
from ecg_agent_ray.agent.grammar import CONTENT_MARKER, message_grammar
from ecg_agent_ray.agent.prefix_cache import PrefixCache, new_cache
from ecg_agent_ray.errors import CheckpointError, InputError

__all__ = ["TransformersEngine", "choose_device", "choose_dtype"]

_log = logging.getLogger(__name__)

_CLOSING_RESERVE = 12
"""Tokens kept for the content when a thought runs on to the end of the budget."""


def choose_device(device: str | None = None) -> str:
    """``device``, else the first GPU, else the CPU."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def choose_dtype(device: str, dtype: str | None = None) -> tuple[str, str]:
    """A torch dtype's name and the reason for it.

    Decoding is bound by reading the weights, so bf16 halves its time wherever the hardware
    multiplies it; elsewhere a CPU emulates it, slower than fp32.
    """
    if dtype is not None:
        return dtype, "asked for"
    if device.startswith("cuda"):
        if torch.cuda.is_bf16_supported():
            return "bfloat16", "the GPU has bf16"
        return "float16", "the GPU has no bf16"
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"):
        return "bfloat16", "the CPU multiplies bf16"
    return "float32", "the CPU has no bf16 instructions"


class TransformersEngine:
    """An :class:`~ecg_agent_ray.agent.engine.Engine` over one transformers model. Thread-safe.

    Parameters
    ----------
    base_model
        Reference for :func:`~ecg_agent_ray.agent.base_model.resolve_base_model`, or a loaded model
        (then ``tokenizer`` is needed).
    adapter
        Folder of a PEFT adapter; it is merged into the weights in memory, which costs one pass
        over them at the start and nothing per token. A model of its own is changed by it.
    device, dtype
        torch names; None chooses (see :func:`choose_device`, :func:`choose_dtype`).
    cache_entries, cache_tokens
        Bounds of the store of keys and values; 0 entries turns it off.
    draft_tokens
        Tokens guessed per forward in greedy generation (see :mod:`~ecg_agent_ray.agent.drafts`);
        0 turns it off.

    Raises
    ------
    ModelNotFoundError
        The base model cannot be loaded.
    CheckpointError
        The adapter does not fit it or cannot be read.
    """

    def __init__(
        self,
        base_model: str | Path | Any,
        adapter: str | Path | None = None,
        *,
        tokenizer: Any = None,
        device: str | None = None,
        dtype: str | None = None,
        cache_entries: int = 8,
        cache_tokens: int = 32_768,
        draft_tokens: int = 7,
        name: str | None = None,
    ) -> None:
        self.device = choose_device(device)
        if isinstance(base_model, str | Path):
            reference = str(base_model)
            self.dtype, reason = choose_dtype(self.device, dtype)
            model = load_base_model(reference, dtype=self.dtype)
            tokenizer = tokenizer or load_tokenizer(reference)
            _log.info("%s on %s in %s: %s", reference, self.device, self.dtype, reason)
        else:
            reference = type(base_model).__name__
            model, self.dtype = base_model, str(base_model.dtype).removeprefix("torch.")
        if tokenizer is None:
            raise InputError("a loaded model needs its tokenizer")
        if adapter is not None:
            model = _merged(model, Path(adapter))
        self.name = name or (f"{reference}+{Path(adapter).name}" if adapter else reference)
        self.tokenizer = tokenizer
        self.format = ChatFormat(tokenizer)
        self.model = model.to(self.device).eval()
        text_config = model.config.get_text_config(decoder=True)
        self.context_tokens: int | None = getattr(text_config, "max_position_embeddings", None)
        self._prefixes = PrefixCache(model.config, entries=cache_entries, max_tokens=cache_tokens)
        croppable = all(layer.is_croppable for layer in new_cache(model.config).layers)
        self._drafts = DraftMemory(draft_tokens) if draft_tokens and croppable else None
        # forwards of several threads would only slow one another down
        self._forward_lock = threading.Lock()
        self._end_ids = _end_ids(self.format, model)
        vocabulary = int(model.get_output_embeddings().weight.shape[0])
        info = xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=vocabulary, stop_token_ids=sorted(self._end_ids)
        )
        compiler = xgrammar.GrammarCompiler(info, max_threads=2)
        self._compile = lru_cache(maxsize=64)(compiler.compile_grammar)
        self._bitmask_shape = (1, vocabulary)
        special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        self._never = torch.tensor(sorted(special - self._end_ids), dtype=torch.long)

    def fits(self, messages: Sequence[Message], request: GenerationRequest) -> bool:
        """Whether prompt, prefix and answer are within the model's positions."""
        if self.context_tokens is None:
            return True
        prompt = len(self.format.encode_prompt(messages))
        prefix = len(self.format.ids(request.prefix))
        return prompt + prefix + request.max_tokens <= self.context_tokens

    def generate(self, messages: Sequence[Message], request: GenerationRequest) -> Generation:
        """Start the next assistant message; nothing runs until the result is iterated."""
        prompt = self.format.encode_prompt(messages)
        matcher = xgrammar.GrammarMatcher(self._compile(message_grammar(request)))
        generation = Generation(pieces=iter(()))
        generation.usage.prompt_tokens = len(prompt)
        generation.usage.generations = 1
        generation.pieces = _Decoding(self, prompt, matcher, request, generation).pieces()
        return generation

    def forward(self, cache: Any, tokens: Sequence[int], keep: int = 1) -> torch.Tensor:
        """Logits (keep, vocabulary) in fp32 on the CPU after each of the last ``keep`` tokens.

        ``cache`` then holds ``tokens`` too.
        """
        with self._forward_lock, torch.inference_mode():
            ids = torch.tensor([list(tokens)], device=self.device)
            output = self.model(
                input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=keep
            )
            logits: torch.Tensor = output.logits[0].float().cpu()
        return logits.clone()  # an inference tensor could not be masked in place

    def clear_cache(self) -> None:
        """Forget all keys and values."""
        self._prefixes.clear()


class _Decoding:
    """One message being generated: its tokens, which of them are encoded, its grammar state."""

    def __init__(
        self,
        engine: TransformersEngine,
        prompt: list[int],
        matcher: xgrammar.GrammarMatcher,
        request: GenerationRequest,
        generation: Generation,
    ) -> None:
        self.engine, self.matcher, self.request = engine, matcher, request
        self.generation, self.usage = generation, generation.usage
        self.tokens = list(prompt)  # the prompt and what was written after it
        self.start = len(prompt)
        self.encoded: list[int] = []  # what the cache holds; may run ahead with a wrong guess
        self.rows: torch.Tensor | None = None  # logits of the last forward ...
        self.rows_from = 0  # ... the first of them after this many tokens of ``encoded``
        self.bitmask = xgrammar.allocate_token_bitmask(*engine._bitmask_shape)
        greedy = request.temperature <= 0
        self.memory = engine._drafts if greedy else None
        self.prompt_drafts = PromptDrafts(prompt, self.memory.length) if self.memory else None
        self.generator = None
        if not greedy and request.seed is not None:
            self.generator = torch.Generator().manual_seed(request.seed)

    @property
    def out(self) -> list[int]:
        return self.tokens[self.start :]

    def pieces(self) -> Iterator[str]:
        self.cache, self.usage.cached_tokens = self.engine._prefixes.take(self.tokens)
        self.encoded = self.tokens[: self.usage.cached_tokens]
        sent = len(self.request.prefix)
        try:
            while True:
                self._take_forced()
                text = self.text()
                done = self._is_done(text)
                settled = text if done else text.rstrip("\ufffd")
                if len(settled) > sent:
                    yield settled[sent:]
                    sent = len(settled)
                if done:
                    return
                token = self._choose(self._logits())
                if token in self.engine._end_ids:
                    self.tokens.append(token)  # what the next prompt goes on with
                    return
                self._accept(token)
        finally:
            if self.memory is not None:
                self.memory.learn(self.tokens, self.start)
            self._forget_wrong_guesses()
            self.engine._prefixes.put(self.encoded, self.cache)

    def text(self) -> str:
        return str(
            self.engine.tokenizer.decode(
                self.out, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def _accept(self, token: int) -> None:
        if not self.matcher.accept_token(token):
            raise InputError(f"token {token} breaks the grammar that allowed it")
        self.tokens.append(token)
        self.usage.completion_tokens += 1

    def _take_forced(self) -> None:
        """Append what the grammar leaves no choice about, but for its last token.

        The tokens of a text depend on what follows it (``Thought: The`` ends in `` The``, not in a
        blank and ``The``), so the last one is left to the model, under the grammar's mask.
        """
        forced = self.matcher.find_jump_forward_string()
        if not forced:
            return
        encode, out = self.engine.format.ids, self.out
        together = encode(self.text() + forced)
        new = together[len(out) :] if together[: len(out)] == out else encode(forced)
        for token in new[:-1]:
            if not self.matcher.accept_token(token):
                return  # the model began a token that the forced text does not: let it go on
            self.tokens.append(token)
            self.usage.completion_tokens += 1
            self.usage.forced_tokens += 1

    def _is_done(self, text: str) -> bool:
        """A tool turn's thought has ended, or the budget is used up; closes a thought in time."""
        head, thought, rest = text.partition("\nThought:")
        in_thought = bool(thought) and "\n" not in rest
        calls_tool = head.startswith("Action: call_")
        if calls_tool and thought and "\n" in rest:
            return True
        spent = self.usage.completion_tokens
        if not in_thought or not rest.strip():
            if spent >= self.request.max_tokens and CONTENT_MARKER in text:
                self.generation.finish_reason = "length"
                return True
            return False
        limit = max(self.request.max_tokens // 2, self.request.max_tokens - 80)
        if spent < min(limit, self.request.max_tokens - _CLOSING_RESERVE):
            return False
        self._close_thought("\n" if calls_tool else CONTENT_MARKER.rstrip())
        return calls_tool

    def _close_thought(self, closing: str) -> None:
        """End the thought here; a character that is half written is taken back."""
        first, *others = self.engine.format.ids(closing)
        while not self.matcher.accept_token(first):
            self.matcher.rollback(1)
            self.tokens.pop()
        self.tokens.append(first)
        for token in others:
            if not self.matcher.accept_token(token):
                break
            self.tokens.append(token)
        self.usage.completion_tokens += 1 + len(others)
        self.usage.forced_tokens += 1 + len(others)

    def _logits(self) -> torch.Tensor:
        """Logits (vocabulary,) after the tokens so far: checked already, or of a new forward."""
        ahead = len(self.tokens) - self.rows_from
        if (
            self.rows is not None
            and 0 <= ahead < len(self.rows)
            and self.encoded[self.rows_from : len(self.tokens)] == self.tokens[self.rows_from :]
        ):
            return self.rows[ahead]
        started = time.perf_counter()
        self._forget_wrong_guesses()
        guess = self._guess()
        new = [*self.tokens[len(self.encoded) :], *guess]
        self.rows = self.engine.forward(self.cache, new, keep=len(guess) + 1)
        self.rows_from = len(self.tokens)
        first = not self.usage.forwards
        self.encoded += new
        self.usage.forwards += 1
        elapsed = time.perf_counter() - started
        if first:
            self.usage.prefill_s += elapsed
        else:
            self.usage.decode_s += elapsed
        return self.rows[0]

    def _guess(self) -> list[int]:
        if self.memory is None or self.prompt_drafts is None:
            return []
        return self.memory.guess(self.tokens) or self.prompt_drafts.guess(self.tokens)

    def _forget_wrong_guesses(self) -> None:
        """Cut the cache back to the tokens that were really taken."""
        right = min(len(self.encoded), len(self.tokens))
        written = range(min(self.start, right), right)
        right = next((i for i in written if self.encoded[i] != self.tokens[i]), right)
        if surplus := len(self.encoded) - right:
            self.cache.crop(-surplus)
            del self.encoded[right:]

    def _choose(self, logits: torch.Tensor) -> int:
        logits[self.engine._never] = float("-inf")
        if self.matcher.fill_next_token_bitmask(self.bitmask):
            xgrammar.apply_token_bitmask_inplace(logits.unsqueeze(0), self.bitmask)
        if self.request.temperature <= 0:
            return int(logits.argmax())
        probabilities = torch.softmax(logits / self.request.temperature, dim=-1)
        if self.request.top_p < 1:
            ordered, order = probabilities.sort(descending=True)
            outside = ordered.cumsum(0) - ordered >= self.request.top_p
            probabilities[order[outside]] = 0.0
        return int(torch.multinomial(probabilities, 1, generator=self.generator))


def _end_ids(chat_format: ChatFormat, model: Any) -> set[int]:
    """Tokens that end a message: the template's, the tokenizer's and the model's own."""
    ends = {chat_format.end_token_id, chat_format.tokenizer.eos_token_id}
    declared = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends.update(declared if isinstance(declared, list | tuple) else [declared])
    return {int(token) for token in ends if token is not None}


def _merged(model: Any, adapter: Path) -> Any:
    from peft import PeftModel

    if not (adapter / "adapter_config.json").is_file():
        raise CheckpointError(f"{adapter} holds no adapter_config.json")
    if not (adapter / "adapter_model.safetensors").is_file():
        raise CheckpointError(
            f"{adapter} holds no adapter_model.safetensors", hint="pickled weights are not read"
        )
    try:
        return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"the adapter in {adapter} does not fit its base model: {first_line}"
        ) from error
