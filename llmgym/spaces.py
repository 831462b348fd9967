"""From observations of a Gymnasium space to the arrays that networks read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium import spaces

_IMAGE = 255.0  # what 8-bit observations are divided by


class Encoder:
    """What turns n observations of a vector environment into one array [n, *shape].

    Attributes:
        space: of a single observation.
        shape: of a single encoded one.
        scale: what the network divides by; 1 where `__call__` has done it already.
    """

    space: spaces.Space
    shape: tuple[int, ...]
    scale = 1.0

    def __call__(self, observations: Any) -> np.ndarray:
        """Encode a batch; may return what it was given."""
        raise NotImplementedError

    def is_single(self, observation: Any) -> bool:
        """Whether this is one observation and no batch of them.

        Raises:
            ValueError: it is neither.
        """
        shape, expected = np.shape(observation), self.space.shape
        assert expected is not None
        if shape == expected:
            return True
        if shape[1:] == expected and len(shape) == len(expected) + 1:
            return False
        raise ValueError(f"an observation must have shape {expected}, or (n, *{expected}) for n of them, got {shape}")

    def batch(self, observation: Any) -> Any:
        """One observation as a batch of one."""
        return np.asarray(observation)[None]


class _Flat(Encoder):
    """Box or MultiBinary: numbers in a row; 8-bit values from 0 to 255 are divided by 255."""

    def __init__(self, space: Any, dtype: np.dtype):
        self.space, self.dtype = space, dtype
        self.shape = (math.prod(space.shape),)
        self.divisor = _IMAGE if is_8_bit(space) else 1.0

    def __call__(self, observations: Any) -> np.ndarray:
        x = np.asarray(observations, self.dtype)
        x = x if x.ndim == 2 else x.reshape(len(x), -1)
        return x if self.divisor == 1.0 else x / self.dtype.type(self.divisor)


class _OneHot(Encoder):
    """Discrete or MultiDiscrete: one 1 for each choice, the choices side by side."""

    def __init__(self, space: Any, dtype: np.dtype):
        self.space, self.dtype = space, dtype
        sizes = np.ravel(space.n if isinstance(space, spaces.Discrete) else space.nvec)
        self.shape = (int(sizes.sum()),)
        self.offsets = np.cumsum(sizes) - sizes - np.ravel(space.start)

    def __call__(self, observations: Any) -> np.ndarray:
        choices = np.asarray(observations)
        places = choices.reshape(len(choices), -1) + self.offsets
        out = np.zeros((len(places), *self.shape), self.dtype)
        out[np.arange(len(places))[:, None], places] = 1
        return out


class _Parts(Encoder):
    """A flat Dict: what its spaces encode, side by side in the order of their sorted keys."""

    def __init__(self, space: spaces.Dict, dtype: np.dtype):
        self.space = space
        self.parts = {key: _vector_encoder(space[key], dtype) for key in sorted(space.spaces)}
        self.shape = (sum(part.shape[0] for part in self.parts.values()),)

    def __call__(self, observations: Any) -> np.ndarray:
        return np.concatenate([part(observations[key]) for key, part in self.parts.items()], -1)

    def is_single(self, observation: Any) -> bool:
        if not isinstance(observation, dict) or not self.parts.keys() <= observation.keys():
            got = list(observation) if isinstance(observation, dict) else type(observation).__name__
            raise ValueError(f"an observation must be a dict with the keys {list(self.parts)}, got {got}")
        kinds = {part.is_single(observation[key]) for key, part in self.parts.items()}
        if len(kinds) != 1:
            raise ValueError("an observation must be one or a batch in all its parts, got some of each")
        return kinds.pop()

    def batch(self, observation: Any) -> Any:
        return {key: part.batch(observation[key]) for key, part in self.parts.items()}


class _Planes(Encoder):
    """A Box of three axes as planes [C, H, W]; integers stay what they are until the network reads them."""

    def __init__(self, space: spaces.Box, dtype: np.dtype):
        self.space, self.channels_last = space, channels_last(space)
        self.dtype = space.dtype if space.dtype.kind in "iub" else dtype
        shape: tuple[int, ...] = space.shape
        self.shape = (shape[2], shape[0], shape[1]) if self.channels_last else shape
        self.scale = _IMAGE if is_8_bit(space) else 1.0

    def __call__(self, observations: Any) -> np.ndarray:
        x = np.asarray(observations, self.dtype)
        return x.transpose(0, 3, 1, 2) if self.channels_last else x


def make_encoder(space: Any, kind: str, dtype: np.dtype) -> Encoder:
    """The encoder of a space.

    "MlpPolicy": vectors. A Box is flattened, Discrete and MultiDiscrete are one-hot, a flat Dict of these is
    concatenated. "CnnPolicy" and "ResNetPolicy": a Box of three axes as planes [C, H, W].

    Args:
        space: of a single observation.
        kind: "MlpPolicy", "CnnPolicy" or "ResNetPolicy".
        dtype: the floating type of vectors.

    Raises:
        ValueError: the space is none that `kind` can read.
    """
    if kind != "MlpPolicy":
        if not isinstance(space, spaces.Box) or len(space.shape) != 3:
            raise ValueError(f"{kind!r} reads a Box of three axes, [C, H, W] or an image, got {space}")
        return _Planes(space, dtype)
    return _Parts(space, dtype) if isinstance(space, spaces.Dict) else _vector_encoder(space, dtype)


def _vector_encoder(space: Any, dtype: np.dtype) -> Encoder:
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        return _Flat(space, dtype)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return _OneHot(space, dtype)
    raise ValueError(f"'MlpPolicy' reads Box, Discrete, MultiDiscrete, MultiBinary or a flat Dict of them, got {space}")


def channels_last(space: spaces.Box) -> bool:
    """Whether the last of three axes counts channels.

    On square planes it is the axis unlike the two others. Where that says nothing, the last axis of an 8-bit image
    when it is shorter than the first; else the first.
    """
    a, b, c = space.shape
    if a == b or b == c:
        return b != c
    return is_8_bit(space) and c < a


def is_8_bit(space: Any) -> bool:
    """Whether these are bytes with the bounds 0 and 255, such as pixels."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return False
    return bool((space.low == 0).all() and (space.high == 255).all())


def describe(space: Any) -> Any:
    """A space in JSON: equal for those between which a network can move."""
    if isinstance(space, spaces.Dict):
        return {key: describe(part) for key, part in space.spaces.items()}
    shape = "x".join(map(str, space.shape))
    if isinstance(space, spaces.Discrete):
        return f"Discrete({space.n}, start={space.start})"
    if isinstance(space, spaces.MultiDiscrete):
        return f"MultiDiscrete({space.nvec.tolist()}, start={space.start.tolist()})"
    if isinstance(space, spaces.MultiBinary):
        return f"MultiBinary({shape})"
    return f"Box({shape}, {space.dtype}{', 0 to 255' if is_8_bit(space) else ''})"
