"""Self-play on several threads: while one is in the network, which needs no interpreter, another grows its trees."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import torch

from llmgym.agents.selfplay import Finished, SelfPlay


class Workers:
    """Several `SelfPlay`, one a thread; what they play does not depend on how the threads take turns.

    Inside a thread torch uses that thread alone; elsewhere it keeps the number it has.

    Args:
        parts: at least one.
    """

    def __init__(self, parts: Sequence[SelfPlay]):
        self.parts = list(parts)
        self._pool = _pool(len(self.parts)) if len(self.parts) > 1 else None

    def play(self, moves: int, give_up: float = -np.inf) -> list[Finished]:
        """See `SelfPlay.play`; the games in the order of the parts."""
        if self._pool is None:
            return self.parts[0].play(moves, give_up)
        jobs = [self._pool.submit(part.play, moves, give_up) for part in self.parts]
        return [game for job in jobs for game in job.result()]


def _pool(n: int) -> ThreadPoolExecutor:
    """n threads in which torch uses one thread each."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(1,))
    together = Barrier(n)  # all begin now, before the number is set back
    for job in [pool.submit(together.wait) for _ in range(n)]:
        job.result()
    torch.set_num_threads(before)
    return pool
