"""Train a peer through its public interface: `python driver.py PEER REQUEST` prints one JSON line.

It runs inside the peer's own virtual environment, so it imports nothing of this repository. The
request is JSON: `algorithm`, the peer's class; `env_id`; `settings` in the peer's own words;
`seeds`, `first_seed`; and `eval_every`, the environment steps between greedy evaluations, 0 for
none; and for PureJaxRL, Stoix and mbrl-lib `folder`, a clone.
"""

import importlib
import importlib.metadata
import json
import resource
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np

SETTLED = 1_000  # environment steps after learning starts, by when everything is compiled
EPISODES = 100  # of the final policy


def main() -> None:
    peer, request = sys.argv[1], json.loads(sys.argv[2])
    result = PEERS[peer](request)
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    packages = {
        "rejax": ("rejax", "gymnax", "jax"),
        "purejaxrl": ("gymnax", "jax"),
        "stoix": ("gymnax", "jax"),
        "stable-baselines3": ("stable-baselines3", "torch"),
        "sbx-rl": ("sbx-rl", "jax"),
        "brax": ("brax", "jax"),
        "mbrl-lib": ("gymnasium", "torch"),
    }
    versions = {name: importlib.metadata.version(name) for name in packages[peer]}
    print(json.dumps(result | {"versions": versions}))


def rejax(request: dict) -> dict:
    """Train all seeds in one vmapped program, compiled ahead of time.

    Evaluation during training costs more than training, and runs only if the request asks for it.
    """
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


def purejaxrl(request: dict) -> dict:
    """Run the files of a clone, as they are but for unused imports, a network of
    the agreed size, and `jax.tree_map`, which JAX has since renamed. It has no evaluation, so its
    final policy is played here, and its curve is that of training."""
    import jax
    import jax.numpy as jnp

    jax.tree_map = jax.tree.map
    folder = Path(request["folder"]) / "purejaxrl"
    for name in ("wandb", "navix", "brax", "brax.envs", "brax.envs.wrappers.training", "distrax"):
        sys.modules[name] = mock.MagicMock()
    sys.modules["distrax"].Categorical = Categorical
    sys.path.insert(0, str(folder))
    module = importlib.import_module(request["algorithm"].lower())
    settings = dict(request["settings"])
    sizes, every = settings.pop("hidden_sizes"), request["eval_every"]
    is_image = request["env_id"].endswith("-MinAtar")
    if hasattr(module, "QNetwork"):
        module.QNetwork = q_network(sizes, is_image)
    elif is_image:
        module.ActorCritic = actor_critic(sizes)
    config = settings | {"ENV_NAME": request["env_id"]}
    train = module.make_train(config)  # which adds to it
    keys = jax.vmap(jax.random.PRNGKey)(request["first_seed"] + jnp.arange(request["seeds"]))
    clock = time.monotonic()
    train = jax.jit(jax.vmap(train)).lower(keys).compile()
    compile_seconds = time.monotonic() - clock
    clock = time.monotonic()
    out = jax.block_until_ready(train(keys))
    seconds = time.monotonic() - clock
    steps = config["NUM_UPDATES"] * config["NUM_ENVS"] * config.get("NUM_STEPS", 1)
    state = out["runner_state"][0]
    returns = purejaxrl_returns(module, request["env_id"], state.params, keys)
    return {
        "steps_per_second": steps * request["seeds"] / seconds,
        "compile_seconds": compile_seconds,
        "episode_return": float(returns.mean()),
        "curve": purejaxrl_curve(out["metrics"], steps, every) if every else [],
    }


class Categorical:
    """The part of distrax that PureJaxRL uses; distrax does not import with today's packages."""

    def __init__(self, logits):
        self.logits = logits

    def sample(self, seed):
        import jax

        return jax.random.categorical(seed, self.logits)

    def log_prob(self, value):
        import jax
        import jax.numpy as jnp

        log_probs = jax.nn.log_softmax(self.logits)
        return jnp.take_along_axis(log_probs, value[..., None], -1)[..., 0]

    def entropy(self):
        import jax
        import jax.numpy as jnp

        log_probs = jax.nn.log_softmax(self.logits)
        return -jnp.sum(jnp.exp(log_probs) * log_probs, -1)


def q_network(sizes, is_image):
    """Return the class that replaces PureJaxRL's network."""
    import flax.linen as nn

    class QNetwork(nn.Module):
        action_dim: int

        @nn.compact
        def __call__(self, x):
            x = convolved(x) if is_image else x
            for size in sizes:
                x = nn.relu(nn.Dense(size)(x))
            return nn.Dense(self.action_dim)(x)

    return QNetwork


