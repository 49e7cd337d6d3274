"""Train controllers in dreams at several temperatures: `python -m benchmarks.world_models`.

world_models.py learns V and M once for each seed; from there on C is evolved at each temperature,
and at one of them from z alone, too, which is V without M. `dream` is the return of the controller
in the dream that it was evolved in, over the last 10 generations; `real` that of 100 episodes in
the environment; both are interquartile means over seeds with 95 % intervals, and `random` is the
return of random actions.

The picture is results/world_models.png, the numbers results/world_models.csv.
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
from common.runner.statistics import summarize

TEMPERATURES = [0.1, 0.5, 1.0, 1.3, 2.0]
EPISODES = 100
FIELDS = {  # of the runs in the table
    "env_id": "Asterix-MinAtar",
    "num_random_steps": 32_000,
    "num_steps": 8,
    "code_size": 16,
    "kl_tolerance": 0.5,
    "hidden_sizes": (128,),
    "sequence_size": 20,
    "num_vae_updates": 60,
    "num_rnn_updates": 40,
    "num_generations": 60,
    "num_dreams": 16,
    "horizon": 100,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.world_models")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where CSV and picture go")
    arguments = parser.parse_args()
    if arguments.seeds < 1 or not arguments.out.is_dir():
        parser.error("--seeds must be at least 1, --out a folder")
    start_jax()
    config = Config(**FIELDS)
    lines = measure(config, arguments.first_seed, arguments.seeds)
    draw(lines, config, arguments.seeds, arguments.out)
    save(arguments.out / "world_models.csv", [as_words(x) for x in lines])


def measure(config: Config, first_seed: int, num_seeds: int) -> list[dict]:
    """Return a line for each temperature, for z alone and for random actions; scores [S]."""
    keys = jax.vmap(jax.random.key)(first_seed + jnp.arange(num_seeds))
    learned = learn_models(config, keys)
    lines = []
    for controller in ("zh", "z"):
        settings = replace(config, controller=controller)
        states, generation = prepare(settings, learned, keys)
        for temperature in TEMPERATURES if controller == "zh" else [1.0]:
            state, values = states, []
            for step in range(config.num_vae_updates + config.num_rnn_updates, num_updates(config)):
                state, value = generation(state, jnp.int32(step), jnp.float32(temperature))
                values.append(value)
            real = play(settings, state.params)
            dreamt = np.nanmean(values[-10:], axis=0)
            lines.append(
                {"controller": controller, "temperature": temperature, "dream": dreamt}
                | {"real": real, "seeds": num_seeds}
            )
            print(as_words(lines[-1]), flush=True)
    env = make_env(config.env_id, EPISODES)
    act = lambda params, obs, key: random_policy(env._replace(num_envs=1))(obs, key)[0]
    returns, _ = jax.jit(jax.vmap(lambda key: evaluate(env, act, (), key)))(keys)
    line = {"controller": "random", "temperature": "", "dream": None}
    lines.append(line | {"real": np.asarray(returns).mean(axis=1), "seeds": num_seeds})
    print(as_words(lines[-1]), flush=True)
    return lines


def num_updates(config: Config) -> int:
    return config.num_vae_updates + config.num_rnn_updates + config.num_generations


def learn_models(config: Config, keys: jax.Array):
    """Return the States [S, ...] after the stages of V and M."""
    algorithm = make(config)
    update = jax.jit(jax.vmap(algorithm.update, (0, None)), donate_argnums=0)
    state = jax.jit(jax.vmap(algorithm.init))(keys)
    for step in range(config.num_vae_updates + config.num_rnn_updates):
        state, metrics = update(state, jnp.int32(step))
        if step % 10 == 9:
            shown = {k: np.asarray(x).mean().round(3) for k, x in metrics.items()}
            print(step + 1, {k: float(x) for k, x in shown.items() if x == x}, flush=True)
    return state


def prepare(config: Config, learned, keys: jax.Array):
    """Return States with the models of others, and `state, step, temperature -> state, value`."""
    fresh = jax.jit(jax.vmap(make(config).init))(keys)
    params = learned.params._replace(controller=fresh.params.controller)

    def generation(state, step, temperature):
        update = make(replace(config, temperature=temperature)).update
        state, metrics = jax.vmap(update, (0, None))(state, step)
        return state, metrics["value"]

    return fresh._replace(params=params), jax.jit(generation)


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
    return "{iqm:.2f} [{low:.2f}, {high:.2f}], {min:.2f} to {max:.2f}".format(**x)


def draw(lines: list[dict], config: Config, num_seeds: int, folder: Path) -> None:
    """Draw dream and real returns of each seed, and their means, against the temperature."""
    figure = blank_figure()
    axes = figure.subplots()
    memory = [x for x in lines if x["controller"] == "zh"]
    temperatures = [x["temperature"] for x in memory]
    for name, text, color in (("dream", "in the dream", 1), ("real", "for real", 0)):
        scores = np.array([x[name] for x in memory])
        axes.plot(temperatures, scores, "o", color=COLORS[color], alpha=0.4, markersize=4)
        axes.plot(temperatures, scores.mean(axis=1), color=COLORS[color], label=text)
    for line, text, style in ((lines[-2], "from z alone, τ = 1, for real", ":"),):
        axes.plot([1.0], [line["real"].mean()], "D", color=COLORS[2], label=text, linestyle=style)
    axes.axhline(lines[-1]["real"].mean(), color="grey", linestyle="--", label="random actions")
    axes.set_xlabel("temperature τ of the dream")
    axes.set_ylabel("return")
    axes.set_title(f"{config.env_id}: controllers evolved in dreams, {num_seeds} seeds")
    axes.legend()
    tidy(axes)
    write_picture(figure, folder / "world_models.png")


if __name__ == "__main__":
    main()
