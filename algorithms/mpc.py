"""Model-predictive control (MPC) with the true simulator.

At every step: search for the actions of the next H steps with the highest return, take the first of
them, and search again from the next state, starting with the rest of the plan. The model is the
environment itself, stepped from its present state. One search is `num_rounds` rounds of

    a_k ~ N(μ, σ²), k = 1..K, clipped to the bounds; a_1 = μ
    G_k = Σ_i γⁱ r_i, i < H and until the episode ends
    fit μ and σ to the a_k and their G_k

and `--planner` selects how they are drawn and fitted:

    random  random shooting: a_k is uniform, μ ← a_argmax G
            (Rao 2009, A survey of numerical methods for optimal control,
            https://www.anilvrao.com/Publications/ConferencePublications/trajectorySurveyAAS.pdf)
    cem     cross-entropy method: μ and σ of the M best of the a_k
            (Rubinstein 1999, https://doi.org/10.1023/A:1010091220143; so used by Chua et al. 2018,
            https://arxiv.org/abs/1805.12114)
    mppi    model-predictive path integral control: μ ← Σ_k w_k a_k, w = softmax(G / λ)
            (Williams et al. 2017, https://doi.org/10.1109/ICRA.2017.7989202, Algorithm 2)

All three take K · num_rounds · H simulated steps for one step of the environment.

Departs from the papers: cem clips actions and discards the old μ and σ, where Chua et al. draw from
a truncated Gaussian and keep a moving average; mppi weights plans by their returns alone (its
α = 1: deviations from μ cost nothing) and may fit more than once a step; random shooting keeps the
rest of the last plan among its candidates; in a random environment all candidates of a round share
their random numbers, which change every round; parallel environments share the noise of their
searches. There is no policy without the simulator, so the run itself is the evaluation.

Metrics: `value`, mean G of the plans found, each simulated once more (discounted return of H
steps).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from common.algorithm import Algorithm, require
from common.envs import Env, EnvState, episode_metrics, make_env, map_actions, scale_action
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "Pendulum-v1"  # any environment with continuous actions
    total_timesteps: int = 2_000  # environment steps, over all environments
    num_envs: int = 10  # environments controlled in parallel, each with its own plan
    planner: Literal["cem", "random", "mppi"] = "cem"  # how a plan is searched for
    horizon: int = 20  # steps of a plan, H
    num_samples: int = 100  # plans tried in each round of a search, K
    num_elites: int = 10  # the best of them, to which cem fits μ and σ, M
    num_rounds: int = 5  # rounds of a search
    init_std: float = 0.5  # σ in the first round of cem, and in all of mppi; actions in [-1, 1]
    temperature: float = 0.1  # of mppi, in units of the return, λ
    gamma: float = 1.0  # discount factor inside a plan

    def __post_init__(self):
        require(self, "total_timesteps >= num_envs", "num_elites <= num_samples")


class State(NamedTuple):
    key: jax.Array
    params: jax.Array  # [N, H, A] the plans that the next searches start from, μ
    env: EnvState


def simulate(env: Env, state: EnvState, plan, key, gamma):
    """G = Σ_i γⁱ r_i of the plan [H, A], from a state of one environment without its axis.

    Sums until the episode ends. Also returns the observations [H, ...] along the way, NaN after
    the end.
    """

    def step(carry, inputs):
        state, discount_so_far = carry
        action, key = inputs
        state, transition = env.step(state, action[None], key)
        done = (transition.terminated | transition.truncated)[0]
        active = discount_so_far > 0
        reward = jnp.where(active, discount_so_far * transition.reward[0], 0)
        obs = jnp.where(active, transition.next_obs[0], jnp.nan)
        return (state, jnp.where(done, 0, discount_so_far * gamma)), (reward, obs)

    start = jax.tree.map(lambda x: x[None], state), jnp.ones(())
    _, (rewards, obs) = jax.lax.scan(step, start, (plan, jax.random.split(key, len(plan))))
    return rewards.sum(), obs


def gaussian_plans(key, mean, std, num_samples: int) -> jax.Array:
    """a_1 = μ, the others ~ N(μ, σ²), clipped to [-1, 1]; [K, H, A]."""
    noise = jax.random.normal(key, (num_samples, *mean.shape))
    return jnp.clip(mean + std * noise.at[0].set(0), -1, 1)


def uniform_plans(key, mean, num_samples: int) -> jax.Array:
    """a_1 = μ, the others uniform in [-1, 1]; [K, H, A]."""
    plans = jax.random.uniform(key, (num_samples, *mean.shape), minval=-1, maxval=1)
    return plans.at[0].set(mean)


def fit_elites(plans, returns, num_elites: int):
    """μ and σ [H, A] of the M best of the plans [K, H, A] with returns [K]."""
    elites = plans[jax.lax.top_k(returns, num_elites)[1]]
    return elites.mean(0), elites.std(0)


def path_integral(plans, returns, temperature) -> jax.Array:
    """μ ← Σ_k w_k a_k with w = softmax(G / λ), for plans [K, H, A] with returns [K]."""
    return jnp.tensordot(jax.nn.softmax(returns / temperature), plans, axes=1)


def shift(plan) -> jax.Array:
    """Drop the first actions of a plan [H, A], which have been taken, and append 0."""
    return jnp.roll(plan, -1, axis=0).at[-1].set(0)


def make(config: Config) -> Algorithm:
    env = map_actions(make_env(config.env_id, config.num_envs, actions="continuous"), scale_action)
    simulator = map_actions(make_env(config.env_id, 1), scale_action)

    def search(key, env_state, mean):
        """Return the plan [H, A] for one environment; `mean` [H, A] is the rest of its last one."""

        def improve(carry, key):
            mean, std = carry
            key_plans, key_env = jax.random.split(key)
            if config.planner == "random":
                plans = uniform_plans(key_plans, mean, config.num_samples)
            else:
                plans = gaussian_plans(key_plans, mean, std, config.num_samples)

            def plan_return(plan):
                return simulate(simulator, env_state, plan, key_env, config.gamma)[0]

            returns = jax.vmap(plan_return)(plans)
            if config.planner == "cem":
                mean, std = fit_elites(plans, returns, config.num_elites)
            elif config.planner == "mppi":
                mean = path_integral(plans, returns, config.temperature)
            else:
                mean = plans[jnp.argmax(returns)]
            return (mean, std), None

        std = jnp.full_like(mean, config.init_std)
        keys = jax.random.split(key, config.num_rounds)
        (mean, _), _ = jax.lax.scan(improve, (mean, std), keys)
        return mean

    def init(key):
        key, key_env = jax.random.split(key)
        plans = jnp.zeros((config.num_envs, config.horizon, *env.action_shape))
        return State(key, plans, env.reset(key_env))

    def update(state, step):
        key_search, key_value, key_env = jax.random.split(jax.random.fold_in(state.key, step), 3)
        plans = jax.vmap(search, (None, 0, 0))(key_search, state.env, state.params)

        def plan_value(env_state, plan):
            return simulate(simulator, env_state, plan, key_value, config.gamma)[0]

        value = jax.vmap(plan_value)(state.env, plans).mean()
        env_state, transition = env.step(state.env, plans[:, 0], key_env)
        done = transition.terminated | transition.truncated
        next_plans = jnp.where(done[:, None, None], 0, jax.vmap(shift)(plans))
        metrics = episode_metrics(env_state.episode) | {"value": value}
        return State(state.key, next_plans, env_state), metrics

    num_updates = config.total_timesteps // config.num_envs

    def picture(state):
        """Return the next steps of the first environment, and every fifth step the observations
        that the plan from the step before leads to."""

        def play(state, step):
            first_env = jax.tree.map(lambda x: x[0], state.env)
            key = jax.random.fold_in(state.key, step)
            _, obs = simulate(simulator, first_env, state.params[0], key, config.gamma)
            planned = jnp.concatenate([first_env.obs[None], obs])
            return update(state, step)[0], (first_env.obs, planned)

        steps = num_updates + jnp.arange(min(env.max_steps, 200))
        _, (realised, planned) = jax.lax.scan(play, state, steps)
        return {
            "names": [f"obs[{i}]" for i in range(realised.shape[1])],
            "realised": realised,
            "planned": planned[::5],
            "start": jnp.arange(0, len(realised), 5),
            "title": "every fifth plan, and what came",
        }

    return Algorithm(init, update, None, num_updates, config.num_envs, picture=picture)


if __name__ == "__main__":
    main(Config, make)
