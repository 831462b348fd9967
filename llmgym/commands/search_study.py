"""`llmgym search-study`: what search over language is worth, at equal forward tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from llmgym.commands import report
from llmgym.commands.options import check_positive, json_object, parse, prepare
from llmgym.files import write_json
from llmgym.runs import versions
from llmgym.search.study import LEVELS, VALUES, Method, Plan, Point, at_budget, methods
from llmgym.search.study import run as measure
from llmgym.search.study_plots import study_picture

PROG = "llmgym search-study"


@dataclass(frozen=True)
class StudyOptions:
    """Success against budget of search at token, block and line level, beside greedy, samples, beams and majority.

    Every method reads the model through one tree of texts, in which a prefix is paid once. PUCT has the model's
    probabilities as priors; UCT has none. Values: rollouts of the policy, a learned head, half of each, the exact one
    (from the solutions) and noise.
    """

    tasks: tuple[str, ...] = ("countdown", "arithmetic")  # names of registered tasks
    task_options: str = "{}"  # options by task as a JSON object, such as '{"arithmetic": {"digits": 2}}'
    model: str = "tiny"  # tiny (the embedded model), a folder or a hub id
    problems: int = 40  # of each seed, from the test split
    seeds: int = 3  # of problems, sampling and the fit of the learned value
    levels: tuple[str, ...] = tuple(
        LEVELS
    )  # of the search: token, block (4 tokens), line (to a space or a closing tag)
    values: tuple[str, ...] = VALUES  # of PUCT: rollouts, learned, mixed, exact, noise
    budgets: tuple[int, ...] = (32, 64, 128, 256)  # forward tokens a problem, columns of the table; ascending
    most: int = 256  # largest number of simulations, samples or beams
    k: int = 4  # candidates of a state
    fit: int = 100  # training problems that the learned value is fitted to
    max_new_tokens: int = 40  # budget of a text
    jobs: int = 1  # processes
    threads: int | None = 1  # CPU threads of torch in each; None leaves that to torch
    out: str = "search_study"  # OUT.png and OUT.json are written

    def __post_init__(self):
        counts = {name: getattr(self, name) for name in ("problems", "seeds", "most", "k", "fit", "jobs")}
        check_positive(**counts, max_new_tokens=self.max_new_tokens)
        for name, allowed in (("levels", tuple(LEVELS)), ("values", VALUES)):
            wrong = [word for word in getattr(self, name) if word not in allowed]
            if wrong or not getattr(self, name):
                raise ValueError(f"{name} must be one or more of {', '.join(allowed)}, got {wrong or 'none'}")
        if not self.budgets or min(self.budgets) < 1 or list(self.budgets) != sorted(set(self.budgets)):
            raise ValueError(f"budgets must be ascending whole numbers of at least 1, got {self.budgets}")
        if not self.tasks or not Path(self.out).resolve().parent.is_dir():
            raise ValueError(f"there must be a task and a folder for {self.out!r}, got tasks {self.tasks}")


def run(words: list[str]) -> int:
    """`llmgym search-study WORDS…`."""
    options = parse(StudyOptions, words, prog=PROG, default=StudyOptions())
    plans, chosen = plans_of(options), methods(options.values, options.levels)
    for plan in plans.values():
        plan.mdp()  # refuses what cannot be meant before anything is measured
    points = _measured(options, plans, chosen)
    for task in plans:
        report.say(f"{task}: success within so many forward tokens a problem, 95 % interval")
        report.plain_table("method", [*(f"{b} tokens" for b in options.budgets)], _rows(options, points[task], chosen))
    report.say("* the task tells which finished text is right; – costs more even with its smallest setting")
    study_picture(points, f"{options.out}.png")
    rows = {task: [asdict(point) for point in found] for task, found in points.items()}
    write_json(f"{options.out}.json", {**asdict(options), "points": rows, "versions": versions()})
    report.say(f"{options.out}.png and {options.out}.json")
    return 0


def plans_of(options: StudyOptions) -> dict[str, Plan]:
    """What is measured of each task."""
    own = json_object(options.task_options)
    unknown = sorted(set(own) - set(options.tasks))
    if unknown:
        raise ValueError(f"task_options must be by task, one of {', '.join(options.tasks)}, got {unknown[0]!r}")
    names = ("model", "problems", "most", "k", "fit", "max_new_tokens")
    shared = Plan(**{name: getattr(options, name) for name in names}, budget=options.budgets[-1])
    return {task: replace(shared, task=task, task_options=json.dumps(own.get(task, {}))) for task in options.tasks}


def _measured(options: StudyOptions, plans: Mapping[str, Plan], chosen: Sequence[Method]) -> dict[str, list[Point]]:
    """Points by task, seeds in order; each task and seed is a job."""
    jobs = [(task, seed) for task in plans for seed in range(options.seeds)]
    found: dict[tuple[str, int], list[Point]] = {}
    with report.bar("runs", len(jobs)) as progress:
        if options.jobs == 1:
            prepare(options.threads)
            for task, seed in jobs:
                found[task, seed] = measure(plans[task], chosen, seed)
                progress(1)
        else:
            # Not forked: a child of a process that has run torch's threads may hang.
            context = get_context("spawn")
            with ProcessPoolExecutor(options.jobs, context, prepare, (options.threads,)) as pool:
                futures = {pool.submit(measure, plans[task], chosen, seed): (task, seed) for task, seed in jobs}
                for future in as_completed(futures):
                    found[futures[future]] = future.result()
                    progress(1)
    return {task: [p for seed in range(options.seeds) for p in found[task, seed]] for task in plans}


def _rows(options: StudyOptions, points: Sequence[Point], chosen: Sequence[Method]) -> list[tuple[str, list[str]]]:
    return [
        (f"{method}{' *' if method.judged else ''}", [_cell(at_budget(points, method, b)) for b in options.budgets])
        for method in chosen
    ]


def _cell(found: Any) -> str:
    return "–" if found is None else f"{found[0]:.0%} ({100 * found[1][0]:.0f}–{100 * found[1][1]:.0f})"


__all__ = ["StudyOptions", "plans_of", "run"]
