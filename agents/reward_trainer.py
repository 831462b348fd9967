"""RewardTrainer: a reward model from preferences, by the model of Bradley and Terry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from llmgym.agents.config import check_least
from llmgym.agents.offline import Offline, OfflineConfig, Source
from llmgym.agents.policies import settings_of
from llmgym.batch import TextBatch
from llmgym.calibration import score_pairs
from llmgym.losses import bradley_terry_loss
from llmgym.preferences import Preference, read_preferences
from llmgym.reward_model import RewardModel
from llmgym.texts import Text, text_of


@dataclass(frozen=True)
class RewardTrainerConfig(OfflineConfig):
    """Settings of RewardTrainer; a row is a pair."""

    label_smoothing: float = 0.0  # chance that a label is flipped, in [0, 0.5): margins then stay finite
    centring: float = 0.0  # weight of the mean of (r_chosen + r_rejected)^2 (Eisenstein et al. 2023); 0 = none

    def __post_init__(self):
        super().__post_init__()
        check_least(self, 0, "centring")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be in [0, 0.5), got {self.label_smoothing}")


class RewardTrainer(Offline):
    """-mean log σ(r_chosen - r_rejected), both completions in one forward pass. Ouyang et al. 2022, eq. 1.

    r is the model's score before `normalise`. With label smoothing ε the loss is
    -mean [(1 - ε) log σ(r_chosen - r_rejected) + ε log σ(r_rejected - r_chosen)].

    Args:
        policy: a `RewardModel`, which is the one that is trained; or what it takes as a model: "tiny", a folder (of an
            SFT policy, or of a reward model), a hub id, an `LMPolicy`, a model object.
        env: a text environment, single or vector, for its rules; or a `TextMDP`. It is never stepped.
        data: preferences, as `read_preferences` takes them; None: nothing can be learnt.
        **config: fields of `RewardTrainerConfig`.

    Raises:
        ValueError: a row is unusable or does not fit the environment (the sentence names it), or a bad setting.
    """

    config_class: ClassVar[type[OfflineConfig]] = RewardTrainerConfig
    config: RewardTrainerConfig
    policy: RewardModel
    data_name = "preferences"

    def loss(self, batch: TextBatch, rows: Tensor, denominator: float) -> tuple[Tensor, dict[str, Any]]:
        c = self.config
        chosen, rejected = self.policy.evaluate(batch.tokens, batch.lengths).chunk(2)
        loss = (1 - c.label_smoothing) * bradley_terry_loss(chosen, rejected, denominator=denominator)
        if c.label_smoothing:
            loss = loss + c.label_smoothing * bradley_terry_loss(rejected, chosen, denominator=denominator)
        if c.centring:
            loss = loss + c.centring * (chosen + rejected).square().sum() / denominator
        margin = (chosen - rejected).detach()
        won = (1 + margin.sign()) / 2  # a tie counts half
        shares = {"accuracy": won.sum() / denominator, "margin": margin.sum() / denominator}
        return loss, {"loss": loss.detach()} | shares

    def evaluate(self, preferences: Source) -> dict[str, float]:
        """How well the reward model predicts preferences it was not trained on: see `llmgym.calibration.score_pairs`.

        Raises:
            ValueError: a row is unusable or does not fit the environment.
        """
        return score_pairs(self.policy.margins(self._read(preferences)).cpu().numpy())

    def predict(
        self,
        observation: dict[str, np.ndarray],
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[Any, Any]:
        """A reward model has no actions: the reward of what an observation (or each of a batch) holds, and `state`."""
        ids, mask = (np.atleast_2d(observation[name]) for name in ("input_ids", "attention_mask"))
        rewards = self.policy.score_rows([row[: int(n)].tolist() for row, n in zip(ids, mask.sum(1), strict=True)])
        found = rewards.cpu().numpy()
        return (found if observation["input_ids"].ndim == 2 else found[0]), state

    def _read(self, source: Source) -> list[Preference]:
        return read_preferences(source, self.mdp)

    def _texts_of(self, row: Preference) -> tuple[Text, ...]:
        chosen = text_of(self.mdp, row.problem, row.chosen, row.chosen_finished)
        return chosen, text_of(self.mdp, row.problem, row.rejected, row.rejected_finished)

    def _make_policy(self, policy: Any, given: dict[str, Any]) -> RewardModel:
        c = self.config
        if not isinstance(policy, RewardModel):
            return RewardModel(policy, self.mdp, lora=c.lora, device=c.device, dtype=c.dtype, seed=c.seed)
        if c.lora:
            raise ValueError(f"lora is a setting of the reward model that was given: got {c.lora} here")
        self.config = settings_of(policy, c, given)
        return policy
