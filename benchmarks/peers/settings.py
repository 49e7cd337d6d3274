"""The same work in the words of each library, and the settings that each publishes itself."""

from collections.abc import Callable
from typing import NamedTuple

OURS, OURS_ALONE = "manyseeds", "manyseeds, 1 device"
STABLE = ("stable-baselines3", "sbx-rl")  # they share their words
ONE_SEED = (*STABLE, "brax", "mbrl-lib")  # a process trains one seed; more run one by one
HIDDEN_SIZES = (64, 64)  # fixed in rejax


class Work(NamedTuple):
    algorithm: str  # our file
    name: str  # the peers' class
    env_id: str
    steps: int  # of one seed
    equal: Callable  # steps -> settings of every contestant
    best: Callable | None  # -> settings of every contestant


def by_contestant(ours: dict, stable: dict | None, **others: dict) -> dict[str, dict]:
    """Return the settings of every library that has the algorithm."""
    ours = dict.fromkeys((OURS, OURS_ALONE), ours)
    return ours | others | (dict.fromkeys(STABLE, stable) if stable else {})


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


def ppo_brax_equal(steps: int) -> dict[str, dict]:
    """Return settings for the same PPO on Brax's inverted pendulum, with `spring` physics.

    16 environments x 128 steps, 4 epochs of 4 minibatches, tanh, a normal policy whose standard
    deviations are parameters that start at 0.3, Adam 3e-4, gamma 0.99, lambda 0.95, clipping at
    0.2, no entropy, gradients clipped to norm 0.5, observations normalised.

    Ours starts every episode anew and Brax from the state that an environment had first, after
    which nothing is drawn; ours bootstraps at time limits; minibatches are of transitions here and
    of whole rows of a rollout there.
    """
    ours = {"total_timesteps": steps, "num_envs": 16, "num_steps": 128, "learning_rate": 3e-4}
    ours |= {"update_epochs": 4, "num_minibatches": 4, "gamma": 0.99, "gae_lambda": 0.95}
    ours |= {"clip_coef": 0.2, "ent_coef": 0.0, "vf_coef": 0.5, "max_grad_norm": 0.5}
    ours |= {"anneal_lr": False, "norm_obs": True, "init_std": 0.3, "hidden_sizes": HIDDEN_SIZES}
    brax = {"num_timesteps": steps, "num_envs": 16, "unroll_length": 128, "learning_rate": 3e-4}
    brax |= {"num_updates_per_batch": 4, "num_minibatches": 4, "batch_size": 4, "discounting": 0.99}
    brax |= {"gae_lambda": 0.95, "clipping_epsilon": 0.2, "entropy_cost": 0.0, "max_grad_norm": 0.5}
    brax |= {"normalize_observations": True, "episode_length": 1_000, "vf_loss_coefficient": 0.5}
    network = {f"{name}_hidden_layer_sizes": HIDDEN_SIZES for name in ("policy", "value")}
    network |= {"distribution_type": "normal", "noise_std_type": "log", "init_noise_std": 0.3}
    return by_contestant(ours, None, brax=brax | {"network": network})


def ppo_minatar_equal(steps: int) -> dict[str, dict]:
    """Return settings for the same PPO on MinAtar's Breakout: those of gymnax-blines.

    64 environments x 128 steps, 4 epochs of 8 minibatches, Adam 5e-4, gamma 0.999, lambda 0.95,
    clipping at 0.2, entropy 0.01, gradients clipped to norm 0.5. The policy and the value each have
    MinAtar's network, 16 filters of 3 x 3 and a layer of 128, where gymnax-blines has two of 256.
    """
    shared = {"total_timesteps": steps, "num_envs": 64, "num_steps": 128, "learning_rate": 5e-4}
    shared |= {"gamma": 0.999, "gae_lambda": 0.95, "update_epochs": 4, "num_minibatches": 8}
    shared |= {"clip_coef": 0.2, "ent_coef": 0.01, "vf_coef": 0.5, "max_grad_norm": 0.5}
    pure = purejaxrl_ppo(steps) | {"NUM_ENVS": 64, "LR": 5e-4, "GAMMA": 0.999, "ANNEAL_LR": False}
    pure |= {"NUM_MINIBATCHES": 8, "hidden_sizes": (128,)}
    return by_contestant(
        shared | {"anneal_lr": False, "hidden_sizes": (128,)}, None, purejaxrl=pure
    )


