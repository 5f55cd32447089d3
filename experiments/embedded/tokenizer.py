"""The tokenizer: every word of the caption grammar is one token, other words are spelled.

It is a T5 tokenizer (Unigram). Trained pieces would cut rare names into several tokens; captions
here come from a closed grammar, so whole words are short and easy to learn. Letters and digits
remain as pieces, which lets any lower-case prompt through without an unknown token.
`python -m experiments.embedded.tokenizer` writes it to `outputs/embedded/tokenizer/`.
"""

from __future__ import annotations

import argparse
import string
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import T5Tokenizer

from experiments.embedded.config import MAX_TOKENS, WORK
from experiments.embedded.scenes import sample_scenes
from experiments.embedded.sprites import read_sprites

_SPACE = "\u2581"
_SPECIAL = ("<pad>", "</s>", "<unk>")
_LETTERS = string.ascii_lowercase + string.digits
# One word is one piece as long as its score beats the sum of its letters' scores.
_WORD_SCORE = -10.0
_LETTER_SCORE = -20.0


def build_tokenizer(words: Iterable[str]) -> T5Tokenizer:
    """A tokenizer with these words as its vocabulary, in alphabetical order."""
    pieces = [(token, 0.0) for token in _SPECIAL]
    pieces += [(_SPACE, _LETTER_SCORE)]
    pieces += [(letter, _LETTER_SCORE) for letter in _LETTERS]
    pieces += [(_SPACE + word, _WORD_SCORE) for word in sorted(set(words))]
    return T5Tokenizer(
        vocab=pieces, extra_ids=0, additional_special_tokens=[], model_max_length=MAX_TOKENS
    )


def encode(tokenizer: T5Tokenizer, captions: Sequence[str]) -> Tensor:
    """Token ids int64 [B, MAX_TOKENS], padded with 0 and ended by `</s>`."""
    encoded = tokenizer(
        list(captions), padding="max_length", max_length=MAX_TOKENS, truncation=True
    )
    return torch.tensor(encoded["input_ids"])


def empty_caption(tokenizer: T5Tokenizer) -> Tensor:
    """Token ids [MAX_TOKENS] of the empty prompt: a lone `</s>`, as the pipeline encodes it."""
    return encode(tokenizer, [""])[0]


def attention_mask(tokens: Tensor) -> Tensor:
    """1 where `tokens` [B, T] hold a token, 0 where they are padding: int64 [B, T]."""
    return (tokens != 0).long()


def main() -> None:
    """Write the tokenizer of the words that training captions use."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=WORK)
    parser.add_argument("--output", type=Path, default=WORK / "tokenizer")
    parser.add_argument("--scenes", type=int, default=400_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    scenes = sample_scenes(read_sprites(arguments.data), arguments.scenes, arguments.seed)
    words = {word for caption in scenes.captions for word in caption.split()}
    tokenizer = build_tokenizer(words)
    tokenizer.save_pretrained(arguments.output)
    print(f"{len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
