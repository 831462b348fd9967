"""Agents: one file each; all follow the four verbs learn, predict, save, load."""

from llmgym.agents.grpo import GRPO, GRPOConfig
from llmgym.agents.ppo import PPO, PPOConfig
from llmgym.agents.reinforce import REINFORCE, ReinforceConfig
from llmgym.agents.reward_trainer import RewardTrainer, RewardTrainerConfig

__all__ = [
    "GRPO",
    "PPO",
    "REINFORCE",
    "GRPOConfig",
    "PPOConfig",
    "ReinforceConfig",
    "RewardTrainer",
    "RewardTrainerConfig",
]
