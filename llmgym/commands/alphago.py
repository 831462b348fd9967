"""`llmgym alphago STAGE`: AlphaGo in miniature, each stage a command of its own."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

STAGES = {
    "policy": "alphago_records",
    "reinforce": "alphago_selfplay",
    "value": "alphago_selfplay",
    "rollout": "alphago_records",
    "match": "alphago_match",
}
HELP = """\
usage: llmgym alphago STAGE [OPTIONS]

AlphaGo's stages in miniature (Silver et al. 2016), on boards of any size; each is useful alone.

stages:
  policy RECORDS…   fit a policy network to the moves of game records (SGF)
  reinforce         REINFORCE of a policy network against a pool of its earlier selves
  value             fit a value network to one position a game of a policy network
  rollout RECORDS…  fit the fast rollout policy to the moves of game records
  match             the search that mixes value network and playouts, with several mixes

llmgym alphago STAGE --help explains every option.
"""


def run(words: list[str]) -> int:
    """`llmgym alphago WORDS…`."""
    if words and words[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if not words or words[0] not in STAGES:
        named = f"unknown stage {words[0]!r}" if words else "llmgym alphago needs a stage"
        raise ValueError(f"{named}: choose policy, reinforce, value, rollout or match (llmgym alphago --help)")
    module = import_module(f"llmgym.commands.{STAGES[words[0]]}")
    stage: Callable[[list[str]], int] = getattr(module, f"run_{words[0]}")
    return stage(words[1:])
