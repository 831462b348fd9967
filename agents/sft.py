"""SFT: supervised fine-tuning, teacher forcing on demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from llmgym.agents.offline import Offline, OfflineConfig, Source
from llmgym.batch import TextBatch
from llmgym.demonstrations import Demonstration, read_demonstrations
from llmgym.losses import sft_loss
from llmgym.texts import Text, text_of


@dataclass(frozen=True)
class SFTConfig(OfflineConfig):
    """Settings of SFT."""


class SFT(Offline):
    """-mean log π(token | text before it) over the tokens of completions."""

    config_class: ClassVar[type[OfflineConfig]] = SFTConfig
    config: SFTConfig
    data_name = "demonstrations"

    def loss(self, batch: TextBatch, rows: Tensor, denominator: float) -> tuple[Tensor, dict[str, Any]]:
        logp = self.policy.evaluate(batch, entropy=False).logp
        loss = sft_loss(logp, batch.mask, denominator=denominator)
        return loss, {"loss": loss.detach()}

    def denominator(self, batch: TextBatch, rows: Tensor) -> float:
        return int(batch.n_tokens.sum())

    def _read(self, source: Source) -> list[Demonstration]:
        return read_demonstrations(source, self.mdp)

    def _texts_of(self, row: Demonstration) -> tuple[Text, ...]:
        return (text_of(self.mdp, row.problem, row.completion, row.finished),)
