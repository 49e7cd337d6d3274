"""Plant bugs that tests must find: `python -m benchmarks.mutants [NAME ...]` (half an hour).

Each of MUTANTS is a bug that was really made somewhere. It replaces one text in one file of a copy
of the tree, in which the mapped tests must then fail; without any bug they must pass. The table is
results/mutants.csv; a bug that survives is a test that is missing, and the exit code is 1.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.learning import RESULTS, ROOT, table

COLUMNS = ["mutant", "file", "old", "new", "tests", "keyword", "result", "seconds"]


class Mutant(NamedTuple):
    """A bug, and the tests that must fail: a file, and the -k that selects them."""

    name: str
    file: str
    old: str
    new: str
    tests: str
    keyword: str


def algorithm(name, file, old, new, keyword):
    return Mutant(name, f"algorithms/{file}.py", old, new, f"tests/test_{file}.py", keyword)


def common(name, file, old, new, keyword, tests=None):
    room, _, stem = file.rpartition("/")
    tests = tests or f"{room or 'common'}/test_{stem}"
    return Mutant(name, f"common/{file}.py", old, new, f"tests/{tests}.py", keyword)


COPY = "target_params=jax.tree.map(jnp.copy, critic_params)"
MUTANTS = [
    # Ends of episodes.
    algorithm(
        *("a time limit ends the MDP", "dqn"),
        "reward, terminated = transition.reward, transition.terminated",
        "reward, terminated = transition.reward, transition.terminated | transition.truncated",
        "update_descends",
    ),
    common(
        *("observation after the reset as next_obs", "environments/gymnax_envs"),
        'next_obs = encode(info["final_observation"])',
        "next_obs = encode(obs)",
        "next_obs",
        "common/test_envs",
    ),
    common(
        *("the limit only truncates where observations tell the time", "environments/gymnax_envs"),
        "terminated |= truncated & (env_id in TIMED)",
        "terminated |= truncated & (env_id in {})",
        "tell_the_time",
    ),
    algorithm(
        *("trace not cut at truncation", "a2c"),
        "done = transitions.terminated | transitions.truncated",
        "done = transitions.terminated",
        "probes",
    ),
    algorithm(
        *("last value left out of GAE", "a2c"),
        "next_value = values(state.critic_params, next_obs)\n",
        "next_value = values(state.critic_params, next_obs).at[-1].set(0)\n",
        "probes",
    ),
    algorithm(
        *("damping in F but not in the step's length", "natural_policy_gradient"),
        "step_size(direction @ image, target_kl)",
        "step_size(direction @ (image - config.cg_damping * direction), target_kl)",
        "dense_matrices",
    ),
    algorithm(
        *("statistics changed between rollout and natural gradient", "natural_policy_gradient"),
        "obs = normalize(params.statistics, transitions.obs)",
        "statistics = add_batch(params.statistics, transitions.obs)\n"
        "        obs = normalize(statistics, transitions.obs)",
        "policy_saw",
    ),
    algorithm(
        *("a step is taken where none is accepted", "trpo"),
        "theta = jnp.where(accepted, theta + size * direction, theta)",
        "theta += size * direction",
        "trust_region",
    ),
    algorithm(
        *("a step need not improve the objective", "trpo"),
        "accepted = (improvement > 0) & (kl <= target_kl)",
        "accepted = kl <= target_kl",
        "line_search",
    ),
    common(
        *("conjugate gradient goes on where no residual is left", "natural_gradient"),
        "goes_on = (old > smallest) & (curvature > 0)",
        "goes_on = jnp.bool_(True)",
        "residual_is_gone",
    ),
    common(
        *("GAE uses the next step's end", "returns"),
        "decay = gamma * gae_lambda * (1 - done)",
        "decay = gamma * gae_lambda * (1 - jax.numpy.roll(done, -1))",
        "cut or discounted_sum",
    ),
    common(
        *("errors at ends dropped", "returns"),
        "(td_error, decay), reverse=True",
        "(td_error * (1 - done), decay), reverse=True",
        "time_limit or two_steps or discounted_sum",
    ),
    common(
        *("the trace of the step itself", "returns"),
        "next_trace = jnp.append(trace[1:], 0)",
        "next_trace = trace",
        "retrace",
    ),
    common(
        *("the trace of the step itself in V-trace's error", "returns"),
        "return value + gae(td_error, done, gamma, trace)",
        "return value + gae(td_error * trace, done, gamma, trace)",
        "vtrace",
    ),
    common(
        *("returns run on over the end", "environments/batching"),
        "jnp.where(episode.done, 0, x)",
        "x",
        "mean_return or agrees",
        "common/test_envs",
    ),
    common(
        *("unfinished episodes reported as 0", "envs"),
        '"episode_return": jnp.mean(episode.total, where=episode.done)',
        '"episode_return": jnp.mean(jnp.where(episode.done, episode.total, 0))',
        "no_episode or mean_return",
        "common/test_envs",
    ),
    # Critics, actors, targets.
    algorithm(
        *("both critics start equal", "sac"),
        "critics.init(key_critic)\n",
        "critics.init(key_critic)\n        critic_params = jax.tree.map("
        "lambda x: jnp.stack([x[0], x[0]]), critic_params)\n",
        "critics_begin",
    ),
    algorithm(
        *("targets begin as other networks", "sac"),
        COPY,
        "target_params=critics.init(key_warmup)",
        "targets_start",
    ),
    algorithm(
        *("target network copied at every step", "dqn"),
        "is_copy_step = (step + 1) % config.target_network_frequency == 0",
        "is_copy_step = step >= 0",
        "target_network",
    ),
    algorithm(
        *("target network copied one step late", "dqn"),
        "is_copy_step = (step + 1) % config",
        "is_copy_step = step % config",
        "target_network",
    ),
    algorithm(
        *("the actor learns from the first batch", "td3"),
        "batch = jax.tree.map(lambda x: x[-1], batches)",
        "batch = jax.tree.map(lambda x: x[0], batches)",
        "first_critic",
    ),
    algorithm(
        *("action not clipped in Q", "td3"),
        "jnp.clip(action + jnp.clip(noise, -noise_clip, noise_clip), -1, 1)",
        "action + jnp.clip(noise, -noise_clip, noise_clip)",
        "smooth",
    ),
    algorithm(
        *("the larger of two values", "td3"),
        "next_value = jnp.min(next_q_value)",
        "next_value = jnp.max(next_q_value)",
        "smaller",
    ),
    algorithm(
        *("temperature's sign", "sac"),
        "return -jnp.exp(log_alpha) * (log_prob",
        "return jnp.exp(log_alpha) * (log_prob",
        "temperature",
    ),
    algorithm(
        *("target entropy's sign", "sac"),
        "(state.log_alpha, log_prob, -num_actions)",
        "(state.log_alpha, log_prob, num_actions)",
        "temperature",
    ),
    algorithm(
        *("log_prob with an epsilon", "sac"),
        "log_slope = 2 * (jnp.log(2) - x - jax.nn.softplus(-2 * x))",
        "log_slope = jnp.log(1 - jnp.tanh(x) ** 2 + 1e-6)",
        "log_prob",
    ),
    algorithm(
        *("rollouts past their end", "mbpo"),
        "age = jnp.where(transition.terminated | truncated, 0, age + 1)",
        "age = jnp.where(truncated, 0, age + 1)",
        "rollouts_branch",
    ),
    algorithm(
        *("a rollout's length ends the MDP", "mbpo"),
        "return (transition.next_obs, age), transition._replace(truncated=truncated)",
        "return (transition.next_obs, age), transition._replace(\n"
        "            truncated=truncated, terminated=transition.terminated | truncated\n"
        "        )",
        "rollouts_branch",
    ),
    algorithm(
        *("one bootstrap sample for all networks", "mbpo"),
        "bootstrap = jax.random.randint(key_sample, (config.num_networks, len(x)), 0, num_train)",
        "bootstrap = jax.random.randint(key_sample, (1, len(x)), 0, num_train)\n"
        "        bootstrap = jnp.repeat(bootstrap, config.num_networks, axis=0)",
        "bootstrap_sample",
    ),
    algorithm(
        *("the policy's mean in rollouts", "mbpo"),
        "noise = jax.random.normal(key_policy, (len(obs), num_actions))",
        "noise = 0 * jax.random.normal(key_policy, (len(obs), num_actions))",
        "policys_actions",
    ),
    algorithm(
        *("rollouts that never grow", "mbpo"),
        "lengths = config.rollout_length, config.final_rollout_length",
        "lengths = config.rollout_length, config.rollout_length",
        "length_of_rollouts",
    ),
    algorithm(
        *("the model's transitions forgotten at each fit", "mbpo"),
        "model_buffer.add(state.model_buffer, imagined, first + t)",
        "model_buffer.add(state.model_buffer, imagined, t)",
        "keeps_what",
    ),
    algorithm(
        *("multiplier's sign", "mpo"),
        "(epsilon - jax.lax.stop_gradient(kl))",
        "(jax.lax.stop_gradient(kl) - epsilon)",
        "multiplier",
    ),
    algorithm(
        *("values of actions beyond the bounds", "mpo"),
        "action = jnp.clip(action, -1, 1) if has_bounds else action",
        "action = jnp.clip(action, -9, 9) if has_bounds else action",
        "critic_learns",
    ),
    algorithm(
        *("weights without the policy's probabilities", "mpo"),
        "jax.nn.softmax(log_prior + q_values / temperature)",
        "jax.nn.softmax(q_values / temperature)",
        "without_probability or summed_over",
    ),
    algorithm(
        *("all of the batch for its better half", "v_mpo"),
        "jnp.where(rank < half, -jnp.log(half), -jnp.inf)",
        "jnp.where(rank < half, -jnp.log(half), -jnp.log(half))",
        "better_half",
    ),
    algorithm(
        *("the newest policy acts", "v_mpo"),
        "actor.apply(state.target_params, normalize",
        "actor.apply(params.actor, normalize",
        "old_policy_acts",
    ),
    algorithm(
        *("noise in the evaluation policy", "ddpg"),
        "def act(params, obs, key):\n",
        "def act(params, obs, key):\n        obs += jax.random.normal(key, obs.shape)\n",
        "act_is",
    ),
    algorithm(
        *("the actor follows the likeliest return", "d4pg"),
        "return policy_loss(q(critic_params, obs, action))",
        "return policy_loss(jnp.max(critic.apply(critic_params, obs, action)))",
        "actor_ascends",
    ),
    algorithm(
        *("gamma for gamma^n in the distribution", "d4pg"),
        "reward, discount = transition.reward, transition.discount * (1 - transition.terminated)",
        "reward, discount = transition.reward, config.gamma * (1 - transition.terminated)",
        "critic_descends",
    ),
    # Value distributions, n steps.
    algorithm(
        *("projection without clipping", "c51"),
        "(reward + discount * support - support[0]) / spacing, 0, last)",
        "(reward + discount * support - support[0]) / spacing, -9e9, 9e9)",
        "projection",
    ),
    algorithm(
        *("projection loses what falls on an atom", "c51"),
        "jnp.maximum(0, 1 - distance)",
        "jnp.where(distance == 0, 0, jnp.maximum(0, 1 - distance))",
        "projection",
    ),
    algorithm(
        *("gamma for gamma^n", "n_step_dqn"),
        "discount *= jnp.where(continues, gamma, 1)",
        "discount *= 1",
        "by_hand or ends_after",
    ),
    algorithm(
        *("n steps over the end of an episode", "n_step_dqn"),
        "continues = ~(end.terminated | end.truncated)",
        "continues = ~end.terminated",
        "by_hand or follows",
    ),
    # Plans.
    algorithm(
        *("the backward pass of a plan moves controls at their bounds", "differentiable_mpc"),
        "d = lqr(C, F, slope, free)",
        "d = lqr(C, F, slope, jnp.ones_like(free))",
        "at_its_bound",
    ),
    algorithm(
        *("the derivative by the dynamics forgets the plan's multipliers", "differentiable_mpc"),
        "dF = outer(delta[1:], tau) + outer(multiplier[1:], d)",
        "dF = outer(delta[1:], tau)",
        "autodiff",
    ),
    algorithm(
        *("a control at its bound is never free again", "differentiable_mpc"),
        "stays = jnp.where(active * gradient < 0, active, 0)",
        "stays = active",
        "scipy",
    ),
    # Memories.
    algorithm(
        *("the memory goes on over an episode's end inside a sequence", "r2d2"),
        "inputs = (steps.obs, previous), done",
        "inputs = (steps.obs, previous), done & False",
        "update_descends",
    ),
    algorithm(
        *("burn-in that learns", "r2d2"),
        "network.unroll(jax.lax.stop_gradient(params), hidden, *first)",
        "network.unroll(params, hidden, *first)",
        "update_descends",
    ),
    algorithm(
        *("the next observation is seen with the memory after the reset", "r2d2"),
        "network.apply(params, after, next_inputs)",
        "network.apply(params, after * ~done[config.burn_in :, None], next_inputs)",
        "update_descends",
    ),
    algorithm(
        *("signed priorities", "r2d2"),
        "error = jnp.abs(error)",
        "error = jnp.array(error)",
        "priority",
    ),
    common(
        *("the memory that is stored is that after the first step", "memory"),
        "memory=jax.tree.map(lambda x: x[starts], memories)",
        "memory=jax.tree.map(lambda x: x[starts + 1], memories)",
        "sequence",
    ),
    common(
        *("the memory runs on behind the end of an episode", "memory"),
        "memory = reset_memory(memory, transition.terminated | transition.truncated, initial)",
        "memory = reset_memory(memory, transition.terminated, initial)",
        "its_own_memory",
    ),
    common(
        *("the gates of the memory are swapped", "memory"),
        "r, z = gates[..., :size], gates[..., size:]",
        "z, r = gates[..., :size], gates[..., size:]",
        "equations",
    ),
    # Novelty.
    algorithm(
        *("the memory of an episode holds the state that is asked about", "ngu"),
        "episode.embeddings.at[row].set(f)",
        "episode.embeddings.at[row].set(next_f)",
        "rewards_are",
    ),
    algorithm(
        *("the memory of an episode goes on into the next one", "ngu"),
        "EpisodicMemory(embeddings, jnp.where(done, 0, num))",
        "EpisodicMemory(embeddings, num)",
        "rewards_are",
    ),
    algorithm(
        *("near distances are kept and far ones are not", "ngu"),
        "jnp.maximum(rate - 0.008, 0)",
        "jnp.minimum(rate - 0.008, 0)",
        "episodic_reward",
    ),
    algorithm(
        *("policies that are greedy in the extrinsic value alone", "agent57"),
        "            jnp.argmax(total(q), axis=-1),\n",
        "            jnp.argmax(q[0], axis=-1),\n",
        "descends",
    ),
    algorithm(
        *("a window that never forgets", "agent57"),
        "arms=bandit.arms.at[row].set(arm),",
        "arms=bandit.arms.at[row].max(arm),",
        "forgets or brute_force",
    ),
    algorithm(
        *("the bandit counts an episode that goes on", "agent57"),
        "jnp.where(done, 0, episode_return)), None",
        "episode_return), None",
        "bandits_hold",
    ),
    # Replay.
    common(
        *("sampling beyond what was written", "buffers"),
        "size = jnp.minimum(num_written, num_blocks) * block_size",
        "size = jnp.uint32(num_blocks * block_size)",
        "uniform",
    ),
    common(
        *("the full ring is sampled as if it were not", "buffers"),
        "size = jnp.minimum(num_written, num_blocks) * block_size",
        "size = (num_written % num_blocks + 1) * block_size",
        "uniform",
    ),
    common(
        *("the ring starts again one block late", "buffers"),
        "start = num_written % num_blocks * block_size",
        "start = num_written % (num_blocks + 1) * block_size",
        "latest",
    ),
    common(
        *("largest priority rounded", "prioritized"),
        "largest = jnp.maximum(priorities.largest, jnp.max(priority))",
        "largest = jnp.round(jnp.maximum(priorities.largest, jnp.max(priority)))",
        "largest_priority",
    ),
    algorithm(
        *("priorities of new rows are 1", "prioritized_dqn"),
        "new_rows, state.priorities.largest)",
        "new_rows, jnp.ones(()))",
        "update_weights",
    ),
    common(
        *("a row named twice counts twice", "prioritized"),
        'priority = sums.reshape(-1, RADIX).at[index].get(mode="promise_in_bounds").sum(-1)',
        "priority = priorities.sum_tree[len(levels)].at[index].get() + priority "
        "if len(levels) < len(priorities.sum_tree) else priority",
        "twice or sums",
    ),
    algorithm(
        *("priorities never updated", "prioritized_dqn"),
        "new_priority = priority(",
        "new_priority = jnp.ones(len(errors)) + 0 * priority(",
        "update_weights",
    ),
    # Policy gradients.
    *(
        algorithm(
            f"no error where a time limit cuts ({name})",
            name,
            "done = transitions.terminated | transitions.truncated",
            "done = transitions.terminated | transitions.truncated\n"
            "        error *= 1 - transitions.truncated",
            "time_limit",
        )
        for name in ("a2c", "ppo")
    ),
    algorithm(
        *("minibatches in the order of the rollout", "ppo"),
        "index = index.reshape(",
        "index = jnp.sort(index).reshape(",
        "permutation",
    ),
    algorithm(
        *("entropy bonus with the wrong sign", "ppo"),
        "return total - config.ent_coef",
        "return total + config.ent_coef",
        "entropy",
    ),
    algorithm(
        *("KL with its arguments exchanged", "ppo"),
        "    log_ratio = log_prob - old_log_prob\n",
        "    log_ratio = old_log_prob - log_prob\n",
        "kl",
    ),
    algorithm(
        *("PPO's maximum for its minimum", "ppo"),
        "-jnp.minimum(ratio",
        "-jnp.maximum(ratio",
        "policy_loss",
    ),
    algorithm(
        *("learning rate falls per epoch", "ppo"),
        "config.anneal_lr * step / num_updates)",
        "config.anneal_lr * step / num_updates / config.update_epochs)",
        "learning_rate",
    ),
    algorithm(
        *("the round's last parameters are copied by all workers", "a3c"),
        "return params, opt_state, copies",
        "return params, opt_state, jax.tree.map(lambda x: 0 * x + x[-1], copies)",
        "stale or round",
    ),
    algorithm(
        *("means in place of sums", "a3c"),
        "return config.num_steps * total, metrics",
        "return total, metrics",
        "round",
    ),
    # Gradients through the environment.
    algorithm(
        *("rewards behind a reset are discounted on", "apg"),
        "return jnp.where(done, 1, gamma * discount), discount",
        "return gamma * discount, discount",
        "by_hand or again",
    ),
    algorithm(
        *("a gradient of one step", "apg"),
        "env_state, transition = env.step(env_state, action, key)",
        "env_state, transition = env.step(jax.lax.stop_gradient(env_state), action, key)",
        "central_differences",
    ),
    algorithm(
        *("each window begins with new episodes", "apg"),
        "            env=env_state,\n",
        "            env=env.reset(key_env),\n",
        "next_window",
    ),
    algorithm(
        *("no value where a time limit cuts", "shac"),
        "end_value = gamma * (1 - terminated)",
        "end_value = gamma * (1 - done)",
        "by_hand",
    ),
    algorithm(
        *("no value at the end of a window", "shac"),
        "done.at[-1].set(True)",
        "done",
        "by_hand or central_differences",
    ),
    algorithm(
        *("the critic is its own target", "shac"),
        "(values(state.target_params, x) for x in (obs, next_obs))",
        "(values(state.critic_params, x) for x in (obs, next_obs))",
        "critic_learns",
    ),
    common(
        *("gymnax keeps its gradients", "environments/gymnax_envs"),
        "        env = env.with_transition_gradients()\n",
        "        pass\n",
        "derivatives",
        "environments/test_differentiable",
    ),
    common(
        *("an action's own reward counts as a later one", "environments/differentiable"),
        '[through == "reward" :]',
        "[0:]",
        "what_has_gradients",
    ),
    algorithm(
        *("the next row's target where a time limit cut", "impala"),
        "return jnp.where(done, next_value, ",
        "return jnp.where(done & False, next_value, ",
        "next_targets or lag or equation",
    ),
    algorithm(
        *("actors one update too fresh", "impala"),
        "jax.lax.dynamic_index_in_dim(x, (step + 1) % num_old",
        "jax.lax.dynamic_index_in_dim(x, (step + 2) % num_old",
        "equation",
    ),
    algorithm(
        *("the same permutation in each epoch", "ppo"),
        "keys = jax.random.split(key_epochs, config.update_epochs)",
        "keys = jnp.stack([key_epochs] * config.update_epochs)",
        "permutation",
    ),
    algorithm(
        *("statistics changed between rollout and loss", "ppo"),
        "obs = normalize(params.statistics, transitions.obs)",
        "statistics = add_batch(params.statistics, transitions.obs)\n"
        "        obs = normalize(statistics, transitions.obs)",
        "policy_saw",
    ),
    algorithm(
        *("no bias correction", "acer"),
        "weight = truncated + correction",
        "weight = truncated",
        "expected_gradient or update_follows",
    ),
    algorithm(
        *("the average policy's KL the other way round", "acer"),
        "jax.grad(kl_divergence, argnums=1)(average_logits, logits)",
        "jax.grad(kl_divergence, argnums=0)(logits, average_logits)",
        "update_follows",
    ),
    algorithm(
        *("traces that are not truncated at 1", "acer"),
        "jnp.minimum(1, ratio), config.gamma",
        "ratio, config.gamma",
        "update_follows",
    ),
    algorithm(
        *("the gradient of an option's policy without 1 / T", "option_critic"),
        "return (one_hot - probabilities) / temperature * advantage",
        "return (one_hot - probabilities) * advantage",
        "gradient",
    ),
    algorithm(
        *("a termination sees Q from before its update", "option_critic"),
        "        next_values = option_values(params, next_obs)\n        advantage =",
        "        advantage =",
        "algorithm_1",
    ),
    # Models.
    algorithm(
        *("a temperature that leaves the noise as it is", "world_models"),
        "noise = jnp.sqrt(temperature) * jax",
        "noise = 1.0 * jax",
        "temperature",
    ),
    algorithm(
        *("rewards of a dream after its end", "world_models"),
        "(alive * prediction.reward, alive)",
        "(prediction.reward, alive)",
        "a_dream",
    ),
    algorithm(
        *("a controller that sees the memory after the code", "world_models"),
        "action = control(params.controller, code, memory)",
        "action = control(params.controller, code, predict(params.rnn, code, memory, 0)[1])",
        "memory",
    ),
    # Search.
    algorithm(
        *("the policy of a board that was turned without it", "alphazero"),
        "            policy=take(positions.policy, actions),\n",
        "",
        "turned_positions",
    ),
    algorithm(
        *("a search that steps on from an ended game", "alphazero"),
        "return (child > 0) & ~tree.ended[child]",
        "return child > 0",
        "beyond_an_end",
    ),
    algorithm(
        *("halving that ignores how many actions are legal", "alphazero"),
        "is_next = node.visits == tried[num_legal, i]",
        "is_next = node.visits == tried[-1, i]",
        "of_mctx",
    ),
    # Exploration.
    algorithm(
        *("bonus of s for that of s'", "rnd"),
        "whitened = whiten(state.whitening, as_vector(env, transitions.next_obs))",
        "whitened = whiten(state.whitening, as_vector(env, transitions.obs))",
        "both_streams",
    ),
    algorithm(
        *("bonuses end with the episode", "rnd"),
        "reward=bonus, terminated=never, truncated=never)",
        "reward=bonus)",
        "both_streams or obey_the_ends",
    ),
    algorithm(
        *("value of bonuses before the reset", "rnd"),
        "following = jnp.concatenate([value[1:], last_value[None]])[..., 1]",
        "following = next_value[..., 1]",
        "both_streams",
    ),
    algorithm(
        *("predictor learns from the whole minibatch", "rnd"),
        "where=is_used",
        "where=is_used | True",
        "part_of_a_minibatch",
    ),
    # Memory.
    algorithm(
        *("value of the last observation with the memory after the reset", "ppo_rnn"),
        "distribution, memories = actor.apply(params.actor, memories, obs)  # before any reset\n"
        "        _, next_memories = actor.apply(params.actor, memories, next_obs)",
        "distribution, memories = actor.apply(params.actor, memories, obs)\n"
        "        ended = (transitions.terminated | transitions.truncated)[..., None]\n"
        "        next_memories = jnp.where(ended, 0, memories)\n"
        "        _, next_memories = actor.apply(params.actor, next_memories, next_obs)",
        "every_kind_of_end",
    ),
    algorithm(
        *("every minibatch starts from an empty memory", "ppo_rnn"),
        "jax.grad(loss, has_aux=True)(network_params, first, part)",
        "jax.grad(loss, has_aux=True)(network_params, 0 * first, part)",
        "whole_rollouts",
    ),
    algorithm(
        *("the memory runs over ends of episodes in the loss", "ppo_rnn"),
        "actor.unroll(actor_params, memory, batch.obs, batch.done)",
        "actor.unroll(actor_params, memory, batch.obs, batch.done & False)",
        "every_kind_of_end",
    ),
    common(
        *("variance without what moved the mean", "normalization"),
        "+ w * (1 - w) * jnp.square(change)",
        "",
        "statistics",
    ),
    common(
        *("reward scale runs over the end of an episode", "normalization"),
        "return jnp.where(transition.terminated | transition.truncated, 0, total), total",
        "return total, total",
        "rewards",
    ),
    algorithm(
        *("gradient through the target", "dqn"),
        "return jax.lax.stop_gradient(target) - q_value",
        "return target - q_value",
        "semi_gradient",
    ),
    algorithm(
        *("no gradient through the prediction", "dqn"),
        "return jax.lax.stop_gradient(target) - q_value",
        "return jax.lax.stop_gradient(target - q_value)",
        "semi_gradient",
    ),
    algorithm(
        *("the target network chooses the action too", "double_dqn"),
        "next_action = jnp.argmax(network.apply(params",
        "next_action = jnp.argmax(network.apply(target_params",
        "theta_chooses",
    ),
    algorithm(
        *("a C-step as large as it likes", "guided_policy_search"),
        "is_allowed = is_definite & (kl <= epsilon)",
        "is_allowed = is_definite",
        "best_eta",
    ),
    algorithm(
        *("LQR forgets the gains of the linearized policy", "guided_policy_search"),
        "Qux = d.lux / eta - P @ p.K",
        "Qux = d.lux / eta",
        "minimum_of",
    ),
    algorithm(
        *("imitation without precisions", "guided_policy_search"),
        "return (mean - target) @ precision @ (mean - target) / 2",
        "return (mean - target) @ (mean - target) / 2",
        "weighted_by",
    ),
    algorithm(
        *("what comes after the end of an episode is imitated", "guided_policy_search"),
        "weights = samples.active[..., None, None] * scaled_precision",
        "weights = jnp.ones_like(samples.active)[..., None, None] * scaled_precision",
        "after_an_end",
    ),
    # The harness.
    Mutant(
        "a key used twice",
        "algorithms/dqn.py",
        "env, behaviour_policy, state.env, key_rollout, config.train_frequency",
        "env, behaviour_policy, state.env, key_sample, config.train_frequency",
        "tests/test_contract.py",
        "key_is_used_twice and dqn",
    ),
    common(
        *("steps of one environment, not of all", "runner/blocks"),
        "return algorithm.initial_steps + update * algorithm.steps_per_update",
        "return algorithm.initial_steps + update",
        "leaves_its_folder",
        "runner/test_runs",
    ),
    common(
        *("optimizer state not restored", "runner/loop"),
        'return header["at"], history, place(values, block, program.device)',
        "rest = values.state.rest\n"
        "    initial = jax.tree.map(lambda x: 0 * x, rest.opt_state)\n"
        "    rest = rest._replace(opt_state=initial)\n"
        "    values = values._replace(state=values.state._replace(rest=rest))\n"
        '    return header["at"], history, place(values, block, program.device)',
        "stopped_in_the_middle",
        "runner/test_runs",
    ),
    common(
        *("rows before the checkpoint are lost", "runner/loop"),
        'return header["at"], history, place(',
        'return header["at"] | {"rows": []}, {}, place(',
        "same_bits",
        "runner/test_run_faults",
    ),
    common(
        *("a damaged checkpoint is not noticed", "runner/checkpoint"),
        "if digest != _digest(arrays, text):",
        "if False:",
        "digest",
    ),
    common(
        *("the one before is not kept", "runner/checkpoint"),
        "if previous is not None and path.exists():",
        "if False:",
        "previous_one",
    ),
    common(
        *("a diverged seed continues", "runner/program"),
        "params = jax.vmap(select_if)(healthy, state.params, run_state.state.params)",
        "params = state.params",
        "four_seeds and parameter",
        "runner/test_divergence",
    ),
    common(
        *("a diverged seed continues reporting", "runner/program"),
        "known = healthy & ~jnp.isnan(x)",
        "known = ~jnp.isnan(x)",
        "four_seeds and parameter",
        "runner/test_divergence",
    ),
    common(
        *("a diverged seed is scored", "runner/loop"),
        'is_scored = (arrays["diverged"][:, None] < 0) & np.isfinite(returns)',
        "is_scored = np.isfinite(returns)",
        "scores_nothing",
        "runner/test_divergence",
    ),
    common(
        *("means over what was not reported", "runner/program"),
        "mean[name] = run_state.mean[name] + jnp.where(weight > 0, change, 0)",
        "mean[name] = run_state.mean[name]"
        " + jnp.nan_to_num(x - run_state.mean[name]) / (step - start + 1)",
        "means_over",
        "runner/test_runs",
    ),
    common(
        *("a mean of means of episodes", "runner/program"),
        'weight = known * (episodes if name.startswith("episode_") else counted)',
        'weight = known * (1 if name.startswith("episode_") else counted)',
        "means_over",
        "runner/test_runs",
    ),
    common(
        *("a mean of means of steps that count", "runner/program"),
        'weight = known * (episodes if name.startswith("episode_") else counted)',
        'weight = known * (episodes if name.startswith("episode_") else 1)',
        "means_over",
        "runner/test_runs",
    ),
    common(
        *("blocks by the number of CPU devices", "runner/start"),
        "block_size(num_members, None if is_cpu else num_devices)",
        "block_size(num_members, num_devices)",
        "ppo_has_the_bits",
        "runner/test_blocks",
    ),
    common(
        *("a signal waits for the evaluation", "runner/loop"),
        "yield episodes, False\n    returns, lengths",
        "yield episodes, True\n    returns, lengths",
        "evaluation_without_an_end",
        "runner/test_run_faults",
    ),
    common(
        *("the winner keeps its own scores", "runner/loop"),
        "partial(lower_evaluation, salt=FRESH)",
        "lower_evaluation",
        "fresh",
        "runner/test_blocks",
    ),
    common(
        *("all seeds are the batch's first one", "runner/program"),
        "init(jax.random.key(seed))",
        "init(jax.random.key(0 * seed))",
        "blocks_of_any_size",
        "runner/test_runs",
    ),
    # Learning from others.
    algorithm(
        *("logits are not normalized", "behaviour_cloning"),
        "return -jax.nn.log_softmax(output)[action]",
        "return -output[action]",
        "likelihood",
    ),
    common(
        *("rows without data are drawn", "datasets"),
        "size = jnp.asarray(data.size).astype(jnp.uint32)",
        "size = jnp.uint32(len(data.transitions.reward))",
        "drawn_and_nothing_else",
    ),
    common(
        *("the step that ends an episode is left out", "datasets"),
        "is_first = (jnp.cumsum(done, axis=1) - done == 0).ravel()",
        "is_first = (jnp.cumsum(done, axis=1) == 0).ravel()",
        "first_episodes",
    ),
    common(
        *("actions of a file keep their units", "datasets"),
        'fields |= {"action": unscale_action(env, fields["action"])}',
        'fields |= {"action": fields["action"]}',
        "unit_box",
    ),
    algorithm(
        *("DAgger's label is the action that was taken", "dagger"),
        "visited._replace(action=labels)",
        "visited",
        "who_acts or experts",
    ),
    algorithm(
        *("DAgger's rounds overwrite one another", "dagger"),
        "dataset.add(state.dataset, labelled, step + 1)",
        "dataset.add(state.dataset, labelled, step)",
        "who_acts",
    ),
    # Search with a known model.
    algorithm(
        *("among equals the smallest g is expanded first", "a_star"),
        "jnp.where(graph.goal, jnp.inf, search.g)",
        "jnp.where(graph.goal, jnp.inf, -search.g)",
        "is_selected",
    ),
    algorithm(
        *("a closed state is never opened again", "a_star"),
        "improves = is_unfinished(search, graph) &",
        "improves = is_unfinished(search, graph) & (search.order == 0) &",
        "opened_again",
    ),
    algorithm(
        *("angles differ the long way round", "rrt"),
        "(raw + PI) % (2 * PI) - PI, raw)",
        "raw, raw)",
        "short_way_round",
    ),
    algorithm(
        *("an edge goes on after a collision", "rrt"),
        "is_free = edge.is_free & (~terminated",
        "is_free = (~terminated",
        "edge_holds",
    ),
    # Inverse reinforcement learning.
    algorithm(
        *("the mixture leaves its policies", "apprenticeship_learning"),
        "jnp.clip(direction @ (expert - mixture) / length, 0, 1)",
        "direction @ (expert - mixture) / length",
        "nearest_to_the_expert",
    ),
    algorithm(
        *("a terminal state is visited for ever", "apprenticeship_learning"),
        'jnp.einsum("sa,sak->sk", policy, mdp.P) * ~mdp.terminal[:, None]',
        'jnp.einsum("sa,sak->sk", policy, mdp.P)',
        "linear_system or steps_of_an_episode",
    ),
    algorithm(
        *("the soft maximum forgets the temperature", "maximum_entropy_irl"),
        "temperature * jax.nn.logsumexp(q / temperature, axis=-1)",
        "jax.nn.logsumexp(q / temperature, axis=-1)",
        "by_hand or solve_their_equations",
    ),
    algorithm(
        *("a terminal state has a future", "maximum_entropy_irl"),
        "return jnp.where(mdp.terminal, reward[:, 0], soft_max), None",
        "return soft_max, None",
        "by_hand or solve_their_equations",
    ),
    algorithm(
        *("lambda with a gradient", "td3_bc"),
        "alpha / jax.lax.stop_gradient(jnp.mean(jnp.abs(q_value)))",
        "alpha / jnp.mean(jnp.abs(q_value))",
        "lambda",
    ),
    algorithm(
        *("rows without data in the statistics", "td3_bc"),
        "is_data = jnp.arange(len(obs)) < data.size",
        "is_data = jnp.arange(len(obs)) >= 0",
        "statistics",
    ),
    algorithm(
        *("the expectile of the other side", "iql"),
        "jnp.abs(expectile - (error < 0))",
        "jnp.abs(expectile - (error > 0))",
        "expectile",
    ),
    algorithm(
        *("V learns from the networks, not the targets", "iql"),
        "q_values = jnp.min(critics.apply(state.target_params,",
        "q_values = jnp.min(critics.apply(state.critic_params,",
        "smaller_value",
    ),
    algorithm(
        *("the largest Q lowered whatever was taken", "cql"),
        "jax.nn.logsumexp(q_values) - q_values[action]",
        "jax.nn.logsumexp(q_values) - jnp.mean(q_values)",
        "gap or bandit",
    ),
    algorithm(
        *("half of the penalty", "cql"),
        "+ 2 * config.alpha * conservative_gap(",
        "+ config.alpha * conservative_gap(",
        "update_descends",
    ),
    algorithm(
        *("the environment's reward beside the discriminator's", "gail"),
        "reward=imitation_reward(logit)",
        "reward=imitation_reward(logit) + 0 * transitions.reward",
        "changes_nothing",
    ),
    algorithm(
        *("labels of the policy and of the expert exchanged", "gail"),
        "discriminator_loss(policy_logit, expert_logit).mean()",
        "discriminator_loss(expert_logit, policy_logit).mean()",
        "as_the_expert",
    ),
    algorithm(
        *("rewards of the discriminator before it learned", "gail"),
        "logits(discriminator.params, normalize",
        "logits(state.discriminator.params, normalize",
        "descends_its_loss",
    ),
]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of mutants' names")
    parser.add_argument("--out", type=Path, default=RESULTS / "mutants.csv", help="the table")
    arguments = parser.parse_args()
    chosen = [
        m for m in MUTANTS if not arguments.names or any(x in m.name for x in arguments.names)
    ]
    rows = {row["mutant"]: row for row in lines(arguments.out)}
    with tempfile.TemporaryDirectory() as work:
        tree = copy_of_the_tree(Path(work))
        clean = {}
        for mutant in chosen:
            if mutant.tests not in clean:
                same = [m.keyword for m in chosen if m.tests == mutant.tests]
                keyword = " or ".join(f"({x})" for x in same)
                clean[mutant.tests] = tested(tree, mutant.tests, keyword)
            clock = time.monotonic()
            result = planted(tree, mutant)
            if clean[mutant.tests] != 0:
                result = f"the tests fail without it ({clean[mutant.tests]})"
            line = [*mutant, result, round(time.monotonic() - clock, 1)]
            rows[mutant.name] = dict(zip(COLUMNS, line, strict=True))
            print(f"{mutant.name}: {result}", flush=True)
            order = [rows[m.name] for m in MUTANTS if m.name in rows]
            with open(arguments.out, "w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(order)
    results = [rows[m.name] for m in chosen]
    short = ["mutant", "file", "tests", "result", "seconds"]
    print(table([short, *([row[k] for k in short] for row in results)]))
    sys.exit(any(row["result"] != "killed" for row in results))


def lines(path: Path) -> list[dict]:
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def copy_of_the_tree(work: Path) -> Path:
    """Copy all files of the work tree that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    for name in filter(None, done.stdout.split("\0")):
        if (ROOT / name).is_file():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, work / name)
    return work


def planted(tree: Path, mutant: Mutant) -> str:
    """Run the tests with the bug; return "killed" if they fail."""
    path = tree / mutant.file
    source = path.read_text()
    if source.count(mutant.old) != 1:
        return "not there, or not once"
    path.write_text(source.replace(mutant.old, mutant.new))
    try:
        code = tested(tree, mutant.tests, mutant.keyword)
    finally:
        path.write_text(source)
    return {0: "survived", 1: "killed"}.get(code, f"pytest ended with {code}")


def tested(tree: Path, tests: str, keyword: str) -> int:
    """Return pytest's exit code: 0 passed, 1 failed, 5 no tests."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
    env = {"JAX_COMPILATION_CACHE_DIR": cache, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", tests, "-k", keyword],
        cwd=tree,
        capture_output=True,
        timeout=900,
        env=os.environ | env,
    )
    return done.returncode


if __name__ == "__main__":
    main()
