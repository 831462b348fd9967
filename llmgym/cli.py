"""The command `llmgym`: `llmgym train AGENT`, `llmgym eval`, `llmgym match` and others.

Bad input ends in one sentence on stderr and exit code 2, Ctrl-C in exit code 130.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

AGENTS = ("grpo", "ppo", "reinforce", "mcts", "sft", "dpo", "reward-model")
OFFLINE = ("sft", "dpo", "reward-model")
MODULES = {"mcts": "train_mcts"} | dict.fromkeys(OFFLINE, "train_offline")  # where it is not train
HELP = """\
usage: llmgym COMMAND [OPTIONS]

Reinforcement learning of language models behind the Gymnasium API.

commands:
  train grpo        train with group relative policy optimisation
  train ppo         train with proximal policy optimisation
  train reinforce   train with the Monte-Carlo policy gradient
  train mcts        learn Go by self-play with search (Gumbel AlphaZero)
  train sft         supervised fine-tuning on demonstrations
  train dpo         train on preferences directly
  train reward-model
                    fit a reward model to preferences
  eval              score a policy on held-out problems
  pairs             sample pairs of completions to be labelled
  label             say which of two completions is better: a person, a rule or a file
  rlhf              train from preferences: SFT, comparisons, reward model, PPO, and again
  search-study      what search over tokens, blocks and lines is worth at equal forward tokens
  distillation-study
                    search distillation beside GRPO at equal forward tokens
  gtp               a Go player as an engine for GoGui, Sabaki and other programs
  match             a match between two Go players: result, confidence interval and SGF files
  alphago STAGE     AlphaGo's stages: policy, reinforce, value, rollout, match

llmgym COMMAND --help explains every option; llmgym --version prints the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    import gymnasium

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # an ε on a terminal that has none is no reason to fail
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    # Errors of the library are sentences for its user; whatever else is raised is a defect and keeps its traceback.
    except (ValueError, OSError, MemoryError, gymnasium.error.Error) as error:
        return _complain(" ".join(str(error).split()) or type(error).__name__, 2)


def _dispatch(words: list[str]) -> int:
    command, rest = (words[0], words[1:]) if words else ("", [])
    if command in ("-h", "--help"):
        print(HELP, end="")
    elif command == "--version":
        print(import_module("llmgym").__version__)
    elif command == "train":
        return _train(rest)
    elif command in ("eval", "pairs", "label", "rlhf", "search-study", "distillation-study", "gtp", "match", "alphago"):
        return _run(f"llmgym.commands.{command.replace('-', '_')}")(rest)
    else:
        named = f"unknown command {command!r}" if words else "a command is missing"
        choices = "train, eval, pairs, label, rlhf, search-study, distillation-study, gtp, match or alphago"
        raise ValueError(f"{named}: choose {choices} (llmgym --help)")
    return 0


def _train(words: list[str]) -> int:
    if words and words[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if not words or words[0] not in AGENTS:
        named = f"unknown agent {words[0]!r}" if words else "llmgym train needs an agent"
        raise ValueError(f"{named}: choose {', '.join(AGENTS[:-1])} or {AGENTS[-1]}, as in llmgym train {AGENTS[0]}")
    return _run(f"llmgym.commands.{MODULES.get(words[0], 'train')}")(words[0], words[1:])


def _run(module: str) -> Callable[..., int]:
    # Threads of torch that wait should sleep, not spin: on cores shared with other work, spinning made a step of the
    # tiny model ten times slower. OpenMP reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Commands import torch; the help of this module does without.
    return import_module(module).run


def _complain(sentence: str, code: int) -> int:
    print(f"llmgym: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
