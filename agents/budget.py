"""When `learn` stops."""

from __future__ import annotations

import time
from typing import Any


class Budget:
    """When to stop: the first of the given limits."""

    def __init__(self, agent: Any, timesteps: int | None, tokens: int | None, seconds: float | None):
        if timesteps is None and tokens is None and seconds is None:
            raise ValueError("learn() needs a budget: total_timesteps, total_tokens or max_seconds")
        for name, value in (("total_timesteps", timesteps), ("total_tokens", tokens), ("max_seconds", seconds)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        self.agent, self.limits = agent, (timesteps, tokens, seconds)
        self.start, self.last_step = self._now(), 0.0

    def _now(self) -> tuple[float, float, float]:
        return self.agent.num_timesteps, self.agent.policy.counters.sampled_tokens, time.perf_counter()

    def fraction(self) -> float:
        """Share of the budget that is spent, in [0, 1]."""
        used = [(n - s) / limit for n, s, limit in zip(self._now(), self.start, self.limits, strict=True) if limit]
        return min(max(used), 1.0)

    def spent(self) -> bool:
        """Whether to stop; time is also up when the next step would end late."""
        now = time.perf_counter() - self.start[2]
        step, self.last_step = now - self.last_step, now
        late = self.limits[2] is not None and now + step > self.limits[2]
        return self.fraction() >= 1.0 or late
