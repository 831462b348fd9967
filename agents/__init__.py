"""Agents: one file each; all follow the four verbs learn, predict, save, load."""

from llmgym.agents.dpo import DPO, DPOConfig
from llmgym.agents.grpo import GRPO, GRPOConfig
from llmgym.agents.mcts import MCTS, MCTSConfig
from llmgym.agents.ppo import PPO, PPOConfig
from llmgym.agents.reinforce import REINFORCE, ReinforceConfig
from llmgym.agents.reward_trainer import RewardTrainer, RewardTrainerConfig
from llmgym.agents.rlhf import RLHF, RLHFConfig
from llmgym.agents.sft import SFT, SFTConfig
from llmgym.agents.text_mcts import TextMCTS, TextMCTSConfig

__all__ = [
    "DPO",
    "GRPO",
    "MCTS",
    "PPO",
    "REINFORCE",
    "RLHF",
    "SFT",
    "DPOConfig",
    "GRPOConfig",
    "MCTSConfig",
    "PPOConfig",
    "RLHFConfig",
    "ReinforceConfig",
    "RewardTrainer",
    "RewardTrainerConfig",
    "SFTConfig",
    "TextMCTS",
    "TextMCTSConfig",
]
