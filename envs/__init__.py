"""Environments of llmgym; `import llmgym` registers their ids."""

from llmgym.envs.text import BlockMDP, SequenceMDP, TextEnv, TokenMDP
from llmgym.envs.vector import VectorTextEnv

__all__ = ["BlockMDP", "SequenceMDP", "TextEnv", "TokenMDP", "VectorTextEnv"]
