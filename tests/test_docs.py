"""The documentation is true: its code runs, its tables are those of the code, its links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from tyro import MISSING

import llmgym.tasks
from llmgym.agents import GRPO, PPO, REINFORCE
from llmgym.commands import (
    distillation_study,
    eval,
    gtp,
    label,
    match,
    pairs,
    rlhf,
    search_study,
    train,
    train_mcts,
    train_offline,
)
from llmgym.commands.options import parse

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))


def load(path: Path) -> Any:
    """A file that is no module of the package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load(DOCS / "generate.py")


@pytest.mark.filterwarnings("default::RuntimeWarning")  # a few rows may all be right: an agent then says so
@pytest.mark.parametrize("page", [p for p in PAGES if "```python" in p.read_text("utf-8")], ids=lambda p: p.stem)
def test_every_block_of_code_runs(page, tmp_path, monkeypatch):
    """The blocks of a page one after the other, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(llmgym.tasks, "_FACTORIES", dict(llmgym.tasks._FACTORIES))  # a page registers a task
    text, namespace = page.read_text("utf-8"), {"__name__": "__main__"}
    for block in BLOCK.finditer(text):
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], str(page), "exec"), namespace)  # errors name the line of the page


@pytest.mark.parametrize("page", sorted(generate.pages()), ids=lambda page: page.stem)
def test_what_is_generated_is_up_to_date(page):
    assert page.read_text("utf-8") == generate.pages()[page], "run: python docs/generate.py"


def test_no_generated_table_is_empty():
    tables = [match[0] for text in generate.pages().values() for match in generate._MARK.finditer(text)]
    assert len(tables) >= 15
    for table in tables:
        rows = [line for line in table.splitlines() if line.startswith(("| `", "| [`"))]
        assert rows and all(not row.rstrip().endswith("|  |") for row in rows), table


@every_page
def test_links_and_named_files_exist(page):
    text = page.read_text("utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        target, _, anchor = link.partition("#")
        found = (page.parent / target).resolve() if target else page
        assert found.is_file(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text("utf-8"), re.M)
            assert anchor in [h.lower().replace(" ", "-") for h in headings], link
    for file in re.findall(r"`((?:tests|examples|llmgym)/[\w/]+\.py)", text):
        assert (ROOT / file).is_file(), file
    for file, test in re.findall(r"(tests/\w+\.py)::(\w+)", text):
        assert f"def {test}(" in (ROOT / file).read_text("utf-8"), test


def test_the_map_names_every_page_and_every_example():
    text = (DOCS / "index.md").read_text("utf-8")
    for page in PAGES:
        assert page.name == "index.md" or f"({page.relative_to(DOCS).as_posix()})" in text, page
    for example in sorted((ROOT / "examples").glob("*.py")):
        assert f"`{example.name}`" in text, example


_WORD = r"(?:\"[^\"]+\"|[\w/]+)"  # that names a player
_NAMED = rf"train [\w-]+|eval|pairs|rlhf|\w+-study|label \S+\.jsonl|gtp(?: {_WORD})?|match {_WORD} {_WORD}"
_COMMAND = rf"^ *(llmgym (?:{_NAMED})(?: +[-#](?!.*OPTIONS).*)?)$"


def commands() -> list[str]:
    """Every command line of the pages and of the README."""
    texts = [page.read_text("utf-8") for page in (*PAGES, ROOT / "README.md")]
    return [line for text in texts for line in re.findall(_COMMAND, text, re.M)]


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_every_command_line_can_be_parsed(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command, comments=True)[1:]
    if words[0] == "eval":
        eval._options(words[1:])
    elif words[0] == "pairs":
        pairs._options(words[1:])
    elif words[0] == "rlhf":
        parse(rlhf.RLHFOptions, words[1:], prog="llmgym", default=rlhf.RLHFOptions(), prefixes=True)
    elif words[0] == "search-study":
        parse(search_study.StudyOptions, words[1:], prog="llmgym", default=search_study.StudyOptions())
    elif words[0] == "distillation-study":
        default = distillation_study.DistillationOptions()
        parse(distillation_study.DistillationOptions, words[1:], prog="llmgym", default=default)
    elif words[0] == "gtp":
        parse(gtp.GTPOptions, words[1:], prog="llmgym", default=gtp.GTPOptions())
    elif words[0] == "match":
        parse(match.MatchOptions, words[1:], prog="llmgym", default=match.MatchOptions(MISSING, MISSING))
    elif words[0] == "label":
        parse(label.LabelOptions, words[1:], prog="llmgym", default=label.LabelOptions(MISSING, MISSING))
    elif words[1] == "mcts":
        default = train_mcts.TrainOptions(train_mcts.MCTSConfig())
        parse(train_mcts.TrainOptions, words[2:], prog="llmgym", default=default)
    elif words[1] in train_offline.LEARNERS:
        config = train_offline.LEARNERS[words[1]].config_class
        default = train_offline.OfflineOptions(train_offline.DataOptions(MISSING), config())
        parse(train_offline.OfflineOptions[config], words[2:], prog="llmgym", default=default)
    else:
        config = train.AGENTS[words[1]].config_class
        parse(train.TrainOptions[config], words[2:], prog="llmgym", default=train.TrainOptions(agent=config()))


def test_every_task_is_documented():
    text = (DOCS / "tasks.md").read_text("utf-8")
    assert all(f"`{name}`" in text for name in llmgym.tasks.task_names())


def documented_metrics(page: str) -> set[str]:
    """Names in the table under "What is logged"."""
    section = (DOCS / "agents" / page).read_text("utf-8").split("## What is logged")[1]
    return set(re.findall(r"^\| `([\w/]+)` \|", section, re.MULTILINE))


@pytest.mark.filterwarnings("default::RuntimeWarning")
@pytest.mark.parametrize(
    ("agent", "page", "config"),
    [
        (GRPO, "grpo.md", {"prompts": 2, "samples": 4}),
        (PPO, "ppo.md", {"prompts": 8, "samples": 4, "target_kl": 1e-9, "kl_target": 6.0}),
        (REINFORCE, "reinforce.md", {"prompts": 8, "baseline": "value"}),
    ],
)
def test_every_metric_is_documented_and_none_else(agent, page, config):
    env = gym.make("llmgym/TokenMDP-v0", max_new_tokens=16)
    logged: dict[str, float] = {}
    trained = agent("tiny", env, seed=1, device="cpu", **config)
    trained.learn(total_timesteps=1, callback=lambda agent, metrics, batch: logged.update(metrics))
    names = {"reward_terms/NAME" if name.startswith("reward_terms/") else name for name in logged}
    assert documented_metrics(page) == names


def test_arguments_are_read_from_signature_and_docstring():
    def function(a, b=1, *, c="x|y", **d):
        """Something.

        Args:
            a: first.
            b, c: two at once,
                on two lines.
            **d: the rest.

        Raises:
            ValueError: never.
        """

    rows = generate.argument_table(function).splitlines()[2:]
    assert rows == [
        "| `a` | – | first. |",
        "| `b, c` | `1`, `'x|y'` | two at once, on two lines. |",
        "| `**d` | – | the rest. |",
    ]
