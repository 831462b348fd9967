"""`llmgym distillation-study`: search distillation beside GRPO, at equal forward tokens."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from llmgym.commands import report
from llmgym.commands.options import check_positive, json_object, parse, prepare
from llmgym.files import write_json
from llmgym.runs import versions
from llmgym.search.distillation_plots import Run, distillation_picture, over_seeds

PROG = "llmgym distillation-study"
METHODS = ("search distillation", "GRPO")
TASKS = '{"arithmetic": {"operators": "+-"}, "countdown": {"operators": "+-"}}'


@dataclass(frozen=True)
class DistillationOptions:
    """Search distillation and GRPO from the same model: held-out accuracy against forward tokens.

    Forward tokens are all that went through the model to learn: sampling, search and training passes alike. A policy
    is looked at by greedy answers to held-out problems, which are not counted; and before and after, by a search that
    writes its answers move by move.
    """

    tasks: str = TASKS  # registered tasks and their options, as a JSON object
    model: str = "tiny"  # tiny (the embedded model), a folder or a hub id
    budget: int = 200_000  # forward tokens of each run
    looks: int = 10  # at the policy, evenly over the budget
    seeds: int = 3  # of problems, sampling and held-out problems
    problems: int = 400  # held-out problems of each look
    searched: int = 100  # held-out problems that are answered by search, before and after; 0: none
    max_new_tokens: int = 40  # budget of a text
    mcts: str = "{}"  # settings of MCTS as a JSON object; under the name of a task, those of it alone
    grpo: str = '{"beta": 0.0, "countdown": {"learning_rate": 1e-4}}'  # settings of GRPO, likewise
    jobs: int = 1  # processes
    threads: int | None = 1  # CPU threads of torch in each; None leaves that to torch
    out: str = "distillation_study"  # OUT.png and OUT.json are written

    def __post_init__(self):
        counts = {name: getattr(self, name) for name in ("budget", "looks", "seeds", "problems", "jobs")}
        check_positive(**counts, max_new_tokens=self.max_new_tokens)
        if self.searched < 0:
            raise ValueError(f"searched must be at least 0, got {self.searched}")
        if not json_object(self.tasks) or not Path(self.out).resolve().parent.is_dir():
            raise ValueError(f"there must be a task and a folder for {self.out!r}, got tasks {self.tasks}")

    @property
    def budgets(self) -> list[float]:
        """Forward tokens at which means are taken."""
        return [self.budget * i / self.looks for i in range(self.looks + 1)]


def run(words: list[str]) -> int:
    """`llmgym distillation-study WORDS…`."""
    options = parse(DistillationOptions, words, prog=PROG, default=DistillationOptions())
    for task in json_object(options.tasks):
        for method in METHODS:
            _agent(options, task, method, 0)  # refuses what cannot be meant before anything is measured
    runs = _measured(options)
    for task, found in runs.items():
        report.say(f"{task}: greedy accuracy after so many forward tokens, mean and 95 % interval over seeds")
        columns = [f"{budget / 1000:.0f}k" for budget in _columns(options)]
        report.plain_table("method", columns, _rows(options, found))
        if options.searched:
            report.say(f"{task}: answers that a search writes, and forward tokens of each")
            report.plain_table("policy learnt by", ["before", "after"], _searched_rows(found))
    distillation_picture(
        {_title(options, task): found for task, found in runs.items()}, options.budgets, f"{options.out}.png"
    )
    report.say(f"{options.out}.png and {options.out}.json")
    return 0


def _write(options: DistillationOptions, runs: Mapping[str, Sequence[Run]]) -> None:
    """`OUT.json`, complete up to the last run that has ended."""
    points = {task: [asdict(one) for one in found] for task, found in runs.items()}
    write_json(f"{options.out}.json", {**asdict(options), "runs": points, "versions": versions()})


def measure(options: DistillationOptions, task: str, method: str, seed: int) -> Run:
    """One run: learning, with looks at the policy in between."""
    look = _Look(options, task, method, seed)
    searched = {"before": look.search()} if options.searched else {}
    look.greedy()
    started = time.perf_counter()
    look.agent.learn(total_timesteps=2**62, callback=lambda *_: look.due())
    seconds = time.perf_counter() - started - look.seconds
    if options.searched:
        searched["after"] = look.search()
    return Run(method, seed, tuple(look.tokens), tuple(look.accuracy), searched, seconds)


class _Look:
    """Measurements of a policy that leave no trace in its counters and generators."""

    def __init__(self, options: DistillationOptions, task: str, method: str, seed: int):
        from llmgym.evaluation import draw_problems

        self.options, self.task, self.seed = options, task, seed
        self.agent = _agent(options, task, method, seed)
        self.mdp = _mdp(options, task)
        self.held_out = draw_problems(self.mdp, options.problems, seed=seed)
        self.tokens, self.accuracy, self.seconds = list[int](), list[float](), 0.0

    def due(self) -> bool:
        """Look where a share of the budget is spent; whether to go on."""
        spent, share = self.agent.policy.counters.forward_tokens, self.options.budget / self.options.looks
        if spent >= share * (self.tokens[-1] // share + 1):
            self.greedy()
        return spent < self.options.budget

    def greedy(self) -> None:
        """Accuracy of greedy answers."""
        from llmgym.evaluation import evaluate

        policy, started = self.agent.policy, time.perf_counter()
        spent = policy.counters.as_dict()
        score = evaluate(policy, self.mdp, self.held_out)
        vars(policy.counters).update(spent)
        self.tokens.append(spent["forward_tokens"])
        self.accuracy.append(score.accuracy)
        self.seconds += time.perf_counter() - started

    def search(self) -> tuple[float, float]:
        """Accuracy of answers that a search writes, and the forward tokens of one."""
        from llmgym.agents import MCTS

        policy = self.agent.policy
        # Without the value head, which GRPO does not train: the same search with both policies.
        settings = _settings(self.options, self.task, METHODS[0]) | {"rollouts": 1.0, "value_weight": 0.0}
        spent, generator = policy.counters.as_dict(), policy.generator.get_state()
        agent: Any = MCTS(policy, _env(self.mdp), seed=self.seed, **settings)
        answers = agent.write([self.mdp.start(problem) for problem in self.held_out[: self.options.searched]])
        tokens = policy.counters.forward_tokens - spent["forward_tokens"]
        vars(policy.counters).update(spent)
        policy.generator.set_state(generator)
        right = sum(self.mdp.outcome(answer).is_success for answer in answers)
        return right / len(answers), tokens / len(answers)


def _agent(options: DistillationOptions, task: str, method: str, seed: int) -> Any:
    from llmgym.agents import GRPO, MCTS

    cls = MCTS if method == METHODS[0] else GRPO
    given = {"seed": seed, "device": "cpu", **_settings(options, task, method)}
    try:
        return cls(options.model, _env(_mdp(options, task)), **given)
    except TypeError as error:  # a setting that the agent does not have
        raise ValueError(f"{error} (settings of {method})") from error


def _settings(options: DistillationOptions, task: str, method: str) -> dict[str, Any]:
    """Those of a method, with what is said of a task alone."""
    said = json_object(options.mcts if method == METHODS[0] else options.grpo)
    shared = {name: value for name, value in said.items() if not isinstance(value, dict)}
    return shared | said.get(task, {})


def _mdp(options: DistillationOptions, task: str) -> Any:
    from llmgym.text import TextMDP

    settings: dict[str, Any] = {"tokenizer": options.model, "max_new_tokens": options.max_new_tokens}
    return TextMDP(task, task_options=json_object(options.tasks)[task], **settings)


def _env(mdp: Any) -> Any:
    from llmgym.env import MDPEnv

    return MDPEnv(mdp)


def _measured(options: DistillationOptions) -> dict[str, list[Run]]:
    """Runs by task; each task, method and seed is a job."""
    tasks = list(json_object(options.tasks))
    jobs = [(task, method, seed) for task in tasks for seed in range(options.seeds) for method in METHODS]
    found: dict[tuple[str, str, int], Run] = {}
    # Not forked: a child of a process that has run torch's threads may hang.
    with (
        report.bar("runs", len(jobs)) as progress,
        ProcessPoolExecutor(options.jobs, get_context("spawn"), prepare, (options.threads,)) as pool,
    ):
        futures = {pool.submit(measure, options, *job): job for job in jobs}
        for future in as_completed(futures):
            found[futures[future]] = future.result()
            progress(1)
            runs = {task: [found[job] for job in jobs if job[0] == task and job in found] for task in tasks}
            _write(options, runs)
    return runs


def _rows(options: DistillationOptions, runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    by = {method: [one for one in runs if one.method == method] for method in METHODS}
    shares = {method: [[one.at(budget) for one in mine] for budget in _columns(options)] for method, mine in by.items()}
    return [(method, [_cell(over_seeds(each)) for each in columns]) for method, columns in shares.items()]


def _columns(options: DistillationOptions) -> list[float]:
    """Some of the budgets: the start, an eighth, a quarter, half and all, as far as the policy was looked at."""
    wanted = {round(options.looks * share) for share in (0, 0.1, 0.2, 0.5, 1)}
    return [options.budgets[i] for i in sorted(wanted)]


def _cell(found: tuple[float, float, float]) -> str:
    return f"{found[0]:.0%} ({100 * found[1]:.0f}–{100 * found[2]:.0f})"


def _searched_rows(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    rows = []
    for method in METHODS:
        found = [one.searched for one in runs if one.method == method]
        rows.append((method, [_searched([one[when] for one in found]) for when in ("before", "after")]))
    return rows


def _searched(found: Sequence[tuple[float, float]]) -> str:
    shares, tokens = zip(*found, strict=True)
    return f"{_cell(over_seeds(shares))}, {np.mean(tokens):.0f} tokens"


def _title(options: DistillationOptions, task: str) -> str:
    own = json_object(options.tasks)[task]
    return task + (f", {json.dumps(own)[1:-1]}" if own else "").replace('"', "")


__all__ = ["DistillationOptions", "measure", "run"]
