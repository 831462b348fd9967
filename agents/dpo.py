"""DPO: direct preference optimisation (Rafailov et al. 2023), and the losses that came after it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmgym.agents.config import check_least
from llmgym.agents.files import load_agent
from llmgym.agents.offline import Offline, OfflineConfig, Source
from llmgym.batch import TextBatch, by_length
from llmgym.lora import adapters_off, is_lora
from llmgym.losses import PreferenceKind, dpo_loss
from llmgym.policy import LMPolicy
from llmgym.preference_losses import check_preference
from llmgym.preferences import Preference, read_preferences
from llmgym.texts import Text, completion_logp, fingerprint, text_of

_FILE = "reference_logp.safetensors"


@dataclass(frozen=True)
class DPOConfig(OfflineConfig):
    """Settings of DPO; the variants of the literature are fields, each with its source."""

    learning_rate: float = 5e-5  # of AdamW
    beta: float = 0.1  # inverse temperature of the implied reward, per nat; of "ipo" the regularisation τ
    kind: PreferenceKind = "sigmoid"  # "sigmoid": eq. 7; "ipo": a square in its place (Azar et al. 2023, eq. 17)
    label_smoothing: float = 0.0  # chance in [0, 0.5) that a label is wrong (cDPO, Mitchell 2023)
    margin: float = 0.0  # γ by which the chosen's implied reward must lead (SimPO, Meng et al. 2024)
    length_normalized: bool = False  # each log-ratio is divided by its tokens (Lambert et al. 2024)
    reference_free: bool = False  # no reference: its log-probs count as 0 (CPO, Xu et al. 2024; SimPO)
    sft_weight: float = 0.0  # weight of -log π(chosen) per token, added to the loss (Pang et al. 2024, eq. 1)

    def __post_init__(self):
        super().__post_init__()
        check_preference(self.beta, self.kind, self.label_smoothing, self.margin)
        check_least(self, 0, "sft_weight")


class DPO(Offline):
    """-log σ(β log π(y_w)/π_ref(y_w) - β log π(y_l)/π_ref(y_l)), mean over pairs; no reward model, no sampling.

    Rafailov et al. 2023, eq. 7. The two completions of a pair go through the policy in one forward pass. The log-probs
    of the reference are computed once, before training, and kept with the pairs: training needs no second model.

    Args:
        policy, env, **config: as `Offline`; fields of `DPOConfig`.
        preferences: a file of JSON lines, a `datasets.Dataset`, or any iterable, as `read_preferences` takes them.
        reference: an `LMPolicy`, or what it takes as a model; by default the policy as it is now (with LoRA adapters,
            the base model).
    """

    config_class: ClassVar[type[OfflineConfig]] = DPOConfig
    config: DPOConfig
    data_name = "preferences"

    def __init__(
        self, policy: Any, env: Any, preferences: Source | None = None, *, reference: Any = None, **config: Any
    ):
        self._reference = reference
        self.ref_logp: Tensor | None = None
        self._held_out: dict[str, Tensor | None] = {}  # by fingerprint: log-probs of preferences that were evaluated
        super().__init__(policy, env, preferences, **config)

    @classmethod
    def load(  # type: ignore[override]
        cls,
        path: str | Path,
        env: Any = None,
        preferences: Source | None = None,
        *,
        reference: Any = None,
        **config: Any,
    ) -> Self:
        """What `save` wrote, as `Offline.load`.

        Args:
            path, env, **config: as there.
            preferences: with the same ones as before the running pass goes on, and the saved log-probs of the
                reference are used.
            reference: needed for other preferences, unless the policy has LoRA adapters or has not been trained yet.
        """
        agent = load_agent(cls, path, env, config)
        agent._reference = reference
        if preferences is not None:
            agent._take(preferences)
        return agent

    def loss(self, batch: TextBatch, rows: Tensor, denominator: float) -> tuple[Tensor, dict[str, Any]]:
        """`dpo_loss` of some pairs, and where their implied rewards stand."""
        return self._loss(batch, None if self.ref_logp is None else self.ref_logp[rows], denominator)

    @torch.no_grad()
    def evaluate(self, preferences: Source) -> dict[str, float]:
        """Means over preferences that are not learnt from.

        The reference is asked the first time and remembered: call this before training too, or pass `reference`.

        Returns:
            loss, accuracy (share of pairs whose chosen completion has the higher implied reward) and the other metrics
            of training.

        Raises:
            ValueError: as in `load`.
        """
        texts = [self._texts_of(row) for row in self._read(preferences)]
        ref, totals = self._remembered(texts), dict[str, float]()
        for places in torch.arange(len(texts)).split(self._rows_at_once):
            batch = self._stacked([texts[i] for i in places.tolist()])
            _, shares = self._loss(batch.to(self.policy.device), None if ref is None else ref[places], len(texts))
            totals = {name: totals.get(name, 0.0) + float(share) for name, share in shares.items()}
        return totals

    def _remembered(self, texts: Sequence[tuple[Text, ...]]) -> Tensor | None:
        """`_reference_logp` of the training data or of what was evaluated before, else asked now."""
        key = fingerprint(text for pair in texts for text in pair)
        if key == self.fingerprint:
            return self.ref_logp
        if key not in self._held_out:
            self._held_out[key] = self._reference_logp(texts)
        return self._held_out[key]

    def _loss(self, batch: TextBatch, ref_logp: Tensor | None, denominator: float) -> tuple[Tensor, dict[str, Any]]:
        """`loss` of pairs whose completions have these log-probs under the reference, [b, 2]; None: they count as 0."""
        c, logp, n = self.config, completion_logp(self.policy, batch), batch.n_tokens[:, 0]
        (chosen, rejected), lengths = logp.chunk(2), n.chunk(2) if c.length_normalized else (None, None)
        ref = None if ref_logp is None else ref_logp.t().to(logp)
        loss = dpo_loss(
            chosen,
            rejected,
            *((None, None) if ref is None else ref),
            beta=c.beta,
            kind=c.kind,
            label_smoothing=c.label_smoothing,
            margin=c.margin,
            chosen_lengths=lengths[0],
            rejected_lengths=lengths[1],
            denominator=denominator,
        )
        if c.sft_weight:
            loss = loss - c.sft_weight * (chosen / n[: len(chosen)]).sum() / denominator
        log_ratio = logp.detach() if ref is None else logp.detach() - ref.flatten()
        return loss, {"loss": loss.detach()} | self._shares(logp.detach(), log_ratio, n, denominator)

    def _shares(self, logp: Tensor, log_ratio: Tensor, n_tokens: Tensor, denominator: float) -> dict[str, Tensor]:
        """Shares of the metrics; the first halves, [2b], are of chosen completions."""
        rewards = self.config.beta * (log_ratio / n_tokens if self.config.length_normalized else log_ratio)
        chosen, rejected = rewards.chunk(2)
        chosen_logp, rejected_logp = logp.chunk(2)
        per_pair = {
            "accuracy": (1 + (chosen - rejected).sign()) / 2,  # a tie counts half
            "margin": chosen - rejected,
            "chosen_reward": chosen,
            "rejected_reward": rejected,
            "chosen_logp": chosen_logp,
            "rejected_logp": rejected_logp,
            "drift": (log_ratio / n_tokens).abs().view(2, -1).mean(0),
        }
        sums = torch.stack(list(per_pair.values())).sum(1) / denominator
        return dict(zip(per_pair, sums, strict=True))

    def _read(self, source: Source) -> list[Preference]:
        return read_preferences(source, self.mdp)

    def _texts_of(self, row: Preference) -> tuple[Text, ...]:
        pair = ((row.chosen, row.chosen_finished), (row.rejected, row.rejected_finished))
        return tuple(text_of(self.mdp, row.problem, text, finished) for text, finished in pair)

    def _take(self, source: Source) -> None:
        before = self.fingerprint
        super()._take(source)
        if self.ref_logp is None or self.fingerprint != before:
            self.ref_logp = self._reference_logp(self.texts)

    @torch.no_grad()
    def _reference_logp(self, texts: Sequence[tuple[Text, ...]]) -> Tensor | None:
        """log π_ref of the chosen and the rejected completion of pairs, nats, [n, 2] on the CPU; None without one."""
        if self.config.reference_free:
            return None
        longest = torch.tensor([max(len(text.tokens) for text in pair) for pair in texts])
        out = torch.zeros(len(texts), 2, dtype=torch.promote_types(self.policy.dtype, torch.float32))
        reference, adapters = self._make_reference()
        with adapters:
            for rows in by_length(longest, torch.arange(len(texts)), self._rows_at_once):
                logp = completion_logp(reference, self._stacked([texts[i] for i in rows.tolist()]))
                out[rows] = logp.view(2, -1).t().to(out)
        return out

    def _make_reference(self) -> tuple[LMPolicy, AbstractContextManager]:
        """What is asked, in which context: the policy itself while it has not moved, or without its adapters."""
        given, own = self._reference, self.policy
        adapters = given is None and is_lora(own.model)
        if self.num_timesteps and not adapters and (given is None or getattr(given, "model", given) is own.model):
            raise ValueError("these preferences are new and the policy has been trained already: pass reference=")
        if given is None:
            return own, adapters_off(own.model)
        if not isinstance(given, LMPolicy):
            dtype = str(own.dtype).removeprefix("torch.")
            given = LMPolicy(given, self.mdp, device=str(own.device), dtype=dtype)
            given.counters = own.counters  # the reference's passes are part of what the agent spends
        return given, nullcontext()

    def _save_more(self, folder: Path) -> None:
        if self.ref_logp is not None:
            save_file({"logp": self.ref_logp.contiguous()}, folder / _FILE)

    def _load_more(self, folder: Path) -> None:
        if (folder / _FILE).is_file():
            self.ref_logp = load_file(folder / _FILE)["logp"]
