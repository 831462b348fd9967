"""Tasks by name: `make_task("arithmetic", digits=2)`, or any `Task` object."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from inspect import Parameter, signature
from typing import Any

from llmgym.tasks.base import FunctionReward, Problem, Split, Task, split_of

__all__ = ["FunctionReward", "Problem", "Split", "Task", "make_task", "register_task", "split_of", "task_names"]

_FACTORIES: dict[str, str | Callable[..., Task]] = {
    "arithmetic": "llmgym.tasks.arithmetic:Arithmetic",
    "copy": "llmgym.tasks.strings:Copy",
    "reverse": "llmgym.tasks.strings:Reverse",
    "sort": "llmgym.tasks.strings:Sort",
    "countdown": "llmgym.tasks.countdown:Countdown",
    "jsonl": "llmgym.tasks.data:from_jsonl",
    "dataset": "llmgym.tasks.data:from_dataset",
    "reasoning_gym": "llmgym.tasks.reasoning:ReasoningGym",
}


def register_task(name: str, factory: str | Callable[..., Task]) -> None:
    """Make `make_task(name, **options)` call `factory` (a callable, or "module:attribute")."""
    if name in _FACTORIES:
        raise ValueError(f"task {name!r} is registered already")
    _FACTORIES[name] = factory


def task_names() -> list[str]:
    """The registered names, sorted."""
    return sorted(_FACTORIES)


def make_task(task: str | Task, **options: Any) -> Task:
    """A task by name with its options, or the `Task` itself.

    Raises:
        ValueError: the name or an option is unknown, or options were given beside a `Task` object.
    """
    if isinstance(task, Task):
        if options:
            raise ValueError(f"task options {sorted(options)} need a task name, got a {type(task).__name__}")
        return task
    if task not in _FACTORIES:
        raise ValueError(f"unknown task {task!r}: choose one of {', '.join(task_names())}")
    factory = _FACTORIES[task]
    if isinstance(factory, str):
        module, _, attribute = factory.partition(":")
        factory = getattr(import_module(module), attribute)
    _check_options(task, factory, options)
    return factory(**options)


def _check_options(task: str, factory: Callable[..., Task], options: dict[str, Any]) -> None:
    parameters = signature(factory).parameters
    if any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values()):
        return  # the factory hands them on and checks them itself
    unknown = sorted(set(options) - set(parameters))
    if unknown:
        raise ValueError(f"task {task!r} has no option {unknown[0]!r}: it takes {', '.join(parameters)}")
