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
        entry_point=f"llmgym.envs.text:{single}",
        vector_entry_point=f"llmgym.envs.text:{vector}",
        order_enforce=False,
        disable_env_checker=True,
    )


_register("TokenMDP", "TokenMDP", "token_vector")
_register("BlockMDP", "BlockMDP", "block_vector")
_register("SequenceMDP", "SequenceMDP", "sequence_vector")
