"""What an agent has spent: the common currency of every comparison."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class Counters:
    """Running totals of one policy.

    Attributes:
        sampled_tokens: tokens chosen by the policy.
        forward_tokens: tokens fed through the model, padding not counted (a scored token counts like a sampled one).
        forward_passes: calls of the model.
        cache_hits: tokens that a call needed and found in the key/value cache.
    """

    sampled_tokens: int = 0
    forward_tokens: int = 0
    forward_passes: int = 0
    cache_hits: int = 0

    def as_dict(self) -> dict[str, int]:
        """The totals by name."""
        return asdict(self)
