"""Dyna-Q and Dyna-Q+ (tabular).

Differs from q_learning.py in that it learns a model of the MDP, and after each real step updates Q
with `num_planning_steps` transitions sampled from the model.

Sutton 1990, Integrated Architectures for Learning, Planning, and Reacting Based on Approximating
Dynamic Programming, https://doi.org/10.1016/B978-1-55860-141-3.50030-4; Sutton & Barto 2018,
sections 8.2 and 8.3, http://incompleteideas.net/book/the-book-2nd.html

    Model(s, a) ← r, s', d
    Q(s, a) ← Q(s, a) + α [r + κ √τ + γ (1 - d) max_a' Q(s', a') - Q(s, a)]

with d = 1 where the MDP terminated; a time limit does not end the MDP. The second line is planning:
s is drawn from the states that were visited, a from the actions that were tried in s, both
uniformly; r, s' and d are the model's, and τ is the number of real steps since (s, a) was last
tried. κ = 0 is Dyna-Q. Dyna-Q+ has κ > 0 and `plan_untried`: untried actions of visited states are
drawn too; the model says that they lead back to s with reward 0. The step size at the n-th update
of (s, a), real or planned, is α n^-p.

Departs from the book: the model keeps the last `num_outcomes` outcomes of (s, a), and draws one of
them. The book keeps 1, which suits deterministic MDPs; on stochastic ones Q converges to Q* only as
`num_outcomes` grows. `update` takes `steps_per_update` real steps, each followed by planning.

Metrics: `value`, mean Q(s, a) of the actions taken, after their updates and before planning
(discounted return); `td_error`, mean size of the bracket in these updates (the same unit).
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from common.algorithm import Algorithm, require
from common.envs import EnvState, Transition, episode_metrics, make_env
from common.exploration import epsilon_greedy
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "CliffWalking-tabular"  # any environment with numbered states and actions
    total_timesteps: int = 20_000  # environment steps
    steps_per_update: int = 100  # environment steps of one update
    learning_rate: float = 0.5  # step size α, at the first visit to a state and action
    learning_rate_power: float = 0.0  # p: at the n-th visit it is α n^-p
    gamma: float | None = None  # discount factor; None: the environment's own
    epsilon: float = 0.1  # probability of a random action
    num_planning_steps: int = 5  # updates with transitions of the model, per environment step
    num_outcomes: int = 1  # latest outcomes that the model keeps of each state and action
    kappa: float = 0.0  # κ: bonus reward in planning, per √steps since the action was last tried
    plan_untried: bool = False  # plan with untried actions too: they lead back, with reward 0

    def __post_init__(self):
        require(
            self,
            "total_timesteps >= steps_per_update",
            "0 < learning_rate <= 1",
            "num_planning_steps >= 0",
            "kappa >= 0",
        )


class Model(NamedTuple):
    next_obs: jax.Array  # [S, A, K] of the last K outcomes
    reward: jax.Array  # [S, A, K]
    terminated: jax.Array  # [S, A, K]
    count: jax.Array  # [S, A] how often (s, a) was tried
    last_time: jax.Array  # [S, A] the environment step at which it was last tried
    states: jax.Array  # [S] those that were visited, in the order of the first visits
    num_states: jax.Array  # [] how many there are; the rest of `states` is unused


class State(NamedTuple):
    key: jax.Array
    params: jax.Array  # Q [S, A]
    visits: jax.Array  # n [S, A]
    model: Model
    env: EnvState


def td_error(q_value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - Q(s, a), for one transition; no gradient through the target."""
    target = reward + gamma * (1 - terminated) * next_value
    return jax.lax.stop_gradient(target) - q_value


def update_model(model: Model, transition: Transition, time) -> Model:
    """Model(s, a) ← r, s', d, tried at step `time` []; a new s joins the visited states."""
    obs, action = transition.obs, transition.action
    is_new = jnp.all(model.count[obs] == 0)
    slot = obs, action, model.count[obs, action] % model.reward.shape[-1]
    return Model(
        next_obs=model.next_obs.at[slot].set(transition.next_obs),
        reward=model.reward.at[slot].set(transition.reward),
        terminated=model.terminated.at[slot].set(transition.terminated),
        count=model.count.at[obs, action].add(1),
        last_time=model.last_time.at[obs, action].set(time),
        # What is written behind num_states does not count, and behind the end JAX drops it.
        states=model.states.at[model.num_states].set(obs),
        num_states=model.num_states + is_new,
    )


