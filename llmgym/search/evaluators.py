"""What a search asks about new nodes: a network's priors and values, or nothing known at all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmgym.mdp import MDP, NoLegalAction
from llmgym.nets import NetPolicy
from llmgym.search.proposals import Proposal, Proposals

BOUNDS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "clip": lambda values: values.clamp(-1.0, 1.0),
    "none": lambda values: values,
}


class UniformEvaluator:
    """Equal priors of all legal actions, and the value 0.

    Args:
        mdp: the rules.
    """

    def __init__(self, mdp: MDP):
        self.mdp = mdp

    def __call__(self, states: list[Any]) -> list[Proposal]:
        """n states -> n proposals."""
        candidates = [np.flatnonzero(self.mdp.mask(state)).tolist() for state in states]
        return [Proposal(actions, np.ones(len(actions)), 0.0) for actions in candidates]


class NetEvaluator:
    """Priors and values of an actor-critic, in one forward pass for all states.

    Priors are the softmax of the actor's outputs over the legal actions, `mdp.mask(state)`; values are the critic's,
    of the player to move, since `mdp.observation(state)` is that player's.

    Args:
        mdp: the rules; actions are numbered from 0 (`Discrete`).
        policy: with a value head.
        bound: of values: "tanh", "clip" (to [-1, 1]) or "none".
        bfloat16: forward passes in half the bits, of a copy of the network: call `refresh` when the policy has
            learnt. Worth it on processors that multiply bfloat16 (AVX-512 BF16, AMX) and on GPUs.

    Raises:
        ValueError: the policy has no value head, or another action space; or `bound` is none of these.
    """

    def __init__(self, mdp: MDP, policy: NetPolicy, bound: str = "tanh", bfloat16: bool = False):
        if bound not in BOUNDS:
            raise ValueError(f"bound must be one of {', '.join(BOUNDS)}, got {bound!r}")
        if policy.value_head is None:
            raise ValueError("a search needs values, this policy has no value head: give it value_head=True")
        if policy.action_space != mdp.action_space:
            raise ValueError(f"a policy here must act in {mdp.action_space}, this one acts in {policy.action_space}")
        self.mdp, self.policy, self.bound = mdp, policy, BOUNDS[bound]
        self.dtype = torch.bfloat16 if bfloat16 else policy.dtype
        self.refresh()

    def refresh(self) -> None:
        """Take over what the policy has learnt; only a network in bfloat16 needs that."""
        net = self.policy.net
        if self.dtype != self.policy.dtype:
            net = copy.deepcopy(net).to(self.dtype)
        self.net = net

    def __call__(self, states: list[Any]) -> Proposals:
        """n states -> n proposals.

        Raises:
            NoLegalAction: a state without a legal action.
        """
        observations, masks = observed(self.mdp, states)
        priors, values = self.evaluate(observations, masks)
        order = np.argsort(~masks, axis=1, kind="stable")  # legal actions first
        actions = [row[:k] for row, k in zip(order.tolist(), masks.sum(1).tolist(), strict=True)]
        priors = np.take_along_axis(priors, order, 1)
        return Proposals(actions, priors, values, np.ones(len(states), bool))

    @torch.inference_mode()
    def evaluate(self, observations: Any, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Priors float64 [n, K], 0 where the mask is False, and values float64 [n].

        Args:
            observations: n of the MDP's space, stacked.
            masks: bool [n, K].
        """
        policy = self.policy
        x = torch.from_numpy(np.ascontiguousarray(policy.encode(observations))).to(policy.device, self.dtype)
        if x.dim() == 4:  # planes: convolutions are faster with channels last
            x = x.to(memory_format=torch.channels_last)
        outputs, values = self.net(x if policy.encode.scale == 1.0 else x / policy.encode.scale)
        policy.counters.forward_passes += 1
        forbidden = ~torch.from_numpy(masks).to(policy.device)
        priors = outputs.double().masked_fill_(forbidden, -torch.inf).softmax(-1)
        return priors.cpu().numpy(), self.bound(values.double()).cpu().numpy()


def observed(mdp: MDP, states: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Observations [n, …] and masks bool [n, K].

    Raises:
        NoLegalAction: a state without a legal action.
    """
    masks = np.stack([mdp.mask(state) for state in states])
    if not masks.any(1).all():
        raise NoLegalAction("a mask forbids every action of a state that is not terminal")
    return np.stack([mdp.observation(state) for state in states]), masks
