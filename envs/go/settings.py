"""Settings of a player from its name on the command line, `mcts:simulations=5000,threads=2`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Self


class Settings:
    """What a dataclass of a player's settings begins with; every field has a default."""

    @classmethod
    def parse(cls, name: str) -> Self:
        """The settings in `player:option=value,…`.

        Raises:
            ValueError: an option that there is not, or a value that it cannot have.
        """
        player, colon, words = name.partition(":")
        kinds = {field.name: type(field.default) for field in fields(cls)}  # type: ignore[arg-type]
        told: dict[str, Any] = {}
        for word in words.split(",") if colon else ():
            option, _, value = (part.strip() for part in word.partition("="))
            if option not in kinds:
                raise ValueError(f"{player} has no option {option!r}: choose {', '.join(kinds)}")
            if option in told:
                raise ValueError(f"{option} of {player} is given twice in {name!r}")
            told[option] = _read(player, option, value, kinds[option])
        return cls(**told)


def _read(player: str, option: str, value: str, kind: type) -> Any:
    try:
        return {"True": True, "true": True, "False": False, "false": False}[value] if kind is bool else kind(value)
    except (KeyError, ValueError):
        wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]
        raise ValueError(f"{option} of {player} must be {wanted}, got {value!r}") from None