def actor_critic(sizes):
    """Return the class that replaces PureJaxRL's for images, which flattens them."""
    import flax.linen as nn

    class ActorCritic(nn.Module):
        action_dim: int
        activation: str = "relu"

        @nn.compact
        def __call__(self, obs):
            outputs = []
            for num_outputs, scale in ((self.action_dim, 0.01), (1, 1.0)):
                x = convolved(obs)
                for size in sizes:
                    x = nn.relu(nn.Dense(size, kernel_init=nn.initializers.orthogonal(2**0.5))(x))
                last = nn.Dense(num_outputs, kernel_init=nn.initializers.orthogonal(scale))
                outputs.append(last(x))
            return Categorical(outputs[0]), outputs[1].squeeze(-1)

    return ActorCritic


def convolved(x):
    """Return the features of MinAtar's 16 filters of 3 x 3; PureJaxRL flattens its images."""
    import flax.linen as nn

    images = x.reshape(*x.shape[:-1], 10, 10, -1)
    features = nn.relu(nn.Conv(16, (3, 3), padding="VALID")(images))
    return features.reshape(*x.shape[:-1], -1)


def purejaxrl_returns(module, env_id, params, keys):
    """Return the returns of EPISODES greedy episodes of each seed, [S, EPISODES]."""
    import gymnax
    import jax
    import jax.numpy as jnp

    env, env_params = gymnax.make(env_id)
    num_actions = env.action_space(env_params).n
    if hasattr(module, "QNetwork"):
        values = module.QNetwork(num_actions).apply
    else:
        network = module.ActorCritic(num_actions)
        values = lambda params, obs: network.apply(params, obs)[0].logits

    def play(params, key):
        def step(carry, key):
            obs, state, active, total = carry
            action = jnp.argmax(values(params, obs.reshape(-1)))
            obs, state, reward, done, _ = env.step(key, state, action, env_params)
            return (obs, state, active & ~done, total + active * reward), None

        obs, state = env.reset(key, env_params)
        keys = jax.random.split(key, env_params.max_steps_in_episode)
        start = (obs, state, jnp.bool_(True), jnp.float32(0))
        return jax.lax.scan(step, start, keys)[0][3]

    episodes = jax.vmap(lambda key: jax.random.split(key, EPISODES))(keys)
    return jax.jit(jax.vmap(jax.vmap(play, (None, 0))))(params, episodes)


