"""Grammar-constrained decoding over any model that gives logits, and the engine built on it.

Covers: text that the grammar forces without asking the model for it, keys and values of earlier
prompts reused, tokens guessed from earlier text and checked several at once. What runs the model is
a subclass's: see :class:`~ecg_agent_ray.agent.TransformersEngine` and
:class:`~ecg_agent_ray.agent.OpenVINOEngine`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
import xgrammar

from ecg_agent_ray.agent.chat_format import ChatFormat
from ecg_agent_ray.agent.drafts import DraftMemory, PromptDrafts
from ecg_agent_ray.agent.engine import Generation, GenerationRequest, Message
from ecg_agent_ray.agent.grammar import CONTENT_MARKER, message_grammar
from ecg_agent_ray.agent.packed import ForwardQueue
from ecg_agent_ray.agent.prefix_cache import KeyValues, PrefixCache
from ecg_agent_ray.errors import InputError

__all__ = ["GrammarEngine"]

_CLOSING_RESERVE = 12
"""Tokens kept for the content when a thought runs on to the end of the budget."""


class GrammarEngine(ABC):
    """An :class:`~ecg_agent_ray.agent.engine.Engine` over local weights. Thread-safe.

    A subclass says how an empty cache is made and how tokens become logits.
    """

    name: str
    queue: ForwardQueue | None = None
    """What joins the forwards of several generations, where the engine can."""

    def __init__(
        self,
        tokenizer: Any,
        config: Any,
        *,
        vocabulary: int,
        end_ids: Sequence[int | None],
        cache_entries: int,
        cache_tokens: int,
        draft_tokens: int,
        drafts: Sequence[str] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.format = ChatFormat(tokenizer)
        text_config = config.get_text_config(decoder=True)
        self.context_tokens: int | None = getattr(text_config, "max_position_embeddings", None)
        self.prefixes = PrefixCache(self.new_cache, entries=cache_entries, max_tokens=cache_tokens)
        self.drafts = (
            DraftMemory(draft_tokens) if draft_tokens and self.new_cache().can_crop else None
        )
        ends = {self.format.end_token_id, tokenizer.eos_token_id, *end_ids}
        self.end_ids = {int(token) for token in ends if token is not None}
        self._first_drafts = tuple(drafts)
        self._learn_first_drafts()
        info = xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=vocabulary, stop_token_ids=sorted(self.end_ids)
        )
        compiler = xgrammar.GrammarCompiler(info, max_threads=2)
        self._compile = lru_cache(maxsize=64)(compiler.compile_grammar)
        self.bitmask_shape = (1, vocabulary)
        special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        self.never_set = frozenset(special - self.end_ids)
        self.never = torch.tensor(sorted(self.never_set), dtype=torch.long)

    @abstractmethod
    def new_cache(self) -> KeyValues:
        """An empty cache."""

    @abstractmethod
    def forward(self, cache: Any, tokens: Sequence[int], keep: int = 1) -> torch.Tensor:
        """Logits (keep, vocabulary) in fp32 on the CPU after each of the last ``keep`` tokens.

        ``cache`` then holds ``tokens`` too. The caller may write into the logits.
        """

    def fits(self, messages: Sequence[Message], request: GenerationRequest) -> bool:
        """Whether prompt and answer are within the model's positions."""
        if self.context_tokens is None:
            return True
        prompt = len(self.format.encode_prompt(messages))
        return prompt + request.max_tokens <= self.context_tokens

    def generate(self, messages: Sequence[Message], request: GenerationRequest) -> Generation:
        """Start the next assistant message; nothing runs until the result is iterated."""
        prompt = self.format.encode_prompt(messages)
        matcher = xgrammar.GrammarMatcher(self._compile(message_grammar(request)))
        generation = Generation(pieces=iter(()))
        generation.usage.prompt_tokens = len(prompt)
        generation.usage.generations = 1
        generation.pieces = _Decoding(self, prompt, matcher, request, generation).pieces()
        return generation

    def warm(self, messages: Sequence[Message], requests: Sequence[GenerationRequest] = ()) -> None:
        """Keep the keys and values of ``messages``, compile the grammars of ``requests``."""
        for request in requests:
            self._compile(message_grammar(request))
        tokens = self.format.encode_dialogue(messages).input_ids
        if not self.prefixes.holds(tokens):
            cache = self.new_cache()
            self.forward(cache, tokens)
            self.prefixes.put(tokens, cache)

    def clear_cache(self) -> None:
        """Forget all keys and values, and what guesses are made of but for what was given."""
        self.prefixes.clear()
        if self.drafts is not None:
            self.drafts.clear()
            self._learn_first_drafts()

    def _learn_first_drafts(self) -> None:
        if self.drafts is None:
            return
        opened = self.format.assistant_open_ids
        for text in self._first_drafts:
            ended = [] if text.endswith("\n") else [self.format.end_token_id]
            self.drafts.learn([*opened, *self.format.content_ids(text), *ended], len(opened))


