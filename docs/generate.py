"""Write the parts of these pages that the code says already: environment docstrings and tables of config fields.

    python docs/generate.py

An environment's docstring is its page. In every page, what stands between `<!-- fields of module:Class -->` and
`<!-- end -->` becomes a table of that dataclass, made from its defaults and from the comments beside its fields.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from dataclasses import MISSING, Field, fields
from importlib import import_module
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ENVIRONMENTS = {"token_mdp": "TokenMDP", "block_mdp": "BlockMDP", "sequence_mdp": "SequenceMDP"}
PAGE = """\
<!-- made from the docstring of llmgym.envs.{name} by docs/generate.py: edit that -->
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
_FIELDS = re.compile(r"(<!-- fields of ([\w.]+):(\w+)([^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> dict[Path, str]:
    """Every page that holds something generated, as it should be."""
    wanted = {DOCS / "environments" / f"{page}.md": environment(name) for page, name in ENVIRONMENTS.items()}
    written = {path: path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
    return wanted | {path: _FIELDS.sub(_fill, text) for path, text in written.items() if _FIELDS.search(text)}


def environment(name: str) -> str:
    """The page of an environment."""
    docstring = getattr(import_module("llmgym.envs"), name).__doc__
    return PAGE.format(name=name, text=textwrap.dedent(docstring).strip())


def table(config: type, flags: bool = False) -> str:
    """Markdown rows `field | default | meaning`; with `flags` the field as the command line spells it."""
    lines = [f"| {'Flag' if flags else 'Field'} | Default | Meaning |", "|---|---|---|"]
    for field in fields(config):
        name = f"--{field.name.replace('_', '-')}" if flags else field.name
        meaning = comment(config, field.name).replace("|", "\\|")
        lines.append(f"| `{name}` | `{_default(field)}` | {meaning} |")
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


def _default(field: Field[Any]) -> str:
    return "(required)" if field.default is MISSING else repr(field.default)


def _fill(match: re.Match[str]) -> str:
    opening, module, name, how, end = match.groups()
    return opening + table(getattr(import_module(module), name), flags="as flags" in how) + end


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(DOCS))