def purejaxrl_curve(metrics: dict, steps: int, every: int) -> list:
    """Return [[steps, training return of each seed], ...]: the mean over environments of the last
    episode that each had ended by then."""
    returns = metrics.get("returns", metrics.get("returned_episode_returns"))
    if returns.ndim > 2:  # [S, updates, T, N]
        returns = returns[:, :, -1].mean(-1)
    number = returns.shape[1]
    points = [steps * (i + 1) // number for i in range(number)]
    picked = [i for i in range(number) if points[i] // every > (points[i - 1] if i else 0) // every]
    return [[points[i], np.asarray(returns[:, i]).tolist()] for i in picked]


SYSTEMS = {  # of Stoix: the module, and how many keys its networks need
    "R2D2": ("q_learning.rec_r2d2", 1),
    "Rainbow": ("q_learning.ff_rainbow", 2),
    "C51": ("q_learning.ff_c51", 1),
    "REINFORCE": ("vpg.ff_reinforce", 2),
    "TD3": ("ddpg.ff_td3", 2),
    "SAC": ("sac.ff_sac", 2),
    "DDPG": ("ddpg.ff_ddpg", 2),
}


def stoix(request: dict) -> dict:
    """Run a system of a clone, as it is but for logging and checkpoints, which are left out.

    Stoix trains one seed: its devices and its `update_batch_size` average gradients. But its setup,
    learner and evaluator are pure functions inside a `pmap` over devices. Here that is a `vmap` of
    one device, and around it another `vmap` has the seeds; with one seed that takes as long as its
    `pmap` does. The learner runs once. The warm-up is part of the setup, which is not timed.
    """
    import jax
    import jax.numpy as jnp

    folder, settings = Path(request["folder"]), request["settings"]
    for name in ("stoix.utils.logger", "stoix.utils.checkpointing"):
        sys.modules[name] = mock.MagicMock()
    sys.path.insert(0, str(folder))
    path, num_network_keys = SYSTEMS[request["algorithm"]]
    module = importlib.import_module(f"stoix.systems.{path}")
    config = stoix_config(folder, path.split(".")[-1], request["env_id"], settings)
    train_env, eval_env = module.environments.make(config=config)
    made = {}

    def setup(key):
        keys = tuple(jax.random.split(key, 1 + num_network_keys))
        made["learn"], made["network"], state, *made["memory"] = module.learner_setup(
            train_env, keys, config
        )
        return state

    def evaluate(params, key):
        apply, more = made["network"].apply, {}
        if made["memory"]:
            act = module.get_rec_distribution_act_fn(config, apply)
            more = {"use_recurrent_net": True, "scanned_rnn": made["memory"][0]}
        else:
            rngs = {"noise": key} if request["algorithm"] == "Rainbow" else None
            act = module.get_distribution_act_fn(config, apply, rngs)
        play, _, inputs = module.evaluator_setup(eval_env, key, act, params, config, **more)
        return play(*inputs).episode_metrics["episode_return"]

    def as_vmap(function, axis_name):
        return jax.vmap(function, axis_name=axis_name)

    def as_stack(tree, devices):
        return jax.tree.map(lambda x: jnp.stack([x] * len(devices)), tree)

    seeds = request["seeds"]
    keys = jax.vmap(jax.random.PRNGKey)(request["first_seed"] + jnp.arange(seeds))
    with mock.patch("jax.pmap", as_vmap), mock.patch("flax.jax_utils.replicate", as_stack):
        states = jax.block_until_ready(jax.vmap(setup)(keys))  # it refuses jit
        clock = time.monotonic()
        train = jax.jit(jax.vmap(made["learn"])).lower(states).compile()
        compile_seconds = time.monotonic() - clock
        clock = time.monotonic()
        state = jax.block_until_ready(train(states)).learner_state
        seconds = time.monotonic() - clock
        params = getattr(state.params, "online", None) or state.params.actor_params
        params = getattr(params, "online", params)
        # Loaded from the cache, this program returned 0 for every episode, so it is kept out of it.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
        returns = jax.jit(jax.vmap(evaluate))(params, keys)
    arch, rollout_length = config.arch, config.system.rollout_length
    steps = arch.num_updates_per_eval * rollout_length * arch.num_envs
    return {
        "steps_per_second": steps * seeds / seconds,
        "compile_seconds": compile_seconds,
        "episode_return": float(returns.mean()),
        "curve": [],
    }


def stoix_config(folder: Path, system: str, env_id: str, settings: dict):
    """Return a system's configuration with these settings, as Stoix completes it."""
    import hydra
    from omegaconf import OmegaConf
    from stoix.utils.total_timestep_checker import check_total_timesteps

    configs = folder.resolve() / "stoix" / "configs"
    with hydra.initialize_config_dir(str(configs / "default" / "anakin"), version_base="1.2"):
        search = f"hydra.searchpath=[file://{configs}]"
        env = f"env=gymnax/{env_id.split('-')[0].lower()}"
        config = hydra.compose(f"default_{system}", overrides=[search, env])
    OmegaConf.set_struct(config, False)
    arch = {"num_evaluation": 1, "num_eval_episodes": EPISODES, "evaluation_greedy": True}
    settings = {f"arch.{name}": value for name, value in arch.items()} | settings
    for name, value in settings.items():
        OmegaConf.update(config, name, value)
    config.num_devices = 1
    return check_total_timesteps(config)


def stable_baselines3(request: dict) -> dict:
    import stable_baselines3

    return one_seed(getattr(stable_baselines3, request["algorithm"]), request)


def sbx(request: dict) -> dict:
    import sbx

    return one_seed(getattr(sbx, request["algorithm"]), request)


def one_seed(kind: type, request: dict) -> dict:
    """Train one seed: extra time before SETTLED steps, compared with later, counts as compiling,
    and evaluation during training is left out of the seconds."""
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


def brax(request: dict) -> dict:
    """Train one seed in two halves: what the first takes longer than the second is compiling."""
    import functools

    import flax.linen as nn
    from brax import envs
    from brax.training.agents.ppo import networks, train

    settings, halves = dict(request["settings"]), []
    name = "".join(f"_{x.lower()}" if x.isupper() else x for x in request["env_id"].split("-")[0])
    network = settings.pop("network") | {"activation": nn.tanh}
    train.train(
        envs.get_environment(name.removeprefix("_"), backend="spring"),
        seed=request["first_seed"],
        network_factory=functools.partial(networks.make_ppo_networks, **network),
        num_evals=3,  # before, between the halves and after
        num_eval_envs=EPISODES,
        deterministic_eval=True,
        progress_fn=lambda steps, metrics: halves.append((steps, metrics)),
        **settings,
    )
    (_, _), (middle, first), (end, second) = halves
    seconds = float(second["training/walltime"] - first["training/walltime"])
    return {
        "steps_per_second": (end - middle) / seconds,
        "compile_seconds": max(0.0, float(first["training/walltime"]) - seconds),
        "episode_return": float(second["eval/episode_reward"]),
        "curve": [],
    }


def mbrl_lib(request: dict) -> dict:
    """Run PETS, or its planner with the true model, for one seed with the files of a clone."""
    sys.path.insert(0, request["folder"])
    return mbrl_pets(request) if request["algorithm"] == "PETS" else mbrl_mpc(request)


def mbrl_mpc(request: dict) -> dict:
    """Play Pendulum-v1 with plans through its equations, in torch, for whole episodes."""
    import gymnasium
    import torch
    from mbrl.planning import TrajectoryOptimizerAgent
    from omegaconf import OmegaConf

    settings = dict(request["settings"])
    steps, horizon = settings.pop("steps"), settings.pop("planning_horizon")
    torch.manual_seed(request["first_seed"])
    agent = TrajectoryOptimizerAgent(OmegaConf.create(settings), [-2.0], [2.0], horizon)

    def plan_returns(obs, plans):  # [K, H, 1]
        angle = torch.full((len(plans),), float(np.arctan2(obs[1], obs[0])))
        speed, total = torch.full_like(angle, float(obs[2])), torch.zeros(len(plans))
        for torque in plans[..., 0].T.clamp(-2, 2):
            wrapped = torch.remainder(angle + torch.pi, 2 * torch.pi) - torch.pi
            total -= wrapped**2 + 0.1 * speed**2 + 0.001 * torque**2
            speed = (speed + 0.05 * (15 * torch.sin(angle) + 3 * torque)).clamp(-8, 8)
            angle = angle + 0.05 * speed
        return total

    agent.set_trajectory_eval_fn(plan_returns)
    env, returns = gymnasium.make(request["env_id"]), []
    clock = time.monotonic()
    for episode in range(steps // 200):
        obs, done, total = env.reset(seed=request["first_seed"] + 1_000 * episode)[0], False, 0.0
        agent.reset()
        while not done:
            obs, reward, terminated, truncated, _ = env.step(agent.act(obs))
            done, total = terminated or truncated, total + float(reward)
        returns.append(total)
    return {
        "steps_per_second": 200 * len(returns) / (time.monotonic() - clock),
        "compile_seconds": 0.0,
        "episode_return": float(np.mean(returns)),
        "curve": [],
    }


def mbrl_pets(request: dict) -> dict:
    """Time PETS from the end of the first fit of its model, after the random steps; the final
    policy plays two episodes."""
    import tempfile

    import gymnasium
    import mbrl.algorithms.pets as pets
    import torch
    from omegaconf import OmegaConf

    env, seed, ends, agents = gymnasium.make(request["env_id"]), request["first_seed"], [], []
    torch.manual_seed(seed)
    env.reset(seed=seed)
    fit = pets.mbrl.util.common.train_model_and_save_model_and_data
    make_agent = pets.mbrl.planning.create_trajectory_optim_agent_for_model

    def timed_fit(*arguments, **more):
        fit(*arguments, **more)
        ends.append(time.monotonic())

    def kept_agent(*arguments, **more):
        agents.append(make_agent(*arguments, **more))
        return agents[0]

    pets.mbrl.util.common.train_model_and_save_model_and_data = timed_fit
    pets.mbrl.planning.create_trajectory_optim_agent_for_model = kept_agent
    config = OmegaConf.create(request["settings"] | {"seed": seed, "device": "cpu"})
    with tempfile.TemporaryDirectory() as scratch:
        never = lambda actions, obs: torch.zeros(len(obs), 1, dtype=torch.bool)
        pets.train(env, never, None, config, silent=True, work_dir=scratch)
    seconds = time.monotonic() - ends[0]
    returns = []
    for _ in range(2):
        obs, done, total = env.reset()[0], False, 0.0
        agents[0].reset()
        while not done:
            obs, reward, terminated, truncated, _ = env.step(agents[0].act(obs))
            done, total = terminated or truncated, total + float(reward)
        returns.append(total)
    return {
        "steps_per_second": config.overrides.num_steps / seconds,
        "compile_seconds": 0.0,
        "episode_return": float(np.mean(returns)),
        "curve": [],
    }


PEERS = {
    "brax": brax,
    "mbrl-lib": mbrl_lib,
    "rejax": rejax,
    "purejaxrl": purejaxrl,
    "stoix": stoix,
    "stable-baselines3": stable_baselines3,
    "sbx-rl": sbx,
}


if __name__ == "__main__":
    main()
