"""`TextMDP`: text generation as a Markov decision process whose action is a block of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

from llmgym.constraints import Constraints, TokenConstraint, token_ids
from llmgym.mdp import MDP, ScorerFailed
from llmgym.rewards import with_reward
from llmgym.stops import StopRule, make_stop
from llmgym.tasks import Problem, Task, make_task
from llmgym.tasks.base import SPLITS, terms_of_many
from llmgym.tokenization import Codec

EOS, LENGTH, ILLEGAL = "eos", "length", "illegal"  # finish reasons


@dataclass(frozen=True)
class TextState:
    """A prompt and what has been written after it.

    Attributes:
        problem: the problem being answered; only its prompt and answer are compared.
        tokens: token ids, prompt first.
        n_prompt: how many of them are the prompt.
        chosen: one flag a token: True where the policy chose it. Prompt, chat template and whatever the task
            inserts carry False and are never trained on.
        key: the episode's random key (lengths of random blocks); None when rebuilt from an observation.
        finish_reason: None while the episode runs, else "eos", "length" or "illegal".
    """

    problem: Problem
    tokens: tuple[int, ...]
    n_prompt: int
    chosen: tuple[bool, ...]
    key: int | None = None
    finish_reason: str | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens after the prompt so far; `max_new_tokens` is their budget."""
        return len(self.tokens) - self.n_prompt

    @property
    def completion(self) -> tuple[int, ...]:
        """The tokens after the prompt."""
        return self.tokens[self.n_prompt :]

    def extended(self, tokens: Sequence[int], chosen: bool = True, finish_reason: str | None = None) -> TextState:
        """This state with `tokens` appended."""
        flags = self.chosen + (chosen,) * len(tokens)
        return replace(self, tokens=self.tokens + tuple(tokens), chosen=flags, finish_reason=finish_reason)


@dataclass(frozen=True)
class Outcome:
    """What the task says of a finished episode."""

    reward: float
    terms: dict[str, float]
    is_success: bool


