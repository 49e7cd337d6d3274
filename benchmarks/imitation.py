"""Compare cloning with DAgger: `python -m benchmarks.imitation`.

Both learn from the same number of labels of the same experts, those of 1, 3, 10, 25 and 50 whole
episodes, with as many gradient steps; the score of a policy is 100 where its return is that of the
expert and 0 where it is that of a random policy. On a ledge (`Ledge-tabular`), where the policies
slip and the expert of the clone does not, the cost of what was learned is exact. Numbers are in
results/imitation.csv and ledge.csv, the picture is results/imitation.png.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from algorithms import behaviour_cloning, dagger
from benchmarks.learning import RESULTS, commit, table
from benchmarks.speed import write
from common.environments.experts import make_expert
from common.environments.tabular import make_mdp
from common.envs import bound_action, make_env, map_actions
from common.exploration import random_policy
from common.run import train
from common.runner.evaluation import evaluate
from common.runner.plots import COLORS, blank_figure, tidy, write_picture
from common.runner.statistics import bands, summarize

LENGTHS = {"CartPole-v1": 500, "Pendulum-v1": 200}  # steps of the expert's episodes
EPISODES = [1, 3, 10, 25, 50]
GRADIENT_STEPS = 10_000
NAMES = {"behaviour_cloning": "behaviour cloning", "dagger": "DAgger"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.imitation")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tasks", nargs="+", default=list(LENGTHS), choices=LENGTHS)
    parser.add_argument("--episodes", type=int, nargs="+", default=EPISODES, help="of the expert")
    parser.add_argument("--gradient-steps", type=int, default=GRADIENT_STEPS)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where CSV and picture go")
    arguments = parser.parse_args()
    if arguments.seeds < 1 or min(arguments.episodes) < 1 or not arguments.out.is_dir():
        parser.error("--seeds and --episodes must be at least 1, and --out a folder")
    lines, scores = [], {}
    for env_id in arguments.tasks:
        low, high = (mean_return(env_id, policy) for policy in ("random", "expert"))
        for name in NAMES:
            for num_episodes in arguments.episodes:
                config = config_of(name, env_id, num_episodes, arguments.gradient_steps)
                returns = learned(config, arguments.seeds)
                score = 100 * (returns - low) / (high - low)
                scores[env_id, name, num_episodes] = score
                lines.append(line_of(name, env_id, num_episodes, returns, score))
                print(*(str(x) for x in lines[-1].values()), flush=True)
    costs = {name: ledge_costs(name, arguments.seeds) for name in NAMES}
    write(arguments.out / "imitation.csv", lines)
    write(arguments.out / "ledge.csv", ledge_lines(costs))
    draw(arguments, scores, costs)
    print(table([list(lines[0]), *(list(line.values()) for line in lines)]))


def config_of(name: str, env_id: str, num_episodes: int, gradient_steps: int):
    """Return the Config with the labels of so many whole episodes."""
    if name == "behaviour_cloning":
        fields = {"num_episodes": num_episodes, "gradient_steps": max(1, gradient_steps // 100)}
        return behaviour_cloning.Config(env_id=env_id, **fields)
    labels = LENGTHS[env_id] * num_episodes
    num_steps = max(10, labels // (4 * 15))  # 15 rounds, or as many as there are labels for
    fields = {"num_steps": num_steps, "total_timesteps": labels}
    num_rounds = labels // (4 * num_steps)
    return dagger.Config(env_id=env_id, gradient_steps=gradient_steps // num_rounds, **fields)


def learned(config, num_seeds: int) -> np.ndarray:
    """Return the mean return of 100 episodes of each seed's policy, [S]."""
    module = behaviour_cloning if isinstance(config, behaviour_cloning.Config) else dagger
    states, _ = train(config, module.make, num_seeds)
    algorithm, env = module.make(config), make_env(config.env_id, 100)
    keys = jax.vmap(jax.random.key)(1_000 + jnp.arange(num_seeds))
    play = jax.jit(jax.vmap(lambda params, key: evaluate(env, algorithm.act, params, key)[0]))
    return np.asarray(play(states.params, keys)).mean(1)


