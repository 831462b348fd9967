"""Settings that every agent has, and the checks that annotations alone can make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np


@dataclass(frozen=True)
class AgentConfig:
    """Settings that every agent has."""

    learning_rate: float = 3e-4  # of AdamW
    schedule: Literal["constant", "linear"] = "constant"  # of the learning rate; "linear": to 0 over learn()'s budget
    prompts: int = 8  # different problems in a batch
    samples: int = 8  # completions of each problem; rows = prompts x samples
    epochs: int = 1  # passes over a batch
    minibatches: int = 1  # optimiser steps a pass
    micro_batch_rows: int = 0  # most rows scored at once, memory only: the step does not change; 0 = no limit
    max_grad_norm: float = 1.0  # gradient norm is clipped to this; 0 = never
    temperature: float = 1.0  # of sampling, and of the log-probs trained on
    seed: int | None = None  # of problems, sampling and minibatches
    device: str = "auto"  # "auto", "cpu", "cuda", "cuda:1", …
    dtype: str = "float32"  # of the model: "float32", "bfloat16", "float64"
    verbose: int = 0  # 1 shows a progress bar

    def __post_init__(self):
        check_fields(self)
        for name in ("prompts", "samples", "epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        for name in ("micro_batch_rows", "max_grad_norm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")


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