class TextMDP(MDP[TextState, Any]):
    """Rules of text generation. An action is a block of up to `block_size` tokens.

    Token MDP: `block_size=1`. Sequence MDP: `block_size=max_new_tokens`. Same states, transitions and rewards.

    Args:
        task: a registered name or a `Task`.
        split: "train" or "test", which problems are drawn.
        tokenizer: "tiny", a path or hub id, or a tokenizer. It is only read.
        max_prompt_tokens: longest prompt, in tokens.
        max_new_tokens: budget of tokens after the prompt; spending it ends the episode.
        block_size: tokens in an action, in [1, max_new_tokens].
        stop: ends a block before its cap: a string, `[low, high]` for a random length, or a function
            `(state, tokens of the block) -> bool`.
        banned_tokens: ids or single-token strings that may never be chosen.
        min_new_tokens: tokens before EOS becomes legal.
        constraint: `(state, tokens of the block so far) -> bool [V]` or None: a grammar, say.
        reward: in place of the task's score: a plain function `(problem, text, tokens) -> float` or dict of terms, or
            a reward model (the object, its folder or a mapping), see `llmgym.rewards.with_reward`.
        task_options: options of the task when it is given by name.

    Raises:
        ValueError: an argument is outside what is allowed; the sentence names it.
    """

    def __init__(
        self,
        task: str | Task = "arithmetic",
        *,
        split: str = "train",
        tokenizer: Any = "tiny",
        max_prompt_tokens: int = 32,
        max_new_tokens: int = 48,
        block_size: int = 1,
        stop: str | Sequence[int] | StopRule | None = None,
        banned_tokens: Iterable[int | str] = (),
        min_new_tokens: int = 0,
        constraint: TokenConstraint | None = None,
        reward: Any = None,
        task_options: dict[str, Any] | None = None,
    ):
        _check_counts(max_prompt_tokens, max_new_tokens, block_size, min_new_tokens)
        if split not in SPLITS:
            raise ValueError(f"split must be 'train' or 'test', got {split!r}")
        self.task = make_task(task, **(task_options or {}))
        self.codec = Codec(tokenizer)
        self.split, self.block_size = split, int(block_size)
        self.max_prompt_tokens, self.max_new_tokens = int(max_prompt_tokens), int(max_new_tokens)
        self.stop = make_stop(stop, self.codec.tokenizer, self.block_size)
        banned = token_ids(banned_tokens, self.codec.tokenizer)
        vocab = self.codec.vocab_size
        self.constraints = Constraints(vocab, self.codec.eos_id, banned, min_new_tokens, constraint)
        self.action_space = Discrete(vocab) if block_size == 1 else MultiDiscrete([vocab] * self.block_size)
        self.observation_space = _observation_space(self.length, vocab, self.max_new_tokens)
        self._judged: tuple[TextState, Outcome | ScorerFailed] | None = None
        if reward is not None:
            self.task = with_reward(self, reward)

    @property
    def length(self) -> int:
        """L, the width of an observation: max_prompt_tokens + max_new_tokens."""
        return self.max_prompt_tokens + self.max_new_tokens

    @property
    def needs_state(self) -> bool:
        """Whether masks or block ends depend on more than token counts: then they are asked state by state."""
        return self.constraints.function is not None or self.stop is not None

    @property
    def eos_id(self) -> int:
        """The token that ends an episode."""
        return self.codec.eos_id

    def initial(self, rng: np.random.Generator, options: dict[str, Any] | None = None) -> TextState:
        """A drawn problem, or the one in `options["problem"]`; then the episode's random key."""
        problem = (options or {}).get("problem")
        problem = self.task.problem(rng, self.split) if problem is None else problem  # type: ignore[arg-type]
        return self.start(problem, key=int(rng.integers(2**31)))

    def start(self, problem: Problem, key: int | None = None) -> TextState:
        """The first state of `problem`.

        Raises:
            ValueError: not a `Problem`, or its prompt is longer than `max_prompt_tokens`.
        """
        if not isinstance(problem, Problem):
            raise ValueError(f"options['problem'] must be a Problem, got {problem!r}")
        tokens = self.codec.encode_prompt(problem, self.task)
        if len(tokens) > self.max_prompt_tokens:
            raise ValueError(
                f"prompt {problem.prompt[:60]!r} has {len(tokens)} tokens, "
                f"max_prompt_tokens is {self.max_prompt_tokens}"
            )
        return TextState(problem, tokens, len(tokens), (False,) * len(tokens), key)

    def transition(self, state: TextState, action: Any) -> TextState:
        """Append the block's tokens up to EOS, the budget, the stop rule or an illegal token (not appended)."""
        if self.terminal(state):
            raise ValueError("the state is terminal: no transition leads on from it")
        block: list[int] = []
        for token in self.tokens_of(action):
            if self.constraints and not self.constraints.mask(state, block)[token]:
                return state.extended(block, finish_reason=ILLEGAL)
            block.append(token)
            if token == self.eos_id:
                return self.after_eos(state.extended(block))
            if state.n_tokens + len(block) >= self.max_new_tokens:
                return state.extended(block, finish_reason=LENGTH)
            if self.stop is not None and self.stop(state, block):
                break
        return state.extended(block)

    def reward(self, state: TextState, action: Any, next_state: TextState) -> float:
        """The task's reward when the episode ends, 0.0 before."""
        return self.outcome(next_state).reward if self.terminal(next_state) else 0.0

    def terminal(self, state: TextState) -> bool:
        """EOS, a spent budget or an illegal token."""
        return state.finish_reason is not None

    def observation(self, state: TextState) -> dict[str, np.ndarray]:
        """`input_ids` [L] and `attention_mask` [L], right-padded, and `n_tokens` [1]."""
        ids = np.full(self.length, self.codec.pad_id, np.int64)
        ids[: len(state.tokens)] = state.tokens
        mask = (np.arange(self.length) < len(state.tokens)).astype(np.int8)
        return {"input_ids": ids, "attention_mask": mask, "n_tokens": np.array([state.n_tokens], np.int64)}

    def state_of(self, observation: dict[str, np.ndarray]) -> TextState:
        """The state as far as one observation shows it: no problem, no random key, no "chosen" flags of replies."""
        length = int(observation["attention_mask"].sum())
        n_prompt = length - int(observation["n_tokens"][0])
        tokens = tuple(observation["input_ids"][:length].tolist())
        chosen = (False,) * n_prompt + (True,) * (length - n_prompt)
        return TextState(Problem(""), tokens, n_prompt, chosen)

    def token_mask(self, state: TextState, tokens: Sequence[int] = ()) -> np.ndarray | None:
        """Allowed next tokens after `state` and the block's `tokens` so far, bool [V]; None allows all."""
        return self.constraints.mask(state, tokens) if self.constraints else None

    def mask(self, state: TextState) -> np.ndarray:
        """Legal actions, bool [block_size · V]: exact for the first token, then what no earlier token decides."""
        first = self.token_mask(state) if not self.terminal(state) else None
        rest = [self.constraints.static(state.n_tokens + j) for j in range(1, self.block_size)]
        return np.concatenate([np.ones(self.codec.vocab_size, bool) if first is None else first, *rest])

    def outcome(self, state: TextState) -> Outcome:
        """The task's judgement of a finished state.

        Raises:
            ScorerFailed: the scorer raised, or gave something that is not a finite number.
        """
        judged = self._judgement(state)
        if isinstance(judged, ScorerFailed):
            raise judged
        return judged

    def outcomes(self, states: Sequence[TextState]) -> list[Outcome | ScorerFailed]:
        """What `outcome` returns or raises for each of some finished states, in one call of the task where it can."""
        asked = [(s.problem, self.text(s), s.completion) for s in states if s.finish_reason != ILLEGAL]
        terms = iter(terms_of_many(self.task, *zip(*asked, strict=True)) if asked else ())
        illegal = Outcome(float(self.task.failing_reward), {}, False)
        return [illegal if s.finish_reason == ILLEGAL else self._judge(next(terms)) for s in states]

    def text(self, state: TextState) -> str:
        """What has been written after the prompt, without special tokens."""
        return self.codec.decode(state.completion)

    def info(self, state: TextState, judged: Outcome | ScorerFailed | None = None) -> dict[str, Any]:
        """`prompt` at the start; `text`, `finish_reason`, `n_tokens`, `reward_terms`, `is_success` at the end.

        `judged` is what `outcomes` said of a finished state; by default the task is asked.
        """
        if not self.terminal(state):
            return {"prompt": state.problem.prompt} if state.n_tokens == 0 else {}
        judged = self._judgement(state) if judged is None else judged
        outcome = Outcome(0.0, {}, False) if isinstance(judged, ScorerFailed) else judged
        info: dict[str, Any] = {"text": self.text(state), "finish_reason": state.finish_reason}
        info |= {"n_tokens": state.n_tokens, "reward_terms": dict(outcome.terms), "is_success": outcome.is_success}
        return info | ({"illegal": True} if state.finish_reason == ILLEGAL else {})

    def render(self, state: TextState, mode: str) -> str | None:
        """Text for "ansi"; for "human" the terminal, one colour a token."""
        from llmgym.rendering import print_tokens

        if mode == "ansi":
            return state.problem.prompt + self.text(state)
        print_tokens(state, self.codec.tokenizer)
        return None

    def tokens_of(self, action: Any) -> list[int]:
        """The action's token ids as a list.

        Raises:
            ValueError: not `block_size` integers, or an id outside the vocabulary.
        """
        array = np.atleast_1d(np.asarray(action))
        if array.shape != (self.block_size,) or array.dtype.kind not in "iu":
            raise ValueError(f"an action must be block_size = {self.block_size} token ids, got {action!r}")
        tokens = array.tolist()
        for token in tokens:
            if not 0 <= token < self.codec.vocab_size:
                raise ValueError(f"token ids must lie in [0, {self.codec.vocab_size}), got {token}")
        return tokens

    def after_eos(self, state: TextState) -> TextState:
        """The episode's end, or the task's reply (state, not action) as far as the budget allows."""
        reply = self.task.reply(state.problem, self.text(state))
        if reply is None:
            return replace(state, finish_reason=EOS)
        room = self.max_new_tokens - state.n_tokens
        tokens = self.codec.encode_text(reply)[:room]
        return state.extended(tokens, chosen=False, finish_reason=LENGTH if len(tokens) == room else None)

    def _judgement(self, state: TextState) -> Outcome | ScorerFailed:
        # reward() and info() ask about the same state: the last judgement is kept.
        if self._judged is None or self._judged[0] is not state:
            self._judged = (state, self.outcomes([state])[0])
        return self._judged[1]

    def _judge(self, terms: Any) -> Outcome | ScorerFailed:
        """The judgement that follows from a completion's terms, or from the exception in their place."""
        try:
            if isinstance(terms, Exception):
                raise terms
            terms = _checked(terms)
            reward = _checked({"reward": self.task.reward(terms)})["reward"]
            return Outcome(reward, terms, bool(self.task.is_success(terms)))
        except Exception as error:  # a user's scorer may raise anything: marked in info, never turned into 0
            return ScorerFailed(f"{type(error).__name__}: {error}")


