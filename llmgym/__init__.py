"""llmgym: text generation as a Markov decision process behind the Gymnasium API.

`import llmgym` registers the environments and loads no model:

    import gymnasium as gym
    import llmgym

    env = gym.make("llmgym/TokenMDP-v0", task="arithmetic")
"""

from gymnasium.envs.registration import register

__version__ = "0.1.0"


def _register(name: str, single: str, vector: str) -> None:
    # A fresh environment given a state must be steppable. Two of Gymnasium's default wrappers cannot step before
    # the first reset(): OrderEnforcing (`MDPEnv` does its work) and PassiveEnvChecker (the tests run check_env).
    register(
        f"llmgym/{name}-v0",
        entry_point=f"llmgym.envs.{single}",
        vector_entry_point=f"llmgym.envs.{vector}",
        order_enforce=False,
        disable_env_checker=True,
    )


_register("TokenMDP", "text:TokenMDP", "text:token_vector")
_register("BlockMDP", "text:BlockMDP", "text:block_vector")
_register("SequenceMDP", "text:SequenceMDP", "text:sequence_vector")
_register("Go", "go.env:GoEnv", "go.vector:go_vector")
