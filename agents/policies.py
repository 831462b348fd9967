"""From what a user names as a policy to a policy object."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from llmgym.agents.config import LearnerConfig
from llmgym.nets import KINDS, NetPolicy
from llmgym.policy import LMPolicy

NETS = tuple(KINDS)
C = TypeVar("C", bound=LearnerConfig)


def is_net(policy: Any) -> bool:
    """Whether `policy` is, or names, a policy for environments other than text."""
    return isinstance(policy, NetPolicy) or (isinstance(policy, str) and policy in NETS)


def make_policy(policy: Any, world: Any, config: C, given: dict[str, Any], values: Any) -> tuple[Any, C]:
    """The policy object, and the config with what a ready policy brings along.

    Args:
        policy: as `Agent` takes it.
        world: the MDP of a text environment, or a vector environment.
        config: settings of a policy that is still to be made.
        given: the settings that were named; one that a ready policy contradicts is refused, not ignored.
        values: False, or which value head is needed.
    """
    if isinstance(policy, NetPolicy):
        policy, config = policy, settings_of(policy, config, given)
    elif is_net(policy):
        settings: dict[str, Any] = {"device": config.device, "dtype": config.dtype, "seed": config.seed}
        return NetPolicy(policy, world, value_head=bool(values), **settings), config
    elif isinstance(policy, LMPolicy):
        config = settings_of(policy, config, given | ({"lora": config.lora} if config.lora else {}))
    else:
        policy = LMPolicy(
            policy,
            world,
            temperature=getattr(config, "temperature", 1.0),  # 1 where nothing is sampled to learn from
            value_head=values,
            lora=config.lora,
            device=config.device,
            dtype=config.dtype,
            seed=config.seed,
        )
    _check(policy, values)
    return policy, config


def _check(policy: Any, values: Any) -> None:
    if values and policy.value_head is None:
        raise ValueError("learning values needs a policy with a value head: give it value_head=True")
    if isinstance(policy, LMPolicy) and (policy.top_k or policy.top_p < 1):
        raise ValueError(
            f"training needs top_k=0 and top_p=1 (the support of the behaviour policy must not move), "
            f"got top_k={policy.top_k}, top_p={policy.top_p}"
        )


def settings_of(policy: Any, config: Any, given: dict[str, Any]) -> Any:
    """`config` with the settings of a ready policy."""
    own: dict[str, Any] = {"dtype": str(policy.dtype).removeprefix("torch."), "device": str(policy.device)}
    if isinstance(policy, LMPolicy):
        own |= {"temperature": policy.temperature, "lora": 0}
    own = {name: value for name, value in own.items() if hasattr(config, name)}
    for name, value in own.items():
        if name in given and given[name] not in (value, "auto", str(value).split(":")[0]):
            raise ValueError(f"{name} is a setting of the policy that was given, {value!r}: got {given[name]!r}")
    return dataclasses.replace(config, **own)