def dqn_minatar_equal(steps: int) -> dict[str, dict]:
    """Return settings for the same DQN on MinAtar's Breakout: those of `dqn_equal`, a buffer of
    50,000, and MinAtar's network, 16 filters of 3 x 3 and a layer of 128."""
    settings, changes = dqn_equal(steps), {"buffer_size": 50_000, "hidden_sizes": (128,)}
    pure = settings["purejaxrl"] | {"BUFFER_SIZE": 50_000, "hidden_sizes": (128,)}
    return by_contestant(settings[OURS] | changes, None, purejaxrl=pure)


def a2c_equal(steps: int) -> dict[str, dict]:
    """Return settings for the same A2C.

    8 environments x 8 steps for each gradient step, tanh, Adam 2e-3, gamma 0.99, lambda 0.95,
    entropy 0.01, gradients clipped to norm 0.5; the learning rate does not fall.
    """
    shared = {"total_timesteps": steps, "num_envs": 8, "learning_rate": 2e-3, "gamma": 0.99}
    shared |= {"gae_lambda": 0.95, "vf_coef": 0.5, "ent_coef": 0.01, "max_grad_norm": 0.5}
    ours = {"num_steps": 8, "anneal_lr": False, "hidden_sizes": HIDDEN_SIZES}
    stable = {"n_steps": 8, "use_rms_prop": False, "normalize_advantage": True, "device": "cpu"}
    stable |= {"policy_kwargs": {"net_arch": HIDDEN_SIZES}}  # tanh by default
    return by_contestant(shared | ours, None, **{"stable-baselines3": shared | stable})


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
    system = {"policy_frequency": 2, "policy_noise": 0.2, "noise_clip": 0.5}
    peers = {"rejax": shared | rejax}
    peers |= {"stoix": stoix_continuous(steps, 100, system | {"exploration_noise": 0.1})}
    return by_contestant(shared | ours, shared | stable, **peers)


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
    peers = {"rejax": shared | rejax}
    peers |= {"stoix": stoix_continuous(steps, 128, {"alpha_lr": 1e-3})}
    return by_contestant(shared | ours, shared | stable, **peers)


def ddpg_equal(steps: int) -> dict[str, dict]:
    """Return settings for the same DDPG: TD3's, with an actor step for every critic step."""
    shared = {"total_timesteps": steps, "num_envs": 1, "learning_rate": 1e-3, "gamma": 0.98}
    shared |= {"buffer_size": 20_000, "batch_size": 100, "learning_starts": 1_000, "tau": 0.005}
    ours = {"exploration_noise": 0.1, "ou_theta": 1.0, "hidden_sizes": HIDDEN_SIZES}
    stable = {"action_noise": 0.1, "train_freq": 1, "gradient_steps": 1, "device": "cpu"}
    stable |= {"policy_kwargs": {"net_arch": HIDDEN_SIZES}}
    peers = {"stoix": stoix_continuous(steps, 100, {"exploration_noise": 0.1})}
    return by_contestant(shared | ours, shared | stable, **peers)


