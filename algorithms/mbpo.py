"""Model-based policy optimization (MBPO).

Differs from sac.py in its data: most transitions of a batch come from a model, an ensemble like
that of pets.py. The model starts from states in the replay memory and follows the policy for k
steps; so there are enough transitions for many gradient steps after each step of the environment.

Janner et al. 2019, When to trust your model: model-based policy optimization,
https://arxiv.org/abs/1906.08253

    every F steps     minimize Σ_n (μ_ψ(x_n) - y_n)ᵀ Σ_ψ⁻¹(x_n) (μ_ψ(x_n) - y_n) + ln det Σ_ψ(x_n)
    every step        s, a, r, s' of the environment, to D_env
    M times           s ~ D_env; k steps of a ~ π(a | s; θ), y ~ N(μ_ψ(x), Σ_ψ(x)), to D_model
    G times           one gradient step of SAC on D_model ∪ D_env                  (Algorithm 2)

for x = (s, a) and y = (s' - s, r), Σ diagonal. Each network of the ensemble is fitted to its own
bootstrap sample. The elites, those with the smallest loss on transitions that are held out, make
the rollouts: at each step one of them is drawn. When an episode terminates is not learned but known
of the environment; for one of which it is not known there is an error.

Departs from the paper: a fixed number of gradient steps in each fit, from the last parameters,
where the paper stops by the loss on held-out transitions; every n-th transition is held out for
ever; no weight decay, and Adam restarts with each fit; outputs are scaled, too; smaller networks
and batches, fewer rollouts; a rollout that has ended is followed by another from a new start, so
that there are as many transitions whatever k is; k grows linearly over the whole run.

Metrics: `value`, mean of both Q(s, a) of the actions taken (discounted return with entropy);
`loss`, squared TD errors of both critics, added, mean over the batches (return²); `temperature`, α
(reward per nat); `entropy`, mean of -ln π of actions in [-1, 1] (nats); `model_loss`, mean of the
elites' L on held-out transitions, for one transition of scaled data; `model_error`, root mean
square error of their predicted means on the new transitions (standard deviations of y).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.stats import norm

from common.algorithm import Algorithm, require
from common.buffers import uniform_buffer
from common.distributions import Normal, mode
from common.environments.terminations import make_termination
from common.envs import (
    EnvState,
    Transition,
    episode_metrics,
    make_env,
    map_actions,
    rollout,
    scale_action,
)
from common.exploration import linear_schedule, random_policy
from common.networks import Network, ensemble, make_network, make_q_network, mlp
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "Pendulum-v1"  # one whose terminations are known; vectors as observations
    total_timesteps: int = 5_000  # environment steps
    learning_rate: float = 1e-3  # of Adam, for all networks
    gamma: float = 0.98  # discount factor
    buffer_size: int = 20_000  # transitions of the environment, D_env
    batch_size: int = 128  # transitions, in each gradient step of any network
    learning_starts: int = 250  # random environment steps first
    tau: float = 0.02  # φ⁻ ← τ φ + (1 - τ) φ⁻ after each gradient step
    alpha: float = 0.1  # initial temperature; ln α changes by at most `learning_rate` an update
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer, in all networks
    updates_per_step: int = 5  # gradient steps after each environment step, G
    real_ratio: float = 0.05  # part of each batch that is from the environment; 1: no model
    steps_per_fit: int = 250  # environment steps between fits of the model, F
    gradient_steps: int = 500  # in each fit
    num_networks: int = 5  # in the ensemble
    num_elites: int = 3  # of them, that make rollouts
    holdout_frequency: int = 5  # every so many-th transition is held out, to choose elites
    num_rollouts: int = 50  # in parallel after each environment step, M
    rollout_length: int = 1  # steps, k, at first
    final_rollout_length: int = 1  # steps, k, at last
    model_buffer_size: int = 25_000  # transitions of the model, D_model, rounded up

    def __post_init__(self):
        require(
            self,
            "buffer_size >= learning_starts >= holdout_frequency >= 2",
            "total_timesteps >= learning_starts + 2 * steps_per_fit",
            "alpha > 0",
            "updates_per_step >= 1",
            "0 <= real_ratio <= 1",
            "num_elites <= num_networks",
            "rollout_length >= 1",
            "final_rollout_length >= 1",
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
    members: Member  # ψ, [E, ...]
    elites: jax.Array  # which of them, the best first [I]
    x: Scale  # of all x [X]
    y: Scale  # of all y [Y]


class State(NamedTuple):
    key: jax.Array
    params: Any  # θ
    opt_state: optax.OptState
    critic_params: Any  # φ, [2, ...]
    critic_opt_state: optax.OptState
    target_params: Any  # φ⁻, [2, ...]
    log_alpha: jax.Array
    alpha_opt_state: optax.OptState
    model: Model
    buffer: Transition  # D_env [capacity, ...], actions in [-1, 1]
    model_buffer: Transition  # D_model [capacity, ...]
    env: EnvState


def td_error(q_value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - Q(s, a), for one transition; no gradient through the target."""
    target = reward + gamma * (1 - terminated) * next_value
    return jax.lax.stop_gradient(target) - q_value


