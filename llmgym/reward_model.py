"""`RewardModel`: a language model with a scalar head, r(x, y), trained on which of two completions is better."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llmgym.batch import by_length
from llmgym.completions import check_completion, encode
from llmgym.counters import Counters
from llmgym.evaluation import mdp_of
from llmgym.files import atomic_folder, read_json, write_json
from llmgym.forward import make_forward
from llmgym.lora import add_lora, is_lora, save_lora
from llmgym.losses import wider
from llmgym.models import check_positions, check_vocab, load_model
from llmgym.policy import LMPolicy
from llmgym.preferences import Preference, check_preferences
from llmgym.rows import short
from llmgym.tasks import Problem
from llmgym.text import TextMDP
from llmgym.tokenization import load_tokenizer

HEAD, SETTINGS = "reward_head.safetensors", "reward_model.json"


class RewardModel:
    """r(x, y) = (w · h - mean) / deviation, h being the hidden state after the last token of prompt and completion.

    Ouyang et al. 2022, section 3.5. The last token is EOS where the completion ended by itself, so that running out of
    the budget can be told from finishing. w starts at 0. `mean` and `deviation`, at first 0 and 1, make rewards
    comparable with other terms; `normalise` sets them (Stiennon et al. 2020, section 3.4). Texts stand left-aligned and
    a causal model does not see what follows them, so padding changes no score.

    Args:
        model: what the reward model starts as: "tiny", a folder (of an SFT policy, say), a hub id, or an `LMPolicy` or
            model object, which is copied. The folder of a reward model brings its head along.
        env: a text environment (single or vector), for its rules and tokenizer; or a `TextMDP`.
        lora: rank of LoRA adapters (Hu et al. 2022) on every linear layer, which with w are then all that is trained;
            needs the package peft. 0 trains the whole model.
        device: "auto", "cpu", "cuda", "cuda:1", …
        dtype: "float32", "bfloat16", "float64" or "auto" (as stored); w is float32 or wider.
        seed: of the adapters.

    Attributes:
        mean, deviation: what `normalise` found, in units of w · h.
        counters: what has been spent.

    Raises:
        ValueError: settings out of range, a model that cannot be loaded or does not fit the environment.
    """

    def __init__(
        self,
        model: Any,
        env: Any,
        *,
        lora: int = 0,
        device: str = "auto",
        dtype: str = "float32",
        seed: int | None = None,
    ):
        self.mdp: TextMDP = mdp_of(env)
        self.name = str(model) if isinstance(model, str | Path) else None
        self.model = load_model(_own(model), device=device, dtype=dtype)
        if lora:
            self.model = add_lora(self.model, lora, seed=seed or 0)
        parameter = next(self.model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.head = nn.Linear(self.model.config.hidden_size, 1, bias=False, device=self.device, dtype=wider(parameter))
        nn.init.zeros_(self.head.weight)
        self.mean, self.deviation = 0.0, 1.0
        self.forward, self.counters = make_forward(self.model), Counters()
        self.generator = torch.Generator(self.device)
        self.seed(seed)
        self.check_fits(self.mdp)
        if self.name is not None and is_reward_model(self.name):
            self._load_head(Path(self.name))

    def seed(self, seed: int | None) -> None:
        """Seed the generator, of which scoring needs none; None takes fresh entropy."""
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)

    def parameters(self) -> list[nn.Parameter]:
        """What an optimiser trains."""
        return [p for module in (self.model, self.head) for p in module.parameters() if p.requires_grad]

    def check_fits(self, mdp: TextMDP) -> None:
        """Refuse an environment whose texts this model cannot read.

        Raises:
            ValueError: another tokenizer, a larger vocabulary, or longer texts than the model has positions for.
        """
        check_vocab(self.model, mdp.codec)
        check_positions(self.model, mdp.length)
        _check_tokenizers(self.mdp.codec.tokenizer, mdp.codec.tokenizer)

    def evaluate(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """w · h of texts, before `mean` and `deviation`, in one forward pass; differentiable.

        Args:
            tokens: prompt and completion ids, right-padded with whatever, int64 [B, T].
            lengths: tokens of each row, int64 [B].

        Returns:
            [B], float32 or wider.
        """
        tokens, lengths = tokens.to(self.device), lengths.to(self.device)
        self.counters.forward_passes += 1
        self.counters.forward_tokens += int(lengths.sum())
        rows = torch.arange(len(tokens), device=self.device)
        hidden = self.forward.score(tokens, rows, lengths - 1, logits=False, hidden=True)[1]
        return self.head(hidden.to(self.head.weight.dtype))[:, 0]

    @torch.no_grad()
    def raw_scores(self, rows: Sequence[Sequence[int]], rows_at_once: int = 64) -> Tensor:
        """w · h of rows of token ids, prompt and completion together; in passes of at most `rows_at_once`; [B]."""
        scores = torch.zeros(len(rows), dtype=self.head.weight.dtype, device=self.device)
        lengths = torch.tensor([len(row) for row in rows])
        for part in by_length(lengths, torch.arange(len(rows)), rows_at_once):
            scores[part.to(self.device)] = self.evaluate(*pad([rows[i] for i in part.tolist()]))
        return scores

    def score_rows(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Rewards of rows of token ids, prompt and completion together; [B], without gradient."""
        return (self.raw_scores(rows) - self.mean) / self.deviation

    def score_tokens(self, problems: Sequence[Problem], completions: Sequence[Sequence[int]]) -> Tensor:
        """Rewards of completions given as token ids, as an environment has them; [B], without gradient."""
        prompts = [self.mdp.codec.encode_prompt(problem, self.mdp.task) for problem in problems]
        return self.score_rows([(*p, *c) for p, c in zip(prompts, completions, strict=True)])

    def score(
        self, problems: Sequence[Problem], texts: Sequence[str], finished: bool | Sequence[bool] = True
    ) -> Tensor:
        """Rewards of completions given as text without special tokens; [B], without gradient.

        Args:
            problems: what each text answers.
            texts: the completions.
            finished: whether EOS follows: one for all rows, or one a row.

        Raises:
            ValueError: a completion that the environment could not have seen; the sentence names the row.
        """
        flags = [finished] * len(texts) if isinstance(finished, bool) else list(finished)
        rows = []
        for i, (problem, text, flag) in enumerate(zip(problems, texts, flags, strict=True)):
            check_completion(f"row {i}", self.mdp, problem, text, flag)
            rows.append(encode(self.mdp, problem, text, flag)[0])
        return self.score_rows(rows)

    def margins(self, preferences: Sequence[Preference]) -> Tensor:
        """w · h(chosen) - w · h(rejected), [B], without gradient: P(chosen is preferred) = σ(margin).

        Raises:
            ValueError: a preference does not fit the environment; the sentence names the row.
        """
        raw = self.raw_scores(self.encode(preferences))
        return raw[: len(preferences)] - raw[len(preferences) :]

    def encode(self, preferences: Sequence[Preference]) -> list[tuple[int, ...]]:
        """Token ids of prompt and completion: of all the chosen, then of all the rejected; 2B rows.

        Raises:
            ValueError: a preference does not fit the environment; the sentence names the row.
        """
        check_preferences(preferences, self.mdp)
        chosen = [(p.problem, p.chosen, p.chosen_finished) for p in preferences]
        rejected = [(p.problem, p.rejected, p.rejected_finished) for p in preferences]
        return [encode(self.mdp, *row)[0] for row in chosen + rejected]

    def normalise(self, preferences: Sequence[Preference], *, unit: bool = False) -> None:
        """Give the completions of these pairs mean reward 0, and with `unit` deviation 1 (population).

        A constant that is added to all rewards changes no preference and no policy gradient with a baseline, but it
        does change what a KL penalty or a rule weighs against. A deviation other than 1 changes both.

        Raises:
            ValueError: there is no preference, or one that does not fit; or with `unit` all scores are equal.
        """
        if not preferences:
            raise ValueError("preferences are empty: at least one is needed to normalise rewards")
        raw = self.raw_scores(self.encode(preferences)).double()
        if not bool(torch.isfinite(raw).all()):
            raise ValueError("the reward model gives scores that are no finite numbers")
        deviation = float(raw.std(correction=0)) if unit else 1.0
        if not deviation > 0:
            raise ValueError("rewards cannot be scaled to deviation 1: the model scores all completions alike")
        self.mean, self.deviation = float(raw.mean()), deviation

    def save(self, path: str | Path) -> None:
        """Write a Hugging Face folder with tokenizer, w and the settings beside it; replaced in one step."""
        with atomic_folder(path) as folder:
            if is_lora(self.model):
                save_lora(self.model, folder, self.name)
            else:
                self.model.save_pretrained(folder, safe_serialization=True)
            self.mdp.codec.tokenizer.save_pretrained(folder)
            save_file(self.head.state_dict(), folder / HEAD)
            dtype = str(self.dtype).removeprefix("torch.")
            write_json(folder / SETTINGS, {"mean": self.mean, "deviation": self.deviation, "dtype": dtype})

    @classmethod
    def load(
        cls, path: str | Path, env: Any, *, device: str = "auto", dtype: str = "auto", seed: int | None = None
    ) -> RewardModel:
        """What `save` wrote; `dtype` "auto" is the one it was saved in.

        Raises:
            ValueError: no such folder, or its tokenizer is not the environment's.
        """
        if not is_reward_model(path):
            raise ValueError(f"{str(path)!r} is no folder of a reward model: {SETTINGS} is missing")
        dtype = read_json(Path(path) / SETTINGS)["dtype"] if dtype == "auto" else dtype
        return cls(path, env, device=device, dtype=dtype, seed=seed)

    def _load_head(self, folder: Path) -> None:
        _check_tokenizers(load_tokenizer(folder), self.mdp.codec.tokenizer)
        settings = read_json(folder / SETTINGS)
        self.mean, self.deviation = settings["mean"], settings["deviation"]
        self.head.load_state_dict(load_file(folder / HEAD))


def is_reward_model(path: str | Path) -> bool:
    """Whether a reward model was saved in this folder."""
    return (Path(path) / SETTINGS).is_file()


def pad(rows: Iterable[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of ids as right-padded tokens [B, T], and their lengths [B]."""
    ids = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return nn.utils.rnn.pad_sequence(ids, batch_first=True), torch.tensor([len(row) for row in ids])


def _own(model: Any) -> Any:
    """A name as it is, an object as a copy: whoever else trains it must not move the reward."""
    if isinstance(model, str | Path):
        return model
    model = model.model if isinstance(model, LMPolicy) else model
    if not hasattr(model, "get_input_embeddings"):
        raise ValueError(f"model must be a name, a folder, an LMPolicy or a language model, got {short(model)}")
    return copy.deepcopy(model)


def _check_tokenizers(ours: Any, theirs: Any) -> None:
    if ours is not theirs and ours.get_vocab() != theirs.get_vocab():
        raise ValueError("the reward model was trained with another tokenizer than the environment's")
