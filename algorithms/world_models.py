"""World Models: a controller evolved in the dream of a learned model.

Ha & Schmidhuber 2018, World models, https://arxiv.org/abs/1803.10122, in short Recurrent world
models facilitate policy evolution, https://arxiv.org/abs/1809.01999

    V:  max E[ln p(x | z)] - KL(q(z | x) ‖ N(0, I)) over z ~ q(z | x) = N(μ(x), σ²(x)), images x
    M:  min -ln p(z_{t+1} | h_{t+1}) with h_{t+1} = GRU(h_t, z_t, a_t)
        and p(z | h) = Π_d Σ_k π_dk N(z_d; μ_dk, σ²_dk), π, μ and σ linear in h, and r and P(end)
    C:  a_t = argmax_a W [z_t, h_t] + b, W and b by CMA-ES on the return in the dream
    τ:  the dream draws z with ln π / τ for ln π, up to a constant, and σ √τ for σ

in three stages: V learns to compress frames of random play, M to predict their codes z, rewards and
ends, and C is evolved in what M imagines from the first frames of episodes on. C sees h_t, which
does not know z_t yet. The higher the temperature τ, the less certain is the dream, and the harder
it is for C to exploit the errors of M. An episode of the dream does not end by chance: each reward
counts by the probability that it has not ended.

C is searched for by CMA-ES, Hansen 2016, The CMA evolution strategy: a tutorial,
https://arxiv.org/abs/1604.00772: sixty lines here, as evosax's takes eigenvectors, which hangs with
many seeds on a CPU. A Cholesky factor A of the covariance takes the place of its root, and the path
of σ adds up z of samples m + σ A z (Krause et al. 2016, CMA-ES with optimal covariance update and
storage complexity, NIPS).

Departs from the papers: V has one convolution or none, and its pixels are independent and 0 or 1,
not normal; M is a GRU, not an LSTM, and starts from h = 0 within an episode, too; it predicts no z
after the end of one; P(end) is learned without a weight for what is rare, but all of its loss and
that of r with one; the actions are discrete; all candidates of a generation dream with the same
random numbers; CMA-ES has no negative weights; what plays is the mean of the search, not the best
candidate, and sees μ(x) for z; the data are those of random play only. Every update plays C in the
environment, to report its return: nothing is learned from these steps.

Metrics: `value`, mean return of C in the dream (undiscounted); `dream_length`, mean steps of an
episode there; `step_size`, σ of CMA-ES; `stage`, 1 to 2 while V learns, to 3 M, to 4 C;
`reconstruction_loss`, mean of -ln p(x | z) (nats); `kl`, mean of the divergence (nats);
`code_loss`, mean of -ln p(z | h) (nats); `reward_loss`, mean squared error of r; `done_loss`, mean
of -ln P(end or not) (nats). Each is of its stage, NaN in the others.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.envs import EnvState, make_env
from common.memory import recurrent, rollout_with_memory
from common.networks import Network, make_network, mlp
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "Catch-bsuite"  # any environment with images of 0 and 1 and discrete actions
    total_timesteps: int = 16_000  # environment steps of random play, to which those of C are added
    num_envs: int = 16  # environments stepped in parallel
    num_steps: int = 18  # steps of each in an update, which show what C earns
    repeat_steps: int = 3  # mean number of steps that random play keeps an action
    num_vae_updates: int = 30  # updates of V, the first stage
    num_rnn_updates: int = 50  # updates of M, the second stage
    num_generations: int = 60  # updates of C, the third stage
    gradient_steps: int = 100  # of V or M in an update
    batch_size: int = 32  # frames in a gradient step of V, sequences in one of M
    sequence_size: int = 10  # steps of a sequence
    learning_rate: float = 3e-3  # of Adam
    max_grad_norm: float = 1.0  # global norm that gradients are clipped to
    hidden_sizes: tuple[int, ...] = (64,)  # units of each hidden layer of V's encoder, and decoder
    code_size: int = 8  # numbers of z, D
    kl_tolerance: float = 1.0  # nats of KL that each number of z has for free
    memory_size: int = 64  # units of h
    num_mixtures: int = 5  # normal distributions in the mixture of each number of z, K
    head_coef: float = 10.0  # weight of the losses of r and P(end)
    controller: Literal["zh", "z"] = "zh"  # what C sees: z is V without M
    temperature: float = 1.0  # τ
    num_samples: int = 32  # candidates of a generation
    num_dreams: int = 32  # dreams of each candidate
    horizon: int = 20  # steps of a dream
    init_std: float = 0.5  # σ of CMA-ES at first

    def __post_init__(self):
        require(
            self,
            "total_timesteps >= num_envs * (sequence_size + 1)",
            "num_samples >= 4",
            "kl_tolerance >= 0",
        )


METRICS = ["value", "dream_length", "step_size", "reconstruction_loss", "kl", "code_loss"]
METRICS += ["reward_loss", "done_loss"]  # not of every stage


class Params(NamedTuple):
    vae: Any  # V: encoder and decoder
    rnn: Any  # M
    controller: jax.Array  # C: W and b of each action [A (F + 1)], the mean m of the search


class Data(NamedTuple):
    """Random play: T steps of each of N environments."""

    obs: jax.Array  # [N, T, ...]
    action: jax.Array
    reward: jax.Array
    terminated: jax.Array
    done: jax.Array  # terminated or truncated


class Search(NamedTuple):
    """CMA-ES, but for its mean."""

    step_size: jax.Array  # σ
    covariance: jax.Array  # C [n, n]
    path: jax.Array  # p_c [n]
    step_path: jax.Array  # p_σ [n]


class State(NamedTuple):
    key: jax.Array
    params: Params
    vae_opt_state: optax.OptState
    rnn_opt_state: optax.OptState
    search: Search
    data: Data
    env: EnvState
    memory: jax.Array  # h [N, H] before the next step


class Prediction(NamedTuple):
    """What M expects of a step."""

    logits: jax.Array  # [..., K, D] ln π, up to a constant
    mean: jax.Array  # [..., K, D] μ
    log_std: jax.Array  # [..., K, D] ln σ
    reward: jax.Array  # [...] r
    done: jax.Array  # [...] logit of P(end)


def reconstruction_loss(logits, image) -> jax.Array:
    """-ln p(x | z), pixels x in [0, 1] with P(x = 1) = sigmoid(logits)."""
    return jnp.sum(jax.nn.softplus(logits) - image * logits)


def kl_divergence(mean, log_var) -> jax.Array:
    """KL(N(μ, σ²) ‖ N(0, 1)) = ½ Σ_d μ² + σ² - 1 - ln σ²."""
    return 0.5 * jnp.sum(jnp.square(mean) + jnp.exp(log_var) - 1 - log_var)


def sample_normal(key, mean, log_var) -> jax.Array:
    """z = μ + σ ε with ε ~ N(0, I)."""
    return mean + jnp.exp(log_var / 2) * jax.random.normal(key, mean.shape)


def done_loss(logit, terminated) -> jax.Array:
    """-ln P(end) where the episode ended, else -ln (1 - P(end))."""
    return jax.nn.softplus(jnp.where(terminated, -logit, logit))


def code_loss(prediction: Prediction, code) -> jax.Array:
    """-ln p(z | h) = -Σ_d ln Σ_k π_dk N(z_d; μ_dk, σ²_dk), for z [D]."""
    z = (code - prediction.mean) * jnp.exp(-prediction.log_std)
    log_density = -0.5 * jnp.square(z) - prediction.log_std - 0.5 * math.log(2 * math.pi)
    log_weights = jax.nn.log_softmax(prediction.logits, axis=-2)
    return -jnp.sum(jax.nn.logsumexp(log_weights + log_density, axis=-2))


def sample_code(key, prediction: Prediction, temperature) -> jax.Array:
    """Draw z [D] with ln π / τ and σ √τ."""
    key_mixture, key_noise = jax.random.split(key)
    k = jax.random.categorical(key_mixture, prediction.logits / temperature, axis=-2)
    chosen = lambda x: jnp.take_along_axis(x, k[None], axis=-2)[0]
    noise = jnp.sqrt(temperature) * jax.random.normal(key_noise, k.shape)
    return chosen(prediction.mean) + jnp.exp(chosen(prediction.log_std)) * noise


def linear_action(weights, features) -> jax.Array:
    """argmax_a W [z, h] + b for features [..., F]; a row of `weights` is (W, b) of an action."""
    weights = weights.reshape(-1, features.shape[-1] + 1)
    return jnp.argmax(features @ weights[:, :-1].T + weights[:, -1], axis=-1).astype(jnp.int32)


def dream(model, code, memory, key, temperature, num_steps) -> tuple[jax.Array, jax.Array]:
    """Return and length of an episode from z and h on, means over when it ends.

    `model` is `predict(z, h, a) -> Prediction, h'` and `control(z, h) -> a`.
    """
    predict, control = model

    def step(carry, t):
        code, memory, alive = carry
        prediction, next_memory = predict(code, memory, control(code, memory))
        next_code = sample_code(jax.random.fold_in(key, t), prediction, temperature)
        still_alive = alive * jax.nn.sigmoid(-prediction.done)
        return (next_code, next_memory, still_alive), (alive * prediction.reward, alive)

    start = code, memory, jnp.ones(())
    _, (rewards, lengths) = jax.lax.scan(step, start, jnp.arange(num_steps))
    return rewards.sum(), lengths.sum()


def cholesky(matrix) -> jax.Array:
    """The lower triangular A [n, n] with A Aᵀ = matrix, column by column."""

    def column(a, j):
        rest = matrix[:, j] - a @ a[j]
        rest = jnp.where(jnp.arange(len(matrix)) >= j, rest, 0)
        return a.at[:, j].set(rest / jnp.sqrt(rest[j])), None

    return jax.lax.scan(column, jnp.zeros_like(matrix), jnp.arange(len(matrix)))[0]


def evolve(mean, search: Search, noise, steps, fitness, generation) -> tuple[jax.Array, Search]:
    """m and the rest of CMA-ES after a generation of m + σ y, y = A z: `steps` y and `noise` z
    [λ, n], and their fitness [λ] (Hansen 2016, appendix A, with p_σ of Krause et al.)."""
    num, n = noise.shape
    weights = jnp.maximum(math.log((num + 1) / 2) - jnp.log(1.0 + jnp.arange(num)), 0)
    weights /= weights.sum()
    mass = 1 / jnp.sum(jnp.square(weights))  # μ_eff
    c_sigma = (mass + 2) / (n + mass + 5)
    damping = 1 + 2 * jnp.maximum(jnp.sqrt((mass - 1) / (n + 1)) - 1, 0) + c_sigma
    c_c = (4 + mass / n) / (n + 4 + 2 * mass / n)
    c_1 = 2 / ((n + 1.3) ** 2 + mass)
    c_mu = jnp.minimum(2 * (0.25 + mass - 2 + 1 / mass) / ((n + 2) ** 2 + mass), 1 - c_1)
    usual_length = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))  # E‖N(0, I)‖

    order = jnp.argsort(-fitness)
    y, z = steps[order], noise[order]
    push = jnp.sqrt(c_sigma * (2 - c_sigma) * mass)
    step_path = (1 - c_sigma) * search.step_path + push * (weights @ z)
    length = jnp.linalg.norm(step_path) / usual_length
    settled = 1 - (1 - c_sigma) ** (2 * (generation + 1))
    is_short = length / jnp.sqrt(settled) < 1.4 + 2 / (n + 1)  # h_σ
    push = is_short * jnp.sqrt(c_c * (2 - c_c) * mass)
    path = (1 - c_c) * search.path + push * (weights @ y)
    kept = 1 - c_1 - c_mu + (1 - is_short) * c_1 * c_c * (2 - c_c)
    ranks = c_1 * jnp.outer(path, path) + c_mu * (y.T * weights) @ y
    step_size = search.step_size * jnp.exp(c_sigma / damping * (length - 1))
    mean += search.step_size * (weights @ y)
    return mean, Search(step_size, kept * search.covariance + ranks, path, step_path)


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, config.num_envs, actions="discrete")
    if len(env.obs_shape) < 2:
        raise ValueError(f"{config.env_id} has no images; this algorithm needs them, to compress")
    num_codes, num_pixels = config.code_size, math.prod(env.obs_shape)
    num_features = num_codes + (config.memory_size if config.controller == "zh" else 0)
    num_weights = env.num_actions * (num_features + 1)
    encoder = make_network(env, config.hidden_sizes, 2 * num_codes)
    decoder = mlp([num_codes, *reversed(config.hidden_sizes), num_pixels])
    identity = Network(lambda key: (), lambda params, x: x)
    heads = mlp([config.memory_size, 3 * config.num_mixtures * num_codes + 2])
    rnn = recurrent(identity, num_codes + env.num_actions, config.memory_size, heads)
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm), optax.adam(config.learning_rate)
    )
    first_generation = config.num_vae_updates + config.num_rnn_updates
    num_updates = first_generation + config.num_generations
    bounds = jnp.array([0, config.num_vae_updates, first_generation, num_updates])  # of the stages
    num_steps = config.total_timesteps // config.num_envs
    nothing = dict.fromkeys(METRICS, jnp.full((), jnp.nan))

    def encode(vae, obs):
        """Return μ and ln σ² [..., D] of q(z | x)."""
        return jnp.split(encoder.apply(vae[0], obs), 2, axis=-1)

    def rnn_inputs(code, action):
        return jnp.concatenate([code, jax.nn.one_hot(action, env.num_actions)], axis=-1)

    def as_prediction(outputs) -> Prediction:
        shape = *outputs.shape[:-1], config.num_mixtures, num_codes
        logits, mean, log_std = (x.reshape(shape) for x in jnp.split(outputs[..., 2:], 3, axis=-1))
        log_std = jax.nn.softplus(log_std + 5) - 5  # or the density of what is certain is infinite
        return Prediction(logits, mean, log_std, outputs[..., 0], outputs[..., 1])

    def predict(rnn_params, code, memory, action):
        outputs, memory = rnn.apply(rnn_params, memory, rnn_inputs(code, action))
        return as_prediction(outputs), memory

    def control(weights, code, memory):
        seen = jnp.concatenate([code, memory], axis=-1)[..., :num_features]
        return linear_action(weights, seen)

    def act(params, memory, obs, key):
        code, _ = encode(params.vae, obs)
        action = control(params.controller, code, memory)
        return action, predict(params.rnn, code, memory, action)[1]

    def init(key):
        key, key_vae, key_rnn, key_env, key_first, key_play = jax.random.split(key, 6)
        draw = lambda key: jax.random.randint(key, (env.num_envs,), 0, env.num_actions, jnp.int32)

        def random_policy(last, obs, key):
            key_action, key_new = jax.random.split(key)
            is_new = jax.random.uniform(key_new, last.shape) < 1 / config.repeat_steps
            action = jnp.where(is_new, draw(key_action), last)
            return action, action

        states = env.reset(key_env), draw(key_first)
        (env_state, _), t, _, _ = rollout_with_memory(
            env, random_policy, states, jnp.int32(0), key_play, num_steps
        )
        data = Data(t.obs, t.action, t.reward, t.terminated, t.terminated | t.truncated)
        key_encoder, key_decoder = jax.random.split(key_vae)
        vae, rnn_params = (encoder.init(key_encoder), decoder.init(key_decoder)), rnn.init(key_rnn)
        zeros = jnp.zeros(num_weights)
        return State(
            key=key,
            params=Params(vae, rnn_params, zeros),
            vae_opt_state=optimizer.init(vae),
            rnn_opt_state=optimizer.init(rnn_params),
            search=Search(zeros[0] + config.init_std, jnp.eye(num_weights), zeros, zeros),
            data=jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), data),
            env=env_state,
            memory=jnp.zeros((env.num_envs, config.memory_size)),
        )

    def draw_rows(key, length):
        """Draw the indices [B, L] of `length` steps in a row, along both axes of Data."""
        key_env, key_start = jax.random.split(key)
        shape = config.batch_size, 1
        start = jax.random.randint(key_start, shape, 0, num_steps - length + 1)
        n = jax.random.randint(key_env, shape, 0, env.num_envs)
        return jnp.broadcast_to(n, (len(n), length)), start + jnp.arange(length)

    def descend(loss, params, opt_state, key):
        """Take gradient steps on `loss(params, key) -> loss, metrics`."""

        def step(carry, key):
            params, opt_state = carry
            grads, metrics = jax.grad(loss, has_aux=True)(params, key)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), metrics

        keys = jax.random.split(key, config.gradient_steps)
        (params, opt_state), metrics = jax.lax.scan(step, (params, opt_state), keys)
        return params, opt_state, nothing | {name: x.mean() for name, x in metrics.items()}

    def learn_to_see(state, step, key):
        def loss(vae, key):
            key_rows, key_noise = jax.random.split(key)
            images = state.data.obs[draw_rows(key_rows, 1)][:, 0]
            mean, log_var = encode(vae, images)
            code = sample_normal(key_noise, mean, log_var)
            pixels = images.reshape(len(images), -1).astype(code.dtype)
            error = jax.vmap(reconstruction_loss)(decoder.apply(vae[1], code), pixels)
            kl = jax.vmap(kl_divergence)(mean, log_var)
            total = error + jnp.maximum(kl, config.kl_tolerance * num_codes)
            return total.mean(), {"reconstruction_loss": error.mean(), "kl": kl.mean()}

        vae, opt_state, metrics = descend(loss, state.params.vae, state.vae_opt_state, key)
        params = state.params._replace(vae=vae)
        return state._replace(params=params, vae_opt_state=opt_state), metrics

    def learn_to_predict(state, step, key):
        data = state.data
        means, log_vars = jax.lax.map(lambda obs: encode(state.params.vae, obs), data.obs)

        def loss(rnn_params, key):
            key_rows, key_noise = jax.random.split(key)
            rows = jax.tree.map(jnp.transpose, draw_rows(key_rows, config.sequence_size + 1))
            code = sample_normal(key_noise, means[rows], log_vars[rows])  # [L + 1, B, D]
            taken = jax.tree.map(lambda x: x[rows][:-1], data._replace(obs=means))
            memory = jnp.zeros((config.batch_size, config.memory_size))
            inputs = rnn_inputs(code[:-1], taken.action)
            outputs, _, _ = rnn.unroll(rnn_params, memory, inputs, taken.done)
            prediction = as_prediction(outputs)
            nll = jax.vmap(jax.vmap(code_loss))(prediction, code[1:])
            metrics = {
                "code_loss": jnp.mean(nll, where=~taken.done),
                "reward_loss": jnp.square(prediction.reward - taken.reward).mean(),
                "done_loss": done_loss(prediction.done, taken.terminated).mean(),
            }
            heads = metrics["reward_loss"] + metrics["done_loss"]
            return metrics["code_loss"] + config.head_coef * heads, metrics

        rnn_params, opt_state, metrics = descend(loss, state.params.rnn, state.rnn_opt_state, key)
        params = state.params._replace(rnn=rnn_params)
        return state._replace(params=params, rnn_opt_state=opt_state), metrics

    def evolve_in_the_dream(state, step, key):
        data, params, search = state.data, state.params, state.search
        key_noise, key_start, key_dream = jax.random.split(key, 3)
        is_first = jnp.roll(data.done, 1, axis=1).at[:, 0].set(True)
        p = is_first.ravel() / is_first.sum()
        first = jax.random.choice(key_start, len(p), (config.num_dreams,), p=p)
        codes, _ = encode(params.vae, data.obs.reshape(-1, *env.obs_shape)[first])
        keys = jax.random.split(key_dream, config.num_dreams)

        def dreams(weights):
            """Return the mean return and length of episodes."""
            model = partial(predict, params.rnn), partial(control, weights)
            one = lambda code, key: dream(
                model, code, rnn.init_memory(), key, config.temperature, config.horizon
            )
            return jax.tree.map(jnp.mean, jax.vmap(one)(codes, keys))

        noise = jax.random.normal(key_noise, (config.num_samples, num_weights))
        steps = noise @ cholesky(search.covariance).T
        candidates = params.controller + search.step_size * steps
        fitness, _ = jax.vmap(dreams)(candidates)
        generation = step - first_generation
        mean, search = evolve(params.controller, search, noise, steps, fitness, generation)
        value, length = dreams(mean)
        found = {"value": value, "dream_length": length, "step_size": search.step_size}
        params = params._replace(controller=mean)
        return state._replace(params=params, search=search), nothing | found

    def update(state, step):
        key_learn, key_play = jax.random.split(jax.random.fold_in(state.key, step))
        stage = jnp.sum(step >= bounds[1:]).astype(jnp.int32)
        stages = [learn_to_see, learn_to_predict, evolve_in_the_dream]
        state, metrics = jax.lax.switch(stage, stages, state, step, key_learn)
        (env_state, memory), _, _, episodes = rollout_with_memory(
            env,
            partial(act, state.params),
            (state.env, state.memory),
            rnn.init_memory(),
            key_play,
            config.num_steps,
        )
        metrics |= episodes | {"stage": jnp.interp(step, bounds, 1.0 + jnp.arange(4))}
        return state._replace(env=env_state, memory=memory), metrics

    steps_per_update, initial_steps = env.num_envs * config.num_steps, env.num_envs * num_steps
    return Algorithm(
        init,
        update,
        act,
        num_updates,
        steps_per_update,
        initial_steps,
        init_memory=rnn.init_memory,
    )


if __name__ == "__main__":
    main(Config, make)
