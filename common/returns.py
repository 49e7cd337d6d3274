"""Returns and advantages of one trajectory [T]; vmap does the batch."""

import jax
import jax.numpy as jnp


def gae(
    td_error: jax.Array, done: jax.Array, gamma: float, gae_lambda: float | jax.Array
) -> jax.Array:
    """A_t = δ_t + γ λ (1 - done_t) A_{t+1}, from the TD errors δ [T]; [T].

    Generalized advantage estimation, Schulman et al. 2016, eq. 16, https://arxiv.org/abs/1506.02438.
    `done` is terminated | truncated. λ = 0 is the TD error, λ = 1 the return minus the value.
    """
    decay = gamma * gae_lambda * (1 - done)

    def step(advantage, inputs):
        error, decay = inputs
        advantage = error + decay * advantage
        return advantage, advantage

    return jax.lax.scan(step, 0 * td_error[-1], (td_error, decay), reverse=True, unroll=8)[1]


def retrace(
    q_value: jax.Array, td_error: jax.Array, done: jax.Array, trace: jax.Array, gamma: float
) -> jax.Array:
    """Q_t + Σ_{s≥t} γ^(s-t) (Π_{t<i≤s} c_i) δ_s, cut where an episode is done, from Q, δ and the
    traces c [T]; [T].

    Retrace(λ), Munos et al. 2016, eq. 3 and 4, https://arxiv.org/abs/1606.02647. δ is
    r + γ (1 - d) E_π[Q(s', ·)] - Q(s, a), and c = λ min(1, π(a | s) / μ(a | s)).
    """
    next_trace = jnp.append(trace[1:], 0)
    return q_value + gae(td_error, done, gamma, next_trace)


def vtrace(
    value: jax.Array, td_error: jax.Array, done: jax.Array, trace: jax.Array, gamma: float
) -> jax.Array:
    """v_t = V_t + Σ_{s≥t} γ^(s-t) (Π_{t≤i<s} c_i) ρ_s δ_s, cut where an episode is done, from V,
    the weighted TD errors ρ δ and the traces c [T]; [T].

    V-trace, Espeholt et al. 2018, eq. 1, https://arxiv.org/abs/1802.01561. δ is
    r + γ (1 - d) V(s') - V(s), ρ = min(ρ̄, π(a | s) / μ(a | s)), c = λ min(c̄, π(a | s) / μ(a | s)).
    """
    return value + gae(td_error, done, gamma, trace)