def mean_return(env_id: str, policy: str) -> float:
    """Return the mean return of 1,000 episodes of the expert, or of the random policy."""
    env = map_actions(make_env(env_id, 1_000), bound_action)
    one = env._replace(num_envs=1)
    chosen = random_policy(one) if policy == "random" else make_expert(env_id, env)

    def act(params, obs, key):
        return chosen(obs[None], key)[0]

    return float(jax.jit(lambda key: evaluate(env, act, None, key)[0])(jax.random.key(0)).mean())


def ledge_costs(name: str, num_seeds: int) -> np.ndarray:
    """Return the expected cost of each seed's policy over 1 to 100 steps on the ledge, [S, 100]."""
    small = {"hidden_sizes": (16,), "gradient_steps": 100}
    if name == "behaviour_cloning":
        config = behaviour_cloning.Config("SteadyLedge-tabular", num_iterations=20, **small)
        module = behaviour_cloning
    else:
        config = dagger.Config("Ledge-tabular", total_timesteps=2_400, num_steps=100, **small)
        module = dagger
    states, _ = train(config, module.make, num_seeds)
    act = jax.vmap(jax.vmap(module.make(config).act, (None, 0, None)), (0, None, None))
    mdp, costs = make_mdp("Ledge-tabular"), []
    for actions in np.asarray(act(states.params, jnp.arange(2), jax.random.key(0))):
        distribution, below = mdp.start, []
        for _ in range(100):
            distribution = distribution @ mdp.P[np.arange(2), actions]
            below.append(distribution[1])
        costs.append(np.cumsum(below))
    return np.array(costs)


def line_of(name, env_id, num_episodes, returns, score) -> dict:
    """Return a row of the CSV: interquartile means over seeds with their 95 % intervals."""
    summary = {key: x if x is None else f"{x:.4g}" for key, x in summarize(returns).items()}
    normalized = summarize(score)
    return {
        "environment": env_id,
        "algorithm": name,
        "episodes": num_episodes,
        "labels": num_episodes * LENGTHS[env_id],
        **summary,
        "score": f"{normalized['iqm']:.4g}",
        "worst_score": f"{normalized['min']:.4g}",
        "seeds": len(returns),
        "commit": commit(),
    }


def ledge_lines(costs: dict[str, np.ndarray]) -> list[dict]:
    """Return rows of the mean cost after some numbers of steps, beside the two laws."""
    rows = []
    for t in (10, 20, 50, 100):
        row = {"steps": t, "T slip": f"{0.01 * t:.4g}"}
        row["sum of 1 - (1 - slip)^t"] = f"{np.sum(1 - 0.99 ** np.arange(1, t + 1)):.4g}"
        row |= {NAMES[name]: f"{x[:, t - 1].mean():.4g}" for name, x in costs.items()}
        rows.append({**row, "seeds": len(next(iter(costs.values()))), "commit": commit()})
    return rows


def draw(arguments, scores: dict, costs: dict[str, np.ndarray]) -> None:
    """Draw a panel for each environment, and one for the ledge."""
    num_panels = len(arguments.tasks) + 1
    figure = blank_figure(height=1 + 2.6 * num_panels)
    *panels, last = figure.subplots(num_panels, 1)
    for axes, env_id in zip(panels, arguments.tasks, strict=True):
        for (name, label), color in zip(NAMES.items(), COLORS, strict=False):
            by_size = [scores[env_id, name, n] for n in arguments.episodes]
            line, low, high = bands(np.stack(by_size, axis=1))
            axes.fill_between(arguments.episodes, low, high, color=color, alpha=0.2, linewidth=0)
            axes.plot(arguments.episodes, line, color=color, marker="o", markersize=3, label=label)
        axes.set_xscale("log")
        axes.set_xticks(arguments.episodes, map(str, arguments.episodes))
        axes.set_xticks([], minor=True)
        axes.set_xlabel("episodes of labels")
        tidy(axes, f"{env_id}: part of the expert's return, 0 is random (%)")
        axes.legend(frameon=False, fontsize=9, loc="lower right")
    for (name, label), color in zip(NAMES.items(), COLORS, strict=False):
        last.plot(np.arange(1, 101), costs[name].mean(0), color=color, label=label)
    last.set_xlabel("steps T")
    tidy(last, "a ledge: expected cost over T steps")
    last.legend(frameon=False, fontsize=9, loc="upper left")
    caption = f"IQM over {arguments.seeds} seeds, 95 % interval · python -m benchmarks.imitation"
    write_picture(arguments.out / "imitation.png", figure, caption)


if __name__ == "__main__":
    main()
