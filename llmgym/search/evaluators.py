"""What a search asks about new nodes: a network's priors and values, playouts, or nothing known at all."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmgym.fused_residual import fused
from llmgym.mdp import MDP
from llmgym.nets import NetPolicy
from llmgym.search.proposals import LegalActions

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

    def __call__(self, states: Sequence[Any]) -> LegalActions:
        """n states -> n proposals; the search refuses a state without a legal action."""
        masks = np.stack([self.mdp.mask(state) for state in states])
        return LegalActions(masks, np.zeros(masks.shape), np.array([self.value(state) for state in states]))

    def value(self, state: Any) -> float:
        """What a state is worth to its player to move."""
        return 0.0


class PlayoutEvaluator(UniformEvaluator):
    """Equal priors, and the return of one playout of uniform legal actions.

    An MDP with `rollout(state, rng)` and `outcome(end, player)`, as Go has, plays by itself: with light moves.

    Args:
        mdp: the rules.
        discount: of a return, one step on; -1 where two players alternate in a zero-sum game.
        rng: of the playouts.
    """

    def __init__(self, mdp: MDP, discount: float, rng: np.random.Generator):
        super().__init__(mdp)
        self.discount, self.rng = discount, rng

    def value(self, state: Any) -> float:
        mdp: Any = self.mdp
        if hasattr(mdp, "rollout"):
            return mdp.outcome(mdp.rollout(state, self.rng), mdp.player(state))
        worth, weight = 0.0, 1.0
        while not mdp.terminal(state):
            before, action = state, int(self.rng.choice(np.flatnonzero(mdp.mask(state))))
            state = mdp.transition(before, action)
            worth, weight = worth + weight * mdp.reward(before, action, state), weight * self.discount
        return worth


class NetEvaluator:
    """Priors and values of an actor-critic, in one forward pass for all states.

    Priors are the softmax of the actor's outputs over the legal actions, `mdp.mask(state)`; values are the critic's,
    of the player to move, since `mdp.observation(state)` is that player's.

    Args:
        mdp: the rules; its actions are `Discrete`.
        policy: with a value head.
        bound: of values: "tanh", "clip" (to [-1, 1]) or "none".
        bfloat16: forward passes in half the bits, of a copy of the network: call `refresh` when the policy has
            learnt. Worth it on processors that multiply bfloat16 (AVX-512 BF16, AMX) and on GPUs.

    Raises:
        ValueError: the policy has no value head, or other spaces; or `bound` is none of these.
    """

    def __init__(self, mdp: MDP, policy: NetPolicy, bound: str = "tanh", bfloat16: bool = False):
        if bound not in BOUNDS:
            raise ValueError(f"bound must be one of {', '.join(BOUNDS)}, got {bound!r}")
        if policy.value_head is None:
            raise ValueError("a search needs values, this policy has no value head: give it value_head=True")
        for name in ("observation_space", "action_space"):
            own, asked = getattr(policy, name), getattr(mdp, name)
            if own != asked:
                raise ValueError(f"the {name.replace('_', ' ')} of the policy is {own}, that of the rules is {asked}")
        self.mdp, self.policy, self.bound = mdp, policy, BOUNDS[bound]
        self.dtype = torch.bfloat16 if bfloat16 else policy.dtype
        self.refresh()

    def refresh(self) -> None:
        """Take over what the policy has learnt; only a network in bfloat16 needs that."""
        net = self.policy.net if self.dtype == self.policy.dtype else copy.deepcopy(self.policy.net)
        # Weights of convolutions lie as they are read: else each pass copies them.
        self.net: Any = fused(net.to(self.dtype, memory_format=torch.channels_last))  # type: ignore[call-overload]

    def __call__(self, states: Sequence[Any]) -> LegalActions:
        """n states -> n proposals; the search refuses a state without a legal action."""
        observations, masks = self.look(states)
        return LegalActions(masks, *self.evaluate(observations))

    def look(self, states: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Observations as the policy encodes them, [n, …], and masks bool [n, K]."""
        seen, masks = self.mdp.views(states)
        return np.ascontiguousarray(self.policy.encode(batched(seen))), masks

    @torch.inference_mode()
    def evaluate(self, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Outputs of the actor float [n, K], and values [n].

        Args:
            observations: as `look` gives them, [n, …].
        """
        self.policy.counters.forward_passes += 1
        outputs, values = self.net(network_input(self.policy, observations, self.dtype))
        if outputs.dtype == torch.bfloat16:  # which numpy does not have
            outputs, values = outputs.float(), values.float()
        return outputs.cpu().numpy(), self.bound(values).cpu().numpy()


def network_input(policy: NetPolicy, observations: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Encoded observations [n, …] on the device; planes with channels last, where convolutions are faster."""
    x = torch.from_numpy(observations)
    layout = torch.channels_last if x.dim() == 4 else torch.preserve_format
    x = x.to(policy.device, dtype, memory_format=layout)
    return x if policy.encode.scale == 1.0 else x / policy.encode.scale


def batched(observations: Any) -> Any:
    """Observations of many states as a vector environment gives them."""
    if isinstance(observations, np.ndarray):
        return observations
    if isinstance(observations[0], dict):
        return {key: np.stack([one[key] for one in observations]) for key in observations[0]}
    return np.stack(observations)
