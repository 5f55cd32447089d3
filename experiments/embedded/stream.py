"""Random scenes without end, sampled in worker processes while the GPU computes."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.pool import ApplyResult

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import T5Tokenizer

from experiments.embedded.scenes import PAIRS, Scenes, render, sample_scenes
from experiments.embedded.sprites import Sprite
from experiments.embedded.tokenizer import encode

_SEED_STRIDE = 1_000_000
_sprites: Sequence[Sprite] = ()
_tokenizer: T5Tokenizer | None = None

Chunk = tuple[Scenes, NDArray[np.int16] | None]


class SceneStream:
    """Chunks of scenes; chunk number i depends on the seed and i alone.

    Make it before the first use of CUDA: its workers are forked.
    """

    def __init__(
        self,
        sprites: Sequence[Sprite],
        seed: int,
        tokenizer: T5Tokenizer | None = None,
        chunk: int = 8192,
        processes: int = 0,
        position: int = 0,
        pairs: float = PAIRS,
    ) -> None:
        """Start the workers.

        Args:
            sprites: what to compose scenes of.
            seed: of the whole stream.
            tokenizer: tokenizes the captions; without one, chunks come without tokens.
            chunk: scenes in a chunk.
            processes: workers; 0 for two less than there are cores, at most 12.
            position: number of the first chunk, for a run that is resumed.
            pairs: share of scenes for which two objects are drawn.
        """
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # forked workers must not start threads
        self.position = position
        self._seed, self._chunk, self._pairs = seed, chunk, pairs
        workers = processes or max(1, min(12, (os.cpu_count() or 1) - 2))
        context = multiprocessing.get_context("fork")
        self._pool = context.Pool(workers, _start_worker, (sprites, tokenizer))
        self._pending: deque[ApplyResult[Chunk]] = deque()
        self._next = position
        for _ in range(2 * workers):
            self._submit()

    def _submit(self) -> None:
        seed = self._seed * _SEED_STRIDE + self._next
        self._pending.append(self._pool.apply_async(_sample, (self._chunk, seed, self._pairs)))
        self._next += 1

    def take(self) -> Chunk:
        """The next chunk: scenes, and the tokens of their captions int16 [chunk, MAX_TOKENS]."""
        self._submit()
        self.position += 1
        return self._pending.popleft().get()

    def close(self) -> None:
        """Stop the workers."""
        self._pool.terminate()
        self._pool.join()


def image_batches(
    scenes: Scenes, pictures: Tensor, batch: int, block: int = 2048
) -> Iterator[tuple[int, Tensor]]:
    """Whole batches of a chunk: the number of the first scene and images [batch, 3, 64, 64].

    Scenes are drawn a block of batches at a time, since drawing is bound by launches.
    """
    block = max(batch, block // batch * batch)
    for start in range(0, len(scenes), block):
        images = render(scenes, pictures, start, min(start + block, len(scenes)))
        for first in range(0, len(images) - batch + 1, batch):
            yield start + first, images[first : first + batch]


def _start_worker(sprites: Sequence[Sprite], tokenizer: T5Tokenizer | None) -> None:
    global _sprites, _tokenizer
    _sprites, _tokenizer = sprites, tokenizer
    torch.set_num_threads(1)


def _sample(count: int, seed: int, pairs: float) -> Chunk:
    scenes = sample_scenes(_sprites, count, seed, pairs=pairs)
    if _tokenizer is None:
        return scenes, None
    return scenes, encode(_tokenizer, scenes.captions).numpy().astype(np.int16)
