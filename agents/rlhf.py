"""RLHF in four stages, for any number of rounds, in a folder that any of them can be resumed from.

Ziegler et al. 2019, Stiennon et al. 2020, Ouyang et al. 2022: (1) the policy's completions are compared, (2) a reward
model is fitted to all comparisons so far, starting from the SFT model, (3) PPO maximises it less β KL to the SFT model,
(4) the next round compares the new policy's completions.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmgym.agents.config import check_fields, check_least
from llmgym.agents.ppo import PPO
from llmgym.agents.reward_trainer import RewardTrainer
from llmgym.agents.sft import SFT
from llmgym.assessment import assess
from llmgym.evaluation import draw_problems
from llmgym.files import read_json, write_json
from llmgym.labellers import Labeller, label
from llmgym.pair_sampling import sample_pairs
from llmgym.pairs import Preference
from llmgym.policy import LMPolicy
from llmgym.preferences import read_labels, read_pairs, write_pairs
from llmgym.reward_model import RewardModel
from llmgym.rewards import ModelReward
from llmgym.runs import MetricsFile, finite
from llmgym.text import TextMDP

Say = Callable[[str], None]
_STREAMS = {"pairs": 1, "held out": 2, "reward": 3, "ppo": 4, "assess": 5}  # every stage draws from a seed of its own


class Unfinished(RuntimeError):
    """A person has quit before every pair had an answer; the same run goes on with the next pair."""


@dataclass(frozen=True)
class RLHFConfig:
    """What the four stages do; the settings of SFT, reward model and PPO are theirs."""

    rounds: int = 2  # of stages 1 to 3; more may be asked for later, in the same folder
    pairs: int = 500  # pairs of completions that are compared in a round
    pair_temperature: float = 1.0  # of the completions that are compared
    held_out: float = 0.1  # share of the preferences that the reward model is tested on and never fitted to
    ppo_tokens: int = 60_000  # tokens sampled by PPO in a round
    problems: int = 500  # held-out problems on which every policy is assessed
    checkpoint_seconds: float = 20.0  # a stage that was interrupted goes on from a checkpoint at most this old
    seed: int = 0  # of everything; each stage and round draws from a stream of its own

    def __post_init__(self):
        check_fields(self)
        check_least(self, 1, "rounds", "pairs", "ppo_tokens", "problems")
        check_least(self, 0, "checkpoint_seconds", "seed")
        if not self.pair_temperature > 0:
            raise ValueError(f"pair_temperature must be above 0, got {self.pair_temperature}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be in (0, 1), got {self.held_out}")


class RLHF:
    """A policy from preferences.

    The folder holds `sft/`, and for each round `pairs.jsonl`, `preferences.jsonl`, `reward_model/` and `policy/`; a
    stage whose result is there is done, one that was interrupted goes on where its checkpoint or its answers end.

    Args:
        model: what training starts from: "tiny", a folder, a hub id.
        mdp: rules of the text environment; its reward is the *true* one, by which policies are assessed only.
        labeller: who compares, see `llmgym.labellers`.
        folder: new, or one that an earlier run with the same settings left.
        demonstrations: for supervised fine-tuning at the start; None: the model is its own SFT model.
        config: fields of `RLHFConfig`.
        sft, reward, ppo: settings of `SFT`, `RewardTrainer` and `PPO`.
        say: told what is being done, a sentence at a time.
        progress_bar: shows one for every stage.

    Raises:
        ValueError: bad settings, bad demonstrations, or a folder that was made with other settings.
        Unfinished: from `run` and `compare`, where the labeller quits.
    """

    def __init__(
        self,
        model: str,
        mdp: TextMDP,
        labeller: Labeller,
        folder: str | Path,
        *,
        demonstrations: Any = None,
        config: RLHFConfig | None = None,
        sft: dict[str, Any] | None = None,
        reward: dict[str, Any] | None = None,
        ppo: dict[str, Any] | None = None,
        say: Say = lambda sentence: None,
        progress_bar: bool = False,
    ):
        self.model, self.mdp, self.labeller, self.folder = model, mdp, labeller, Path(folder)
        self.config = config or RLHFConfig()
        self.settings = {"sft": sft or {}, "reward": reward or {}, "ppo": ppo or {}}
        self.say, self.progress_bar = say, progress_bar
        # A mistake in any stage's settings or data is said before the first stage begins.
        for learner, name in ((SFT, "sft"), (RewardTrainer, "reward"), (PPO, "ppo")):
            learner.config_class(**self.settings[name])  # type: ignore[attr-defined]
        self.demonstrations = demonstrations
        if demonstrations is not None:
            self._sft(model)
        self._keep_settings()

    def run(self) -> list[dict[str, Any]]:
        """Every stage that is not done yet; returns a row of results for the model, the SFT policy and each round."""
        rows = [self._result("base", self.model, None)]
        policy = self.supervised()
        if policy != self.model:
            rows.append(self._result("SFT", policy, None))
        for number in range(1, self.config.rounds + 1):
            policy = self.round(number, policy)
            rows.append(self._result(f"round {number}", policy, self._round(number) / "reward_model"))
        write_json(self.folder / "results.json", finite(rows))
        return rows

    def round(self, number: int, policy: str) -> str:
        """Compare `policy`'s completions, fit the reward model, improve the policy; returns the new policy's folder."""
        self.compare(number, policy)
        self.fit(number)
        return self.improve(number, policy)

    # The stages.

    def supervised(self) -> str:
        """Supervised fine-tuning on the demonstrations; without any, the model itself."""
        if self.demonstrations is None:
            return self.model
        path = self.folder / "sft"
        self._learnt(
            "supervised fine-tuning",
            path,
            self._sft,
            lambda agent, note: agent.learn(callback=note, progress_bar=self.progress_bar),
        )
        return str(path)

    def compare(self, number: int, policy: str) -> list[Preference]:
        """Stage 1: sample pairs and have them labelled, answer by answer."""
        folder, c = self._round(number), self.config
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "pairs.jsonl"
        if not file.exists():
            self.say(f"round {number}: sampling {c.pairs} pairs")
            seed = self._seed("pairs", number)
            sampler = LMPolicy(policy, self.mdp, temperature=c.pair_temperature, seed=seed, device=self._device)
            write_pairs(file, sample_pairs(sampler, self.mdp, c.pairs, seed=seed))
        pairs = read_pairs(file)
        self.say(f"round {number}: {len(pairs)} pairs are compared")
        answers = folder / "preferences.jsonl"
        found = label(pairs, self.labeller, answers)
        open_pairs = len(pairs) - len(list(read_labels(answers)))
        if open_pairs:  # a person has quit
            raise Unfinished(f"round {number}: {open_pairs} of {len(pairs)} pairs have no answer yet")
        if not found:
            raise ValueError(f"round {number}: no pair was preferred to another, {len(pairs)} were compared")
        return found

    def fit(self, number: int) -> Path:
        """Stage 2: a reward model from all preferences so far, starting from the SFT model."""
        path = self._round(number) / "reward_model"
        fitted, held_out = self._preferences(number)

        def make(checkpoint: str | None = None) -> RewardTrainer:
            settings = self._options("reward", number)
            if checkpoint is not None:
                return RewardTrainer.load(checkpoint, self.mdp, fitted)
            return RewardTrainer(
                RewardModel(self._reference, self.mdp, device=self._device), self.mdp, fitted, **settings
            )

        def learn(trainer: RewardTrainer, callback: Any) -> None:
            trainer.learn(callback=callback, progress_bar=self.progress_bar)
            trainer.policy.normalise(fitted, unit=True)
            write_json(self._round(number) / "reward_model.json", finite(trainer.evaluate(held_out)))

        self._learnt(f"round {number}: a reward model from {len(fitted)} preferences", path, make, learn)
        return path

    def improve(self, number: int, policy: str) -> str:
        """Stage 3: PPO on the reward model, less β KL to the SFT model."""
        path = self._round(number) / "policy"

        def make(checkpoint: str | None = None) -> PPO:
            env = self._proxy(number)
            if checkpoint is not None:
                return PPO.load(checkpoint, env)
            return PPO(policy, env, reference=self._reference, **self._options("ppo", number))

        def learn(agent: PPO, callback: Any) -> None:
            left = self.config.ppo_tokens - agent.policy.counters.sampled_tokens
            if left > 0:
                agent.learn(total_tokens=left, callback=callback, progress_bar=self.progress_bar)

        self._learnt(f"round {number}: PPO on {self.config.ppo_tokens:,} tokens", path, make, learn)
        return str(path)

    # How a stage is run, resumed and judged.

    def _learnt(self, what: str, path: Path, make: Callable[..., Any], learn: Callable[[Any, Any], None]) -> None:
        """Train until done, with checkpoints beside `path`; nothing where `path` is there."""
        if path.exists():
            return
        checkpoint = path.with_name(f"{path.name}.checkpoint")
        resumed = (checkpoint / "agent.json").is_file()
        self.say(f"{what}, from its checkpoint" if resumed else what)
        agent = make(str(checkpoint)) if resumed else make()
        saved = [time.monotonic()]
        with MetricsFile(path.with_name(f"{path.name}.metrics.jsonl"), agent.num_timesteps) as log:

            def note(agent: Any, metrics: Any, data: Any) -> None:
                log.add(metrics)
                if time.monotonic() - saved[0] >= self.config.checkpoint_seconds:
                    agent.save(checkpoint)
                    saved[0] = time.monotonic()

            learn(agent, note)
        agent.save(path)
        shutil.rmtree(checkpoint, ignore_errors=True)

    def _sft(self, checkpoint: str | None = None) -> SFT:
        if checkpoint not in (None, self.model):
            return SFT.load(checkpoint, self.mdp, self.demonstrations)
        return SFT(self.model, self.mdp, self.demonstrations, **self._options("sft", 0))

    def _result(self, name: str, policy: str, reward_model: Path | None) -> dict[str, Any]:
        """How good a policy is, kept beside it."""
        file = self.folder / "assessments" / f"{name.replace(' ', '_')}.json"
        if not file.exists():
            self.say(f"assessing {name} on {self.config.problems} held-out problems")
            seed = self._seed("assess", 0)
            actor = LMPolicy(policy, self.mdp, seed=seed, device=self._device)
            reference = None if policy == self.model else LMPolicy(self._reference, self.mdp, device=self._device)
            judge = None if reward_model is None else RewardModel.load(reward_model, self.mdp)
            problems = draw_problems(self.mdp, self.config.problems, seed=seed)
            found = assess(actor, self.mdp, problems, reference=reference, reward_model=judge, seed=seed)
            file.parent.mkdir(exist_ok=True)
            write_json(file, finite({"name": name, **found.as_dict(), **self._judge_of(reward_model)}))
        return read_json(file)

    def _judge_of(self, reward_model: Path | None) -> dict[str, Any]:
        return {} if reward_model is None else {"reward_model": read_json(reward_model.with_suffix(".json"))}

    def _preferences(self, number: int) -> tuple[list[Preference], list[Preference]]:
        """All preferences so far, split by a seed of each round: what is held out once is held out for ever."""
        fitted, held_out = [], []
        for earlier in range(1, number + 1):
            folder = self._round(earlier)
            found = label(read_pairs(folder / "pairs.jsonl"), self._answered, folder / "preferences.jsonl")
            order = np.random.default_rng(self._seed("held out", earlier)).permutation(len(found))
            cut = max(1, round(self.config.held_out * len(found)))
            held_out += [found[i] for i in order[:cut]]
            fitted += [found[i] for i in order[cut:]]
        if not fitted:
            raise ValueError(f"round {number}: {len(held_out)} preferences are too few to fit and test a reward model")
        return fitted, held_out

    def _answered(self, pair: Any) -> Any:
        return "quit"  # a pair without an answer stays without one

    def _proxy(self, number: int) -> Any:
        """The environment with the learned reward in place of the true one, which stays in sight."""
        mdp = copy.copy(self.mdp)
        model = RewardModel.load(self._round(number) / "reward_model", self.mdp)
        mdp.task, mdp._judged = ModelReward(self.mdp.task, model), None
        return mdp

    @property
    def _reference(self) -> str:
        """The SFT model, or the model itself without one."""
        return self.model if self.demonstrations is None else str(self.folder / "sft")

    @property
    def _device(self) -> str:
        return self.settings["ppo"].get("device", "auto")

    def _options(self, name: str, number: int) -> dict[str, Any]:
        return {"seed": self._seed(name, number) if name in _STREAMS else self.config.seed} | self.settings[name]

    def _seed(self, stream: str, number: int) -> int:
        sequence = np.random.SeedSequence([self.config.seed, _STREAMS[stream], number])
        return int(sequence.generate_state(1)[0] >> 1)

    def _round(self, number: int) -> Path:
        return self.folder / f"round-{number:02d}"

    def _keep_settings(self) -> None:
        """Write the settings, or refuse those that differ from what the folder was made with."""
        settings = {"model": str(self.model), **dataclasses.asdict(self.config), **self.settings}
        file = self.folder / "settings.json"
        old = read_json(file) if file.is_file() else settings
        for name in settings:
            if name not in ("rounds", "checkpoint_seconds") and old.get(name) != settings[name]:
                raise ValueError(
                    f"the folder {str(self.folder)!r} was made with {name}={old.get(name)!r}, got {settings[name]!r}: "
                    "take a new folder or the same settings"
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(file, settings)
