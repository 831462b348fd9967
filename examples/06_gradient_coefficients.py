"""What do PPO, GRPO and DPO multiply ∇ log π by, at every token of the same completions?

All three have a gradient of the form E[GC(q, o, t) ∇ log π(o_t)] and differ in the coefficient GC. The embedded model
is trained a little, samples groups of completions, and is trained a little more, so that its ratios to the policy that
sampled and to the reference are no longer 1. Then the coefficients of those completions are drawn, token by token:

- PPO: ratio · A_t. A_t is GAE over values that continuations from every token give, so there is no critic to train;
- GRPO: ratio · (R - mean) / std of the group, and the k3 term of the KL to the model before any training;
- DPO: the best completion of a group against the worst, with the same reference.

    python examples/06_gradient_coefficients.py --out gradient_coefficients.png

Half a minute on two cores. A cross marks a token that the clip has taken out of the gradient.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import matplotlib
import numpy as np
import torch
import tyro
from torch import Tensor

from llmgym.agents import GRPO
from llmgym.coefficients import gradient_coefficients
from llmgym.policy import Action, LMPolicy
from llmgym.returns import gae, group_advantages
from llmgym.rollout import rollout


@dataclass(frozen=True)
class Config:
    """The picture."""

    task: str = "arithmetic"
    prompts: int = 2  # drawn, of `candidates`: those whose completions differ most
    candidates: int = 24  # prompts to sample
    samples: int = 8  # completions of a prompt: a group
    shown: int = 3  # different completions of a prompt to draw, the best and the worst among them
    before: int = 1_000  # tokens of training before the completions are sampled; whole updates
    after: int = 1_000  # tokens of training after that
    continuations: int = 32  # texts sampled from each token, whose mean return is its value
    lam: float = 0.9  # λ of GAE, per token
    clip: float = 0.2  # ε of PPO and GRPO
    beta: float = 0.1  # weight of the KL in GRPO, and of DPO; reward per nat
    learning_rate: float = 3e-4
    seed: int = 0
    out: Path = Path("gradient_coefficients.png")


class Strip(NamedTuple):
    """The coefficients of one loss, [B, N]; NaN where it has none."""

    name: str
    coefficients: Tensor
    clipped: Tensor  # bool: the clip has taken the policy term out


def main(config: Config) -> None:
    env = gym.make("llmgym/TokenMDP-v0", task=config.task)
    settings = {"learning_rate": config.learning_rate, "beta": 0.0, "device": "cpu", "seed": config.seed}
    agent, reference = GRPO("tiny", env, **settings), LMPolicy("tiny", env, device="cpu")
    agent.learn(total_tokens=config.before)
    batch, problems = sample(config, agent.policy)
    shown = interesting(config, batch)
    part, problems = batch.select(shown), [problems[i] for i in shown.tolist()]
    old_logp, values = logp(agent.policy, part), continued_values(config, agent.policy, part, problems)
    agent.learn(total_tokens=config.after)
    new_logp, ref_logp = logp(agent.policy, part), logp(reference, part)
    advantages = group_advantages(batch.returns, batch.groups)[shown, None].expand_as(new_logp)
    strips = [
        ppo(config, part, new_logp, old_logp, values),
        grpo(config, part, new_logp, old_logp, ref_logp, advantages),
        dpo(config, part, new_logp, ref_logp),
    ]
    draw(config, part, [problem.prompt for problem in problems], advantages, strips, agent.policy.mdp)
    print(f"{len(part)} completions, {int(part.mask.sum())} tokens: {config.out}")


# --- the completions ---


def sample(config: Config, policy: LMPolicy) -> tuple[Any, list[Any]]:
    """`samples` completions of each candidate, and the problem of every row."""
    rng = np.random.default_rng(config.seed)
    candidates = [policy.mdp.task.problem(rng, "train") for _ in range(config.candidates)]
    problems = [p for p in candidates for _ in range(config.samples)]
    groups = np.arange(config.candidates).repeat(config.samples).tolist()
    return rollout(rows_of(config, len(problems)), policy, problems, groups=groups), problems


def rows_of(config: Config, n: int) -> Any:
    """n environments in lockstep."""
    return gym.make_vec("llmgym/TokenMDP-v0", num_envs=n, task=config.task, autoreset_mode="Disabled")


def interesting(config: Config, batch: Any) -> Tensor:
    """Rows to draw, best first, of the groups with right and wrong answers and the most different texts."""
    chosen = []
    for group in batch.groups.unique():
        members = (batch.groups == group).nonzero()[:, 0]
        members = members[batch.returns[members].argsort(descending=True, stable=True)]
        different = list({batch.infos[i]["text"]: i for i in reversed(members.tolist())}.values())[::-1]
        if batch.returns[members[0]] > batch.returns[members[-1]]:
            chosen.append(different)
    chosen = sorted(chosen, key=len, reverse=True)[: config.prompts]
    if not chosen:
        raise SystemExit("every group has equal rewards: sample more candidates, or train less before")
    return torch.tensor([i for rows in chosen for i in [*rows[: config.shown - 1], rows[-1]]])


@torch.no_grad()
def logp(policy: LMPolicy, batch: Any) -> Tensor:
    """log π of each token, [B, N]: on TokenMDP a token is an action."""
    return policy.evaluate(batch).logp.double()


def continued_values(config: Config, policy: LMPolicy, batch: Any, problems: list[Any]) -> Tensor:
    """V before each token, [B, N]: the mean return of texts that the policy continues from there."""
    starts = [(b, n) for b in range(len(batch)) for n in range(int(batch.mask[b].sum()))]
    repeated = [start for start in starts for _ in range(config.continuations)]
    texts = [completion(batch, b)[:n] for b, n in repeated]
    env = rows_of(config, len(repeated))
    returns = rollout(env, Continuing(policy, texts), [problems[b] for b, _ in repeated]).returns
    values = torch.zeros(batch.mask.shape, dtype=torch.float64)
    values[tuple(np.array(starts).T)] = returns.view(-1, config.continuations).mean(-1)
    return values


def completion(batch: Any, row: int) -> list[int]:
    """Tokens of a row that the policy chose."""
    return batch.tokens[row][batch.action_index[row] >= 0].tolist()


class Continuing:
    """Writes a given beginning in each row, and goes on as `policy` does."""

    def __init__(self, policy: LMPolicy, beginnings: list[list[int]]):
        self.policy, self.beginnings = policy, beginnings
        self.lengths = np.array([len(text) for text in beginnings])

    def act(self, observation: Any, active: np.ndarray, **how: Any) -> Action:
        written = observation["n_tokens"][:, 0]
        given = active & (written < self.lengths)
        action = self.policy.act(observation, active & ~given, **how)
        for row in np.flatnonzero(given):
            action.tokens[row, 0] = self.beginnings[row][written[row]]
        return action


# --- the coefficients ---


def ppo(config: Config, batch: Any, logp: Tensor, old_logp: Tensor, values: Tensor) -> Strip:
    """With the advantages of the values."""
    advantages, _ = gae(batch.rewards, values, batch.mask, lam=config.lam)
    coefficients = gradient_coefficients("ppo", logp, old_logp, advantages, batch.mask, clip=config.clip)
    return Strip("PPO", coefficients, clipped(config, logp - old_logp, advantages))


def grpo(config: Config, batch: Any, logp: Tensor, old_logp: Tensor, ref_logp: Tensor, advantages: Tensor) -> Strip:
    """With the advantages of the groups."""
    coefficients = gradient_coefficients(
        "grpo", logp, old_logp, advantages, batch.mask, clip=config.clip, beta=config.beta, ref_logp=ref_logp
    )
    return Strip("GRPO", coefficients, clipped(config, logp - old_logp, advantages))


def clipped(config: Config, log_ratio: Tensor, advantages: Tensor) -> Tensor:
    """Where the ratio is beyond the end that the sign of the advantage gives it."""
    moved = log_ratio.expm1()
    return ((advantages > 0) & (moved > config.clip)) | ((advantages < 0) & (moved < -config.clip))


def dpo(config: Config, batch: Any, logp: Tensor, ref_logp: Tensor) -> Strip:
    """Each group's first row against its last; NaN in the others."""
    groups = [(batch.groups == group).nonzero()[:, 0] for group in batch.groups.unique()]
    pairs = torch.tensor([[members[0], members[-1]] for members in groups]).T
    ours, reference = ((x * batch.mask).sum(1)[pairs] for x in (logp, ref_logp))
    of_rows = torch.full_like(logp[:, 0], torch.nan)
    of_rows[pairs] = torch.stack(gradient_coefficients("dpo", *ours, *reference, beta=config.beta))
    return Strip("DPO", of_rows[:, None].expand_as(logp), torch.zeros_like(batch.mask))


