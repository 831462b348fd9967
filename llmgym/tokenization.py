"""Tokenizers: loading them, and the few questions an environment asks of one."""

from __future__ import annotations

from collections import OrderedDict
from importlib.resources import files
from pathlib import Path
from typing import Any

from llmgym.tasks.base import Problem, Task

TINY = "tiny"  # the name of the embedded model and its tokenizer


def tiny_path() -> Path:
    """Folder of the embedded model: a Hugging Face folder with tokenizer and safetensors weights."""
    return Path(str(files("llmgym") / "tiny" / "model"))


def load_tokenizer(name: Any) -> Any:
    """A Hugging Face tokenizer from `"tiny"`, a folder, a hub id, or the tokenizer object itself.

    Raises:
        ValueError: nothing can be loaded under that name, or the object is no tokenizer.
    """
    if not isinstance(name, str | Path):
        if not hasattr(name, "eos_token_id"):
            raise ValueError(f"tokenizer must be 'tiny', a folder, a hub id or a tokenizer, got {name!r}")
        return name
    from transformers import AutoTokenizer  # two seconds of imports: only when something is loaded

    source = tiny_path() if str(name) == TINY else name
    try:
        return AutoTokenizer.from_pretrained(source)
    except Exception as error:  # damaged files raise all kinds, a bare Exception of `tokenizers` among them
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"no tokenizer could be loaded from {str(name)!r}: give 'tiny', a folder with tokenizer files or a "
            f"hub id ({reason})"
        ) from error


class Codec:
    """Prompts to token ids and token ids to text. The tokenizer is only read, never changed.

    Attributes:
        vocab_size: V, the number of ids the action space has.
        eos_id: the id that ends an episode.
        pad_id: fills observations to the right; the tokenizer's own, else EOS (masked out everywhere).
    """

    def __init__(self, tokenizer: Any, cache_size: int = 4096):
        self.tokenizer = load_tokenizer(tokenizer)
        self._backend = getattr(self.tokenizer, "backend_tokenizer", None)
        name = getattr(self.tokenizer, "name_or_path", "") or type(self.tokenizer).__name__
        if self.tokenizer.eos_token_id is None:
            raise ValueError(f"tokenizer {name!r} has no EOS token: an episode could never end")
        if len(self.tokenizer) < 2:  # what a folder with a config.json but no tokenizer files can give
            raise ValueError(f"tokenizer {name!r} has a vocabulary of {len(self.tokenizer)}, it must have at least 2")
        self.vocab_size = len(self.tokenizer)
        self.eos_id = int(self.tokenizer.eos_token_id)
        pad = self.tokenizer.pad_token_id
        self.pad_id = self.eos_id if pad is None else int(pad)
        # Groups repeat a prompt many times; least recently used prompts go first.
        self._prompts: OrderedDict[tuple[str, bool, str | None], tuple[int, ...]] = OrderedDict()
        self._cache_size = cache_size

    def encode_prompt(self, problem: Problem, task: Task) -> tuple[int, ...]:
        """Token ids of a problem's prompt, through the chat template when the task asks for it.

        Raises:
            ValueError: the prompt gives no token, or the tokenizer has no chat template.
        """
        key = (problem.prompt, task.chat_template, task.system)
        if key not in self._prompts:
            ids = self._chat(problem.prompt, task.system) if task.chat_template else self._plain(problem.prompt)
            if not ids:
                raise ValueError(f"prompt {problem.prompt!r} encodes to no token: it must have at least one")
            self._prompts[key] = ids
            if len(self._prompts) > self._cache_size:
                self._prompts.popitem(last=False)
        return self._prompts[key]

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Token ids of text in mid-sequence: no BOS, no EOS."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, tokens: Any) -> str:
        """Text of token ids without special tokens, spaces left as they are."""
        if self._backend is not None:  # the same function without transformers' walk over every element
            return self._backend.decode(list(tokens), skip_special_tokens=True)
        return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _plain(self, prompt: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(prompt)["input_ids"])

    def _chat(self, prompt: str, system: str | None) -> tuple[int, ...]:
        if self.tokenizer.chat_template is None:
            raise ValueError("the task asks for a chat template, but the tokenizer has none")
        messages = [{"role": "user", "content": prompt}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        # The template writes BOS itself where the model wants one.
        return self.encode_text(text)