def policy_loss(q_value, log_prob, alpha) -> jax.Array:
    """α ln π(a | s; θ) - Q(s, a), for one observation."""
    return alpha * log_prob - q_value


def temperature_loss(log_alpha, log_prob, target_entropy) -> jax.Array:
    """-α (ln π(a | s) + H)."""
    return -jnp.exp(log_alpha) * (log_prob + target_entropy)


def squashed_log_prob(x, noise, log_std) -> jax.Array:
    """ln π(tanh x) = Σ [ln N(ε; 0, 1) - ln σ - ln(1 - tanh² x)], x = m + σ ε [..., A]

    with ln(1 - tanh² x) = 2 (ln 2 - x - softplus(-2x)), which is exact for any x. ε is an argument
    because (x - m) / σ has few digits where σ is small."""
    log_slope = 2 * (jnp.log(2) - x - jax.nn.softplus(-2 * x))
    return jnp.sum(norm.logpdf(noise) - log_std - log_slope, axis=-1)


def gaussian(network: Network, member: Member, x):
    """μ and log σ² [..., Y] of y for x [..., X]; softplus keeps log σ² within its bounds."""
    mean, log_var = jnp.split(network.apply(member.layers, x), 2, axis=-1)
    log_var = member.max_log_var - jax.nn.softplus(member.max_log_var - log_var)
    return mean, member.min_log_var + jax.nn.softplus(log_var - member.min_log_var)


def negative_log_likelihood(mean, log_var, y) -> jax.Array:
    """Σ_d (μ_d - y_d)² / σ_d² + log σ_d², for one transition."""
    return jnp.sum(jnp.square(mean - y) * jnp.exp(-log_var) + log_var)


def mean_and_std(x, num_rows) -> Scale:
    """Mean and standard deviation of the first rows of x [capacity, X]; 1 for constant columns."""
    is_filled = (jnp.arange(len(x)) < num_rows)[:, None]
    std = jnp.std(x, axis=0, where=is_filled)
    return Scale(jnp.mean(x, axis=0, where=is_filled), jnp.where(std < 1e-6, 1, std))


def standardize(x, scale: Scale) -> jax.Array:
    """(x - mean) / std."""
    return (x - scale.mean) / scale.std


def sample_of_one(key, mean, log_var) -> jax.Array:
    """y ~ N(μ_i, σ_i²), i uniform, of predictions [I, Y] for one transition."""
    key_network, key_noise = jax.random.split(key)
    i = jax.random.randint(key_network, (), 0, len(mean))
    return mean[i] + jnp.exp(log_var[i] / 2) * jax.random.normal(key_noise, mean.shape[1:])


def branched_rollouts(imagine, key, starts, length) -> Transition:
    """Transitions [T, M] of rollouts of `length` steps by `imagine(obs [M, D], key) -> Transition`.

    One that terminates is over, and one that is cut after `length` steps is truncated; step t + 1
    then begins another one at starts[t + 1] [M, D].
    """

    def step(carry, inputs):
        obs, age = carry
        start, key = inputs
        transition = imagine(jnp.where((age == 0)[:, None], start, obs), key)
        truncated = age + 1 >= length
        age = jnp.where(transition.terminated | truncated, 0, age + 1)
        return (transition.next_obs, age), transition._replace(truncated=truncated)

    age = jnp.zeros(starts.shape[1], jnp.int32)
    keys = jax.random.split(key, len(starts))
    return jax.lax.scan(step, (starts[0], age), (starts, keys))[1]


