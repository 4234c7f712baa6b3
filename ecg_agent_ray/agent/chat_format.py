"""Messages to token ids, the same way in training and in generation.

A chat template is taken apart once into the text around each message (the frame). Frames and
contents are tokenised apart, so the tokens of a dialogue's beginning never change when it goes on:
a key/value cache of the prefix stays valid, and what a model is trained on is token for token what
it sees when it generates. Templates that render a message differently by its place (Qwen3 puts an
empty thinking block before the last assistant message only) therefore get one rendering: what the
template opens an answer with when asked to generate. A turn's own ``Thought:`` takes the place of
such blocks. :attr:`ChatFormat.template` is that rendering as a template, for other servers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from ecg_agent_ray.errors import InputError

__all__ = ["IGNORE_INDEX", "TOOL_OUTPUT_MARKER", "ChatFormat", "EncodedDialogue"]

IGNORE_INDEX = -100
"""Label of tokens that are no training target (torch's cross-entropy default)."""

TOOL_OUTPUT_MARKER = "\nTool_Output:"
"""A tool turn's last target: what follows was written by the tool, not by the model."""

_DATE = "26 Jul 2024"
"""The date that Llama 3's own templates fall back to."""

_MARK = "\u241fCONTENT\u241f"


@dataclass(frozen=True)
class EncodedDialogue:
    """Lists of equal length; ``labels`` are IGNORE_INDEX outside assistant text.

    ``is_action`` marks the tokens that name an action: few among many, they decide what happens.
    ``prefix`` counts the system message's tokens, the same for many dialogues. ``first_actions``
    are the places after the action that answers each user turn.
    """

    input_ids: list[int]
    labels: list[int]
    is_action: list[bool]
    prefix: int = 0
    first_actions: tuple[int, ...] = ()

    @property
    def n_targets(self) -> int:
        return sum(label != IGNORE_INDEX for label in self.labels)


class ChatFormat:
    """The frames of one tokenizer's chat template.

    Args:
        tokenizer: a transformers tokenizer with a chat template.

    Raises:
        InputError: the template hides a message's content or refuses the roles we need.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        start = self._render([("system", _MARK)])
        self._start = self._split(start, "system")
        before_user = [("system", "s"), ("user", _MARK)]
        self._user = self._split(
            self._after(self._render([("system", "s")]), self._render(before_user)), "user"
        )
        opened = self._render([("system", "s"), ("user", "u")], generate=True)
        closed = self._render([("system", "s"), ("user", "u")])
        self._assistant_open = self._after(closed, opened)
        answered = self._render([("system", "s"), ("user", "u"), ("assistant", _MARK)])
        self._assistant_close = self._split(answered, "assistant")[1]

    def _render(self, messages: Sequence[tuple[str, str]], *, generate: bool = False) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                [{"role": role, "content": content} for role, content in messages],
                tokenize=False,
                add_generation_prompt=generate,
                # Llama 3's templates write today's date into the system message otherwise: what is
                # generated from would differ from what was trained on, and change every night
                date_string=_DATE,
            )
        except Exception as error:  # jinja2 raises whatever the template's author chose
            raise InputError(f"the chat template cannot render {messages}: {error}") from error
        return str(text)

    @staticmethod
    def _split(text: str, role: str) -> tuple[str, str]:
        before, mark, after = text.partition(_MARK)
        if not mark:
            raise InputError(f"the chat template drops the content of a {role} message")
        return before, after

    @staticmethod
    def _after(prefix: str, text: str) -> str:
        if not text.startswith(prefix):
            raise InputError("the chat template rewrites earlier messages when a dialogue goes on")
        return text[len(prefix) :]

    def ids(self, text: str) -> list[int]:
        """Tokens of ``text`` alone, without the tokenizer's own start or end tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False)) if text else []

    def content_ids(self, text: str) -> list[int]:
        """Tokens of a message's words, in which no special token is one.

        Whoever writes ``<|im_end|>`` into a message would else end it and speak as another role.
        Such a text is cut inside its special tokens and tokenised in parts.
        """
        cuts = [match.start() + 1 for match in self._special_text.finditer(text)]
        bounds = [0, *cuts, len(text)]
        parts = (text[begin:end] for begin, end in pairwise(bounds))
        return [token for part in parts for token in self.ids(part)]

    @cached_property
    def _special_text(self) -> re.Pattern[str]:
        added = self.tokenizer.added_tokens_decoder.values()
        texts = {token.content for token in added if token.special}
        texts |= set(self.tokenizer.all_special_tokens)
        longest_first = sorted(texts, key=len, reverse=True)
        return re.compile("|".join(re.escape(text) for text in longest_first) or r"(?!)")

    @cached_property
    def assistant_open_ids(self) -> list[int]:
        """What comes before an assistant message's content."""
        return self.ids(self._assistant_open)

    @cached_property
    def assistant_close_ids(self) -> list[int]:
        """What comes after it; its first token ends generation."""
        return self.ids(self._assistant_close)

    @cached_property
    def template(self) -> str:
        """A Jinja chat template that gives each message the text it has here, at every place."""
        frames = {
            "system": self._start,
            "user": self._user,
            "assistant": (self._assistant_open, self._assistant_close),
        }
        # JSON's strings are Jinja's, escapes included
        roles = "".join(
            f'{{%- {"elif" if index else "if"} message.role == "{role}" -%}}'
            f"{{{{- {json.dumps(before)} + message.content + {json.dumps(after)} -}}}}"
            for index, (role, (before, after)) in enumerate(frames.items())
        )
        opened = f"{{%- if add_generation_prompt -%}}{{{{- {json.dumps(self._assistant_open)} -}}}}"
        return f"{{%- for message in messages -%}}{roles}{{%- endif -%}}{{%- endfor -%}}" + (
            f"{opened}{{%- endif -%}}"
        )

    @property
    def end_token_id(self) -> int:
        return self.assistant_close_ids[0]

    def encode_prompt(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of OpenAI-shaped ``messages`` up to where the assistant's text begins."""
        encoded = self.encode_dialogue(messages)
        return encoded.input_ids + self.assistant_open_ids

    def encode_dialogue(self, messages: Sequence[Mapping[str, Any]]) -> EncodedDialogue:
        """Token ids with every assistant message's own words, and its end token, as targets.

        Text after :data:`TOOL_OUTPUT_MARKER` in an assistant message is the tool's: it is context,
        never a target, and so is the end token after it, which the model is never asked to write.
        """
        if not messages or messages[0]["role"] != "system":
            raise InputError("the first message must be the system message")
        ids: list[int] = []
        labels: list[int] = []
        is_action: list[bool] = []
        prefix = 0
        first_actions: list[int] = []

        def add(new: list[int], *, target: bool = False, action: int = 0) -> None:
            ids.extend(new)
            labels.extend(new if target else [IGNORE_INDEX] * len(new))
            is_action.extend(index < action for index in range(len(new)))

        for position, message in enumerate(messages):
            role, content = message["role"], str(message["content"])
            if role == "assistant":
                add(self.assistant_open_ids)
                own, marker, tool_output = content.partition(TOOL_OUTPUT_MARKER)
                named = self.content_ids(own.partition("\n")[0])
                if messages[position - 1]["role"] == "user":
                    first_actions.append(len(ids) + len(named))
                add(self.content_ids(own), target=True, action=len(named))
                if marker:
                    add(self.ids(marker), target=True)
                    add(self.content_ids(tool_output))
                    add(self.assistant_close_ids)
                else:
                    add(self.assistant_close_ids[:1], target=True)
                    add(self.assistant_close_ids[1:])
            elif role == "user" or (role == "system" and position == 0):
                before, after = self._start if role == "system" else self._user
                add(self._frame(before) + self.content_ids(content) + self._frame(after))
                prefix = prefix or len(ids)
            else:
                raise InputError(
                    f"message {position} has role {role!r}; expected user or assistant"
                )
        return EncodedDialogue(ids, labels, is_action, prefix, tuple(first_actions))

    @cached_property
    def _frame_cache(self) -> dict[str, list[int]]:
        return {}

    def _frame(self, text: str) -> list[int]:
        if text not in self._frame_cache:
            self._frame_cache[text] = self.ids(text)
        return self._frame_cache[text]
