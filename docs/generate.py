"""Write the parts of these pages that the code says already: environment docstrings and tables of config fields.

    python docs/generate.py

An environment's docstring is its page. In every page, what stands between a mark and `<!-- end -->` becomes a table:

    <!-- fields of module:Class -->      a dataclass: its defaults, and the comments beside its fields
    <!-- flags of module:Class -->       the same, spelt as on the command line
    <!-- arguments of module:name -->    a class or function: its signature, and "Args:" of its docstring
    <!-- examples -->                    the first sentence of every example
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import gymnasium as gym

import llmgym  # noqa: F401 (registers the environments)

DOCS = Path(__file__).parent
ENVIRONMENTS = {"token_mdp": "TokenMDP", "block_mdp": "BlockMDP", "sequence_mdp": "SequenceMDP", "go": "Go"}
PAGE = """\
<!-- made from the docstring of {source} by docs/generate.py: edit that -->
# {name}

```python
import gymnasium as gym
import llmgym

env = gym.make("llmgym/{name}-v0")
observation, info = env.reset(seed=0)
observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
```

{text}
"""
_MARK = re.compile(r"(<!-- (?:(fields|flags|arguments) of ([\w.]+):(\w+)|examples) -->\n).*?(<!-- end -->)", re.DOTALL)
_ARGS = re.compile(r"^Args:[^\n]*\n(.*?)(?=^\S|\Z)", re.DOTALL | re.MULTILINE)
_ENTRY = re.compile(r"^    ([\w*, ]+): (.*(?:\n {5,}.*)*)", re.MULTILINE)


def pages() -> dict[Path, str]:
    """Every page that holds something generated, as it should be."""
    wanted = {DOCS / "environments" / f"{page}.md": environment(name) for page, name in ENVIRONMENTS.items()}
    written = {path: path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
    return wanted | {path: _MARK.sub(_fill, text) for path, text in written.items() if _MARK.search(text)}


def environment(name: str) -> str:
    """The page of an environment, by its id without namespace and version."""
    module, _, cls = str(gym.spec(f"llmgym/{name}-v0").entry_point).partition(":")
    docstring = getattr(import_module(module), cls).__doc__
    return PAGE.format(name=name, source=f"{module}.{cls}", text=textwrap.dedent(docstring).strip())


def field_table(config: type, flags: bool = False) -> str:
    """A row a field of a dataclass; with `flags` as the command line spells it."""
    rows, hints = [], get_type_hints(config)
    for field in fields(config):
        name = f"--{field.name.replace('_', '-')}" if flags else field.name
        plain = flags and field.default not in (None, (), "", MISSING)
        default = f"`{field.default}`" if plain else _default(field.default)
        rows.append((name, default, comment(config, field.name) + _choices(config, field.name, hints)))
    return table("Flag" if flags else "Field", rows)


def _choices(config: type, name: str, hints: dict[str, Any]) -> str:
    """The choices of a field, unless its comment names them."""
    choices = [str(choice) for choice in get_args(hints[name])] if get_origin(hints[name]) is Literal else []
    named = all(choice in comment(config, name) for choice in choices)
    return "" if named else f"; one of {', '.join(choices)}"


def argument_table(thing: Any) -> str:
    """A row an argument that the docstring explains."""
    parameters = inspect.signature(thing).parameters
    section = _ARGS.search(inspect.getdoc(thing) or "")
    rows = []
    for names, meaning in _ENTRY.findall(section[1] if section else ""):
        defaults = [parameters[name.strip(" *")].default for name in names.split(",") if not name.startswith("**")]
        default = ", ".join(map(_default, defaults)) or "–"
        rows.append((names, default, " ".join(meaning.split())))
    return table("Argument", rows)


def example_table() -> str:
    """A row an example."""
    paths = sorted((DOCS.parent / "examples").glob("*.py"))
    sentences = {path: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for path in paths}
    rows = [
        f"| [`{path.name}`](../examples/{path.name}) | {text.splitlines()[0]} |" for path, text in sentences.items()
    ]
    return "\n".join(["| Example | What it does |", "|---|---|", *rows]) + "\n"


def table(first: str, rows: list[tuple[str, str, str]]) -> str:
    """Markdown."""
    lines = [f"| {first} | Default | Meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | {default} | {meaning.replace('|', chr(92) + '|')} |" for name, default, meaning in rows]
    return "\n".join(lines) + "\n"


def comment(config: type, name: str) -> str:
    """What the comments beside a field say, or those right above it."""
    owner = next(cls for cls in config.__mro__ if name in inspect.get_annotations(cls))
    lines = textwrap.dedent(inspect.getsource(owner)).splitlines()
    body = ast.parse("\n".join(lines)).body[0].body  # type: ignore[attr-defined]
    node = next(n for n in body if isinstance(n, ast.AnnAssign) and n.target.id == name)  # type: ignore[union-attr]
    beside = [line.split("# ", 1)[1] for line in lines[node.lineno - 1 : node.end_lineno] if "# " in line]
    above: list[str] = []
    for line in reversed(lines[: node.lineno - 1] if not beside else []):
        if not line.strip().startswith("# "):
            break
        above.insert(0, line.strip()[2:])
    return " ".join(beside or above)


def _default(value: Any) -> str:
    return "–" if value in (MISSING, inspect.Parameter.empty) else f"`{value!r}`"


def _fill(match: re.Match[str]) -> str:
    opening, kind, module, name, end = match.groups()
    if kind is None:
        return opening + example_table() + end
    thing = getattr(import_module(module), name)
    return opening + (argument_table(thing) if kind == "arguments" else field_table(thing, kind == "flags")) + end


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(DOCS))
