"""The same work in the words of each library, and the settings that each publishes itself."""

from collections.abc import Callable
from typing import NamedTuple

OURS, OURS_ALONE = "manyseeds", "manyseeds, 1 device"
ONE_SEED = ("stable-baselines3", "sbx-rl")  # a process trains one seed; more run one by one
HIDDEN_SIZES = (64, 64)  # fixed in rejax


class Work(NamedTuple):
    algorithm: str  # our file
    name: str  # the peers' class
    env_id: str
    steps: int  # of one seed
    equal: Callable  # steps -> settings of every contestant
    best: Callable | None  # -> settings of every contestant


def by_contestant(ours: dict, stable: dict, **others: dict) -> dict[str, dict]:
    """Return the settings of every library that has the algorithm."""
    ours = dict.fromkeys((OURS, OURS_ALONE), ours)
    return ours | others | dict.fromkeys(ONE_SEED, stable)


def dqn_equal(steps: int) -> dict[str, dict]:
    """Return settings for the same DQN.

    10 environments, a batch of 128, one gradient step per 10 environment steps, ReLU, Adam 2.5e-4,
    a buffer of 10,000, target copies every 50 gradient steps (500 environment steps), epsilon from
    1 to 0.05 over half the run, 1,000 random steps first.
    """
    shared = {"total_timesteps": steps, "num_envs": 10, "buffer_size": 10_000, "batch_size": 128}
    shared |= {"learning_rate": 2.5e-4, "gamma": 0.99, "exploration_fraction": 0.5}
    ours = {"train_frequency": 1, "learning_starts": 1_000, "target_network_frequency": 50}
    ours |= {"tau": 1.0, "epsilon_start": 1.0, "epsilon_end": 0.05, "hidden_sizes": HIDDEN_SIZES}
    rejax = {"fill_buffer": 1_000, "num_epochs": 1, "target_update_freq": 500, "polyak": 0.0}
    rejax |= {"eps_start": 1.0, "eps_end": 0.05, "ddqn": False, "agent": "QNetwork"}
    rejax |= {"agent_kwargs": {"activation": "relu"}}
    stable = {"train_freq": 1, "gradient_steps": 1, "learning_starts": 1_000, "tau": 1.0}
    stable |= {"target_update_interval": 500, "device": "cpu"}
    stable |= {"exploration_initial_eps": 1.0, "exploration_final_eps": 0.05}
    stable |= {"policy_kwargs": {"net_arch": HIDDEN_SIZES}}
    pure = {"TOTAL_TIMESTEPS": steps, "NUM_ENVS": 10, "BUFFER_SIZE": 10_000, "LR": 2.5e-4}
    pure |= {"BUFFER_BATCH_SIZE": 128, "TRAINING_INTERVAL": 10, "TARGET_UPDATE_INTERVAL": 500}
    pure |= {"EPSILON_START": 1.0, "EPSILON_FINISH": 0.05, "EPSILON_ANNEAL_TIME": steps // 2}
    pure |= {"LEARNING_STARTS": 1_000, "GAMMA": 0.99, "TAU": 1.0, "hidden_sizes": HIDDEN_SIZES}
    return by_contestant(shared | ours, shared | stable, rejax=shared | rejax, purejaxrl=pure)


def dqn_best() -> dict[str, dict]:
    """Return what each library publishes for CartPole-v1.

    dqn.py's defaults for ours, rejax's configs/gymnax/cartpole.yaml, PureJaxRL's dqn.py, and RL
    Baselines3 Zoo for the other two.
    """
    rejax = {"agent": "DuelingQNetwork", "agent_kwargs": {"activation": "swish"}, "num_envs": 10}
    rejax |= {"buffer_size": 50_000, "fill_buffer": 5_000, "batch_size": 100, "max_grad_norm": 10}
    rejax |= {"learning_rate": 1e-3, "num_epochs": 5, "total_timesteps": 100_000, "polyak": 0.98}
    rejax |= {"eps_start": 1.0, "eps_end": 0.05, "exploration_fraction": 0.5, "gamma": 0.99}
    rejax |= {"ddqn": True}
    zoo = {"total_timesteps": 50_000, "num_envs": 1, "learning_rate": 2.3e-3, "batch_size": 64}
    zoo |= {"buffer_size": 100_000, "learning_starts": 1_000, "gamma": 0.99, "train_freq": 256}
    zoo |= {"target_update_interval": 10, "gradient_steps": 128, "exploration_fraction": 0.16}
    zoo |= {"exploration_final_eps": 0.04, "policy_kwargs": {"net_arch": (256, 256)}}
    pure = {"TOTAL_TIMESTEPS": 500_000, "NUM_ENVS": 10, "BUFFER_SIZE": 10_000, "LR": 2.5e-4}
    pure |= {"BUFFER_BATCH_SIZE": 128, "TRAINING_INTERVAL": 10, "TARGET_UPDATE_INTERVAL": 500}
    pure |= {"EPSILON_START": 1.0, "EPSILON_FINISH": 0.05, "EPSILON_ANNEAL_TIME": 250_000}
    pure |= {"LEARNING_STARTS": 10_000, "GAMMA": 0.99, "TAU": 1.0, "hidden_sizes": (120, 84)}
    return by_contestant({}, zoo | {"device": "cpu"}, rejax=rejax, purejaxrl=pure)


def ppo_equal(steps: int) -> dict[str, dict]:
    """Return settings for the same PPO.

    4 environments x 128 steps, 4 epochs of 4 minibatches, tanh, Adam 2.5e-4, gamma 0.99, lambda
    0.95, clipping at 0.2, entropy 0.01, gradients clipped to norm 0.5; nothing is annealed, because
    rejax cannot.
    """
    shared = {"total_timesteps": steps, "learning_rate": 2.5e-4, "gamma": 0.99}
    shared |= {"gae_lambda": 0.95, "vf_coef": 0.5, "ent_coef": 0.01, "max_grad_norm": 0.5}
    ours = {"num_envs": 4, "num_steps": 128, "update_epochs": 4, "num_minibatches": 4}
    ours |= {"clip_coef": 0.2, "anneal_lr": False, "hidden_sizes": HIDDEN_SIZES}
    rejax = {"num_envs": 4, "num_steps": 128, "num_epochs": 4, "num_minibatches": 4}
    rejax |= {"clip_eps": 0.2, "agent_kwargs": {"activation": "tanh"}}
    stable = {"num_envs": 4, "n_steps": 128, "n_epochs": 4, "batch_size": 128, "device": "cpu"}
    stable |= {"clip_range": 0.2, "policy_kwargs": {"net_arch": HIDDEN_SIZES}}  # tanh by default
    pure = purejaxrl_ppo(steps) | {"ANNEAL_LR": False}
    return by_contestant(shared | ours, shared | stable, rejax=shared | rejax, purejaxrl=pure)


def purejaxrl_ppo(steps: int) -> dict:
    """Return the settings at the end of its ppo.py."""
    pure = {"TOTAL_TIMESTEPS": steps, "NUM_ENVS": 4, "NUM_STEPS": 128, "LR": 2.5e-4, "GAMMA": 0.99}
    pure |= {"UPDATE_EPOCHS": 4, "NUM_MINIBATCHES": 4, "GAE_LAMBDA": 0.95, "CLIP_EPS": 0.2}
    pure |= {"ENT_COEF": 0.01, "VF_COEF": 0.5, "MAX_GRAD_NORM": 0.5, "ANNEAL_LR": True}
    return pure | {"ACTIVATION": "tanh", "hidden_sizes": HIDDEN_SIZES}


def ppo_best() -> dict[str, dict]:
    """Return what each library publishes for CartPole-v1, from the same places as `dqn_best`.

    The Zoo's two linear schedules are replaced by their means.
    """
    rejax = {"agent_kwargs": {"activation": "tanh"}, "num_envs": 5, "num_steps": 100}
    rejax |= {"num_epochs": 5, "num_minibatches": 5, "learning_rate": 7.5e-4, "gamma": 0.99}
    rejax |= {"max_grad_norm": 0.5, "total_timesteps": 100_000, "gae_lambda": 0.95}
    rejax |= {"clip_eps": 0.2, "ent_coef": 0.01, "vf_coef": 0.5}
    zoo = {"total_timesteps": 100_000, "num_envs": 8, "n_steps": 32, "batch_size": 256}
    zoo |= {"gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20, "ent_coef": 0.0, "device": "cpu"}
    zoo |= {"learning_rate": 5e-4, "clip_range": 0.1}
    return by_contestant({}, zoo, rejax=rejax, purejaxrl=purejaxrl_ppo(500_000))


def td3_equal(steps: int) -> dict[str, dict]:
    """Return settings for the same TD3.

    One environment, one critic step of 100 transitions for each of its steps, an actor step for
    every other, ReLU, Adam 1e-3, gamma 0.98, noise 0.1, 1,000 random steps first.
    """
    shared = {"total_timesteps": steps, "num_envs": 1, "learning_rate": 1e-3, "gamma": 0.98}
    shared |= {"buffer_size": 20_000, "batch_size": 100}
    ours = {"learning_starts": 1_000, "tau": 0.005, "policy_frequency": 2, "policy_noise": 0.2}
    ours |= {"noise_clip": 0.5, "exploration_noise": 0.1, "hidden_sizes": HIDDEN_SIZES}
    rejax = {"fill_buffer": 1_000, "polyak": 0.995, "policy_delay": 2, "target_noise": 0.2}
    rejax |= {"target_noise_clip": 0.5, "exploration_noise": 0.1, "num_epochs": 1}
    rejax |= {"actor_kwargs": {"activation": "relu"}, "critic_kwargs": {"activation": "relu"}}
    stable = {"learning_starts": 1_000, "tau": 0.005, "policy_delay": 2, "device": "cpu"}
    stable |= {"target_policy_noise": 0.2, "target_noise_clip": 0.5, "action_noise": 0.1}
    stable |= {"train_freq": 1, "gradient_steps": 1}
    stable |= {"policy_kwargs": {"net_arch": HIDDEN_SIZES}}
    return by_contestant(shared | ours, shared | stable, rejax=shared | rejax)


def sac_equal(steps: int) -> dict[str, dict]:
    """Return settings for the same SAC.

    One environment, one step of both critics, the policy and the temperature, from 1, with 128
    transitions for each of its steps, ReLU, Adam 1e-3, gamma 0.98, 1,000 random steps first.
    """
    shared = {"total_timesteps": steps, "num_envs": 1, "learning_rate": 1e-3, "gamma": 0.98}
    shared |= {"buffer_size": 20_000, "batch_size": 128}
    ours = {"learning_starts": 1_000, "tau": 0.005, "alpha": 1.0, "hidden_sizes": HIDDEN_SIZES}
    rejax = {"fill_buffer": 1_000, "polyak": 0.995, "num_epochs": 1}
    rejax |= {"agent_kwargs": {"activation": "relu"}}
    stable = {"learning_starts": 1_000, "tau": 0.005, "ent_coef": "auto_1.0", "device": "cpu"}
    stable |= {"train_freq": 1, "gradient_steps": 1}
    stable |= {"policy_kwargs": {"net_arch": HIDDEN_SIZES}}
    return by_contestant(shared | ours, shared | stable, rejax=shared | rejax)


def ddpg_equal(steps: int) -> dict[str, dict]:
    """Return settings for the same DDPG: TD3's, with an actor step for every critic step."""
    shared = {"total_timesteps": steps, "num_envs": 1, "learning_rate": 1e-3, "gamma": 0.98}
    shared |= {"buffer_size": 20_000, "batch_size": 100, "learning_starts": 1_000, "tau": 0.005}
    ours = {"exploration_noise": 0.1, "ou_theta": 1.0, "hidden_sizes": HIDDEN_SIZES}
    stable = {"action_noise": 0.1, "train_freq": 1, "gradient_steps": 1, "device": "cpu"}
    stable |= {"policy_kwargs": {"net_arch": HIDDEN_SIZES}}
    return by_contestant(shared | ours, shared | stable)


WORKS = {
    "dqn": Work("dqn", "DQN", "CartPole-v1", 100_000, dqn_equal, dqn_best),
    "ppo": Work("ppo", "PPO", "CartPole-v1", 200_000, ppo_equal, ppo_best),
    "td3": Work("td3", "TD3", "Pendulum-v1", 20_000, td3_equal, None),
    "sac": Work("sac", "SAC", "Pendulum-v1", 20_000, sac_equal, None),
    "ddpg": Work("ddpg", "DDPG", "Pendulum-v1", 20_000, ddpg_equal, None),
}