def pets_equal(steps: int) -> dict[str, dict]:
    """Return settings for the same PETS.

    5 networks of two layers of 64, swish, which learn the reward too, fitted every 200 steps from
    bootstrap samples by Adam 3e-3 with batches of 64; plans of 20 steps, 3 rounds of 50 plans, the
    best 5 of which count, 5 particles that change networks at every step; 200 random steps first.

    Ours takes 1,000 gradient steps in each fit, mbrl-lib passes through the data as often as makes
    as many in all.
    """
    ours = {"total_timesteps": steps, "steps_per_fit": 200, "learning_rate": 3e-3}
    ours |= {"batch_size": 64, "gradient_steps": 1_000, "num_networks": 5, "num_particles": 1}
    ours |= {"hidden_sizes": HIDDEN_SIZES, "horizon": 20, "num_samples": 50, "num_elites": 5}
    ours |= {"num_cem_rounds": 3, "init_std": 0.5, "eval_episodes": 2}
    num_fits = (steps - 200) // 200
    batches = sum(-(-200 * n // 64) for n in range(1, num_fits + 1))  # of one pass in each fit
    optimizer = {"_target_": "mbrl.planning.CEMOptimizer", "num_iterations": 3, "alpha": 0.0}
    optimizer |= {"elite_ratio": 0.1, "population_size": 50, "return_mean_elites": True}
    optimizer |= {
        "clipped_normal": True,
        "device": "cpu",
        "lower_bound": "???",
        "upper_bound": "???",
    }
    agent = {"_target_": "mbrl.planning.TrajectoryOptimizerAgent", "action_lb": "???"}
    agent |= {"action_ub": "???", "planning_horizon": 20, "optimizer_cfg": optimizer}
    agent |= {"_recursive_": False}  # the default of the Hydra that it was written for
    model = {"_target_": "mbrl.models.GaussianMLP", "device": "cpu", "num_layers": 2}
    model |= {"ensemble_size": 5, "hid_size": 64, "propagation_method": "random_model"}
    model |= {"learn_logvar_bounds": True, "activation_fn_cfg": {"_target_": "torch.nn.SiLU"}}
    model |= {"_recursive_": False}
    algorithm = {"agent": agent, "normalize": True, "target_is_delta": True, "num_particles": 5}
    algorithm |= {"initial_exploration_steps": 200, "freq_train_model": 200}
    algorithm |= {"learned_rewards": True, "dataset_size": steps}
    overrides = {"num_steps": steps - 200, "model_lr": 3e-3, "model_wd": 0.0, "patience": 10**9}
    overrides |= {"model_batch_size": 64, "validation_ratio": 0, "num_elites": 5}
    overrides |= {"num_epochs_train_model": round(1_000 * num_fits / batches)}
    peer = {"dynamics_model": model, "algorithm": algorithm, "overrides": overrides}
    return by_contestant(ours, None, **{"mbrl-lib": peer})


def mpc_equal(steps: int) -> dict[str, dict]:
    """Return settings for the same model-predictive control by the cross-entropy method.

    One environment; 5 rounds of 100 plans of 20 steps through the true equations, the best 10 of
    which count, from half the range of an action as standard deviation, and from the rest of the
    last plan. Ours steps the environment itself; the planner of mbrl-lib gets it in torch.
    """
    ours = {"total_timesteps": steps, "num_envs": 1, "planner": "cem", "horizon": 20}
    ours |= {"num_samples": 100, "num_elites": 10, "num_rounds": 5, "init_std": 0.5}
    peer = {"_target_": "mbrl.planning.CEMOptimizer", "num_iterations": 5, "elite_ratio": 0.1}
    peer |= {"population_size": 100, "alpha": 0.0, "return_mean_elites": True, "device": "cpu"}
    peer |= {"clipped_normal": True, "lower_bound": "???", "upper_bound": "???"}
    peer |= {"steps": steps, "planning_horizon": 20}
    return by_contestant(ours, None, **{"mbrl-lib": peer})


NO_CLIPPING = 1e9  # Stoix always clips gradients to a norm


def c51_equal(steps: int) -> dict[str, dict]:
    """Return settings for the same C51.

    10 environments, a batch of 128, one gradient step per 10 environment steps, 51 atoms from 0 to
    100, ReLU, Adam 5e-4, a buffer of 10,000, target networks that follow with 0.01 at every
    gradient step, epsilon 0.1, 1,000 steps first.

    Stoix chooses next actions with the online network, a forward pass that ours has not; counts
    time limits as termination; computes the norm of gradients; and draws its first steps from the
    policy, ours at random.
    """
    ours = {"total_timesteps": steps, "num_envs": 10, "buffer_size": 10_000, "batch_size": 128}
    ours |= {"learning_rate": 5e-4, "gamma": 0.99, "learning_starts": 1_000, "train_frequency": 1}
    ours |= {"target_network_frequency": 1, "tau": 0.01, "epsilon_start": 0.1, "epsilon_end": 0.1}
    ours |= {"num_atoms": 51, "v_min": 0.0, "v_max": 100.0, "hidden_sizes": HIDDEN_SIZES}
    system = {"rollout_length": 1, "epochs": 1, "warmup_steps": 100, "total_buffer_size": 10_000}
    system |= {"total_batch_size": 128, "q_lr": 5e-4, "tau": 0.01, "gamma": 0.99, "num_atoms": 51}
    system |= {"training_epsilon": 0.1, "vmin": 0.0, "vmax": 100.0, "max_grad_norm": NO_CLIPPING}
    torso = {"layer_sizes": HIDDEN_SIZES, "activation": "relu"}
    network = {"actor_network.pre_torso": torso}
    return by_contestant(ours, None, stoix=stoix(steps - 1_000, 10, system, network))


def rainbow_equal(steps: int) -> dict[str, dict]:
    """Return settings for the same Rainbow.

    10 environments, a batch of 128, one gradient step per 10 environment steps, 3-step returns, 51
    atoms from 0 to 300, noise in all layers, ReLU, Adam 5e-4, a prioritised buffer of 10,000 with
    exponents 0.6 and 1, target networks that follow with 0.01 at every gradient step, 1,000 steps
    first.

    Stoix multiplies the value after three steps by gamma, not by gamma to the third, so that its
    values go up to 300, and ours to 100; counts time limits as termination; computes the norm of
    gradients; draws its first steps from the policy, ours at random; and its final policy has
    noise, ours has not.
    """
    ours = {"total_timesteps": steps, "num_envs": 10, "buffer_size": 10_000, "batch_size": 128}
    ours |= {"learning_rate": 5e-4, "gamma": 0.99, "learning_starts": 1_000, "train_frequency": 1}
    ours |= {"target_network_frequency": 1, "tau": 0.01, "n_step": 3, "sigma_init": 0.5}
    ours |= {"prioritized_replay_alpha": 0.6, "prioritized_replay_beta": 1.0}
    ours |= {"num_atoms": 51, "v_min": 0.0, "v_max": 300.0, "hidden_sizes": HIDDEN_SIZES}
    system = {"rollout_length": 1, "epochs": 1, "warmup_steps": 100, "total_buffer_size": 10_000}
    system |= {"total_batch_size": 128, "q_lr": 5e-4, "tau": 0.01, "gamma": 0.99, "num_atoms": 51}
    system |= {"n_step": 3, "priority_exponent": 0.6, "importance_sampling_exponent": 1.0}
    system |= {"sigma_zero": 0.5, "vmin": 0.0, "vmax": 300.0, "max_grad_norm": NO_CLIPPING}
    first, last = ({"layer_sizes": (size,), "activation": "relu"} for size in HIDDEN_SIZES)
    network = {"actor_network.pre_torso": first, "actor_network.action_head": last}
    return by_contestant(ours, None, stoix=stoix(steps - 1_000, 10, system, network))


def r2d2_equal(steps: int) -> dict[str, dict]:
    """Return settings for the same R2D2.

    8 environments, 16 gradient steps per 20 steps of each, 16 sequences of 34 steps, of which 10
    are burn-in, that begin every 20 steps, 5-step returns, a layer of 32, a GRU of 32, two linear
    streams, Adam 1e-3, a prioritised buffer of 20,480 steps, target networks that follow with 0.02
    at every gradient step, epsilon 0.1 everywhere, 1,280 steps first (ours: 1,232).

    Stoix learns from 23 steps of a sequence, of which the last have shorter returns, ours from 20;
    it weights sequences by importance. Ours sees the previous action too, and evaluates the
    observation before a reset with a step of the GRU of its own: Stoix takes the next one of the
    sequence for it. Stoix counts time limits as termination, as its gymnax adapter knows no other
    end, and computes the norm of gradients.
    """
    ours = {"total_timesteps": steps, "num_envs": 8, "num_steps": 20, "burn_in": 10, "n_step": 5}
    ours |= {"gradient_steps": 16, "learning_rate": 1e-3, "anneal_lr": False, "gamma": 0.99}
    ours |= {"buffer_size": 20_480, "batch_size": 16, "prioritized_replay_alpha": 0.9}
    ours |= {"prioritized_replay_eta": 0.9, "learning_starts": 1_120, "tau": 0.02}
    ours |= {"target_network_frequency": 1, "epsilon": 0.1, "epsilon_power": 0.0}
    ours |= {"hidden_sizes": (32,), "memory_size": 32}
    system = {"rollout_length": 20, "epochs": 16, "warmup_steps": 160, "total_buffer_size": 20_480}
    system |= {"total_batch_size": 16, "burn_in_length": 10, "sample_sequence_length": 34}
    system |= {"period": 20, "priority_exponent": 0.9, "priority_eta": 0.9, "n_step": 5}
    system |= {"q_lr": 1e-3, "tau": 0.02, "gamma": 0.99, "max_grad_norm": NO_CLIPPING}
    system |= {"training_epsilon": 0.1}
    layers = {"pre_torso": (32,), "post_torso": (), "action_head": ()}
    network = {
        f"actor_network.{name}": {"layer_sizes": sizes, "use_layer_norm": False}
        for name, sizes in layers.items()
    }
    network["actor_network.rnn_layer.hidden_state_dim"] = 32
    return by_contestant(ours, None, stoix=stoix(steps - 1_280, 8, system, network))


def reinforce_equal(steps: int) -> dict[str, dict]:
    """Return settings for the same REINFORCE with a baseline.

    2 environments x 1,000 steps for each gradient step of the policy and of the baseline, tanh,
    Adam 2e-3 and 2e-2, which fall to 0, gamma 0.99, no entropy.

    Stoix learns from all steps, with V where the rollout ends, and goes on with its episodes; ours
    leaves out episodes that the rollout cuts, and begins each with new ones. Stoix counts time
    limits as termination, evaluates the baseline once more in the rollout, and computes the norm
    of gradients.
    """
    ours = {"total_timesteps": steps, "num_envs": 2, "num_steps": 501, "gamma": 0.99}
    ours |= {"learning_rate": 2e-3, "critic_learning_rate": 2e-2, "anneal_lr": True}
    ours |= {"estimator": "baseline", "hidden_sizes": HIDDEN_SIZES}
    system = {"rollout_length": 1_000, "actor_lr": 2e-3, "critic_lr": 2e-2, "gamma": 0.99}
    system |= {"ent_coef": 0.0, "vf_coef": 1.0, "decay_learning_rates": True}
    system |= {"max_grad_norm": NO_CLIPPING}
    torso = {"layer_sizes": HIDDEN_SIZES, "activation": "tanh"}
    network = {f"{name}_network.pre_torso": torso for name in ("actor", "critic")}
    return by_contestant(ours, None, stoix=stoix(steps, 2, system, network))


def stoix_continuous(steps: int, batch_size: int, system: dict) -> dict:
    """Return Stoix's settings for the work of TD3, SAC and DDPG above.

    Stoix's TD3 computes the actor's gradient at every step, and moves both targets then; ours does
    both at every other step. Its SAC and its TD3 halve the squared error. All count time limits as
    termination, compute the norm of gradients, and draw their first steps from the policy, ours at
    random.
    """
    shared = {"rollout_length": 1, "epochs": 1, "warmup_steps": 1_000, "gamma": 0.98, "tau": 0.005}
    shared |= {"total_buffer_size": 20_000, "total_batch_size": batch_size, "actor_lr": 1e-3}
    shared |= {"q_lr": 1e-3, "decay_learning_rates": False, "max_grad_norm": NO_CLIPPING}
    torso = {"layer_sizes": HIDDEN_SIZES, "use_layer_norm": False, "activation": "relu"}
    network = {f"{name}_network.pre_torso": torso for name in ("actor", "q")}
    return stoix(steps - 1_000, 1, shared | system, network)


def stoix(steps: int, num_envs: int, system: dict, network: dict) -> dict:
    """Return the values that replace some in Stoix's configuration, by their paths in it."""
    values = {"arch.total_timesteps": steps, "arch.total_num_envs": num_envs}
    values |= {f"system.{name}": value for name, value in system.items()}
    return values | {f"network.{name}": value for name, value in network.items()}


WORKS = {
    "dqn": Work("dqn", "DQN", "CartPole-v1", 100_000, dqn_equal, dqn_best),
    "ppo": Work("ppo", "PPO", "CartPole-v1", 200_000, ppo_equal, ppo_best),
    "ppo_brax": Work("ppo", "PPO", "InvertedPendulum-brax", 409_600, ppo_brax_equal, None),
    "ppo_minatar": Work("ppo", "PPO", "Breakout-MinAtar", 16_384, ppo_minatar_equal, None),
    "dqn_minatar": Work("dqn", "DQN", "Breakout-MinAtar", 20_000, dqn_minatar_equal, None),
    "mpc": Work("mpc", "MPC", "Pendulum-v1", 1_000, mpc_equal, None),
    "pets": Work("pets", "PETS", "Pendulum-v1", 2_000, pets_equal, None),
    "a2c": Work("a2c", "A2C", "CartPole-v1", 200_000, a2c_equal, None),
    "td3": Work("td3", "TD3", "Pendulum-v1", 20_000, td3_equal, None),
    "sac": Work("sac", "SAC", "Pendulum-v1", 20_000, sac_equal, None),
    "ddpg": Work("ddpg", "DDPG", "Pendulum-v1", 20_000, ddpg_equal, None),
    "c51": Work("c51", "C51", "CartPole-v1", 100_000, c51_equal, None),
    "rainbow": Work("rainbow", "Rainbow", "CartPole-v1", 100_000, rainbow_equal, None),
    "r2d2": Work("r2d2", "R2D2", "CartPole-v1", 100_000, r2d2_equal, None),
    "reinforce": Work("reinforce", "REINFORCE", "CartPole-v1", 300_000, reinforce_equal, None),
}
