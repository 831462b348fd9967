"""Text states on a terminal: one colour a token, the prompt dimmed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

    from llmgym.text import TextState

COLOURS = ("cyan", "green", "yellow", "magenta", "blue")


def colour_tokens(state: TextState, tokenizer: Any) -> Text:
    """The state as rich text: prompt dim, chosen tokens in turning colours, inserted tokens in italics."""
    from rich.text import Text

    line = Text()
    for i, (token, chosen) in enumerate(zip(state.tokens, state.chosen, strict=True)):
        style = COLOURS[i % len(COLOURS)] if chosen else ("dim" if i < state.n_prompt else "italic")
        line.append(tokenizer.decode([token]), style=style)
    if state.finish_reason is not None:
        line.append(f"  [{state.finish_reason}]", style="bold")
    return line


def print_tokens(state: TextState, tokenizer: Any) -> None:
    """Print `colour_tokens` to standard output."""
    from rich.console import Console

    Console().print(colour_tokens(state, tokenizer))
