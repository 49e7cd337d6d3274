"""Returns and advantages of one trajectory [T]; vmap does the batch."""

import jax


def gae(td_error: jax.Array, done: jax.Array, gamma: float, gae_lambda: float) -> jax.Array:
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
