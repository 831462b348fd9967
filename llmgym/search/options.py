"""What a search is asked to do."""

from __future__ import annotations

from dataclasses import dataclass

RULES = ("puct", "uct", "gumbel", "rave")


@dataclass(frozen=True)
class SearchOptions:
    """Constants are those of AlphaZero (Silver et al. 2018) and Gumbel AlphaZero (Danihelka et al. 2022).

    Raises:
        ValueError: a setting out of range.
    """

    simulations: int = 64  # of every tree
    rule: str = "puct"  # "puct", "uct" (UCB1, priors ignored), "gumbel" (sequential halving at the root), "rave" (Go)
    discount: float = 1.0  # of a return, one step on; -1 where two players alternate in a zero-sum game
    c_base: float = 19652.0  # PUCT: c = ln((N + c_base + 1) / c_base) + c_init
    c_init: float = 1.25  # see c_base
    c_uct: float = 1.0  # UCB1: q + c_uct sqrt(ln N / n)
    rave_equivalence: float = 3000.0  # RAVE: visits at which a mean weighs as much as the all-moves-as-first one
    fpu_reduction: float = 0.0  # an unvisited child is worth its parent's mean less this times sqrt(visited prior)
    noise: float = 0.0  # share of Dirichlet noise in the priors of the root
    noise_alpha: float = 0.0  # its concentration; 0: 10.8 / number of candidates
    leaves: int = 1  # evaluated at once in one tree
    virtual_loss: float = 1.0  # a visit under way counts as one that lost so much
    considered: int = 16  # Gumbel: root actions that sequential halving begins with
    c_visit: float = 50.0  # Gumbel: σ(q) = (c_visit + max N) c_scale q
    c_scale: float = 1.0  # see c_visit; smaller where values are noisy
    best: float | None = None  # the highest possible return; with it, wins are proven and passed up

    def __post_init__(self):
        for name in ("simulations", "leaves", "considered"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, got {self.rule!r}")
        if not 0 <= self.noise <= 1 or self.noise_alpha < 0:
            raise ValueError(f"noise must be a share and noise_alpha at least 0, got {self.noise}, {self.noise_alpha}")
        if not -1 <= self.discount <= 1 or self.discount == 0:
            raise ValueError(f"discount must be in [-1, 1] and not 0, got {self.discount}")
        for name in ("c_base", "c_visit", "rave_equivalence"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
