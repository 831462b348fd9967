"""`NetPolicy`: a small network as a policy for any Gymnasium environment, with values of its states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llmgym.actor_critic import ACTIVATIONS, ActorCritic, Cnn, Mlps
from llmgym.batch import Evaluation, Fragments, Scored, Steps
from llmgym.counters import Counters
from llmgym.distributions import make_head
from llmgym.files import read_json, write_json
from llmgym.models import resolve_device
from llmgym.residual import ResNet
from llmgym.spaces import describe, make_encoder

KINDS: dict[str, type[ActorCritic]] = {"MlpPolicy": Mlps, "CnnPolicy": Cnn, "ResNetPolicy": ResNet}
OF_VECTORS = "MlpPolicy"
DTYPES: dict[str, Any] = {
    "float32": (torch.float32, np.dtype(np.float32)),
    "float64": (torch.float64, np.dtype(np.float64)),
}


class Action(NamedTuple):
    """One action a row, as numpy arrays.

    Attributes:
        for_env: as the environment takes it, [n, …].
        actions: as `evaluate` takes it, [n] or [n, D].
        outputs: of the network, which `logp` reads, [n, K].
    """

    for_env: np.ndarray
    actions: np.ndarray
    outputs: np.ndarray


class NetPolicy:
    """An actor and a critic on observations of any Gymnasium environment.

    "MlpPolicy": two networks of their own for actor and critic, on vectors. "CnnPolicy": one stack of 3x3 convolutions
    that both share, on planes such as a board's or on images; sides above 21 are halved by strided convolutions, so
    that the points of a board stay apart. "ResNetPolicy": a residual tower for boards, see `llmgym.residual.ResNet`.
    Weights are orthogonal at first, with gain √2, and 0.01 and 1 in the last layers of actor and critic (Engstrom et
    al. 2020, as in stable-baselines3); biases are 0.

    Observations: a Box (8-bit ones with bounds 0 and 255 are divided by 255), Discrete, MultiDiscrete or MultiBinary,
    or a flat Dict of them; `encode` makes one array of them, in which form everything but `predict` takes them.
    Actions: see `llmgym.distributions.make_head`.

    Args:
        kind: "MlpPolicy", "CnnPolicy" or "ResNetPolicy".
        env: an environment, single or vector, for its spaces.
        hidden: units of each hidden layer; for "CnnPolicy" channels of each convolution, for "ResNetPolicy" of
            each block.
        activation: "tanh", "relu", "silu", "elu" or "gelu"; None: "tanh" for "MlpPolicy", else "relu".
        device: "cpu", "cuda", "cuda:1", …; "auto": CUDA where there is one; but for "MlpPolicy" the CPU, on
            which small products cost less than a GPU needs to begin one.
        dtype: "float32" or "float64".
        seed: of the weights and of the sampling generator; None takes fresh entropy.
        value_head: whether there is a critic.

    Raises:
        ValueError: a setting out of range, or a space that this kind cannot read or act in.
    """

    def __init__(
        self,
        kind: str,
        env: Any,
        *,
        hidden: Sequence[int] = (64, 64),
        activation: str | None = None,
        device: str = "auto",
        dtype: str = "float32",
        seed: int | None = None,
        value_head: bool = True,
    ):
        activation = activation or ("tanh" if kind == OF_VECTORS else "relu")
        _check(kind, hidden, activation, dtype)
        self.kind, self.hidden, self.activation = kind, tuple(hidden), activation
        self.observation_space = getattr(env, "single_observation_space", env.observation_space)
        self.action_space = getattr(env, "single_action_space", env.action_space)
        self.device = resolve_device("cpu" if kind == OF_VECTORS and device == "auto" else device)
        self.dtype, numpy_dtype = DTYPES[dtype]
        self.encode, self.head = make_encoder(self.observation_space, kind, numpy_dtype), make_head(self.action_space)
        generator = torch.Generator()
        self.net = self._network(_seeded(generator, seed), bool(value_head)).to(self.device, self.dtype)
        self.value_head = self.net.critic
        self.counters = Counters()
        self.generator = torch.Generator(self.device)
        self.seed(seed)

    @classmethod
    def load(
        cls, folder: str | Path, env: Any, *, device: str = "auto", dtype: str = "float32", seed: int | None = None
    ) -> Self:
        """The policy that `save` wrote, on an environment with the same spaces.

        Raises:
            ValueError: no policy is there, or it belongs to other spaces.
        """
        saved = _saved(folder)
        named = {name: saved[name] for name in ("hidden", "activation", "value_head")}
        policy = cls(saved["kind"], env, **named, device=device, dtype=dtype, seed=seed)
        policy.load_weights(folder)
        return policy

    def seed(self, seed: int | None) -> None:
        """Seed the sampling generator; None takes fresh entropy."""
        _seeded(self.generator, seed)

    def parameters(self) -> list[nn.Parameter]:
        """What an optimiser trains."""
        return list(self.net.parameters())

    @torch.inference_mode()
    def act(self, observations: np.ndarray, masks: np.ndarray | None = None, *, deterministic: bool = False) -> Action:
        """Sample an action a row; the critic is not asked.

        Args:
            observations: as `encode` gives them, [n, …].
            masks: legal actions, bool [n, K].
            deterministic: the most probable action instead of a sampled one.

        Raises:
            NoLegalAction: a row of `masks` allows nothing.
        """
        self.counters.forward_passes += 1
        outputs = self.net.outputs(self._input(torch.from_numpy(observations)))
        distribution = self.head.distribution(outputs, None if masks is None else self._tensor(masks))
        actions = (distribution.mode() if deterministic else distribution.sample(self.generator)).cpu().numpy()
        return Action(self.head.for_env(actions), actions, outputs.cpu().numpy())

    def predict(self, observation: Any, *, deterministic: bool = False, action_masks: Any = None) -> Any:
        """Action of one observation, or of a batch of them, as the environment gives and takes them.

        Raises:
            ValueError: the observation has another shape than those of the space.
        """
        single = self.encode.is_single(observation)
        observations = self.encode(self.encode.batch(observation) if single else observation)
        masks = None if action_masks is None else np.asarray(action_masks, bool).reshape(len(observations), -1)
        actions = self.act(np.ascontiguousarray(observations), masks, deterministic=deterministic).for_env
        return actions[0] if single else actions

    @torch.inference_mode()
    def logp(self, outputs: np.ndarray, actions: np.ndarray, masks: np.ndarray | None = None) -> np.ndarray:
        """Log-prob, nats [n], of actions that `act` chose with these outputs: those of many steps at once."""
        distribution = self.head.distribution(self._tensor(outputs), None if masks is None else self._tensor(masks))
        return distribution.logp(self._tensor(actions)).cpu().numpy()

    def evaluate(self, batch: Steps, *, entropy: bool = True) -> Evaluation:
        """Score a batch in one forward pass; differentiable.

        Args:
            batch: rows to score.
            entropy: whether to compute it.
        """
        self.counters.forward_passes += 1
        outputs, values = self.net(self._input(_flat(batch.observations)))
        distribution = self._distribution(outputs, batch)
        shape = batch.mask.shape
        return Evaluation(
            logp=distribution.logp(_flat(batch.actions).to(self.device)).view(shape),
            entropy=distribution.entropy().view(shape) if entropy else None,
            values=None if values is None else values.view(shape),
            kl=None,
            n_tokens=batch.n_tokens,
        )

    @torch.no_grad()
    def score(self, batch: Steps, rows_at_once: int = 0) -> Scored:
        """What the policy says of a batch as it is now, at most `rows_at_once` observations at a time (0: all)."""
        shape, n = batch.mask.shape, batch.mask.numel()
        x = [_flat(batch.observations)]
        if ends := isinstance(batch, Fragments) and self.value_head is not None:
            x += [batch.final_observations, batch.last_observations]
        outputs, values = self._forward_in_parts(torch.cat(x), rows_at_once)
        logp = self._distribution(outputs[:n], batch).logp(_flat(batch.actions).to(self.device)).view(shape)
        if values is None or not ends:
            return Scored(logp, None if values is None else values.view(shape))
        assert isinstance(batch, Fragments)
        last = len(values) - len(batch)
        final = values.new_zeros(shape).masked_scatter_(batch.truncated.to(self.device), values[n:last])
        bootstrap = values[last:].masked_fill(~_still_runs(batch).to(self.device), 0.0)
        return Scored(logp, values[:n].view(shape), bootstrap, final)

    def save(self, folder: str | Path) -> None:
        """Write policy.safetensors, and policy.json with what must fit it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: x.contiguous() for name, x in self.net.state_dict().items()}
        save_file(weights, folder / "policy.safetensors")
        write_json(folder / "policy.json", self._description())

    def load_weights(self, folder: str | Path, *, any_size: bool = False) -> None:
        """Read the weights that `save` wrote.

        Args:
            folder: where they are.
            any_size: "ResNetPolicy": they may come from a board of another size, with the same planes.

        Raises:
            ValueError: no policy is there, or it has other spaces or another network.
        """
        saved = _saved(folder)
        sized = ("observation_space", "action_space") if any_size and self.kind == "ResNetPolicy" else ()
        for name, own in self._description().items():
            if saved[name] != own and name not in sized:
                what = name.replace("_", " ")
                raise ValueError(f"the policy in {str(folder)!r} has the {what} {saved[name]}, this one has {own}")
        self.net.load_state_dict(load_file(Path(folder) / "policy.safetensors"))

    def _description(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "observation_space": describe(self.observation_space),
            "action_space": describe(self.action_space),
            "hidden": list(self.hidden),
            "activation": self.activation,
            "value_head": self.value_head is not None,
        }

    def _network(self, generator: torch.Generator, critic: bool) -> ActorCritic:
        sizes = (self.encode.shape, self.hidden, self.head.size)
        net = KINDS[self.kind](*sizes, ACTIVATIONS[self.activation], critic, generator)
        net.log_std = self.head.log_std
        return net

    def _input(self, x: Tensor) -> Tensor:
        x = x.to(self.device, self.dtype)
        return x if self.encode.scale == 1.0 else x / self.encode.scale

    def _tensor(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(x).to(self.device)

    def _distribution(self, outputs: Tensor, batch: Steps) -> Any:
        masks = batch.action_masks
        return self.head.distribution(outputs, None if masks is None else _flat(masks).to(self.device))

    def _forward_in_parts(self, x: Tensor, rows: int) -> tuple[Tensor, Tensor | None]:
        parts = [self.net(self._input(part)) for part in x.split(rows or max(len(x), 1))]
        self.counters.forward_passes += len(parts)
        outputs, values = zip(*parts, strict=True)
        return torch.cat(outputs), None if self.value_head is None else torch.cat(values)


def _flat(x: Tensor) -> Tensor:
    """[B, N, …] -> [B · N, …]."""
    return x.flatten(0, 1)


def _still_runs(batch: Fragments) -> Tensor:
    """Rows whose episode goes on after their last step, bool [B]; one that is not to be counted followed an end."""
    return batch.mask[:, -1] & ~(batch.terminated[:, -1] | batch.truncated[:, -1])


def _seeded(generator: torch.Generator, seed: int | None) -> torch.Generator:
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def _saved(folder: str | Path) -> dict[str, Any]:
    file = Path(folder) / "policy.json"
    if not file.is_file():
        raise ValueError(f"{str(folder)!r} is no folder that a NetPolicy was saved in: policy.json is missing")
    return read_json(file)


def _check(kind: str, hidden: Sequence[int], activation: str, dtype: str) -> None:
    choices: dict[str, tuple[str, Any]] = {
        "kind": (kind, KINDS),
        "activation": (activation, ACTIVATIONS),
        "dtype": (dtype, DTYPES),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    if any(width < 1 for width in hidden) or (kind != OF_VECTORS and not hidden):
        raise ValueError(f"hidden must hold whole numbers of at least 1, got {tuple(hidden)}")
