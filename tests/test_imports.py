"""Imports run one way: llmgym core <- llmgym.envs <- llmgym.agents <- command line, examples, benchmarks."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest
import torch

import llmgym  # noqa: F401

ROOT = Path(__file__).parent.parent
FLOORS = {"llmgym": 0, "llmgym.envs": 1, "llmgym.agents": 2, "llmgym.commands": 3, "llmgym.cli": 3}
FLOORS |= {"examples": 3, "benchmarks": 3, "tests": 4}
FOLDERS = {"llmgym": "llmgym", "envs": "llmgym.envs", "agents": "llmgym.agents"}
FILES = sorted(path for name in (*FOLDERS, "examples", "benchmarks") for path in (ROOT / name).rglob("*.py"))


def module_of(path: Path) -> str:
    """The name a file is imported by: envs/text.py is llmgym.envs.text."""
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([FOLDERS.get(folder, folder), *rest]).removesuffix(".__init__")


def floor(module: str) -> int | None:
    """The floor of the longest known prefix; None for a library."""
    known = [name for name in FLOORS if module == name or module.startswith(f"{name}.")]
    return FLOORS[max(known, key=len)] if known else None


def imported(source: str, module: str, package: bool = False) -> set[str]:
    """Every module that `source` names in an import statement, deferred ones included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: None if package else -1]
            base = parents[: len(parents) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names |= {origin} | {f"{origin}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_imports_from_a_higher_floor(path):
    module = module_of(path)
    own = floor(module)
    names = imported(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")
    higher = {name for name in names if (at := floor(name)) is not None and at > own}
    assert not higher, f"{module} (floor {own}) imports {sorted(higher)}"
    # The folders envs/ and agents/ are the packages llmgym.envs and llmgym.agents: a second name would be a second
    # copy of every class.
    assert not {name for name in names if name.split(".")[0] in ("envs", "agents")}


def test_the_walk_sees_the_code():
    modules = {module_of(path) for path in FILES}
    assert {"llmgym", "llmgym.text", "llmgym.envs", "llmgym.envs.text", "llmgym.agents"} <= modules


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import llmgym.envs.text as t", {"llmgym.envs.text"}),
        ("from llmgym import envs", {"llmgym", "llmgym.envs"}),
        ("def f():\n    from llmgym.agents import GRPO", {"llmgym.agents", "llmgym.agents.GRPO"}),
        ("from .envs import x", {"llmgym.envs", "llmgym.envs.x"}),
        ("from . import envs", {"llmgym", "llmgym.envs"}),
    ],
)
def test_every_kind_of_import_is_seen(source, expected):
    assert imported(source, "llmgym.text") == expected
    assert max(floor(name) for name in expected) > 0


def test_relative_imports_of_a_package_are_seen():
    assert imported("from .. import agents", "llmgym.envs", package=True) == {"llmgym", "llmgym.agents"}


def python(code: str) -> str:
    """Output of `code` in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, cwd=ROOT / "tests")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_llmgym_and_its_environments_loads_no_torch_and_no_transformers():
    heavy = "sorted({'torch', 'transformers', 'stable_baselines3', 'matplotlib'} & set(sys.modules))"
    assert python(f"import sys, llmgym, llmgym.envs, llmgym.tasks\nprint({heavy})") == "[]"


def test_importing_llmgym_registers_by_string():
    code = "import gymnasium, llmgym, sys; print('llmgym.envs' in sys.modules, *gymnasium.registry)"
    assert python(code).startswith("False ") and "llmgym/TokenMDP-v0" in python(code)


@pytest.mark.parametrize("name", ["TokenMDP", "BlockMDP", "SequenceMDP"])
def test_a_text_environment_loads_no_model(name, monkeypatch):
    def refuse(self, name, parameter):
        raise AssertionError(f"{type(self).__name__} got the parameter {name!r}")

    monkeypatch.setattr(torch.nn.Module, "register_parameter", refuse)
    with pytest.raises(AssertionError, match="Linear got the parameter 'weight'"):
        torch.nn.Linear(1, 1)
    gym.make(f"llmgym/{name}-v0").reset()
    gym.make_vec(f"llmgym/{name}-v0", num_envs=2).reset()
