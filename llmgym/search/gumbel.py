"""Sequential halving at the root: which actions get how many simulations. Danihelka et al. 2022, section 3.4."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache

import numpy as np

from llmgym.compiled import inlined
from llmgym.search.rules import mixed_value, sigma_scale
from llmgym.search.tree import ROOT, edge_value, edge_visits


@cache
def considered_visits(considered: int, simulations: int) -> tuple[int, ...]:
    """For every simulation, the visits that an action must have to be taken next.

    The best m actions are visited in turns, in rounds of equal budgets, and after each round the better half stays.
    """
    if considered <= 1:
        return tuple(range(simulations))
    rounds, left = math.ceil(math.log2(considered)), considered
    visits, sequence = [0] * considered, list[int]()
    while len(sequence) < simulations:
        for _ in range(max(1, simulations // (rounds * left))):
            sequence += visits[:left]
            visits[:left] = [n + 1 for n in visits[:left]]
        left = max(2, left // 2)
    return tuple(sequence[:simulations])


def schedules(considered: int, degrees: Iterable[int], simulations: int) -> np.ndarray:
    """`considered_visits` of many roots with so many candidates each; int64 [B, simulations]."""
    return np.array([considered_visits(min(considered, degree), simulations) for degree in degrees], np.int64)


@inlined
def halving_edge(nodes, edges, gumbels, wanted, numbers):
    """Of the root's edges with the wanted visits, the one of the highest Gumbel + logit + σ(q); gumbels float64 [K]."""
    it, best, best_score = nodes[ROOT], -1, -math.inf
    scale, filled = sigma_scale(nodes, edges, ROOT, numbers), mixed_value(nodes, edges, ROOT, numbers)
    for k in range(it.degree):
        edge = it.first + k
        n = edge_visits(nodes, edges, edge)
        if n == wanted:
            q = edge_value(nodes, edges, edge, numbers) if n > 0 else filled
            score = gumbels[k] + math.log(max(edges[edge].prior, 1e-30)) + scale * q
            if score > best_score:
                best, best_score = edge, score
    return best
