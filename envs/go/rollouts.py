"""Search with playouts, compiled as a whole: the tree's kernels, the board in place, a playout at every new node."""

from __future__ import annotations

import numpy as np

from llmgym.compiled import inlined, kernel
from llmgym.envs.go.area import margin, write_area
from llmgym.envs.go.bias import impress
from llmgym.envs.go.board import advance
from llmgym.envs.go.cells import action_of, at, cell_of, colour_at
from llmgym.envs.go.heavy import heavy_cell
from llmgym.envs.go.layout import BLACK_STONE, CAPTURES, COLS, ENDING, LAST, MOVES, ROWS, TO_PLAY, WHITE_STONE
from llmgym.envs.go.legality import write_mask
from llmgym.envs.go.playout import light_cell, spare_eyes
from llmgym.search.rules import RAVE, choose
from llmgym.search.tree import NO_CHILD, ROOT, add_edge, add_node, back_up

LIGHT, HEAVY, STATIC = 0, 1, 2  # how a new node is valued; STATIC scores the board as it stands, for tests


@inlined
def result(ints, area, komi):
    """1, 0 or -1 for Black of the board as it stands."""
    write_area(ints, area)
    return np.sign(margin(area) - komi)


@inlined
def play_edge(ints, longs, action):
    """Play an action of the tree, which is legal."""
    points = at(ints, ROWS) * at(ints, COLS)
    advance(ints, longs, action, 0 if action == points else cell_of(ints, action))


@inlined
def note(ints, came, start):
    """Remember who was the first to play at the point of the last move, and how many moves after the root."""
    point = at(ints, LAST)
    if point < came.shape[1] and came[0, point] == 0:
        came[0, point], came[1, point] = at(ints, MOVES) - start, 1 - at(ints, TO_PLAY)


@inlined
def credit(nodes, edges, node, came, outcome, depth, mover):
    """All moves as first: an edge of a node counts what its player played there first, now or later on."""
    worth = outcome if mover == 0 else -outcome
    for edge in range(nodes[node].first, nodes[node].first + nodes[node].degree):
        point = edges[edge].action
        if point < came.shape[1] and came[0, point] > depth and came[1, point] == mover:
            edges[edge].all_visits += 1
            edges[edge].all_total += worth


@inlined
def credit_way(nodes, edges, node, came, outcome, depth, mover):
    """`credit` for all nodes from the root to this one, which lies `depth` moves below it and where `mover` moves."""
    while True:
        credit(nodes, edges, node, came, outcome, depth, mover)
        if nodes[node].edge < 0:
            return
        node, depth, mover = np.int64(edges[nodes[node].edge].node), depth - 1, 1 - mover


@inlined
def write_candidates(ints, longs, every, mask):
    """Moves that the tree tries: all legal ones, or those that fill no own eye and the pass."""
    write_mask(ints, longs, mask)
    if not every and at(ints, ENDING) == 0:
        spare_eyes(ints, mask)
        mask[mask.shape[0] - 1] = True


@inlined
def open_node(nodes, edges, counts, node, ints, longs, taste, mask):
    """Give a node its edges, with equal priors, and with first impressions if RAVE reads them."""
    rave, every, weights = taste
    write_candidates(ints, longs, every, mask)
    first, degree = np.int64(counts[1]), 0
    for action in range(mask.shape[0]):
        if mask[action]:
            add_edge(edges, first + degree, node, 1.0)
            edges[first + degree].action = action
            degree += 1
    for edge in range(first, first + degree):
        edges[edge].prior = 1.0 / degree
    nodes[node].first, nodes[node].degree, nodes[node].complete = first, degree, every
    counts[1] = first + degree
    if rave:
        impress(edges, first, degree, ints, longs, weights)


@inlined
def hang(nodes, edges, counts, edge, ints, komi, area):
    """A node without edges at the end of an edge, for the board as it is now; returns its number."""
    over, reward = at(ints, ENDING) > 0, 0.0
    if over:
        reward = result(ints, area, komi) * (1.0 if at(ints, TO_PLAY) == 1 else -1.0)  # of who moved
    return add_node(nodes, edges, counts, edge, 0.0, reward, over, 0)


