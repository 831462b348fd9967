"""Settings that every agent has, and the checks that annotations alone can make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

import numpy as np


@dataclass(frozen=True)
class LearnerConfig:
    """Settings of everything that learns by gradient steps."""

    learning_rate: float = 3e-4  # of AdamW
    schedule: Literal["constant", "linear"] = "constant"  # of the learning rate; "linear": to 0 over learn()'s budget
    micro_batch_rows: int = 0  # most rows scored at once, memory only: the step does not change; 0 = no limit
    max_grad_norm: float = 1.0  # gradient norm is clipped to this; 0 = never
    lora: int = 0  # rank of LoRA adapters, all that is then trained (needs peft); 0 trains the whole model
    seed: int | None = None  # of problems, sampling and minibatches
    device: str = "auto"  # "auto", "cpu", "cuda", "cuda:1", …
    dtype: str = "float32"  # of the model: "float32", "bfloat16", "float64"
    verbose: int = 0  # 1 shows a progress bar

    def __post_init__(self):
        check_fields(self)
        check_least(self, 0, "micro_batch_rows", "max_grad_norm", "seed", "lora")
        check_above_zero(self, "learning_rate")


@dataclass(frozen=True)
class AgentConfig(LearnerConfig):
    """Settings of agents that act on an environment."""

    prompts: int = 8  # different problems in a batch, on text
    samples: int = 8  # completions of each problem; rows = prompts x samples
    epochs: int | None = 1  # passes over a batch
    minibatches: int | None = 1  # optimiser steps a pass
    temperature: float = 1.0  # of sampling, and of the log-probs trained on
    beta: float | None = 0.0  # weight of the KL to the frozen reference, reward per nat; 0 needs no reference
    kl: Literal["k1", "k2", "k3", "exact"] = "k1"  # per token: an estimate (Schulman 2020), or over the vocabulary
    # The KL as a penalty of each action's reward (RLHF, Ouyang et al. 2022) or as a term of the loss (GRPO).
    kl_in: Literal["reward", "loss"] = "reward"
    kl_target: float | None = None  # nats an episode: beta is adapted towards it (Ziegler et al. 2019, section 2.2)
    kl_horizon: int = 10_000  # episodes in which beta adapts: the smaller, the faster

    def __post_init__(self):
        super().__post_init__()
        check_least(self, 1, "prompts", "samples", "epochs", "minibatches", "kl_horizon")
        check_least(self, 0, "beta")
        check_above_zero(self, "temperature", "kl_target")
        if self.kl_target is not None and self.beta == 0:
            raise ValueError("kl_target adapts beta, which must begin above 0, got beta=0.0")

    def resolved(self, text: bool, rows: int = 1) -> Self:
        """This config with a number in place of every None that stands for "what suits the policy".

        Args:
            text: whether the policy is a language model.
            rows: of the environment.
        """
        return self


def check_fields(config: Any) -> None:
    """Refuse values that a config's annotations exclude: another choice than those listed, a fraction as a count."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(hint)))}, got {value!r}")
        if hint is int and (isinstance(value, bool) or not isinstance(value, int | np.integer)):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
        if hint is float and (isinstance(value, bool) or not isinstance(value, float | int | np.number)):
            raise ValueError(f"{name} must be a number, got {value!r}")


def check_least(config: Any, least: float, *names: str) -> None:
    """Refuse fields below `least`; None is allowed."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def check_above_zero(config: Any, *names: str) -> None:
    """Refuse fields that are not above 0; None is allowed."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")


def check_unit(config: Any, *names: str) -> None:
    """Refuse fields outside [0, 1]; None is allowed."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}")
