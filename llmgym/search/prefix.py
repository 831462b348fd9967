"""A model read along a tree of texts: every distinct prefix goes through it once.

Node j of the tree is a token after its prefix, and its key and value lie at place j of one slot cache. A new token
looks at the places of its ancestors, whichever texts brought them there, so that all that is new in a call, siblings
and whole lines alike, is one forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmgym.counters import Counters
from llmgym.decoder import IncrementalDecoder, Prediction
from llmgym.forward import CachedForward, FullForward
from llmgym.slots import Where

GATHERED = 1 << 15  # cache places that one pass looks at: memory


class PrefixReader:
    """Next-token logits after many texts, each distinct prefix fed once.

    Logits and hidden states of every node are kept, (V + D) numbers a token: a text that is asked for again costs
    nothing. A change of the model's parameters empties the tree.

    Args:
        model: a Hugging Face causal language model with full attention.
        counters: where forward passes, fed tokens and cache hits are counted.

    Raises:
        ValueError: a model whose layers are recurrent or see a window only.
    """

    def __init__(self, model: Any, counters: Counters | None = None):
        self._decoder = IncrementalDecoder(model, counters)
        self.counters, self.forward = self._decoder.counters, self._decoder.forward
        if isinstance(self.forward, FullForward):
            raise ValueError(f"search over text needs a model with full attention, got {type(model).__name__}")
        self._like = next(model.parameters())
        self._version: tuple[int, ...] = ()
        self.clear()

    def __len__(self) -> int:
        """Tokens in the tree."""
        return len(self._paths)

    def clear(self) -> None:
        """Forget every text."""
        self._children: dict[int, int] = {}  # parent and token -> node
        self._paths: list[tuple[int, ...]] = []  # of every node: its ancestors and itself
        self._logits, self._hidden = torch.empty(0), torch.empty(0)

    @torch.inference_mode()
    def read(self, texts: Sequence[Sequence[int]]) -> Prediction:
        """Logits [n, V] and hidden states [n, D] after each text; of at least one token."""
        self._refresh()
        known = len(self)
        new: list[int] = []  # tokens
        try:
            nodes = [self._node(text, new) for text in texts]
            self._feed(known, new)
        except BaseException:
            self.clear()  # nodes without a prediction must not be found again
            raise
        self.counters.cache_hits += sum(map(len, texts)) - len(new)
        index = torch.as_tensor(nodes, device=self._logits.device)
        return Prediction(self._logits[index], self._hidden[index])

    def _refresh(self) -> None:
        version = self._decoder.version()
        if version != self._version:
            self.clear()
            self._version = version

    def _node(self, text: Sequence[int], new: list[int]) -> int:
        """The node of a text; nodes that are missing are made, their tokens appended to `new`."""
        node, path = -1, ()  # type: tuple[int, tuple[int, ...]]
        for token in text:
            key = (node << 32) | token
            child = self._children.get(key)
            if child is None:
                child = self._children[key] = len(self._paths)
                self._paths.append((*path, child))
                new.append(token)
            node, path = child, self._paths[child]
        return node

    def _feed(self, first: int, tokens: list[int]) -> None:
        """Run the model over new nodes; parents come before their children, so any cut between passes is right."""
        done = 0
        while done < len(tokens):
            paths = self._paths[first + done :]
            size = max(GATHERED // max(map(len, paths)), 1)
            part, paths = tokens[done : done + size], paths[:size]
            where = PathWhere(part, paths, self._like, always_mask=isinstance(self.forward, CachedForward))
            logits, hidden = self.forward.read(where)
            self._keep(first + done, logits, hidden)
            self.counters.forward_passes += 1
            self.counters.forward_tokens += len(part)
            done += len(part)

    def _keep(self, first: int, logits: Tensor, hidden: Tensor) -> None:
        if first + len(logits) > len(self._logits):
            size = 2 * first + len(logits)
            self._logits = _taller(self._logits[:first], size, logits)
            self._hidden = _taller(self._hidden[:first], size, hidden)
        self._logits[first : first + len(logits)], self._hidden[first : first + len(hidden)] = logits, hidden


class PathWhere(Where):
    """Where n tokens of a tree read and write: each at a place of its own, seeing the places on its path.

    Args:
        tokens: the n tokens.
        paths: places of each token's ancestors, first first, and its own, last.
        like: a parameter of the model.
        always_mask: make a mask even where nothing is masked.
    """

    def __init__(self, tokens: list[int], paths: list[tuple[int, ...]], like: Tensor, always_mask: bool = False):
        depths = np.array([len(path) for path in paths])
        padded = np.zeros((len(paths), int(depths.max())), np.int64)  # place 0 is taken, and masked beyond the depth
        padded[np.arange(padded.shape[1]) < depths[:, None]] = np.concatenate(paths)
        super().__init__(np.array(tokens)[:, None], depths[:, None] - 1, None, like, always_mask)
        self.n_slots, self.n_positions = 1, int(padded.max()) + 1
        self.paths = torch.as_tensor(padded, device=like.device)
        self.places = self.paths[self.rows[:, 0], self.positions[:, 0]]
        self._index: tuple[int, Tensor] | None = None

    def write(self, store: Tensor, entries: Tensor) -> Tensor:
        """Store entries [n, 1, …, dimension]; returns those on each path, [n, …, T, dimension]."""
        inner, size, dim = entries.shape[2:-1], store.shape[-2], store.shape[-1]
        table, begins = store[0].view(-1, dim), torch.arange(inner.numel(), device=store.device) * size
        table[(begins + self.places[:, None]).view(-1)] = entries.reshape(-1, dim)
        if self._index is None or self._index[0] != size:  # the same in every layer
            self._index = size, (begins[:, None] + self.paths[:, None]).view(-1)
        return table.index_select(0, self._index[1]).view(self.n, *inner, -1, dim)  # a third of the time of table[…]


def _taller(held: Tensor, rows: int, like: Tensor) -> Tensor:
    out = like.new_empty(rows, *like.shape[1:])
    if len(held):
        out[: len(held)] = held
    return out
