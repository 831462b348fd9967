"""`llmgym train AGENT`: evaluate, train, evaluate again, and leave a run folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Generic, TypeVar

from llmgym.agents import GRPO, PPO, REINFORCE
from llmgym.agents.base import Agent
from llmgym.agents.config import AgentConfig
from llmgym.agents.metrics import Metrics
from llmgym.agents.policies import NETS
from llmgym.batch import Batch
from llmgym.commands import report
from llmgym.commands.interrupts import CtrlC
from llmgym.commands.options import EnvOptions, check_positive, parse, plain_warnings, policy_folder, prepare
from llmgym.evaluation import Completion, Score, complete, draw_problems, evaluate
from llmgym.policy import LMPolicy
from llmgym.runs import RunFolder, check_free, default_path
from llmgym.tasks import Problem

AGENTS: Mapping[str, type[Agent]] = {"grpo": GRPO, "ppo": PPO, "reinforce": REINFORCE}
DECODINGS = {"greedy": True, "temperature 1": False}  # name -> deterministic
DEFAULT_SECONDS = 45.0
UNITS = {"total_timesteps": "steps of all rows together", "total_tokens": "sampled tokens", "max_seconds": "seconds"}
SAMPLES = 8  # prompts in samples.md
EVALUATION_SEED = 0  # the same held-out problems in every run, whatever the agent's seed
C = TypeVar("C", bound=AgentConfig)


@dataclass(frozen=True)
class RunOptions:
    """Model, budget and run folder."""

    model: str = "tiny"  # what is trained: tiny (the embedded model), a folder, a run folder or a hub id
    out: str | None = None  # run folder, new or empty; None makes runs/AGENT-TASK-DATE-TIME
    max_seconds: float | None = None  # budget of training in seconds; 45 when no budget is given at all
    total_timesteps: int | None = None  # budget of training in environment steps x rows
    total_tokens: int | None = None  # budget of training in sampled tokens
    evaluate: bool = True  # accuracy and sample completions on the test split, before and after training
    eval_problems: int = 1000  # held-out problems of each evaluation
    eval_rows: int = 250  # completions in the making at once when evaluating; memory
    threads: int | None = None  # CPU threads of torch; None leaves that to torch

    def __post_init__(self):
        check_positive(max_seconds=self.max_seconds, total_timesteps=self.total_timesteps)
        check_positive(total_tokens=self.total_tokens, eval_problems=self.eval_problems, eval_rows=self.eval_rows)
        if self.model in NETS:
            raise ValueError(
                f"{self.model} is a policy for Python, PPO({self.model!r}, env): model names a language model"
            )

    @property
    def budget(self) -> dict[str, Any]:
        """Arguments of `learn`."""
        limits = {"total_timesteps": self.total_timesteps, "total_tokens": self.total_tokens}
        none = self.max_seconds is None and not any(limits.values())
        return limits | {"max_seconds": DEFAULT_SECONDS if none else self.max_seconds}


@dataclass(frozen=True)
class TrainOptions(Generic[C]):
    """Train a language model on a text environment and leave a run folder.

    Ctrl-C stops after the current step (a second one at once): the run folder is completed, the evaluation after
    training is skipped, the exit code is 130.
    """

    agent: C
    env: EnvOptions = field(default_factory=EnvOptions)
    run: RunOptions = field(default_factory=RunOptions)


def run(name: str, words: list[str]) -> int:
    """`llmgym train NAME WORDS…`."""
    config = AGENTS[name].config_class
    default = TrainOptions(agent=config(seed=0, verbose=1, schedule="linear"))
    options = parse(TrainOptions[config], words, prog=f"llmgym train {name}", default=default)  # type: ignore[valid-type]
    path = check_free(options.run.out or default_path(f"{name}-{options.env.task}"))
    prepare(options.run.threads)
    options = replace(options, run=replace(options.run, model=policy_folder(options.run.model), out=str(path)))
    agent = AGENTS[name](options.run.model, options.env.make(options.run.model), **asdict(options.agent))
    held_out = _held_out(agent, options.run) if options.run.evaluate else []
    with RunFolder(path) as folder, plain_warnings():
        folder.write_config({"command": ["train", name, *words], "name": name, **asdict(options)})
        _announce(name, agent, options, folder)
        return 130 if _Job(agent, options, folder, held_out).run() else 0


class _Job:
    """One run: what is done in which order, and what is kept when it is interrupted."""

    def __init__(self, agent: Agent, options: TrainOptions, folder: RunFolder, held_out: list[Problem]):
        self.agent, self.options, self.folder, self.held_out = agent, options, folder, held_out
        self.scores: dict[str, dict[str, Score]] = {}
        self.samples: dict[str, list[Completion]] = {}
        self.ctrl_c = CtrlC()

    def run(self) -> bool:
        """Evaluate, train, evaluate; returns whether it was interrupted."""
        with self.ctrl_c:
            interrupted = self._train()
            if self.folder.records:  # a few completions are quick: they are made after Ctrl-C too
                interrupted |= self._guarded(lambda: self._sample("after"))
            if not interrupted:
                interrupted = self._guarded(lambda: self._evaluate("after"))
            self.ctrl_c.patience = math.inf
            self._draw()
            self._conclude(interrupted)
        return interrupted

    def _conclude(self, interrupted: bool) -> None:
        if "after" in self.scores:
            report.before_and_after(self.scores)
        if interrupted:
            steps, again = len(self.folder.records), f"llmgym eval --policy {self.folder.path}"
            report.say(f"interrupted after {steps} updates: no evaluation after training ({again} makes up for it)")
        report.say(f"run folder: {self.folder.path}")

    def _train(self) -> bool:
        """Whatever ends training, the policy is saved and the curve drawn up to its last step."""
        try:
            interrupted = self._guarded(self._before) or self._guarded(self._learn)
        finally:
            self.ctrl_c.patience = math.inf
            self.agent.save(self.folder.policy)
            self._draw()
        self.ctrl_c.patience = 0
        return interrupted or self.ctrl_c.asked > 0

    def _guarded(self, work: Callable[[], bool | None]) -> bool:
        """Whether `work` was interrupted: it says so itself, or an exception does."""
        try:
            return bool(work())
        except KeyboardInterrupt:
            return True

    def _learn(self) -> bool:
        limits = [f"{value:,g} {UNITS[name]}" for name, value in self.options.run.budget.items() if value is not None]
        report.say(f"training for at most {' or '.join(limits)}")
        self.ctrl_c.patience = 1
        self.agent.learn(**self.options.run.budget, callback=self._record)
        return self.ctrl_c.asked > 0

    def _record(self, agent: Agent, metrics: Metrics, batch: Batch) -> bool:
        """Keep an update; whether training goes on."""
        self.folder.log(metrics)
        return not self.ctrl_c.asked

    def _before(self) -> None:
        self._sample("before")
        self._evaluate("before")

    def _sample(self, when: str) -> None:
        """Greedy completions of a few prompts."""
        if self.held_out:
            policy = self._actor()
            self.samples[when] = complete(policy, policy.mdp, self.held_out[:SAMPLES])
            self.folder.write_samples(self.samples["before"], self.samples.get("after"))

    def _evaluate(self, when: str) -> None:
        """Accuracy on the held-out problems in each way of decoding."""
        if self.held_out:
            self.scores[when] = {how: self._score(when, how) for how in DECODINGS}
            self.folder.write_evaluation(self.scores)

    def _score(self, when: str, how: str) -> Score:
        policy, problems, rows = self._actor(), self.held_out, self.options.run.eval_rows
        with report.bar(f"{when} training, {how}", len(problems)) as moved:
            return evaluate(policy, policy.mdp, problems, deterministic=DECODINGS[how], rows=rows, progress=moved)

    def _actor(self) -> LMPolicy:
        """A policy of its own on the same weights: training's counters and random numbers are not touched."""
        return LMPolicy(self.agent.policy.model, self.agent.mdp, dtype="auto", seed=EVALUATION_SEED)

    def _draw(self) -> None:
        env = self.options.env
        self.folder.draw(f"{type(self.agent).__name__}, {env.env} environment, {env.task}", self.scores)


def _held_out(agent: Agent, run: RunOptions) -> list[Problem]:
    return draw_problems(agent.mdp, run.eval_problems, split="test", seed=EVALUATION_SEED)


def _announce(name: str, agent: Agent, options: TrainOptions, folder: RunFolder) -> None:
    size = sum(p.numel() for p in agent.policy.model.parameters()) / 1e6
    env, config = options.env, agent.config
    report.say(
        f"{name}: {options.run.model} ({size:.2f} M parameters, {agent.policy.device}), {env.env} environment, "
        f"task {env.task}, {config.prompts} prompts x {config.samples} samples a step, seed {config.seed}"
    )
    report.say(f"run folder: {folder.path}")