class _Decoding:
    """One message being generated: its tokens, which of them are encoded, its grammar state."""

    def __init__(
        self,
        engine: GrammarEngine,
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
        self.bitmask = xgrammar.allocate_token_bitmask(*engine.bitmask_shape)
        greedy = request.temperature <= 0
        self.memory = engine.drafts if greedy else None
        self.prompt_drafts = PromptDrafts(prompt) if self.memory else None
        self.generator = None
        if not greedy and request.seed is not None:
            self.generator = torch.Generator().manual_seed(request.seed)

    @property
    def out(self) -> list[int]:
        return self.tokens[self.start :]

    def pieces(self) -> Iterator[str]:
        self.cache, self.usage.cached_tokens = self.engine.prefixes.take(self.tokens)
        self.encoded = self.tokens[: self.usage.cached_tokens]
        sent = 0
        queue = self.engine.queue
        if queue is not None:
            queue.enter()
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
                if token in self.engine.end_ids:
                    self.tokens.append(token)  # what the next prompt goes on with
                    return
                self._accept(token)
        finally:
            if queue is not None:
                queue.leave()
            if self.memory is not None:
                self.memory.learn(self.tokens, self.start)
            self._forget_wrong_guesses()
            self.engine.prefixes.put(self.encoded, self.cache)

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
        try:
            forced = self.matcher.find_jump_forward_string()
        except UnicodeDecodeError:
            return  # within a character whose next byte alone is certain: no text yet
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
        if len(self.encoded) == len(self.tokens):
            # a character was taken back, so its last token's output is asked for again
            self.cache.crop(-1)
            self.encoded.pop()
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
        return self.memory.guess(self.tokens, self.prompt_drafts) if self.memory else []

    def _forget_wrong_guesses(self) -> None:
        """Cut the cache back to the tokens that were really taken."""
        right = min(len(self.encoded), len(self.tokens))
        written = range(min(self.start, right), right)
        right = next((i for i in written if self.encoded[i] != self.tokens[i]), right)
        if surplus := len(self.encoded) - right:
            self.cache.crop(-surplus)
            del self.encoded[right:]

    def _choose(self, logits: torch.Tensor) -> int:
        constrained = self.matcher.fill_next_token_bitmask(self.bitmask)
        greedy = self.request.temperature <= 0
        if greedy:
            token = int(logits.argmax())
            bit = (int(self.bitmask[0, token // 32]) >> (token % 32)) & 1
            if token not in self.engine.never_set and (bit or not constrained):
                return token  # most often; masking all the vocabulary takes longer than this
        logits[self.engine.never] = float("-inf")
        if constrained:
            xgrammar.apply_token_bitmask_inplace(logits.unsqueeze(0), self.bitmask)
        if greedy:
            return int(logits.argmax())
        probabilities = torch.softmax(logits / self.request.temperature, dim=-1)
        if self.request.top_p < 1:
            ordered, order = probabilities.sort(descending=True)
            outside = ordered.cumsum(0) - ordered >= self.request.top_p
            probabilities[order[outside]] = 0.0
        return int(torch.multinomial(probabilities, 1, generator=self.generator))
