"""`MCTS` on text: a language model proposes and judges, a search writes, and the model learns from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from llmgym.agents.config import LearnerConfig, check_least, check_unit
from llmgym.agents.mcts import MCTS, WITHOUT_NET
from llmgym.agents.metrics import Metrics, postfix
from llmgym.agents.policies import is_net, make_policy
from llmgym.agents.text_distillation import TextDistillation
from llmgym.agents.text_play import Asking, LenientText, RememberingEvaluator
from llmgym.search import SearchOptions
from llmgym.search.proposals import Evaluate
from llmgym.text import TextState


@dataclass(frozen=True)
class TextMCTSConfig(LearnerConfig, SearchOptions):
    """Settings of MCTS on text; those of its search are the fields of `SearchOptions`."""

    rule: str = "gumbel"  # "gumbel" (sequential halving at the root), "puct", or "uct" (UCB1, priors ignored)
    simulations: int = 8  # of every action
    c_scale: float = 0.1  # Gumbel: σ(q) = (c_visit + max N) c_scale q; values here are a few rollouts, and noisy
    noise: float = 0.25  # PUCT and UCT: share of Dirichlet noise in the priors of roots, in learning alone
    candidates: int = 4  # K, actions of a state that the policy proposes
    sampled: bool = False  # draw the K without replacement; else the most probable ones
    min_p: float = 0.05  # candidates with less than this share of the first one's probability are left out
    rollouts: float = 1.0  # λ: weight of a text that the policy writes on to its end; the value head has the rest
    bound: Literal["tanh", "clip", "none"] = "none"  # of the value head's output
    temperature: float = 1.0  # of what is sampled, and of the log-probs trained on
    reuse: bool = True  # predict: keep what is known below the actions taken (not with "gumbel")
    prompts: int = 32  # problems in a batch, their answers written side by side
    drawn_moves: int = 0  # actions of an answer drawn from the visits instead of the best; Gumbel draws its own
    epochs: int = 1  # passes over a batch
    minibatches: int = 2  # optimiser steps a pass
    value_weight: float = 0.1  # of the squared error of values, beside the cross-entropy of policies; 0 learns none

    def __post_init__(self):
        LearnerConfig.__post_init__(self)
        SearchOptions.__post_init__(self)
        if self.rule == "rave":
            raise ValueError("rule must be one of gumbel, puct, uct, got 'rave': that is for searches with playouts")
        if self.discount < 0:
            raise ValueError(f"discount must be above 0, one alone writes: got {self.discount}")
        check_least(self, 1, "candidates", "prompts", "epochs", "minibatches")
        check_least(self, 0, "drawn_moves", "value_weight")
        check_unit(self, "rollouts")

    def options(self, two: bool = False) -> SearchOptions:
        """Of the search."""
        return SearchOptions(**{f.name: getattr(self, f.name) for f in dataclasses.fields(SearchOptions)})

    @property
    def asking(self) -> Asking:
        """Of the language model."""
        return Asking(self.candidates, self.sampled, self.min_p, self.rollouts, self.bound)


class TextMCTS(MCTS):
    """`MCTS(policy, env)` where `env` is a text environment.

    Args:
        policy: an `LMPolicy`, or what it takes as a model: "tiny", a folder, a hub id.
        env: a text environment, single or vector; its actions are the search's.
        **config: fields of `TextMCTSConfig`; an unknown name raises TypeError.
    """

    config_class: ClassVar[Any] = TextMCTSConfig
    saved_as: ClassVar[str] = "MCTS"  # whose `load` brings it back
    config: Any

    def write(self, states: Sequence[TextState]) -> list[TextState]:
        """Answers that the search writes, action by action, without chance of its own: the terminal states.

        Args:
            states: where to begin, as `mdp.start(problem)`.
        """
        ends = list(states)
        while going := [row for row, state in enumerate(ends) if not self.mdp.terminal(state)]:
            found = self.plan([ends[row] for row in going])
            for row, result in zip(going, found, strict=True):
                ends[row] = self.mdp.transition(ends[row], result.action)
        return ends

    def guide(self, seed: int) -> Evaluate:
        """Its evaluator: what it rolls out is the policy's own, by `rollouts`."""
        return self.evaluator

    def _evaluator(self, policy: Any, given: dict[str, Any]) -> RememberingEvaluator:
        if is_net(policy) or (isinstance(policy, str) and policy in WITHOUT_NET):
            raise ValueError(f"on text the policy must be a language model such as 'tiny', got {policy!r}")
        values = "shared" if self.config.rollouts < 1 or self.config.value_weight else False
        policy, self.config = make_policy(policy, self.mdp, self.config, given, values)
        self._prepare(policy)
        if self.config.seed is not None:
            policy.seed(self.config.seed)
        self.mdp, self.dropped_rows = LenientText(self.mdp), 0
        self.distillation: Any = TextDistillation(self, self._asking(policy.generator))
        return self._asking(torch.Generator(policy.device).manual_seed(self.config.seed or 0))

    def _asking(self, generator: torch.Generator) -> RememberingEvaluator:
        return RememberingEvaluator(self.policy, self.mdp, self.config.asking, generator)

    def _postfix(self, metrics: Metrics) -> str:
        return postfix(metrics)
