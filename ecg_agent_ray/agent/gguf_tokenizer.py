"""The tokenizer that a GGUF file carries, as transformers' own would be.

transformers reads vocabulary, merges and template from the file, but not all that the file's format
has no place for: a Qwen2 tokenizer puts text into Unicode's composed form (NFC) first, and the
vocabulary's padding up to the size of the matrices is none of its tokens.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

__all__ = ["gguf_tokenizer"]

_PADDING = re.compile(r"\[PAD\d+\]")


def gguf_tokenizer(gguf: Path) -> Any:
    """A fast tokenizer with its chat template."""
    from tokenizers import Tokenizer, normalizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    if "Qwen2" not in type(tokenizer).__name__:
        return tokenizer
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    described["model"]["vocab"] = {
        text: number
        for text, number in described["model"]["vocab"].items()
        if not _PADDING.fullmatch(text)
    }
    backend = Tokenizer.from_str(json.dumps(described))
    backend.normalizer = normalizers.NFC()
    tokenizer._tokenizer = backend
    return tokenizer
