"""MCTS: acts by search on the rules; learns by playing itself. Silver et al. 2018; Danihelka et al. 2022."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from llmgym.agents.budget import Budget
from llmgym.agents.config import LearnerConfig, check_above_zero, check_least, check_unit
from llmgym.agents.distillation import Distillation
from llmgym.agents.environments import saved_env
from llmgym.agents.files import described, load_agent, save_agent
from llmgym.agents.learner import Learner
from llmgym.agents.metrics import Metrics
from llmgym.agents.planner import Planner
from llmgym.agents.policies import NETS, is_net, make_policy
from llmgym.agents.seen import Seen, is_text
from llmgym.agents.selfplay import Finished, draw_action
from llmgym.agents.strength import check_opponent, check_teacher, two_play
from llmgym.files import atomic_folder, write_json
from llmgym.search import Result, SearchOptions
from llmgym.search.evaluators import NetEvaluator, PlayoutEvaluator, UniformEvaluator
from llmgym.search.mixed import MixedEvaluator
from llmgym.search.proposals import Evaluate

WITHOUT_NET = ("uniform", "random")
Callback = Callable[["MCTS", Metrics, list[Finished]], bool | None]


@dataclass(frozen=True)
class MCTSConfig(LearnerConfig, SearchOptions):
    """Settings of MCTS; those of its search are the fields of `SearchOptions`."""

    learning_rate: float = 1e-3  # of AdamW
    rule: str = "gumbel"  # "gumbel" (sequential halving at the root), "puct", or "uct" (UCB1, priors ignored)
    simulations: int = 32  # of every move
    noise: float = 0.25  # PUCT and UCT: share of Dirichlet noise in the priors of roots, in self-play alone
    discount: float = 1.0  # of a return, a move on; where two players alternate its sign is turned: zero-sum play
    bound: Literal["tanh", "clip", "none"] = "tanh"  # of the critic's output; "none" where returns leave [-1, 1]
    bfloat16: bool = False  # forward passes of searches in bfloat16, for processors and GPUs that have it
    reuse: bool = True  # predict: keep what is known below the moves played (not with "gumbel")
    games: int = 32  # played side by side
    workers: int = 1  # threads of self-play, each with a search over its share of the games
    moves: int = 16  # of each game between two updates
    random_moves: int = 0  # most moves that a game begins with, uniform over legal ones, before the search plays
    opening_moves: int = 8  # of each game drawn from the visits instead of the best; Gumbel draws its own
    teacher: str = ""  # Go: "mcts:…", a search with playouts that plays in the network's place, for it to learn from
    mix: float = 0.0  # Go: λ of the value (1 - λ) v + λ z of a leaf, v of the network, z of heavy playouts
    playouts: int = 4  # Go: of each leaf, where mix is above 0
    resign: bool = False  # games are given up where that is wrong in 5 % at most; `best` must say what the winner gets
    to_the_end: float = 0.1  # share of games that are never given up: they tell where resigning would be wrong
    window: int = 50_000  # last positions that minibatches are drawn from
    batch_size: int = 256  # positions in a minibatch
    replay: float = 4.0  # times that a position is learnt from, on average
    value_mix: float = 0.0  # share of the search's own value in what values learn, beside the outcome of the game
    value_weight: float = 1.0  # of the squared error of values, beside the cross-entropy of policies
    weight_decay: float = 1e-4  # of AdamW
    symmetries: bool = True  # Go: positions are turned and mirrored at random
    match_every: int = 10  # updates between two matches against `opponent`; 0: never
    match_games: int = 32  # of a match, in one search; with each colour half of them
    opponent: str = "light"  # uniform moves ("random"), none into own eyes of Go ("light"), or a search ("mcts:…")

    def __post_init__(self):
        LearnerConfig.__post_init__(self)
        SearchOptions.__post_init__(self)
        if self.rule == "rave":
            raise ValueError("rule must be one of gumbel, puct, uct, got 'rave': that is for searches with playouts")
        if self.lora:
            raise ValueError(f"lora is for language models, MCTS plans with small networks: got {self.lora}")
        if self.discount < 0:
            raise ValueError(f"discount must be above 0 (players give it its sign), got {self.discount}")
        if self.resign and self.best is None:
            raise ValueError("resign needs best, the return of a win (1.0 in Go), got best=None")
        check_least(self, 1, "games", "workers", "moves", "window", "batch_size", "match_games", "playouts")
        check_least(self, 0, "opening_moves", "random_moves", "value_weight", "weight_decay", "match_every")
        check_least(self, self.workers, "games")
        check_unit(self, "to_the_end", "value_mix", "mix")
        check_opponent(self.opponent)
        if self.teacher:
            check_teacher(self.teacher)
        check_above_zero(self, "replay")

    def options(self, two: bool) -> SearchOptions:
        """Of the search; `two`: players who alternate."""
        named = {field.name: getattr(self, field.name) for field in dataclasses.fields(SearchOptions)}
        return SearchOptions(**(named | {"discount": -self.discount if two else self.discount}))


class MCTS(Learner):
    """Plans on `env.unwrapped.mdp` from the environment's state, and learns from games against itself.

    Args:
        policy: "CnnPolicy", "MlpPolicy" or a `NetPolicy` with a value head; or "uniform" (equal priors, the value 0)
            or "random" (equal priors, the return of a playout), which have nothing to learn.
        env: an environment of ours with discrete actions, single or vector; on text see `TextMCTS`.
        **config: fields of `MCTSConfig`; an unknown name raises TypeError.

    Raises:
        ValueError: a bad setting, or an environment without rules to plan on.
    """

    config_class: ClassVar[type[MCTSConfig]] = MCTSConfig
    config: MCTSConfig

    def __new__(cls, policy: Any, env: gym.Env | VectorEnv, **config: Any) -> Self:
        """Where actions are tokens, a `TextMCTS`: what it learns from, and its settings, are others."""
        if cls is MCTS and is_text(env):
            from llmgym.agents.text_mcts import TextMCTS

            cls = TextMCTS  # type: ignore[assignment]
        return super().__new__(cls)

    def __init__(self, policy: Any, env: gym.Env | VectorEnv, **config: Any):
        self.config, self.env = self.config_class(**config), env
        self.seen = Seen(env)
        self.mdp = self.seen.mdp
        self.options = self.config.options(two_play(self.mdp))
        self.rng = np.random.default_rng(self.config.seed)
        self.policy: Any = policy
        self.evaluator = self._evaluator(policy, config)
        self.planner = Planner(self.mdp, self.guide(self.config.seed or 0), self.options, self.config.reuse)
        self._play_rng = np.random.default_rng(self.config.seed)  # predict leaves learning as it is

    # The four verbs.

    def learn(
        self,
        total_timesteps: int | None = None,
        *,
        max_seconds: float | None = None,
        callback: Callback | None = None,
        progress_bar: bool | None = None,
    ) -> Self:
        """Self-play until a budget is spent; at least one is needed.

        Args:
            total_timesteps: moves, over all games.
            max_seconds: wall clock; no update is begun that the last one's duration says would end later.
            callback: called as `callback(agent, metrics, games)` after every update; False ends training.
            progress_bar: shows one; by default when `verbose` is 1.

        Raises:
            ValueError: no budget, or a policy that has nothing to learn.
        """
        if self.policy in WITHOUT_NET:
            raise ValueError(f"the policy {self.policy!r} has nothing to learn: learn() needs one of {', '.join(NETS)}")
        budget = Budget(self, total_timesteps, None, max_seconds)
        self._loop(budget, self.distillation.iterate, callback, progress_bar)
        self.planner.forget()
        return self

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> tuple[Any, Any]:
        """Action where the environment stands, and `state` unchanged.

        Args:
            observation: the one that the agent's environment has given last, or a batch of them (of one, for a single
                environment): a search needs the state, and takes it from there.
            state: handed through, as stable-baselines3's `evaluate_policy` expects.
            episode_start: not needed.
            deterministic: the best action; else one drawn from the visits (with Gumbel, by its variables).

        Raises:
            ValueError: the observation is not that of the environment's state.
            ResetNeeded: the environment has no state.
        """
        states, single = self.seen.states(observation)
        going = [row for row, one in enumerate(states) if not self.mdp.terminal(one)]
        blank = np.zeros((len(states), *self.mdp.action_space.shape), np.int64)
        actions = self.seen.idle(len(states)) if len(going) < len(states) else blank
        results = self.plan([states[row] for row in going], deterministic) if going else []
        for row, result in zip(going, results, strict=True):
            actions[row] = self._choose(result, deterministic)
        return (actions[0] if single else actions), state

    def save(self, path: str | Path) -> None:
        """Write network, optimiser, window and generators (safetensors and JSON); replaced in one step.

        Games under way are not kept: after `load` they begin anew.
        """
        if self.policy not in WITHOUT_NET:
            return save_agent(self, path)
        with atomic_folder(path) as folder:
            saved = {"agent": "MCTS", "policy": self.policy, "env": self.seen.spec()}
            write_json(folder / "agent.json", saved | {"config": dataclasses.asdict(self.config)})

    @classmethod
    def load(cls, path: str | Path, env: gym.Env | VectorEnv | None = None, **config: Any) -> Self:
        """The agent that `save` wrote; `env` by default is rebuilt from its saved spec.

        Args:
            path: the folder.
            env: where to act; its rules are played by.
            **config: replaces saved settings, such as `simulations` or `device`.

        Raises:
            ValueError: no such folder, another agent's folder, or no environment to be had.
        """
        saved = described(path, cls.__name__)
        if saved["policy"] not in WITHOUT_NET:
            return load_agent(cls, path, env, config)
        return cls(saved["policy"], saved_env(saved, path) if env is None else env, **(saved["config"] | config))

    # Planning without an environment.

    def plan(self, states: list[Any], deterministic: bool = True) -> list[Result]:
        """What the search finds at states of `mdp` that are not terminal: visits, values, the action to play."""
        return self.planner.plan(states, self._play_rng, chance=not deterministic)

    def move(self, mdp: Any, state: Any, rng: np.random.Generator) -> Any:
        """The best action in a state: how the agent plays as an opponent, `gym.make("llmgym/Go-v0", opponent=agent)`.

        Args:
            mdp: the rules there; the agent plans by its own, which should be the same.
            state: where to act.
            rng: not needed.
        """
        return self.plan([state])[0].action

    def guide(self, seed: int) -> Evaluate:
        """What a search of the agent asks: its evaluator, with playouts of their own where the settings mix them in.

        Args:
            seed: of the playouts.

        Raises:
            ValueError: playouts where the game is not Go, or not played for its result.
        """
        c, network = self.config, self.evaluator
        if not c.mix:
            return network
        from llmgym.envs.go.leaf_playouts import LeafPlayouts  # compiled: loaded when it is needed

        playouts = LeafPlayouts(self.mdp, c.playouts, seed=seed)
        return MixedEvaluator(network, c.mix, playout=playouts)  # type: ignore[arg-type]

    def _choose(self, result: Result, deterministic: bool) -> Any:
        best = deterministic or self.options.rule == "gumbel"
        return result.action if best else draw_action(result, self._play_rng)

    def _evaluator(self, policy: Any, given: dict[str, Any]) -> Evaluate:
        """What the search asks; a network is made ready to learn."""
        if isinstance(policy, str) and policy == "uniform":
            return UniformEvaluator(self.mdp)
        if isinstance(policy, str) and policy == "random":
            return PlayoutEvaluator(self.mdp, self.options.discount, self.rng)
        if not is_net(policy):
            names = ", ".join(map(repr, (*NETS, *WITHOUT_NET)))
            raise ValueError(f"policy must be one of {names} or a NetPolicy, got {policy!r}")
        policy, self.config = make_policy(policy, self.mdp, self.config, given, "shared")
        self._prepare(policy)
        for group in self.optimizer.param_groups:
            group["weight_decay"] = self.config.weight_decay
        if self.config.seed is not None:
            policy.seed(self.config.seed)
        evaluator = NetEvaluator(self.mdp, policy, self.config.bound, self.config.bfloat16)
        self.distillation = Distillation(self)
        return evaluator

    def _postfix(self, metrics: Metrics) -> str:
        shown = {"games": ".0f", "games_per_second": ".2f", "loss": ".3f", "strength": "+.2f"}
        known = {name: format(metrics[name], form) for name, form in shown.items() if np.isfinite(metrics[name])}
        return "  ".join(f"{name.replace('_per_second', '/s')} {text}" for name, text in known.items())

    # Files: what `save` writes beside the policy, and its way back.

    def _description(self) -> dict[str, Any]:
        numbers = {"num_timesteps": self.num_timesteps, "counters": self.policy.counters.as_dict()}
        learnt = {"distillation": self.distillation.description(), "rng": self.rng.bit_generator.state}
        return {"config": dataclasses.asdict(self.config)} | numbers | learnt

    def _restore(self, saved: dict[str, Any]) -> None:
        self.num_timesteps = saved["num_timesteps"]
        vars(self.policy.counters).update(saved["counters"])
        self.distillation.restore(saved["distillation"])
        self.rng.bit_generator.state = saved["rng"]
        self.evaluator.refresh()  # type: ignore[attr-defined]

    def _save_more(self, folder: Path) -> None:
        self.distillation.save(folder)

    def _load_more(self, folder: Path) -> None:
        self.distillation.load(folder)