@inlined
def walk(nodes, edges, counts, ints, longs, komi, numbers, taste, start, came, mask, area, policy):
    """Down the tree to a node that is new, over, proven, or out of room for edges; the board goes along.

    Returns:
        The node.
    """
    node = np.int64(ROOT)
    while True:
        nodes[node].flight += 1
        over = at(ints, ENDING) > 0 or (nodes[node].exact == nodes[node].exact and node != ROOT)
        full = nodes[node].degree == 0 and counts[1] + mask.shape[0] > edges.shape[0]
        if over or full or counts[0] == nodes.shape[0]:
            return node
        if nodes[node].degree == 0:
            open_node(nodes, edges, counts, node, ints, longs, taste, mask)
        nodes[node].flight -= 1  # a choice does not see the visit that it is for
        edge = choose(nodes, edges, node, numbers, policy)
        nodes[node].flight += 1
        play_edge(ints, longs, np.int64(edges[edge].action))
        note(ints, came, start)
        if edges[edge].child == NO_CHILD:
            return hang(nodes, edges, counts, edge, ints, komi, area)
        node = np.int64(edges[edge].child)


@inlined
def stones_ahead(ints):
    """Black's stones less White's."""
    ahead = 0
    for action in range(at(ints, ROWS) * at(ints, COLS)):
        colour = colour_at(ints, cell_of(ints, action))
        ahead += (colour == BLACK_STONE) - np.int64(colour == WHITE_STONE)
    return ahead


@inlined
def captures_ahead(ints):
    """Stones that Black has taken less those that White has."""
    return at(ints, CAPTURES) - at(ints, CAPTURES + 1)


@inlined
def is_decided(ahead, komi, points):
    """Whether Black is so many stones ahead, or behind, that playing on changes nothing, komi counted or not."""
    decisive = 10 + points // 4
    return min(ahead, ahead - komi) > decisive or max(ahead, ahead - komi) < -decisive


@inlined
def play_on(ints, longs, kind, seed, choices, came, start, before, komi):
    """A playout to the end of the game, or, if heavy, until captures have decided it.

    Args:
        before: Black's stones less White's at the root, as if nothing had been captured till then.
    """
    points = at(ints, ROWS) * at(ints, COLS)
    while kind != STATIC and at(ints, ENDING) == 0:
        if kind == HEAVY and is_decided(before + captures_ahead(ints), komi, points):
            return
        cell = heavy_cell(ints, longs, seed, choices) if kind == HEAVY else light_cell(ints, longs, seed)
        advance(ints, longs, action_of(ints, cell) if cell else points, cell)
        note(ints, came, start)


@kernel
def search(nodes, edges, counts, root_ints, root_longs, komi, numbers, kind, every, weights, seed, simulations):
    """Grow one tree by so many simulations from a board that stays as it is.

    Args:
        nodes, edges, counts: [M], [E] and int32 [2]; empty at first, or what `reroot` has left.
        numbers: see `llmgym.search.forest.numbers`.
        kind: LIGHT, HEAVY or STATIC.
        every: whether all legal moves are candidates; see `write_candidates`.
        weights: of first impressions, see `llmgym.envs.go.bias`; only RAVE reads them.
        seed: uint64 [1], advanced.
    """
    taste = (numbers[0] == RAVE, every, weights)
    points = at(root_ints, ROWS) * at(root_ints, COLS)
    ints, longs = np.empty_like(root_ints), np.empty_like(root_longs)
    mask, area, policy = np.empty(points + 1, np.bool_), np.empty(points, np.uint8), np.empty(points + 1)
    came, choices, start = np.empty((2, points), np.int32), np.empty(24, np.int64), at(root_ints, MOVES)
    before = stones_ahead(root_ints) - captures_ahead(root_ints)
    for _ in range(simulations + (counts[0] == 0)):  # a new root is valued too, as every node is
        ints[:], longs[:], came[:] = root_ints, root_longs, 0
        if counts[0] == 0:
            node = hang(nodes, edges, counts, -1, ints, komi, area)
        else:
            node = walk(nodes, edges, counts, ints, longs, komi, numbers, taste, start, came, mask, area, policy)
        mover, depth = at(ints, TO_PLAY), at(ints, MOVES) - start
        if at(ints, ENDING) == 0 and nodes[node].exact == nodes[node].exact and node != ROOT:
            outcome = nodes[node].exact if mover == 0 else -nodes[node].exact
        else:
            play_on(ints, longs, kind, seed, choices, came, start, before, komi)
            outcome = result(ints, area, komi)
            nodes[node].value = outcome if mover == 0 else -outcome
        back_up(nodes, edges, node, numbers)
        if numbers[0] == RAVE:
            credit_way(nodes, edges, node, came, outcome, depth, mover)