# --- the picture ---

LINES = 6  # of a completion: a title, its tokens, three strips and a gap
GREY, BROWN = "#6b7280", "#b45309"


def draw(config: Config, batch: Any, prompts: list[str], advantages: Tensor, strips: list[Strip], mdp: Any) -> None:
    """The tokens of each completion over a strip a loss; each loss has a scale of its own."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows, width = batch.mask.shape
    size = (1.2 + 0.34 * width, 1.3 + 0.21 * LINES * rows)
    figure = plt.figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.15))
    mosaic: Any = [["text"] * len(strips), [strip.name for strip in strips]]
    panels = figure.subplot_mosaic(mosaic, height_ratios=(0.21 * LINES * rows, 0.1))
    axes = panels["text"]
    axes.set(xlim=(-1.6, width), ylim=(LINES * rows - 1, -0.2))
    axes.axis("off")
    for row in range(rows):
        title = f"{prompts[row]}   reward {batch.returns[row]:g}, group advantage {advantages[row, 0]:+.2f}"
        axes.text(0, LINES * row + 0.4, title, fontsize=8.5, va="center", color=GREY)
        for column, token in enumerate(completion(batch, row)):
            write(axes, column + 0.5, LINES * row + 1.5, "EOS" if token == mdp.eos_id else mdp.codec.decode([token]))
    for line, strip in enumerate(strips, 2):
        colours = draw_strip(axes, batch.mask, line, strip)
        bar = figure.colorbar(colours, cax=panels[strip.name], orientation="horizontal")
        bar.set_label(f"GC of {strip.name}", fontsize=8.5, color=GREY)
        bar.ax.tick_params(labelsize=7.5, colors=GREY)
    figure.suptitle("What ∇ log π of each token is multiplied by", fontsize=11)
    figure.savefig(config.out, dpi=150)


def write(axes: Any, x: float, y: float, text: str) -> None:
    """A token; digits of other scripts, which fonts may lack, as brown 0 to 9."""
    foreign = len(text) == 1 and not text.isascii() and text.isdigit()
    text = str(unicodedata.digit(text)) if foreign else text.replace(" ", "·").replace("\n", "⏎")
    size = 10 if len(text) == 1 else 7 if len(text) < 4 else 5
    axes.text(x, y, text, fontsize=size, ha="center", va="center", color=BROWN if foreign else "black")


def draw_strip(axes: Any, mask: Tensor, line: int, strip: Strip) -> Any:
    """One loss, in every completion."""
    numbers = strip.coefficients.masked_fill(~mask, torch.nan).numpy()
    largest = np.nanmax(np.abs(numbers))
    how = {"cmap": "RdBu", "vmin": -largest, "vmax": largest, "edgecolors": "white", "linewidth": 1}
    for row, length in enumerate(mask.sum(1).tolist()):
        y = LINES * row + line
        axes.text(-0.2, y + 0.5, strip.name, fontsize=7.5, ha="right", va="center", color=GREY)
        if np.isnan(numbers[row, 0]):
            axes.text(0.1, y + 0.5, "in no pair", fontsize=7, va="center", color=GREY)
            continue
        colours = axes.pcolormesh(np.arange(length + 1), [y, y + 1], numbers[row : row + 1, :length], **how)
        crosses = np.flatnonzero((strip.clipped & mask)[row])
        axes.plot(crosses + 0.5, np.full(len(crosses), y + 0.5), "x", color=GREY, markersize=4, markeredgewidth=0.8)
    return colours


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
