"""Train controllers in dreams at several temperatures: `python -m benchmarks.world_models`.

world_models.py learns V and M once for each seed. From there C is evolved at each temperature τ,
and at τ = 1 once more from z alone, which is V without M. `dream` is the return of C in the dream
that it was evolved in, over the last 10 generations, `real` that of 100 episodes in the
environment: interquartile means over seeds with 95 % intervals, if there are five, and extremes.
The last line of an environment is that of random actions.

The pictures are results/world_models_<environment>.png, the numbers results/world_models.csv, where
lines of environments that were not asked for stay.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from algorithms.world_models import Config, make
from benchmarks.exploration import save
from benchmarks.learning import RESULTS
from common.envs import make_env
from common.exploration import random_policy
from common.runner.evaluation import evaluate
from common.runner.plots import COLORS, blank_figure, tidy, write_picture
from common.runner.program import start_jax
from common.runner.statistics import iqm, summarize

TEMPERATURES = [0.1, 0.5, 1.0, 1.3, 2.0]
EPISODES = 100
NAMES = {"zh": "V + M", "z": "V alone"}
SETTINGS = {  # and the seeds
    "Catch-bsuite": ({"num_steps": 1}, 8),
    "Breakout-MinAtar": (
        {
            "total_timesteps": 32_000,
            "num_steps": 1,
            "num_vae_updates": 40,
            "hidden_sizes": (128,),
            "code_size": 16,
            "num_dreams": 16,
            "horizon": 40,
        },
        4,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.world_models")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("env_ids", nargs="*", metavar="ENV", help="default: all")
    parser.add_argument("--seeds", type=int, help="default: 8 or 4")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where CSV and picture go")
    arguments = parser.parse_args()
    env_ids = arguments.env_ids or list(SETTINGS)
    if set(env_ids) - set(SETTINGS) or not arguments.out.is_dir():
        parser.error(f"ENV must be of {', '.join(SETTINGS)}, --out a folder")
    start_jax()
    lines = []
    for env_id in env_ids:
        fields, num_seeds = SETTINGS[env_id]
        config = Config(env_id=env_id, **fields)
        scores = measure(config, arguments.first_seed, arguments.seeds or num_seeds)
        draw(scores, config, arguments.out)
        lines += [as_words(x) for x in scores]
    save(arguments.out / "world_models.csv", lines, "env_id")


def measure(config: Config, first_seed: int, num_seeds: int) -> list[dict]:
    """Return a line for each temperature, one for z alone and one for random actions."""
    keys = jax.vmap(jax.random.key)(first_seed + jnp.arange(num_seeds))
    first_generation = config.num_vae_updates + config.num_rnn_updates
    update, learned = updates_at(config), jax.jit(jax.vmap(make(config).init))(keys)
    for step in range(first_generation):
        learned, metrics = update(learned, jnp.int32(step), jnp.float32(1))
        if step % 10 == 9:
            shown = {k: float(np.mean(x)) for k, x in metrics.items()}
            print(step + 1, {k: round(x, 3) for k, x in shown.items() if x == x}, flush=True)
    lines = []
    for controller in ("zh", "z"):
        settings = replace(config, controller=controller)
        update = update if settings == config else updates_at(settings)
        for temperature in TEMPERATURES if controller == "zh" else [1.0]:
            state, values = before_search(settings, learned), []
            for step in range(first_generation, first_generation + config.num_generations):
                state, metrics = update(state, jnp.int32(step), jnp.float32(temperature))
                values.append(metrics["value"])
            real, dreamt = play(settings, state.params), np.mean(values[-10:], axis=0)
            lines.append(line_of(config, NAMES[controller], temperature, dreamt, real))
    env = make_env(config.env_id, EPISODES)
    act = lambda params, obs, key: random_policy(env._replace(num_envs=1))(obs, key)[0]
    returns, _ = jax.jit(jax.vmap(lambda key: evaluate(env, act, (), key)))(keys)
    real = np.asarray(returns).mean(axis=1)
    return [*lines, line_of(config, "random actions", "", np.full(num_seeds, np.nan), real)]


def line_of(config: Config, actor: str, temperature, dream: np.ndarray, real: np.ndarray) -> dict:
    """Return a line of the table, with scores [S], and print it."""
    line = {"env_id": config.env_id, "actor": actor, "temperature": temperature, "dream": dream}
    line |= {"real": real, "seeds": len(real)}
    print(as_words(line), flush=True)
    return line


def updates_at(config: Config):
    """Return `states, step, temperature -> states, metrics` of all seeds, one program."""

    def update(state, step, temperature):
        return jax.vmap(make(replace(config, temperature=temperature)).update, (0, None))(
            state, step
        )

    return jax.jit(update)


def before_search(config: Config, learned):
    """Return States with what V and M learned, and C as it is at first: zeros and, for the search,
    the identity, of which a controller that sees less has a part."""
    like = jax.eval_shape(make(config).init, jax.random.key(0))
    part = lambda x, like: x[:, *(slice(size) for size in like.shape)]
    params = learned.params._replace(
        controller=part(learned.params.controller, like.params.controller)
    )
    return learned._replace(params=params, search=jax.tree.map(part, learned.search, like.search))


def play(config: Config, params) -> np.ndarray:
    """Return the mean returns [S] of the controllers in the environment."""
    env, algorithm = make_env(config.env_id, EPISODES), make(config)
    run = lambda params: evaluate(
        env, algorithm.act, params, jax.random.key(1), algorithm.init_memory
    )
    return np.asarray(jax.jit(jax.vmap(run))(params)[0]).mean(axis=1)


def as_words(line: dict) -> dict:
    """Return a line with IQM, interval, extremes in place of scores."""
    return {name: in_words(x) if isinstance(x, np.ndarray) else x for name, x in line.items()}


def in_words(scores: np.ndarray) -> str:
    x = summarize(scores)
    if x["iqm"] is None:
        return ""
    interval = "" if x["low"] is None else " [{low:.2f}, {high:.2f}]".format(**x)
    return "{iqm:.2f}{interval}, {min:.2f} to {max:.2f}".format(interval=interval, **x)


def draw(lines: list[dict], config: Config, folder: Path) -> None:
    """Draw the returns of each seed in the dream and in the environment against temperature."""
    figure = blank_figure(height=4.2)
    axes = figure.subplots()
    evolved = [x for x in lines if x["actor"] == NAMES["zh"]]
    places = np.arange(len(evolved))
    for name, text, color in (("dream", "in the dream", COLORS[1]), ("real", "real", COLORS[0])):
        scores = np.array([x[name] for x in evolved])
        axes.plot(places, scores, "o", color=color, alpha=0.4, markersize=4)
        axes.plot(places, [iqm(x) for x in scores], color=color, label=text)
    (alone,) = (x for x in lines if x["actor"] == NAMES["z"])
    at = places[TEMPERATURES.index(alone["temperature"])] + 0.1
    axes.plot(np.full(alone["seeds"], at), alone["real"], "D", color=COLORS[2], markersize=4)
    axes.plot([], [], "D", color=COLORS[2], label="real, from z alone")
    axes.axhline(iqm(lines[-1]["real"]), color="0.4", linestyle="--", label="random actions")
    axes.set_xticks(places, [f"{x['temperature']:g}" for x in evolved])
    axes.set_xlabel("temperature of the dream, τ")
    figure.legend(frameon=False, fontsize=9, loc="outside right upper")
    tidy(axes, f"{config.env_id}: return of controllers evolved in a dream")
    caption = f"{alone['seeds']} seeds and their IQM · python -m benchmarks.world_models"
    name = config.env_id.partition("-")[0].lower()
    write_picture(folder / f"world_models_{name}.png", figure, caption)


if __name__ == "__main__":
    main()