def _checked(terms: dict[str, Any]) -> dict[str, float]:
    for name, value in terms.items():
        if isinstance(value, str) or not math.isfinite(value):
            raise ValueError(f"reward term {name!r} must be a finite number, got {value!r}")
    return {name: float(value) for name, value in terms.items()}


def _check_counts(max_prompt_tokens: int, max_new_tokens: int, block_size: int, min_new_tokens: int) -> None:
    counts = {"max_prompt_tokens": max_prompt_tokens, "max_new_tokens": max_new_tokens}
    for name, value in (counts | {"block_size": block_size, "min_new_tokens": min_new_tokens}).items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ValueError(f"{name} must be an integer, got {value!r}")
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 1 <= block_size <= max_new_tokens:
        raise ValueError(f"block_size must be in [1, {max_new_tokens}] (max_new_tokens), got {block_size}")
    if min_new_tokens >= max_new_tokens:
        raise ValueError(f"min_new_tokens must be below max_new_tokens = {max_new_tokens}, got {min_new_tokens}")


def _observation_space(length: int, vocab: int, budget: int) -> Dict:
    return Dict(
        input_ids=Box(0, vocab - 1, (length,), np.int64),
        attention_mask=Box(0, 1, (length,), np.int8),
        n_tokens=Box(0, budget, (1,), np.int64),
    )