def mixed_batch(real, imagined, real_ratio) -> Transition:
    """The first rows of `real`, a part `real_ratio` of them, and then rows of `imagined`."""

    def mix(x, y):
        is_real = jnp.arange(len(x)) < real_ratio * len(x)
        return jnp.where(is_real.reshape(-1, *[1] * (x.ndim - 1)), x, y)

    return jax.tree.map(mix, real, imagined)


def make(config: Config) -> Algorithm:
    env = map_actions(make_env(config.env_id, 1, actions="continuous"), scale_action)
    if len(env.obs_shape) != 1 or len(env.action_shape) != 1:
        raise ValueError(f"{config.env_id}: observations and actions must be vectors")
    terminates = make_termination(config.env_id)
    (obs_size,), (num_actions,) = env.obs_shape, env.action_shape
    x_size, y_size = obs_size + num_actions, obs_size + 1
    actor = make_network(env, config.hidden_sizes, 2 * num_actions)
    critics = ensemble(make_q_network(env, config.hidden_sizes), 2)
    network = mlp([x_size, *config.hidden_sizes, 2 * y_size], jax.nn.swish)
    predict = partial(gaussian, network)
    optimizer = optax.adam(config.learning_rate)
    steps_per_update, initial_steps = config.steps_per_fit, config.learning_starts
    num_updates = (config.total_timesteps - initial_steps) // steps_per_update
    buffer = uniform_buffer(config.buffer_size, 1, config.batch_size)
    rollout_steps = max(config.rollout_length, config.final_rollout_length)
    num_imagined = rollout_steps * config.num_rollouts  # transitions after each environment step
    model_buffer = uniform_buffer(config.model_buffer_size, num_imagined, config.batch_size)
    starts = uniform_buffer(config.buffer_size, 1, num_imagined)

    def gaussian_policy(params, obs):
        mean, log_std = jnp.split(actor.apply(params, obs), 2, axis=-1)
        return mean, jnp.clip(log_std, -20, 2)

    def policy(params, obs, noise):
        mean, log_std = gaussian_policy(params, obs)
        x = mean + jnp.exp(log_std) * noise
        return jnp.tanh(x), squashed_log_prob(x, noise, log_std)

    def critic_loss(critic_params, target_params, params, alpha, batch, noise):
        def error(transition, noise):
            q_value = critics.apply(critic_params, transition.obs, transition.action)  # [2]
            next_action, next_log_prob = policy(params, transition.next_obs, noise)
            next_q_value = critics.apply(target_params, transition.next_obs, next_action)
            next_value = jnp.min(next_q_value) - alpha * next_log_prob
            reward, terminated = transition.reward, transition.terminated
            return td_error(q_value, reward, next_value, terminated, config.gamma)

        return jnp.mean(jnp.square(jax.vmap(error)(batch, noise)).sum(-1))

    def actor_loss(params, critic_params, alpha, batch, noise):
        def loss(obs, noise):
            action, log_prob = policy(params, obs, noise)
            q_value = jnp.min(critics.apply(critic_params, obs, action))
            return policy_loss(q_value, log_prob, alpha), log_prob

        losses, log_prob = jax.vmap(loss)(batch.obs, noise)
        return jnp.mean(losses), jnp.mean(log_prob)

    def model_loss(member, x, y):
        return jax.vmap(negative_log_likelihood)(*predict(member, x), y)

    def data_of(transitions):
        """Return x and y of transitions [T, ...]."""
        change = transitions.next_obs - transitions.obs
        return (
            jnp.concatenate([transitions.obs, transitions.action], axis=-1),
            jnp.concatenate([change, transitions.reward[:, None]], axis=-1),
        )

    def fit(key, members, transitions, num_rows):
        """Return the Model of the first rows of the transitions, and the elites' held-out loss."""
        x, y = data_of(transitions)
        scale_x, scale_y = mean_and_std(x, num_rows), mean_and_std(y, num_rows)
        x, y = standardize(x, scale_x), standardize(y, scale_y)
        every = config.holdout_frequency
        num_train = num_rows - 1 - (num_rows - 1) // every  # all but rows 0, n, 2n, ...
        key_sample, key_steps = jax.random.split(key)
        bootstrap = jax.random.randint(key_sample, (config.num_networks, len(x)), 0, num_train)

        def loss(member, x, y):
            width = jnp.sum(member.max_log_var - member.min_log_var)
            return model_loss(member, x, y).mean() + 0.01 * width

        def step(carry, key):
            members, opt_state = carry
            shape = config.num_networks, config.batch_size
            columns = jax.random.randint(key, shape, 0, num_train)
            rows = jnp.take_along_axis(bootstrap, columns, axis=1)
            rows += 1 + rows // (every - 1)
            grads = jax.vmap(jax.grad(loss))(members, x[rows], y[rows])
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(members, updates), opt_state), None

        keys = jax.random.split(key_steps, config.gradient_steps)
        (members, _), _ = jax.lax.scan(step, (members, optimizer.init(members)), keys)
        held_out = jax.vmap(model_loss, (0, None, None))(members, x[::every], y[::every])
        is_filled = jnp.arange(0, len(x), every) < num_rows
        losses = jnp.mean(held_out, axis=1, where=is_filled)
        elites = jnp.argsort(losses)[: config.num_elites]
        return Model(members, elites, scale_x, scale_y), losses[elites].mean()

    def predict_by_elites(model, x):
        """Return μ and log σ² [I, B, Y] of scaled y for x [B, X]."""
        elites = jax.tree.map(lambda x: x[model.elites], model.members)
        return jax.vmap(predict, (0, None))(elites, standardize(x, model.x))

    def imagine(params, model, obs, key):
        """Return Transitions [M] of the policy's actions in the model."""
        key_policy, key_model = jax.random.split(key)
        noise = jax.random.normal(key_policy, (len(obs), num_actions))
        action, _ = policy(params, obs, noise)
        mean, log_var = predict_by_elites(model, jnp.concatenate([obs, action], axis=-1))
        keys = jax.random.split(key_model, len(obs))
        y = jax.vmap(sample_of_one, (0, 1, 1))(keys, mean, log_var)
        y = model.y.mean + model.y.std * y
        next_obs, reward = obs + y[:, :-1], y[:, -1]
        terminated = jax.vmap(terminates)(next_obs)
        return Transition(obs, action, reward, next_obs, terminated, jnp.zeros_like(terminated))

    def init(key):
        key, key_actor, key_critic, key_env, key_warmup, key_model = jax.random.split(key, 6)
        params, critic_params = actor.init(key_actor), critics.init(key_critic)
        log_alpha = jnp.log(jnp.asarray(config.alpha, float))
        env_state, transitions, _ = rollout(
            env, random_policy(env), env.reset(key_env), key_warmup, initial_steps
        )
        ones = jnp.ones((config.num_networks, y_size))
        members = Member(
            layers=ensemble(network, config.num_networks).init(key_model),
            min_log_var=-10 * ones,
            max_log_var=0.5 * ones,
        )
        scale_x, scale_y = (Scale(jnp.zeros(size), jnp.ones(size)) for size in (x_size, y_size))
        return State(
            key=key,
            params=params,
            opt_state=optimizer.init(params),
            critic_params=critic_params,
            critic_opt_state=optimizer.init(critic_params),
            target_params=jax.tree.map(jnp.copy, critic_params),
            log_alpha=log_alpha,
            alpha_opt_state=optimizer.init(log_alpha),
            model=Model(members, jnp.arange(config.num_elites), scale_x, scale_y),
            buffer=buffer.init(transitions),
            model_buffer=model_buffer.init(jax.tree.map(lambda x: x[:0], transitions)),
            env=env_state,
        )

    def learn(state, batch, key):
        """Take a gradient step of SAC; return the State, and loss and entropy."""
        policy_noise, next_noise = jax.random.normal(key, (2, *batch.action.shape))
        alpha = jnp.exp(state.log_alpha)

        loss_value, grads = jax.value_and_grad(critic_loss)(
            state.critic_params, state.target_params, state.params, alpha, batch, next_noise
        )
        updates, critic_opt_state = optimizer.update(grads, state.critic_opt_state)
        critic_params = optax.apply_updates(state.critic_params, updates)

        grads, log_prob = jax.grad(actor_loss, has_aux=True)(
            state.params, critic_params, alpha, batch, policy_noise
        )
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)

        grads = jax.grad(temperature_loss)(state.log_alpha, log_prob, -num_actions)
        updates, alpha_opt_state = optimizer.update(grads, state.alpha_opt_state)
        log_alpha = optax.apply_updates(state.log_alpha, updates)

        target_params = optax.incremental_update(critic_params, state.target_params, config.tau)
        return state._replace(
            params=params,
            opt_state=opt_state,
            critic_params=critic_params,
            critic_opt_state=critic_opt_state,
            target_params=target_params,
            log_alpha=log_alpha,
            alpha_opt_state=alpha_opt_state,
        ), {"loss": loss_value, "temperature": alpha, "entropy": -log_prob}

    def update(state, step):
        key_fit, key_steps = jax.random.split(jax.random.fold_in(state.key, step))
        first = step * steps_per_update
        num_rows = jnp.minimum(initial_steps + first, config.buffer_size)
        model, held_out_loss = fit(key_fit, state.model.members, state.buffer, num_rows)
        lengths = config.rollout_length, config.final_rollout_length
        length = linear_schedule(step, *lengths, num_updates - 1).astype(int)

        def environment_step(state, t):
            num_keys = 4 + 3 * config.updates_per_step
            keys = jax.random.split(jax.random.fold_in(key_steps, t), num_keys)
            key_noise, key_rollout = keys[:2]
            key_starts, key_imagine = keys[-2:]
            noise = jax.random.normal(key_noise, (1, num_actions))

            def behaviour_policy(obs, key):
                return policy(state.params, obs, noise)[0]

            env_state, transitions, _ = rollout(env, behaviour_policy, state.env, key_rollout, 1)
            value = critics.apply(state.critic_params, transitions.obs, transitions.action).mean()
            buffer_state = buffer.add(state.buffer, transitions, initial_steps + first + t)
            num_real = initial_steps + first + t + 1
            start = starts.sample(buffer_state, key_starts, num_real).obs
            imagined = branched_rollouts(
                partial(imagine, state.params, model),
                key_imagine,
                start.reshape(rollout_steps, config.num_rollouts, obs_size),
                length,
            )
            state = state._replace(
                buffer=buffer_state,
                model_buffer=model_buffer.add(state.model_buffer, imagined, first + t),
                env=env_state,
            )

            def gradient_step(state, keys):
                key_sample, key_policy, key_model = keys
                real = buffer.sample(state.buffer, key_sample, num_real)
                imagined = model_buffer.sample(state.model_buffer, key_model, first + t + 1)
                batch = mixed_batch(real, imagined, config.real_ratio)
                return learn(state, batch, key_policy)

            keys = keys[2:-2].reshape(config.updates_per_step, 3)
            state, metrics = jax.lax.scan(gradient_step, state, keys)
            return state, (transitions, env_state.episode, metrics | {"value": value})

        state, (transitions, episode, metrics) = jax.lax.scan(
            environment_step, state._replace(model=model), jnp.arange(steps_per_update)
        )
        x, y = data_of(jax.tree.map(lambda x: x[:, 0], transitions))
        error = predict_by_elites(model, x)[0].mean(0) - standardize(y, model.y)
        metrics = episode_metrics(episode) | jax.tree.map(jnp.mean, metrics)
        metrics |= {"model_loss": held_out_loss, "model_error": jnp.sqrt(jnp.mean(error**2))}
        return state, metrics

    def act(params, obs, key, choose=mode):
        x = choose(Normal(*gaussian_policy(params, obs)))
        return scale_action(env, jnp.tanh(x))

    return Algorithm(init, update, act, num_updates, steps_per_update, initial_steps)


if __name__ == "__main__":
    main(Config, make)
