"""Options as typed dataclasses: tyro makes the command line from them, and a comment beside a field is its help."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym
import tyro
from tqdm import tqdm

import llmgym  # noqa: F401  (registers the environments)
from llmgym.files import read_json

T = TypeVar("T")
UNITS = {"token": "llmgym/TokenMDP-v0", "block": "llmgym/BlockMDP-v0", "sequence": "llmgym/SequenceMDP-v0"}


@dataclass(frozen=True)
class EnvOptions:
    """The text environment."""

    env: str = "token"  # unit of action: token, block, sequence, or the id of a registered text environment
    task: str = "arithmetic"  # name of a registered task: arithmetic, copy, countdown, jsonl, reasoning_gym, …
    task_options: str = "{}"  # options of the task as a JSON object, such as '{"digits": 2}' or '{"path": "my.jsonl"}'
    max_prompt_tokens: int = 32  # longest prompt
    max_new_tokens: int = 48  # budget of tokens after the prompt
    block_size: int | None = None  # tokens in an action, env block only (there 4 by default)
    stop: str | None = None  # env block only: a block ends with this text (\n: newline), or at "[low, high]" tokens
    banned_tokens: tuple[str, ...] = ()  # tokens that may never be chosen
    min_new_tokens: int = 0  # tokens before the end-of-text token becomes legal
    reward: str | None = None  # folder of a reward model, to learn from in place of the task's reward

    def make(self, tokenizer: str, split: str = "train") -> gym.Env:
        """The environment, with the model's own tokenizer.

        Raises:
            ValueError: an option that cannot be meant.
        """
        env_id = UNITS.get(self.env, self.env)
        if env_id not in gym.registry:
            raise ValueError(
                f"unknown env {self.env!r}: choose {', '.join(UNITS)} or the id of a registered environment"
            )
        optional = {"block_size": self.block_size, "stop": _stop(self.stop), "reward": _reward_folder(self.reward)}
        try:
            env = gym.make(
                env_id,
                task=self.task,
                task_options=json_object(self.task_options),
                tokenizer=tokenizer,
                split=split,
                max_prompt_tokens=self.max_prompt_tokens,
                max_new_tokens=self.max_new_tokens,
                banned_tokens=self.banned_tokens,
                min_new_tokens=self.min_new_tokens,
                **{name: value for name, value in optional.items() if value is not None},
            )
        except TypeError as error:  # a keyword that this task or environment does not have
            reason = error.__cause__ or error  # Gymnasium adds a list of all arguments
            raise ValueError(f"{reason} (env {self.env}, task {self.task}, its options {self.task_options})") from error
        return env

    @classmethod
    def of_policy(cls, folder: str) -> EnvOptions:
        """What the policy in a folder was trained on; the defaults for every other name."""
        file = Path(folder) / "agent.json"
        spec = read_json(file).get("env") if file.is_file() else None
        if spec is None:
            return cls()
        spec = json.loads(spec)
        kwargs, units = spec["kwargs"], {env_id: unit for unit, env_id in UNITS.items()}
        known = {f.name: kwargs[f.name] for f in fields(cls) if kwargs.get(f.name) is not None}
        known["task_options"] = json.dumps(kwargs.get("task_options") or {})
        known["banned_tokens"] = tuple(known.get("banned_tokens", ()))
        if "stop" in known and not isinstance(known["stop"], str):
            known["stop"] = json.dumps(known["stop"])
        known.pop("reward", None)  # accuracy is the task's business, whatever was learnt from
        return cls(**known, env=units.get(spec["id"], spec["id"]))


def parse(options: type[T], words: list[str], *, prog: str, default: T, prefixes: bool = False) -> T:
    """Options from the command line; with `prefixes` a group's name comes before those of its fields.

    Raises:
        ValueError: they cannot be parsed or hold a bad value, in one sentence.
        SystemExit: after `--help`.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            config = () if prefixes else (tyro.conf.OmitArgPrefixes,)
            return tyro.cli(options, args=words, prog=prog, default=default, config=config)
    except SystemExit as end:
        if not end.code:
            raise
    raise ValueError(f"{_sentence(said.getvalue())} ({prog} --help explains every option)")


def policy_folder(name: str) -> str:
    """The policy that a run folder holds; any other name as it is."""
    inside = Path(name) / "policy"
    known = ("config.json", "adapter_config.json")  # a whole model, or adapters
    return str(inside) if any((inside / file).is_file() for file in known) else name


def check_positive(**values: float | None) -> None:
    """Refuse a value that is not above 0; None is allowed."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")


def prepare(threads: int | None) -> None:
    """What a command sets for its process: the number of threads, and that model loading does not chatter."""
    import torch  # not every command needs it
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    check_positive(threads=threads)
    if threads is not None:
        torch.set_num_threads(threads)
    hub_logging.set_verbosity_error()
    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings as a sentence each, above a progress bar instead of through it."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: tqdm.write(f"warning: {message}", file=sys.stderr)  # type: ignore[assignment]
        yield


def json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"task_options must be a JSON object such as '{{\"digits\": 2}}', got {text!r} ({error})"
        ) from None
    if not isinstance(value, dict):
        raise ValueError(f"task_options must be a JSON object such as '{{\"digits\": 2}}', got {text!r}")
    return value


def _reward_folder(name: str | None) -> str | None:
    """The reward model that a run folder holds; any other name as it is."""
    inside = Path(name or "") / "policy"
    return str(inside) if name and (inside / "reward_model.json").is_file() else name


def _stop(text: str | None) -> Any:
    """Text to stop at, with its escapes read, or the two numbers of `[low, high]`."""
    if text is not None and re.fullmatch(r"\[\s*-?\d+\s*,\s*-?\d+\s*\]", text):
        return json.loads(text)
    return text if text is None else text.replace("\\n", "\n").replace("\\t", "\t")


def _sentence(box: str) -> str:
    """The first paragraph of the box that tyro draws around an error, and what it thinks was meant.

    Below the title, paragraphs are parted by rules; frame and rules are plain where the terminal is.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()[1:]
    body = "\n".join(line.strip("│|╭╮╰╯ ") for line in plain)
    paragraphs = [p.split("\n") for p in re.split(r"^[─-]+$", body, flags=re.MULTILINE) if p.strip()]
    paragraphs = [[line for line in lines if line] for lines in paragraphs]
    said = re.sub(r"^Error parsing \w+: ", "", " ".join(paragraphs[0]))
    hints = [lines[1].split()[0] for lines in paragraphs if lines[0].startswith("Perhaps you meant") and lines[1:]]
    return said + (f", perhaps you meant {hints[0]}" if hints else "")