def sample_model(key, model: Model, time, kappa, plan_untried) -> Transition:
    """Draw s from the visited states, a from the actions tried in s, with `plan_untried` (bool)
    from all; and r, s', d from Model(s, a), with the bonus κ √τ added to r, at step `time` []."""
    state_u, action_u, outcome_u = jax.random.uniform(key, 3)
    obs = model.states[jnp.int32(state_u * model.num_states)]
    allowed = (model.count[obs] > 0) | plan_untried
    action = jnp.argmax(jnp.cumsum(allowed) > action_u * jnp.sum(allowed))
    num_kept = jnp.clip(model.count[obs, action], 1, model.reward.shape[-1])
    slot = obs, action, jnp.int32(outcome_u * num_kept)
    bonus = kappa * jnp.sqrt(time - model.last_time[obs, action])
    return Transition(
        obs,
        action,
        reward=model.reward[slot] + bonus,
        next_obs=model.next_obs[slot],
        terminated=model.terminated[slot],
        truncated=jnp.zeros((), bool),
    )


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, 1, actions="discrete", observations="integer")
    gamma = env.gamma if config.gamma is None else config.gamma
    num_updates = config.total_timesteps // config.steps_per_update

    def init(key):
        key, key_env = jax.random.split(key)
        q = jnp.zeros((env.num_states, env.num_actions))
        zeros = jnp.zeros(q.shape, int)
        shape = (*q.shape, config.num_outcomes)
        model = Model(
            next_obs=jnp.broadcast_to(jnp.arange(env.num_states)[:, None, None], shape),
            reward=jnp.zeros(shape),
            terminated=jnp.zeros(shape, bool),
            count=zeros,
            last_time=zeros,
            states=zeros[:, 0],
            num_states=jnp.int32(0),
        )
        return State(key, q, zeros, model, env.reset(key_env))

    def update(state, step):
        def update_q(carry, transition):
            q, visits = carry
            visited = transition.obs, transition.action
            next_value = jnp.max(q[transition.next_obs])
            reward, terminated = transition.reward, transition.terminated
            error = td_error(q[visited], reward, next_value, terminated, gamma)
            visits = visits.at[visited].add(1)
            alpha = config.learning_rate * visits[visited] ** -config.learning_rate_power
            q = q.at[visited].add(alpha * error)
            return (q, visits), (q[visited], jnp.abs(error))

        def interact(carry, inputs):
            time, key = inputs
            q, visits, model, env_state = carry
            key_action, key_env, key_planning = jax.random.split(key, 3)
            action = epsilon_greedy(key_action, q[env_state.obs[0]], config.epsilon)
            env_state, transitions = env.step(env_state, action[None], key_env)

            transition = jax.tree.map(lambda x: x[0], transitions)
            (q, visits), (value, error) = update_q((q, visits), transition)
            model = update_model(model, transition, time)

            keys = jax.random.split(key_planning, config.num_planning_steps)
            sample = jax.vmap(sample_model, (0, None, None, None, None))
            samples = sample(keys, model, time, config.kappa, config.plan_untried)
            (q, visits), _ = jax.lax.scan(update_q, (q, visits), samples)

            report = env_state.episode, value, error
            return (q, visits, model, env_state), report

        keys = jax.random.split(jax.random.fold_in(state.key, step), config.steps_per_update)
        times = step * config.steps_per_update + jnp.arange(config.steps_per_update)
        (q, visits, model, env_state), (episode, value, error) = jax.lax.scan(
            interact, (state.params, state.visits, state.model, state.env), (times, keys)
        )
        metrics = {
            **episode_metrics(episode),
            "value": value.mean(),
            "td_error": error.mean(),
        }
        return State(state.key, q, visits, model, env_state), metrics

    def act(params, obs, key):
        return jnp.argmax(params[obs])

    return Algorithm(init, update, act, num_updates, config.steps_per_update)


if __name__ == "__main__":
    main(Config, make)
