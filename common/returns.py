"""Returns and advantages of one trajectory [T]; vmap does the batch.

Every recursion is cut where an episode ends, `terminated | truncated`. The value of `next_obs`, the
observation before any reset, is added unless the MDP ended, `terminated`.
"""

import jax


def gae(reward, value, next_value, terminated, truncated, gamma, gae_lambda) -> jax.Array:
    """A_t = δ_t + γ λ (1 - cut_t) A_{t+1}, δ_t = r_t + γ (1 - d_t) V(s'_t) - V(s_t); all [T].

    Generalized advantage estimation, Schulman et al. 2016, eq. 16, https://arxiv.org/abs/1506.02438.
    λ = 0 is the one-step TD error, λ = 1 the discounted return less the value.
    """
    delta = reward + gamma * (1 - terminated) * next_value - value
    decay = gamma * gae_lambda * (1 - (terminated | truncated))

    def step(advantage, now):
        delta, decay = now
        advantage = delta + decay * advantage
        return advantage, advantage

    _, advantages = jax.lax.scan(step, 0 * delta[-1], (delta, decay), reverse=True, unroll=8)
    return advantages
