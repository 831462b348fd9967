"""Environments of llmgym; `import llmgym` registers their ids.

What is given a language model loads torch, Go loads numba, and what adapts to stable-baselines3 needs the extra `sb3`:
these names are imported when they are first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llmgym.envs.text import BlockMDP, SequenceMDP, TextEnv, TokenMDP
from llmgym.envs.vector import VectorTextEnv

if TYPE_CHECKING:
    from llmgym.envs.go.batch import GoBatch
    from llmgym.envs.go.env import GoEnv
    from llmgym.envs.go.mdp import GoMDP
    from llmgym.envs.go.rollout_search import RolloutSearch
    from llmgym.envs.go.rules import GoRules
    from llmgym.envs.go.vector import VectorGo
    from llmgym.envs.sb3 import SB3VecEnv, TokenEmbeddingExtractor
    from llmgym.envs.vector_wrappers import VectorHiddenStateObservation, VectorReferenceLogProb, VectorTopKActions
    from llmgym.envs.wrappers import HiddenStateObservation, ReferenceLogProb, TopKActions

__all__ = [
    "BlockMDP",
    "GoBatch",
    "GoEnv",
    "GoMDP",
    "GoRules",
    "HiddenStateObservation",
    "ReferenceLogProb",
    "RolloutSearch",
    "SB3VecEnv",
    "SequenceMDP",
    "TextEnv",
    "TokenEmbeddingExtractor",
    "TokenMDP",
    "TopKActions",
    "VectorGo",
    "VectorHiddenStateObservation",
    "VectorReferenceLogProb",
    "VectorTextEnv",
    "VectorTopKActions",
]

_LATER = {
    "llmgym.envs.go.batch": ("GoBatch",),
    "llmgym.envs.go.env": ("GoEnv",),
    "llmgym.envs.go.mdp": ("GoMDP",),
    "llmgym.envs.go.rollout_search": ("RolloutSearch",),
    "llmgym.envs.go.rules": ("GoRules",),
    "llmgym.envs.go.vector": ("VectorGo",),
    "llmgym.envs.wrappers": ("HiddenStateObservation", "ReferenceLogProb", "TopKActions"),
    "llmgym.envs.vector_wrappers": ("VectorHiddenStateObservation", "VectorReferenceLogProb", "VectorTopKActions"),
    "llmgym.envs.sb3": ("SB3VecEnv", "TokenEmbeddingExtractor"),
}


def __getattr__(name: str) -> Any:
    for module, names in _LATER.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
