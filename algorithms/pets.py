"""Probabilistic ensembles with trajectory sampling (PETS).

Chua et al. 2018, Deep reinforcement learning in a handful of trials using probabilistic dynamics
models, https://arxiv.org/abs/1805.12114

    L(θ) = Σ_n (μ_θ(x_n) - y_n)ᵀ Σ_θ⁻¹(x_n) (μ_θ(x_n) - y_n) + log det Σ_θ(x_n)         (eq. 1)

for x = (s, a) and y = (s' - s, r), Σ diagonal: model-predictive control with a model learned by an
ensemble of networks that each predict a Gaussian. Each network is fitted to its own bootstrap
sample of all data so far. The value of a plan is the mean return of particles: they start at the
current observation, and at every step each particle's next observation is drawn from a randomly
assigned network (TS1). The cross-entropy method searches for the plan whose first action is taken.

Departs from the paper: the reward is learned too, where the paper knows it as a function of the
state; inputs and outputs are scaled to unit variance; smaller networks, fewer plans and particles;
a fixed number of gradient steps in each fit, without weight decay, and Adam restarts with each; TS1
assigns the same number of particles to every network, and the paper's TS∞, which keeps a particle
with one network, is left out; all plans of a round share the same noise, and are clipped, not drawn
from a truncated Gaussian; each fit to the best plans discards the old μ and σ, where the paper
keeps a moving average; the model predicts no end of an episode. `act` starts each search from zero
actions: an episode of the final evaluation takes as long as one of training, so lower
--eval-episodes.

Metrics: `value`, mean return that the model predicts for the plans found (H steps); `loss`, mean of
L in the fit, for one transition of scaled data; `model_error`, root mean square error of the
predicted means on the new transitions, before they are fitted (standard deviations of y).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.envs import (
    EnvState,
    episode_metrics,
    make_env,
    map_actions,
    rollout,
    scale_action,
)
from common.exploration import random_policy
from common.networks import Network, mlp
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "Pendulum-v1"  # any environment with vectors as observations and actions
    total_timesteps: int = 2_000  # environment steps
    steps_per_fit: int = 200  # environment steps between fits; the first of them are random
    learning_rate: float = 3e-3  # of Adam
    batch_size: int = 64  # transitions of each network in a gradient step
    gradient_steps: int = 1_000  # in each fit
    num_networks: int = 5  # in the ensemble, E
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer
    num_particles: int = 1  # of each plan for each network, P
    horizon: int = 20  # steps of a plan, H
    num_samples: int = 50  # plans tried in each round of a search, K
    num_elites: int = 5  # the best of them, to which the next ones are fitted, M
    num_cem_rounds: int = 3  # rounds of a search
    init_std: float = 0.5  # σ in the first round; actions are in [-1, 1]

    def __post_init__(self):
        require(
            self,
            "horizon <= steps_per_fit <= total_timesteps / 2",
            "num_elites <= num_samples",
        )


class Member(NamedTuple):
    """A network of the ensemble, with learned bounds of its log σ²."""

    layers: Any
    min_log_var: jax.Array  # [Y]
    max_log_var: jax.Array  # [Y]


class Scale(NamedTuple):
    mean: jax.Array
    std: jax.Array


class Model(NamedTuple):
    members: Member  # [E, ...]
    x: Scale  # of all x [X]
    y: Scale  # of all y [Y]


class Data(NamedTuple):
    x: jax.Array  # [capacity, X] obs and action
    y: jax.Array  # [capacity, Y] next_obs - obs and reward


class State(NamedTuple):
    key: jax.Array
    params: Model
    data: Data
    plan: jax.Array  # [H, A] where the next search starts, μ
    env: EnvState


def gaussian(network: Network, member: Member, x):
    """μ and log σ² [..., Y] of y for x [..., X]; softplus keeps log σ² within its bounds
    (appendix A.1)."""
    mean, log_var = jnp.split(network.apply(member.layers, x), 2, axis=-1)
    log_var = member.max_log_var - jax.nn.softplus(member.max_log_var - log_var)
    return mean, member.min_log_var + jax.nn.softplus(log_var - member.min_log_var)


def negative_log_likelihood(mean, log_var, y) -> jax.Array:
    """Σ_d (μ_d - y_d)² / σ_d² + log σ_d², for one transition (eq. 1)."""
    return jnp.sum(jnp.square(mean - y) * jnp.exp(-log_var) + log_var)


def mean_and_std(x, num_rows) -> Scale:
    """Mean and standard deviation of the first rows of x [capacity, X]; 1 for constant columns."""
    is_filled = (jnp.arange(len(x)) < num_rows)[:, None]
    std = jnp.std(x, axis=0, where=is_filled)
    return Scale(jnp.mean(x, axis=0, where=is_filled), jnp.where(std < 1e-6, 1, std))


def standardize(x, scale: Scale) -> jax.Array:
    """(x - mean) / std."""
    return (x - scale.mean) / scale.std


def trajectory_sampling(predict, key, model: Model, obs, plan, num_particles):
    """The mean return of particles, P for each network, that follow plan [H, A] from obs [D].

    Also returns their observations [H, E P, D]. `predict(member, x) -> μ, log σ²`; at each step the
    particles are assigned to networks by a new permutation.
    """
    num_networks, num_outputs = len(model.members.min_log_var), len(model.y.mean)
    key_noise, key_order = jax.random.split(key)
    noise = jax.random.normal(key_noise, (len(plan), num_networks, num_particles, num_outputs))
    order = jnp.argsort(jax.random.uniform(key_order, (len(plan), num_networks * num_particles)))

    def step(particles, inputs):
        action, noise, order = inputs
        particles = particles[order]  # the first P go to the first network, and so on
        actions = jnp.broadcast_to(action, (len(particles), *action.shape))
        x = standardize(jnp.concatenate([particles, actions], axis=1), model.x)
        mean, log_var = jax.vmap(predict)(model.members, x.reshape(*noise.shape[:2], -1))
        y = model.y.mean + model.y.std * (mean + jnp.exp(log_var / 2) * noise)
        particles += y[..., :-1].reshape(particles.shape)
        return particles, (y[..., -1].mean(), particles)

    start = jnp.broadcast_to(obs, (order.shape[1], *obs.shape))
    _, (rewards, particles) = jax.lax.scan(step, start, (plan, noise, order))
    return rewards.sum(), particles


def cross_entropy_method(key, value, start, num_samples, num_elites, num_rounds) -> jax.Array:
    """Approximate argmax of value(plan, key) over plans [H, A] in [-1, 1].

    `start` is (μ, σ), both [H, A]. Each round draws plans from N(μ, σ²), the first of them μ
    itself, and fits μ and σ to the best; the last μ is returned.
    """

    def improve(carry, _):
        mean, std, key = carry
        key, key_plans, key_value = jax.random.split(key, 3)
        noise = jax.random.normal(key_plans, (num_samples, *mean.shape)).at[0].set(0)
        plans = jnp.clip(mean + std * noise, -1, 1)
        values = jax.vmap(value, (0, None))(plans, key_value)
        elites = plans[jax.lax.top_k(values, num_elites)[1]]
        return (elites.mean(0), elites.std(0), key), None

    mean, std = start
    (mean, _, _), _ = jax.lax.scan(improve, (mean, std, key), length=num_rounds)
    return mean


def make(config: Config) -> Algorithm:
    env = map_actions(make_env(config.env_id, 1, actions="continuous"), scale_action)
    if len(env.obs_shape) != 1 or len(env.action_shape) != 1:
        raise ValueError(f"{config.env_id}: observations and actions must be vectors")
    (obs_size,), (action_size,) = env.obs_shape, env.action_shape
    x_size, y_size = obs_size + action_size, obs_size + 1
    network = mlp([x_size, *config.hidden_sizes, 2 * y_size], jax.nn.swish)
    optimizer = optax.adam(config.learning_rate)
    num_fits = config.total_timesteps // config.steps_per_fit
    zero_plan = jnp.zeros((config.horizon, action_size))
    predict = partial(gaussian, network)
    imagine = partial(trajectory_sampling, predict, num_particles=config.num_particles)

    def search(key, model, obs, mean):
        """Return the plan [H, A] from obs [D]; `mean` [H, A] is where the search starts."""

        def value(plan, key):
            plan_return, _ = imagine(key, model, obs, plan)
            return plan_return

        return cross_entropy_method(
            key,
            value,
            start=(mean, jnp.full_like(mean, config.init_std)),
            num_samples=config.num_samples,
            num_elites=config.num_elites,
            num_rounds=config.num_cem_rounds,
        )

    def loss(member, x, y):
        mean, log_var = predict(member, x)
        nll = jax.vmap(negative_log_likelihood)(mean, log_var, y).mean()
        return nll + 0.01 * jnp.sum(member.max_log_var - member.min_log_var)

    def as_data(transitions) -> Data:
        """Return the rows of transitions [T, 1, ...]."""
        t = jax.tree.map(lambda x: x[:, 0], transitions)
        return Data(
            x=jnp.concatenate([t.obs, t.action], axis=-1),
            y=jnp.concatenate([t.next_obs - t.obs, t.reward[:, None]], axis=-1),
        )

    def fit(key, members, data, num_rows):
        """Return the Model of the first rows of the data, and the mean loss."""
        scale_x, scale_y = mean_and_std(data.x, num_rows), mean_and_std(data.y, num_rows)
        x, y = standardize(data.x, scale_x), standardize(data.y, scale_y)
        key_sample, key_steps = jax.random.split(key)
        bootstrap = jax.random.randint(key_sample, (config.num_networks, len(x)), 0, num_rows)

        def step(carry, key):
            members, opt_state = carry
            shape = config.num_networks, config.batch_size
            columns = jax.random.randint(key, shape, 0, num_rows)
            rows = jnp.take_along_axis(bootstrap, columns, axis=1)
            losses, grads = jax.vmap(jax.value_and_grad(loss))(members, x[rows], y[rows])
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(members, updates), opt_state), losses.mean()

        keys = jax.random.split(key_steps, config.gradient_steps)
        (members, _), losses = jax.lax.scan(step, (members, optimizer.init(members)), keys)
        return Model(members, scale_x, scale_y), losses.mean()

    def init(key):
        key, key_params, key_env, key_random, key_fit = jax.random.split(key, 5)
        ones = jnp.ones((config.num_networks, y_size))
        members = Member(
            layers=jax.vmap(network.init)(jax.random.split(key_params, config.num_networks)),
            min_log_var=-10 * ones,
            max_log_var=0.5 * ones,
        )
        env_state, transitions, _ = rollout(
            env, random_policy(env), env.reset(key_env), key_random, config.steps_per_fit
        )
        num_empty = (num_fits - 1) * config.steps_per_fit
        data = jax.tree.map(lambda x: jnp.pad(x, ((0, num_empty), (0, 0))), as_data(transitions))
        model, _ = fit(key_fit, members, data, config.steps_per_fit)
        return State(key, model, data, zero_plan, env_state)

    def control(state, key):
        """Take `steps_per_fit` steps, each with a new search.

        Returns the EnvState and the next plan, and of each step the transition [T, 1, ...], the
        plan [T, H, A] and the return [T, 1] of an episode that it ended.
        """

        def step(carry, key):
            env_state, plan = carry
            key_search, key_env = jax.random.split(key)
            plan = search(key_search, state.params, env_state.obs[0], plan)
            env_state, transition = env.step(env_state, plan[:1], key_env)
            done = transition.terminated | transition.truncated
            next_plan = jnp.append(plan[1:], zero_plan[:1], axis=0)
            next_plan = jnp.where(done, zero_plan, next_plan)
            return (env_state, next_plan), (transition, plan, env_state.episode)

        keys = jax.random.split(key, config.steps_per_fit)
        return jax.lax.scan(step, (state.env, state.plan), keys)

    def update(state, step):
        key_steps, key_value, key_fit = jax.random.split(jax.random.fold_in(state.key, step), 3)
        model = state.params
        (env_state, plan), (transitions, plans, episode) = control(state, key_steps)
        values, _ = jax.vmap(imagine, (None, None, 0, 0))(
            key_value, model, transitions.obs[:, 0], plans
        )
        new_data = as_data(transitions)
        means, _ = jax.vmap(predict, (0, None))(model.members, standardize(new_data.x, model.x))
        error = means.mean(0) - standardize(new_data.y, model.y)  # in standard deviations of y

        start = (step + 1) * config.steps_per_fit
        data = jax.tree.map(
            lambda x, rows: jax.lax.dynamic_update_slice_in_dim(x, rows, start, axis=0),
            state.data,
            new_data,
        )
        model, nll = fit(key_fit, model.members, data, start + config.steps_per_fit)
        metrics = {
            **episode_metrics(episode),
            "value": values.mean(),
            "loss": nll,
            "model_error": jnp.sqrt(jnp.mean(jnp.square(error))),
        }
        return State(state.key, model, data, plan, env_state), metrics

    def act(params, obs, key):
        return scale_action(env, search(key, params, obs, zero_plan)[0])

    def picture(state):
        """Return the next observations, which the model has not seen, and 90 % of the particles
        that take the same actions, starting from the true observation every H steps."""
        key_steps, key_particles = jax.random.split(jax.random.fold_in(state.key, num_fits - 1))
        _, (transitions, _, _) = control(state, key_steps)
        num_plans = config.steps_per_fit // config.horizon
        num_steps = num_plans * config.horizon
        t = jax.tree.map(lambda x: x[:num_steps, 0], transitions)
        plans = t.action.reshape(num_plans, *zero_plan.shape)
        imagine_many = partial(imagine, key_particles, state.params, num_particles=100)
        _, particles = jax.vmap(imagine_many)(t.obs[:: config.horizon], plans)  # [., H, E P, D]
        quantiles = jnp.quantile(particles, jnp.array([0.05, 0.95]), axis=2)
        low, high = quantiles.reshape(2, *t.obs.shape)
        names = [f"obs[{i}]" for i in range(obs_size)]
        title = f"predicted from the truth every {config.horizon} steps"
        return {
            "names": names,
            "realised": t.next_obs,
            "low": low,
            "high": high,
            "title": title,
        }

    return Algorithm(
        init, update, act, num_fits - 1, config.steps_per_fit, config.steps_per_fit, picture
    )


if __name__ == "__main__":
    main(Config, make)
