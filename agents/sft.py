"""SFT: supervised fine-tuning, teacher forcing on demonstrations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from llmgym.agents.config import check_unit
from llmgym.agents.files import load_agent
from llmgym.agents.metrics import Metrics
from llmgym.agents.offline import Offline, OfflineConfig, Source
from llmgym.batch import TextBatch, by_length
from llmgym.demonstrations import Demonstration, read_demonstrations
from llmgym.fim import Filling
from llmgym.fused import FusedLlama
from llmgym.losses import sft_loss
from llmgym.packing import PackedForward
from llmgym.texts import Text, batch_of, completion_logp, text_of


@dataclass(frozen=True)
class SFTConfig(OfflineConfig):
    """Settings of SFT."""

    packing: bool = False  # several short texts in one row, each seeing only itself: saves padding, changes nothing
    fim: float = 0.0  # share of the rows cut for filling in the middle; 0.1 is the default of pre-training
    fim_marks: tuple[str, str, str] | None = None  # tokens before prefix, middle and suffix; None: known ones are tried

    def __post_init__(self):
        super().__post_init__()
        check_unit(self, "fim")
        if self.fim_marks is not None:  # JSON knows lists only
            object.__setattr__(self, "fim_marks", tuple(self.fim_marks))


class SFT(Offline):
    """-mean log π(o_t | prompt, o_<t) over the tokens of the demonstrated completions, EOS included.

    The supervised baseline of everything else here, and the start of RLHF (Ouyang et al. 2022, section 3.1). Prompts
    are read, never learnt. On completions that the policy itself wrote and a rule accepted this is rejection-sampling
    fine-tuning (RFT, Yuan et al. 2023).

    A share `fim` of the rows, drawn anew in every pass, is cut in three at random: the model reads prefix and suffix,
    and learns the middle and EOS (Bavarian et al. 2022; see `llmgym.fim`). What is cut is the plain text, prompt and
    completion together, without chat template; a row that would grow longer than the environment's texts stays whole.

    Args:
        policy, env, **config: as `Offline`; fields of `SFTConfig`.
        demonstrations: a file of JSON lines, a `datasets.Dataset`, or any iterable, as `read_demonstrations` takes
            them.
    """

    config_class: ClassVar[type[OfflineConfig]] = SFTConfig
    config: SFTConfig
    data_name = "demonstrations"

    def __init__(self, policy: Any, env: Any, demonstrations: Source | None = None, **config: Any):
        super().__init__(policy, env, demonstrations, **config)
        c = self.config
        self._filling = Filling(self.mdp.codec.tokenizer, c.fim_marks) if c.fim else None
        # The fused form computes no padding: there is nothing to save.
        fused = isinstance(self.policy.decoder.forward, FusedLlama)
        self._packed = PackedForward(self.policy.model) if c.packing and not fused else None

    @classmethod
    def load(  # type: ignore[override]
        cls, path: str | Path, env: Any = None, demonstrations: Source | None = None, **config: Any
    ) -> Self:
        """What `save` wrote, as `Offline.load`."""
        agent = load_agent(cls, path, env, config)
        if demonstrations is not None:
            agent._take(demonstrations)
        return agent

    def loss(self, batch: TextBatch, rows: Tensor, denominator: float) -> tuple[Tensor, dict[str, Any]]:
        """`sft_loss` of some rows; each is one action, of as many tokens as its completion has."""
        logp = completion_logp(self.policy, batch, self._packed)
        loss = sft_loss(logp[:, None], batch.mask, denominator=denominator)
        return loss, {"loss": loss.detach()}

    def denominator(self, batch: TextBatch, rows: Tensor) -> float:
        """The learnt tokens of a whole batch."""
        return int(batch.n_tokens.sum())

    def evaluate(self, demonstrations: Source) -> dict[str, float]:
        """How well demonstrations are predicted; nothing is learnt and nothing is cut.

        Returns:
            `loss`, nats a token; `perplexity`, its exponential; `token_accuracy`, the share of tokens that are the
            most probable ones where they stand.

        Raises:
            ValueError: a row is unusable or does not fit the environment.
        """
        texts = [text for row in self._read(demonstrations) for text in self._texts_of(row)]
        lengths = torch.tensor([len(text.tokens) for text in texts])
        total, right, count = 0.0, 0, 0
        for rows in by_length(lengths, torch.arange(len(texts)), self._rows_at_once):
            batch = batch_of([texts[i] for i in rows.tolist()], self.mdp)
            logp = self.policy.distributions(batch)
            tokens = batch.tokens[batch.action_index >= 0].to(logp.device)
            total -= float(logp.gather(1, tokens[:, None]).sum())
            right += int((logp.argmax(1) == tokens).sum())
            count += len(tokens)
        return {"loss": total / count, "perplexity": _perplexity(total / count), "token_accuracy": right / count}

    def update(self, rows: Sequence[int]) -> Metrics:
        """As `Offline.update`; perplexity is the exponential of the step's loss."""
        metrics = super().update(rows)
        return metrics | {"perplexity": _perplexity(metrics["loss"])}

    def _read(self, source: Source) -> list[Demonstration]:
        return read_demonstrations(source, self.mdp)

    def _texts_of(self, row: Demonstration) -> tuple[Text, ...]:
        return (text_of(self.mdp, row.problem, row.completion, row.finished),)

    def _batch(self, places: Tensor) -> TextBatch:
        return batch_of([self._cut(place) for place in places.tolist()], self.mdp)

    def _cut(self, place: int) -> Text:
        """A row as it is learnt in the running pass: whole, or cut for filling in the middle."""
        (text,) = self.texts[place]
        if self._filling is None:
            return text
        rng = np.random.default_rng((self.pass_seed, place))  # the same whatever else is in the batch
        if rng.random() >= self.config.fim:
            return text
        row = self.data[place]
        tokens, n_prompt = self._filling(row.prompt + row.completion, rng)
        return Text(np.array(tokens, np.int32), n_prompt) if len(tokens) <= self.mdp.length else text

    def _parts(self, batch: TextBatch, n_rows: int) -> list[Tensor]:
        if self._packed is None:
            return super()._parts(batch, n_rows)
        return list(torch.arange(n_rows).split(self.config.micro_batch_rows or n_rows))  # short texts fill long rows


def _perplexity(loss: float) -> float:
    return math.inf if loss > 700 else math.exp(loss)  # beyond the range of floats
