"""Trains a peer through its public interface: `python driver.py PEER REQUEST` prints one JSON line.

It runs inside the peer's own virtual environment, so it imports nothing of this repository. The
request is JSON: `algorithm`, the peer's class; `env_id`; `settings` in the peer's own words;
`seeds`, `first_seed`; and `eval_every`, the environment steps between greedy evaluations on the
way, 0 for none.
"""

import importlib.metadata
import json
import resource
import sys
import time

import numpy as np

SETTLED = 1_000  # environment steps after learning starts, by when everything is compiled
EPISODES = 100  # of the final policy


def main() -> None:
    peer, request = sys.argv[1], json.loads(sys.argv[2])
    result = {"rejax": rejax, "stable-baselines3": stable_baselines3, "sbx-rl": sbx}[peer](request)
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    packages = {"rejax": ("gymnax", "jax"), "stable-baselines3": ("torch",), "sbx-rl": ("jax",)}
    versions = {name: importlib.metadata.version(name) for name in (peer, *packages[peer])}
    print(json.dumps(result | {"versions": versions}))


def rejax(request: dict) -> dict:
    """All seeds in one vmapped program, compiled ahead of time; its evaluation during training,
    which costs more than training itself, only runs where the request asks for it."""
    import jax
    import jax.numpy as jnp
    import rejax

    every = request["eval_every"]
    create = getattr(rejax, request["algorithm"]).create
    algorithm = create(env=request["env_id"], **request["settings"])
    evaluate = algorithm.eval_callback

    def callback(algorithm, state, key):
        return evaluate(algorithm, state, key)[1].mean() if every else jnp.zeros(())

    frequency = every or algorithm.total_timesteps
    training = algorithm.replace(
        eval_callback=callback, eval_freq=frequency, skip_initial_evaluation=True
    )
    keys = jax.vmap(jax.random.key)(request["first_seed"] + jnp.arange(request["seeds"]))
    clock = time.monotonic()
    train = jax.jit(jax.vmap(lambda key: training.train(key))).lower(keys).compile()
    compile_seconds = time.monotonic() - clock
    clock = time.monotonic()
    state, curve = jax.block_until_ready(train(keys))
    seconds = time.monotonic() - clock
    returns = jax.jit(jax.vmap(lambda s, k: evaluate(algorithm, s, k)[1]))(state, keys)
    steps = int(state.global_step.max())
    return {
        "steps_per_second": steps * request["seeds"] / seconds,
        "compile_seconds": compile_seconds,
        "episode_return": float(returns.mean()),
        "curve": [[(i + 1) * every, x] for i, x in enumerate(curve.T.tolist())] if every else [],
    }


def stable_baselines3(request: dict) -> dict:
    import stable_baselines3

    return one_seed(getattr(stable_baselines3, request["algorithm"]), request)


def sbx(request: dict) -> dict:
    import sbx

    return one_seed(getattr(sbx, request["algorithm"]), request)


def one_seed(kind: type, request: dict) -> dict:
    """One seed: what takes longer before everything is settled than after it counts as compiling,
    and evaluation on the way is left out of the seconds."""
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    settings = dict(request["settings"])
    total, num_envs = settings.pop("total_timesteps"), settings.pop("num_envs")
    every, seed = request["eval_every"], request["first_seed"]
    envs, tests = (
        make_vec_env(request["env_id"], n, seed=s)
        for n, s in ((num_envs, seed), (10, seed + 1_000_000))
    )
    if "action_noise" in settings:
        from stable_baselines3.common.noise import NormalActionNoise

        size = envs.action_space.shape
        sigma = settings["action_noise"] * np.ones(size)
        settings["action_noise"] = NormalActionNoise(np.zeros(size), sigma)
    model = kind("MlpPolicy", envs, seed=seed, **settings)
    curve, mark, evaluating = [], {}, 0.0
    settled = settings.get("learning_starts", 0) + SETTLED

    def callback(local, _):
        nonlocal evaluating
        steps = model.num_timesteps
        if not mark and steps >= settled:
            mark.update(steps=steps, seconds=time.monotonic() - clock - evaluating)
        if every and steps // every > len(curve):
            begun = time.monotonic()
            mean, _ = evaluate_policy(model, tests, EPISODES // 5)
            curve.append([steps, [float(mean)]])
            evaluating += time.monotonic() - begun
        return True

    clock = time.monotonic()
    model.learn(total, callback=callback)
    seconds = time.monotonic() - clock - evaluating
    rate = (model.num_timesteps - mark["steps"]) / (seconds - mark["seconds"])
    return {
        "steps_per_second": rate,
        "compile_seconds": max(0.0, mark["seconds"] - mark["steps"] / rate),
        "episode_return": float(evaluate_policy(model, tests, EPISODES)[0]),
        "curve": curve,
    }


if __name__ == "__main__":
    main()
