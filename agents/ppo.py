"""PPO: proximal policy optimisation (Schulman et al. 2017), on text and on any other environment."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from llmgym.agents.base import Agent
from llmgym.agents.collect import Play
from llmgym.agents.config import AgentConfig, check_above_zero, check_least, check_unit
from llmgym.agents.credit import ends, whitened
from llmgym.agents.metrics import Metrics, moved
from llmgym.agents.part import Credit, Part
from llmgym.batch import Evaluation, Scored
from llmgym.losses import Normalize, aggregate, ppo_loss, value_loss
from llmgym.returns import gae

ON_TEXT = {"gamma": 1.0, "lam": 1.0, "epochs": 2, "minibatches": 2, "beta": 0.05}
ELSEWHERE = {"gamma": 0.99, "lam": 0.95, "epochs": 10, "beta": 0.0}
_ACTIONS = 64  # of a minibatch elsewhere, as in stable-baselines3


@dataclass(frozen=True)
class PPOConfig(AgentConfig):
    """Settings of PPO. Those that are None by default suit the policy: on text they are not as elsewhere."""

    epochs: int | None = None  # passes over a batch; None: 2 on text, 10 elsewhere
    minibatches: int | None = None  # optimiser steps a pass; None: 2 on text, elsewhere one for every 64 actions
    num_envs: int = 8  # rows of an "MlpPolicy" or "CnnPolicy"; on text they are prompts x samples
    n_steps: int = 128  # actions a row takes in a batch, same policies; on text a row is an episode
    gamma: float | None = None  # discount an action; None: 1 on text (only 1 keeps granularities identical), else 0.99
    lam: float | None = None  # λ of GAE (Schulman et al. 2016, eq. 16); None: 1 on text, else 0.95
    discount_tokens: bool = False  # discount by the tokens of an action instead of by actions
    clip: float = 0.2  # ε of the ratio clip, eq. 7
    clip_high: float | None = None  # upper ε when it differs (DAPO, Yu et al. 2025)
    value_weight: float = 0.5  # c1 of eq. 9
    value_clip: float | None = None  # ε of the value clip, units of reward; None: none
    entropy: float = 0.0  # c2 of eq. 9, weight of an entropy bonus (nats of an action)
    target_kl: float | None = None  # an update ends where the KL to the old policy exceeds 1.5 times this, nats
    whiten: bool = True  # advantages to mean 0 and deviation 1 over the actions of a batch
    # Mean over all actions ("actions", the paper's), over a row's actions then rows ("rows"), or divided by the
    # constant rows x most possible actions ("constant").
    normalize: Normalize = "actions"
    length_normalized_ratio: bool = False  # ratio to the power 1 / tokens of the action (GSPO, Zheng et al. 2025)
    # On text: a value head on the policy's own model ("shared"), or on a copy with parameters of its own ("separate").
    critic: Literal["shared", "separate"] = "shared"
    beta: float | None = None  # weight of the KL to the reference; None: 0.05 on text, else 0

    def __post_init__(self):
        super().__post_init__()
        check_least(self, 1, "num_envs", "n_steps")
        check_least(self, 0, "value_weight", "entropy")
        check_unit(self, "gamma", "lam")
        check_above_zero(self, "clip", "clip_high", "value_clip", "target_kl")

    def resolved(self, text: bool, rows: int = 1) -> Self:
        elsewhere = ELSEWHERE | {"minibatches": max(1, rows * self.n_steps // _ACTIONS)}
        defaults: dict[str, Any] = ON_TEXT if text else elsewhere
        return replace(self, **{name: value for name, value in defaults.items() if getattr(self, name) is None})


class PPO(Agent):
    """Clipped surrogate, value loss and entropy bonus on advantages by GAE.

    max E[min(r A, clip(r, 1-ε, 1+ε) A)] - c1 (V(s) - V_target)² + c2 S[π](s), Schulman et al. 2017, eq. 9. The action
    is the environment's: a token, a block, a sequence of text, or whatever another environment takes.

    Args:
        policy, env, reference, **config: as `Agent`; fields of `PPOConfig`. Policies are language models, or
            "MlpPolicy" and "CnnPolicy" on any environment with Box, Discrete, MultiDiscrete or MultiBinary spaces.
    """

    config_class: ClassVar[type[AgentConfig]] = PPOConfig
    config: PPOConfig
    plays_any_environment = True

    def credit(self, batch: Any, scored: Scored | None, metrics: Metrics) -> Credit:
        """GAE and the returns that values are fitted to."""
        c = self.config
        assert scored is not None and scored.values is not None and c.gamma is not None and c.lam is not None
        durations = batch.n_tokens if c.discount_tokens else None
        named = {"gamma": c.gamma, "lam": c.lam, "durations": durations, **ends(batch, scored)}
        advantages, returns = gae(batch.rewards, scored.values.to(batch.rewards), batch.mask, **named)
        metrics["explained_variance"] = explained_variance(scored.values, returns, batch.mask)
        return Credit(whitened(advantages, batch.mask) if c.whiten else advantages, returns)

    def loss(
        self, part: Part, evaluation: Evaluation, old_logp: Tensor, denominator: Tensor
    ) -> tuple[Tensor, dict[str, Any]]:
        """`ppo_loss` with `value_loss`, the entropy bonus and, where it belongs there, the KL term."""
        c, mask = self.config, part.batch.mask
        shared: dict[str, Any] = {"denominator": denominator, "normalize": c.normalize}
        n_tokens = part.batch.n_tokens if c.length_normalized_ratio else None
        advantages = part.advantages.to(evaluation.logp.dtype)
        loss = ppo_loss(
            evaluation.logp, old_logp, advantages, mask, clip=c.clip, clip_high=c.clip_high, n_tokens=n_tokens, **shared
        )
        metrics = {"policy_loss": loss.detach()} | moved(evaluation.logp, old_logp, mask, c.clip, c.clip_high, n_tokens)
        if part.returns is not None and evaluation.values is not None:
            old = part.old_values if c.value_clip is not None else None
            errors = value_loss(
                evaluation.values, part.returns.to(advantages), mask, old_values=old, clip=c.value_clip, **shared
            )
            loss, metrics["value_loss"] = loss + c.value_weight * errors, errors.detach()
        if c.entropy and evaluation.entropy is not None:
            loss = loss - c.entropy * aggregate(evaluation.entropy, mask, **shared)
        if evaluation.kl is not None:
            loss = loss + self.beta * aggregate(evaluation.kl, mask, **shared)
        return loss, metrics | {"loss": loss.detach()}

    def _play(self, env: Any) -> Play:
        return Play(env, self.config.num_envs, self.config.n_steps, whole_episodes=False)

    def _needs_values(self) -> Any:
        return self.config.critic

    def _needs_score(self) -> bool:
        return True


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var[returns - values] / Var[returns] over the actions that count; NaN where returns do not vary."""
    returns, values = returns[mask], values[mask].to(returns)
    spread = returns.var(correction=0)
    return float(1 - (returns - values).var(correction=0) / spread) if spread > 0 else float("nan")
