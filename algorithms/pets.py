"""Probabilistic ensembles with trajectory sampling (PETS).

Differs from mpc.py in that the simulator is learned, by networks that each predict a Gaussian.

Chua et al. 2018, Deep reinforcement learning in a handful of trials using probabilistic dynamics
models, https://arxiv.org/abs/1805.12114

    L(θ) = Σ_n (μ_θ(x_n) - y_n)ᵀ Σ_θ⁻¹(x_n) (μ_θ(x_n) - y_n) + log det Σ_θ(x_n)         (eq. 1)

for x = (s, a) and its outcome y = (s' - s, r), Σ diagonal. Each network is fitted to a sample of
its own of all data so far, drawn with replacement. A plan is worth the mean return of particles:
they start at the present observation, and each draws its next one from a network, a new one at
every step (TS1). The cross-entropy method searches for the plan whose first action is taken.

Departs from the paper: the reward is learned too, where the paper knows it as a function of the
state; inputs and outcomes are scaled to unit variance; smaller networks, fewer plans and particles;
as many gradient steps in each fit, without weight decay, and Adam anew; TS1 deals the particles to
the networks; all plans of a round meet the same noise, and are clipped, not drawn from a truncated
Gaussian. The model foresees no end of an episode. `act` searches from nothing: an episode of the
final evaluation takes as long as one of training, so lower --eval-episodes.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.envs import EnvState, make_env, rollout, scale_action, with_unit_actions
from common.networks import mlp
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "Pendulum-v1"  # any environment with vectors as observations and actions
    total_timesteps: int = 2_000  # environment steps
    num_steps: int = 200  # environment steps between fits; the first of them are random
    learning_rate: float = 3e-3  # of Adam
    batch_size: int = 64  # transitions of each network in a gradient step
    gradient_steps: int = 1_000  # in each fit
    num_networks: int = 5  # in the ensemble, E
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer
    num_particles: int = 1  # of each plan for each network, P
    horizon: int = 20  # steps of a plan, H
    num_samples: int = 50  # plans tried in each round of a search, K
    num_elites: int = 5  # the best of them, to which the next ones are fitted, M
    num_iterations: int = 3  # rounds of a search
    init_std: float = 0.5  # σ in the first round; actions are in [-1, 1]

    def __post_init__(self):
        require(
            self,
            "1 <= horizon <= num_steps <= total_timesteps / 2",
            "learning_rate > 0",
            "batch_size >= 1",
            "gradient_steps >= 1",
            "num_networks >= 1",
            "all(size >= 1 for size in hidden_sizes)",
            "num_particles >= 1",
            "1 <= num_elites <= num_samples",
            "num_iterations >= 1",
            "init_std > 0",
        )


class Model(NamedTuple):
    members: Any  # of each network [E] its layers and the least and greatest log σ² [Y], learned
    x: tuple[jax.Array, jax.Array]  # mean and standard deviation of all x [X]
    y: tuple[jax.Array, jax.Array]  # and of all y [Y]


class State(NamedTuple):
    key: jax.Array
    params: Model
    data: tuple[jax.Array, jax.Array]  # x [capacity, X] and y [capacity, Y]
    plan: jax.Array  # [H, A] where the next search starts, μ
    env: EnvState


def gaussian(network, member, x):
    """μ and log σ² of y, the latter smoothly bounded: sane off the data too (appendix A.1)."""
    layers, low, high = member
    mean, log_var = jnp.split(network.apply(layers, x), 2, axis=-1)
    log_var = high - jax.nn.softplus(high - log_var)
    return mean, low + jax.nn.softplus(log_var - low)


def negative_log_likelihood(mean, log_var, y) -> jax.Array:
    """Σ_d (μ_d - y_d)² / σ_d² + log σ_d², for one transition (eq. 1)."""
    return jnp.sum(jnp.square(mean - y) * jnp.exp(-log_var) + log_var)


def mean_and_std(x, num_rows):
    """Of the first rows of x [capacity, X]; a column that does not vary is given 1."""
    rows = (jnp.arange(len(x)) < num_rows)[:, None]
    std = jnp.std(x, axis=0, where=rows)
    return jnp.mean(x, axis=0, where=rows), jnp.where(std < 1e-6, 1, std)


def trajectory_sampling(predict, key, model: Model, obs, plan, num_particles):
    """The mean return of particles, P for each network, that follow plan [H, A] from obs [D], and
    where they come to, [H, E P, D]; at each step all are dealt to the networks anew."""
    num_networks, num_outputs = len(model.members[1]), len(model.y[0])
    key_noise, key_order = jax.random.split(key)
    noise = jax.random.normal(key_noise, (len(plan), num_networks, num_particles, num_outputs))
    order = jnp.argsort(jax.random.uniform(key_order, (len(plan), num_networks * num_particles)))

    def step(particles, now):
        action, noise, order = now
        particles = particles[order]  # the first P go to the first network, and so on
        actions = jnp.broadcast_to(action, (len(particles), *action.shape))
        x = (jnp.concatenate([particles, actions], axis=1) - model.x[0]) / model.x[1]
        mean, log_var = jax.vmap(predict)(model.members, x.reshape(*noise.shape[:2], -1))
        y = model.y[0] + model.y[1] * (mean + jnp.exp(log_var / 2) * noise)
        particles += y[..., :-1].reshape(particles.shape)
        return particles, (y[..., -1].mean(), particles)

    start = jnp.broadcast_to(obs, (order.shape[1], *obs.shape))
    _, (rewards, particles) = jax.lax.scan(step, start, (plan, noise, order))
    return rewards.sum(), particles


def cross_entropy_method(key, value, mean, std, num_samples, num_elites, num_iterations):
    """argmax of value(plan, key) over plans [H, A] in [-1, 1], nearly: μ after rounds of drawing
    from N(μ, σ²) and fitting μ and σ to the best. The first draw of a round is μ itself."""

    def improve(carry, _):
        mean, std, key = carry
        key, key_plans, key_value = jax.random.split(key, 3)
        noise = jax.random.normal(key_plans, (num_samples, *mean.shape)).at[0].set(0)
        plans = jnp.clip(mean + std * noise, -1, 1)
        values = jax.vmap(value, (0, None))(plans, key_value)
        elites = plans[jax.lax.top_k(values, num_elites)[1]]
        return (elites.mean(0), elites.std(0), key), None

    start = mean, jnp.full_like(mean, std), key
    return jax.lax.scan(improve, start, length=num_iterations)[0][0]


def make(config: Config) -> Algorithm:
    env = with_unit_actions(make_env(config.env_id, 1, actions="continuous"))
    if len(env.obs_shape) != 1 or len(env.action_shape) != 1:
        raise ValueError(f"{config.env_id}: observations and actions must be vectors")
    (size_obs,), (size_action,) = env.obs_shape, env.action_shape
    sizes = [size_obs + size_action, *config.hidden_sizes, 2 * (size_obs + 1)]
    network = mlp(sizes, jax.nn.swish)
    optimizer = optax.adam(config.learning_rate)
    num_rounds = config.total_timesteps // config.num_steps
    no_plan = jnp.zeros((config.horizon, size_action))

    predict = partial(gaussian, network)
    imagine = partial(trajectory_sampling, predict, num_particles=config.num_particles)

    def search(key, model, obs, mean):
        sizes = config.num_samples, config.num_elites, config.num_iterations
        value = lambda plan, key: imagine(key, model, obs, plan)[0]
        return cross_entropy_method(key, value, mean, config.init_std, *sizes)

    def loss(member, x, y):
        nll = jax.vmap(negative_log_likelihood)(*predict(member, x), y).mean()
        return nll + 0.01 * jnp.sum(member[2] - member[1])

    def table(t):  # transitions [T, 1, ...]
        x = jnp.concatenate([t.obs, t.action], axis=-1)[:, 0]
        return x, jnp.concatenate([t.next_obs - t.obs, t.reward[..., None]], axis=-1)[:, 0]

    def fit(key, members, data, num_rows):
        scales = [mean_and_std(x, num_rows) for x in data]
        x, y = ((x - mean) / std for x, (mean, std) in zip(data, scales, strict=True))
        key_sample, key_steps = jax.random.split(key)
        sample = jax.random.randint(key_sample, (config.num_networks, len(x)), 0, num_rows)

        def step(carry, key):
            members, opt_state = carry
            drawn = jax.random.randint(key, (len(sample), config.batch_size), 0, num_rows)
            rows = jnp.take_along_axis(sample, drawn, axis=1)
            value, grads = jax.vmap(jax.value_and_grad(loss))(members, x[rows], y[rows])
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(members, updates), opt_state), value.mean()

        keys = jax.random.split(key_steps, config.gradient_steps)
        (members, _), losses = jax.lax.scan(step, (members, optimizer.init(members)), keys)
        return Model(members, *scales), losses.mean()

    def init(key):
        key, key_params, key_env, key_random, key_fit = jax.random.split(key, 5)
        layers = jax.vmap(network.init)(jax.random.split(key_params, config.num_networks))
        bound = jnp.ones((config.num_networks, size_obs + 1))
        members = layers, -10 * bound, 0.5 * bound
        random = lambda obs, key: jax.random.uniform(key, (1, size_action), minval=-1, maxval=1)
        env_state, t, _ = rollout(env, random, env.reset(key_env), key_random, config.num_steps)
        rows = (num_rounds - 1) * config.num_steps
        data = jax.tree.map(lambda x: jnp.pad(x, ((0, rows), (0, 0))), table(t))
        model, _ = fit(key_fit, members, data, config.num_steps)
        return State(key, model, data, no_plan, env_state)

    def update(state, step):
        key_steps, key_value, key_fit = jax.random.split(jax.random.fold_in(state.key, step), 3)
        model = state.params

        def play(carry, key):
            env_state, plan = carry
            key_search, key_env = jax.random.split(key)
            plan = search(key_search, model, env_state.obs[0], plan)
            env_state, t = env.step(env_state, plan[:1], key_env)
            rest = jnp.append(plan[1:], no_plan[:1], axis=0)
            rest = jnp.where(t.terminated | t.truncated, no_plan, rest)
            return (env_state, rest), (t, plan, env_state.episode_return)

        start, keys = (state.env, state.plan), jax.random.split(key_steps, config.num_steps)
        (env_state, rest), (recent, plans, returns) = jax.lax.scan(play, start, keys)
        value = jax.vmap(imagine, (None, None, 0, 0))(key_value, model, recent.obs[:, 0], plans)[0]
        x, y = table(recent)
        mean, _ = jax.vmap(predict, (0, None))(model.members, (x - model.x[0]) / model.x[1])
        error = mean.mean(0) - (y - model.y[0]) / model.y[1]  # in standard deviations of y
        start = (step + 1) * config.num_steps
        write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        data = jax.tree.map(write, state.data, (x, y))
        model, nll = fit(key_fit, model.members, data, start + config.num_steps)
        metrics = {"episode_return": jnp.nanmean(returns), "value": value.mean(), "loss": nll}
        metrics["model_error"] = jnp.sqrt(jnp.mean(jnp.square(error)))
        return State(state.key, model, data, rest, env_state), metrics

    def act(params, obs, key):
        return scale_action(env, search(key, params, obs, no_plan)[0])

    def picture(state, figure):
        """A round that the model has not seen, and what it foresees, anew every H steps."""
        x, _ = jax.jit(lambda state: update(state, num_rounds - 1)[0].data)(state)
        x = x[len(x) - config.num_steps // config.horizon * config.horizon :]
        obs, plans = x[:, :size_obs], x[:, size_obs:].reshape(-1, *no_plan.shape)
        foresee = jax.vmap(partial(imagine, state.key, state.params, num_particles=100))
        _, particles = jax.jit(foresee)(obs[:: config.horizon], plans)  # [T / H, H, E P, D]
        low, high = jnp.quantile(particles, jnp.array([0.05, 0.95]), 2).reshape(2, *obs.shape)
        axes = figure.subplots(size_obs, sharex=True, squeeze=False)[:, 0]
        for i, axis in enumerate(axes):
            axis.fill_between(jnp.arange(len(obs)) + 1, low[:, i], high[:, i], color="tab:orange")
            axis.plot(obs[:, i])
            axis.set_ylabel(f"obs[{i}]")
        axes[0].set_title("a new episode, and 90 % of the particles that follow its actions")

    return Algorithm(init, update, act, num_rounds - 1, config.num_steps, config.num_steps, picture)


if __name__ == "__main__":
    main(Config, make)
