"""Leads greedy decoding to phrases that are expected.

Each phrase is a path through a prefix tree of tokens. While a row is written, tokens that begin a phrase, and those
that go on with one that was begun, count as more probable.

Source: Zhao et al., "Shallow-Fusion End-to-End Contextual Biasing", Interspeech 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from soundstage.params import HintParams
from soundstage.speech.hints import Hints
from soundstage.speech.tokenizer import Tokenizer


class Tables(NamedTuple):
    """The prefix trees of a batch, for the graph. Node 0 is the root of rows without hints.

    Attributes:
        lists: int32 (n_batch,), which list of hints each row has.
        roots: int32 (n_lists,), the root of each list's tree.
        first_nodes: int32 (n_lists, vocabulary_size), where each token leads from the root; the root where nowhere.
        token_ids: int32 (n_nodes, n_branches), which tokens lead on from each node; -1 where there are fewer.
        nodes: int32 (n_nodes, n_branches), and where they lead.
    """

    lists: tf.Tensor
    roots: tf.Tensor
    first_nodes: tf.Tensor
    token_ids: tf.Tensor
    nodes: tf.Tensor

    @classmethod
    def signature(cls) -> Tables:
        """For tf.function."""
        one, two = tf.TensorSpec((None,), tf.int32), tf.TensorSpec((None, None), tf.int32)
        return cls(one, one, two, two, two)


def tables(hints: Sequence[Hints], tokenizer: Tokenizer) -> Tables:
    """Prefix trees of the rows of a batch."""
    distinct = list(dict.fromkeys([(), *hints]))
    branches: list[dict[int, int]] = []
    roots = []
    for phrases in distinct:
        roots.append(len(branches))
        branches.append({})
        for phrase in phrases:
            node = roots[-1]
            for token_id in tokenizer.encode(phrase):
                if token_id not in branches[node]:
                    branches[node][token_id] = len(branches)
                    branches.append({})
                node = branches[node][token_id]
    first_nodes = np.repeat(np.array(roots, np.int32)[:, None], len(tokenizer), axis=1)
    for row, root in zip(first_nodes, roots, strict=True):
        for token_id, node in branches[root].items():
            row[token_id] = node
        branches[root] = {}  # first_nodes has them
    n_branches = max(1, *map(len, branches))
    token_ids = np.full((len(branches), n_branches), -1, np.int32)
    nodes = np.zeros((len(branches), n_branches), np.int32)
    for i, branch in enumerate(branches):
        token_ids[i, : len(branch)] = list(branch.keys())
        nodes[i, : len(branch)] = list(branch.values())
    lists = np.array([distinct.index(phrases) for phrases in hints], np.int32)
    return Tables(lists, np.array(roots, np.int32), first_nodes, token_ids, nodes)


class Hinting:
    """Where the rows of a batch stand in their trees, for the graph.

    Args:
        tables: Of the batch.
        params: How far hints weigh.
    """

    def __init__(self, tables: Tables, params: HintParams) -> None:
        self._tables = tables
        self._params = params

    def roots(self) -> tf.Tensor:
        """Where each row of the batch begins, int32 (n_batch,)."""
        return tf.gather(self._tables.roots, self._tables.lists)

    def bonus(self, rows: tf.Tensor, nodes: tf.Tensor) -> tf.Tensor:
        """What is added to the logits of rows of the batch that stand at nodes, float32 (n_rows, vocabulary_size)."""
        lists = tf.gather(self._tables.lists, rows)
        starts = tf.gather(self._tables.first_nodes, lists) != tf.gather(self._tables.roots, lists)[:, None]
        token_ids = tf.gather(self._tables.token_ids, nodes)  # (n_rows, n_branches)
        is_branch = token_ids >= 0
        places = tf.stack([tf.where(is_branch)[:, 0], tf.cast(tf.boolean_mask(token_ids, is_branch), tf.int64)], axis=1)
        goes_on = tf.fill(tf.shape(places)[:1], self._params.continue_bonus)
        return tf.tensor_scatter_nd_max(tf.where(starts, self._params.start_bonus, 0.0), places, goes_on)

    def follow(self, rows: tf.Tensor, nodes: tf.Tensor, token_ids: tf.Tensor) -> tf.Tensor:
        """Where they stand after a token each, int32 (n_rows,)."""
        is_taken = tf.gather(self._tables.token_ids, nodes) == token_ids[:, None]
        further = tf.reduce_sum(tf.where(is_taken, tf.gather(self._tables.nodes, nodes), 0), axis=1)
        lists = tf.gather(self._tables.lists, rows)
        first = tf.gather_nd(self._tables.first_nodes, tf.stack([lists, token_ids], axis=1))
        return tf.where(tf.reduce_any(is_taken, axis=1), further, first)
