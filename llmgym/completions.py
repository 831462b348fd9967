"""Completions given as text: their token ids, and whether an environment could have seen them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from llmgym.tasks.base import Problem

if TYPE_CHECKING:
    import numpy as np

    from llmgym.text import TextMDP


def encode(mdp: TextMDP, problem: Problem, text: str, finished: bool = True) -> tuple[tuple[int, ...], int]:
    """Token ids of a prompt and its completion, and how many of them are the prompt.

    The prompt goes through the chat template where the task asks for it. EOS follows a finished completion.
    """
    prompt = mdp.codec.encode_prompt(problem, mdp.task)
    end = (mdp.eos_id,) if finished else ()
    return prompt + mdp.codec.encode_text(text) + end, len(prompt)


def check_completion(where: str, mdp: TextMDP, problem: Problem, text: str, finished: bool = True) -> None:
    """Refuse a completion that could not have happened; `where` names it ("line 3 of pairs.jsonl: chosen").

    Raises:
        ValueError: the prompt is longer than `max_prompt_tokens`, the completion with its EOS is longer than
            `max_new_tokens`, or it is no token at all, or holds one that the environment forbids there.
    """
    tokens, n_prompt = encode(mdp, problem, text, finished)
    completion, n_text = tokens[n_prompt:], len(tokens) - n_prompt - finished
    if n_prompt > mdp.max_prompt_tokens:
        raise ValueError(f"{where} follows a prompt of {n_prompt} tokens, max_prompt_tokens is {mdp.max_prompt_tokens}")
    if not n_text:
        raise ValueError(f"{where} encodes to no token: it must have at least one")
    if mdp.eos_id in completion[:n_text]:
        raise ValueError(f"{where} holds the end-of-text token: completions are texts without special tokens")
    if len(completion) > mdp.max_new_tokens:
        end = ", end-of-text included" if finished else ""
        raise ValueError(f"{where} has {len(completion)} tokens{end}, max_new_tokens is {mdp.max_new_tokens}")
    forbidden = _forbidden(mdp, problem, completion) if mdp.constraints else None
    if forbidden is not None:
        shown = mdp.codec.tokenizer.decode([forbidden])
        raise ValueError(f"{where} holds the token {shown!r} where the environment forbids it")


def token_masks(mdp: TextMDP, problem: Problem, completion: Sequence[int]) -> Iterator[np.ndarray]:
    """What each token of a completion is chosen from, bool [V], block by block as the environment asks."""
    state, block = mdp.start(problem), list[int]()
    for token in completion:
        yield mdp.constraints.mask(state, block)
        block.append(token)
        if len(block) == mdp.block_size or (mdp.stop is not None and mdp.stop(state, block)):
            state, block = state.extended(block), []


def _forbidden(mdp: TextMDP, problem: Problem, completion: Sequence[int]) -> int | None:
    """The first token that the environment's masks forbid."""
    masks = token_masks(mdp, problem, completion)
    return next((token for token, mask in zip(completion, masks, strict=True) if not mask[token]), None)
