# %% [markdown]
# # 64 seeds, and a sweep, from Python
#
# An `Algorithm` is three pure functions, so JAX's own transformations do the rest: `vmap` over keys
# trains many seeds in one program, and `vmap` over a float of `Config` sweeps it. Run this from the
# root of the repository. On two CPU cores it takes a few minutes.

# %%
from dataclasses import replace

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from algorithms.dqn import Config, make
from common.run import train
from common.runner.statistics import bands, summarize

NUM_SEEDS, NUM_STEPS = 64, 30_000

# %% [markdown]
# `train` returns the final states and the metrics of every update, `[seeds, updates]`. NaN means
# that no episode ended in an update, so the means over 25 parts of the training leave it out.
# `bands` gives the interquartile mean over seeds and its 95 % bootstrap interval.

# %%
config = Config(total_timesteps=NUM_STEPS)
states, metrics = train(config, make, NUM_SEEDS)
parts = np.array_split(metrics["episode_return"], 25, axis=1)
curves = np.stack([jnp.nanmean(x, axis=1) for x in parts], axis=1)
line, low, high = bands(curves)

# %%
steps = np.linspace(0, NUM_STEPS, 26)[1:]
plt.figure()
plt.plot(steps, line)
plt.fill_between(steps, low, high, alpha=0.3)
plt.xlabel("environment steps per seed")
plt.ylabel(f"return, IQM over {NUM_SEEDS} seeds")
plt.savefig("notebook-seeds.png")


# %% [markdown]
# A sweep: learning rates times seeds in one compiled program. The score is the mean return over the
# last tenth of training.


# %%
def score(learning_rate, key):
    algorithm = make(replace(config, learning_rate=learning_rate))
    updates = jnp.arange(algorithm.num_updates)
    _, metrics = jax.lax.scan(algorithm.update, algorithm.init(key), updates)
    return jnp.nanmean(metrics["episode_return"][-(algorithm.num_updates // 10) :])


learning_rates = jnp.array([1e-4, 3e-4, 1e-3, 3e-3])
keys = jax.vmap(jax.random.key)(1_000 + jnp.arange(NUM_SEEDS // 4))
scores = jax.jit(jax.vmap(jax.vmap(score, (None, 0)), (0, None)))(learning_rates, keys)
for learning_rate, row in zip(learning_rates, scores, strict=True):
    print(f"{learning_rate:.0e}", summarize(row))

# %% [markdown]
# `states.params` are the trained policies, `[seeds, ...]`. `act` is that of one seed, for one
# observation.

# %%
act = make(config).act
best = jax.tree.map(lambda x: x[int(np.argmax(curves[:, -1]))], states.params)
print(act(best, jnp.array([0.01, -0.02, 0.03, 0.04]), jax.random.key(0)))
