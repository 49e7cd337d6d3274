"""The race against peers, without peers: settings, arithmetic of the tables, and failures."""

import csv
import math
import sys

import pytest

from algorithms import a2c, c51, ddpg, dqn, ppo, r2d2, rainbow, reinforce, sac, td3
from benchmarks import speed
from benchmarks.peers.settings import OURS, OURS_ALONE, WORKS


def run(contestant, seeds, rate, status="ok", cold=True, **more):
    numbers = {"steps_per_second": rate, "compile_seconds": 2.0 if cold else 0.5}
    numbers |= {"peak_mib": 100.0, "episode_return": 400.0, "versions": {"jax": "1"}}
    label = {"contestant": contestant, "seeds": seeds, "cold": cold, "status": status, "reason": ""}
    return label | (numbers if status == "ok" else {}) | more


def test_the_same_work_is_what_the_docstring_says():
    config = dqn.Config(**WORKS["dqn"].equal(100_000)[OURS])
    assert (config.env_id, config.num_envs, config.batch_size) == ("CartPole-v1", 10, 128)
    assert config.num_envs * config.train_frequency == 10  # steps for one gradient step
    assert config.hidden_sizes == (64, 64) and config.learning_rate == 2.5e-4
    assert config.buffer_size == 10_000 and config.target_network_frequency == 50
    assert (config.epsilon_start, config.epsilon_end) == (1.0, 0.05)
    assert config.exploration_fraction == 0.5 and config.learning_starts == 1_000
    assert config.total_timesteps == 100_000 and config.tau == 1.0


def test_peers_get_the_same_numbers_in_their_own_words():
    settings = WORKS["dqn"].equal(100_000)
    ours, rejax, stable = (settings[name] for name in (OURS, "rejax", "sbx-rl"))
    assert settings["stable-baselines3"] == stable and settings[OURS_ALONE] == ours
    for name in ("total_timesteps", "num_envs", "buffer_size", "batch_size", "learning_rate"):
        assert ours[name] == rejax[name] == stable[name]
    for name in ("gamma", "exploration_fraction"):
        assert ours[name] == rejax[name] == stable[name]
    steps = ours["target_network_frequency"] * ours["num_envs"]
    assert steps == rejax["target_update_freq"] == stable["target_update_interval"]
    assert ours["learning_starts"] == rejax["fill_buffer"] == stable["learning_starts"]
    assert ours["epsilon_end"] == rejax["eps_end"] == stable["exploration_final_eps"]
    assert rejax["num_epochs"] == stable["gradient_steps"] == 1 and not rejax["ddqn"]
    assert ours["tau"] == stable["tau"] == 1 - rejax["polyak"]
    assert ours["hidden_sizes"] == stable["policy_kwargs"]["net_arch"] == (64, 64)


def test_purejaxrl_gets_the_same_numbers_too():
    ours, pure = (WORKS["dqn"].equal(100_000)[name] for name in (OURS, "purejaxrl"))
    assert (ours["total_timesteps"], ours["num_envs"]) == (pure["TOTAL_TIMESTEPS"], 10)
    assert (ours["buffer_size"], ours["learning_rate"]) == (pure["BUFFER_SIZE"], pure["LR"])
    assert ours["batch_size"] == pure["BUFFER_BATCH_SIZE"] and ours["gamma"] == pure["GAMMA"]
    assert ours["num_envs"] * ours["train_frequency"] == pure["TRAINING_INTERVAL"]
    assert 10 * ours["target_network_frequency"] == pure["TARGET_UPDATE_INTERVAL"]
    assert ours["exploration_fraction"] * 100_000 == pure["EPSILON_ANNEAL_TIME"]
    assert ours["epsilon_end"] == pure["EPSILON_FINISH"] and ours["tau"] == pure["TAU"]
    assert ours["learning_starts"] == pure["LEARNING_STARTS"]
    assert ours["hidden_sizes"] == pure["hidden_sizes"]

    ours, pure = (WORKS["ppo"].equal(100_000)[name] for name in (OURS, "purejaxrl"))
    both = {"total_timesteps": "TOTAL_TIMESTEPS", "learning_rate": "LR", "clip_coef": "CLIP_EPS"}
    same = "num_envs num_steps update_epochs num_minibatches gamma gae_lambda ent_coef vf_coef"
    both |= {name: name.upper() for name in (*same.split(), "max_grad_norm")}
    for mine, theirs in both.items():
        assert ours[mine] == pure[theirs]
    assert ours["anneal_lr"] == pure["ANNEAL_LR"] and ours["hidden_sizes"] == pure["hidden_sizes"]


def test_purejaxrl_joins_with_a_clone_and_where_it_has_the_algorithm(tmp_path):
    clone = ["--purejaxrl", str(tmp_path)]
    (tmp_path / "purejaxrl").mkdir()
    assert "purejaxrl" not in speed.parse([]).peers
    assert speed.parse(clone).peers[-1] == "purejaxrl"
    assert speed.parse([*clone, "--work", "ppo", "--table", "best"]).peers[-1] == "purejaxrl"
    assert "purejaxrl" not in speed.parse([*clone, "--work", "td3"]).peers
    assert "rejax" in speed.parse(["--work", "sac"]).peers
    assert "rejax" not in speed.parse(["--work", "ddpg"]).peers
    assert speed.parse([*clone, "--table", "hangs"]).peers == []


def test_stoix_joins_with_a_clone_and_where_it_has_the_algorithm(tmp_path):
    (tmp_path / "stoix" / "systems").mkdir(parents=True)
    clone = ["--stoix", str(tmp_path)]
    for name in ("r2d2", "rainbow", "c51", "reinforce"):
        assert speed.parse(["--work", name]).peers == []
        assert speed.parse([*clone, "--work", name]).peers == ["stoix"]
    assert "stoix" not in speed.parse(clone).peers
    arguments = speed.parse([*clone, "--work", "r2d2"])
    assert speed.clone_of("stoix", arguments) == str(tmp_path)
    assert speed.clone_of("purejaxrl", arguments) == speed.clone_of(OURS, arguments) == ""


@pytest.mark.parametrize(("name", "module"), [("c51", c51), ("rainbow", rainbow)])
def test_stoix_gets_the_same_numbers_for_distributional_dqn(name, module):
    settings = WORKS[name].equal(100_000)
    config, stoix = module.Config(**settings[OURS]), settings["stoix"]
    theirs = {k.removeprefix("system."): x for k, x in stoix.items() if k.startswith("system.")}
    assert_same_replay(config, stoix)
    assert config.train_frequency == theirs["rollout_length"] == theirs["epochs"] == 1
    assert (config.num_atoms, config.v_min) == (theirs["num_atoms"], theirs["vmin"])
    assert config.v_max == theirs["vmax"] and config.learning_rate == theirs["q_lr"]
    assert config.learning_starts == config.num_envs * theirs["warmup_steps"]
    if name == "c51":
        assert config.epsilon_start == config.epsilon_end == theirs["training_epsilon"]
        sizes = stoix["network.actor_network.pre_torso"]["layer_sizes"]
    else:
        assert config.n_step == theirs["n_step"] and config.sigma_init == theirs["sigma_zero"]
        assert config.prioritized_replay_alpha == theirs["priority_exponent"]
        assert config.prioritized_replay_beta == theirs["importance_sampling_exponent"] == 1
        parts = (stoix[f"network.actor_network.{x}"] for x in ("pre_torso", "action_head"))
        sizes = tuple(size for part in parts for size in part["layer_sizes"])
    assert config.hidden_sizes == sizes


def assert_same_replay(config, stoix):
    """Compare what all algorithms with a replay memory have."""
    warmup = stoix["system.warmup_steps"] * config.num_envs
    assert config.total_timesteps == stoix["arch.total_timesteps"] + warmup
    assert config.num_envs == stoix["arch.total_num_envs"]
    assert config.buffer_size == stoix["system.total_buffer_size"]
    assert config.batch_size == stoix["system.total_batch_size"]
    assert config.gamma == stoix["system.gamma"] and config.tau == stoix["system.tau"]
    assert config.target_network_frequency == 1  # Stoix's follow at every gradient step


def test_stoix_gets_the_same_numbers_for_r2d2():
    settings = WORKS["r2d2"].equal(100_000)
    config, stoix = r2d2.Config(**settings[OURS]), settings["stoix"]
    theirs = {k.removeprefix("system."): x for k, x in stoix.items() if k.startswith("system.")}
    assert_same_replay(config, stoix)
    assert config.num_steps == theirs["rollout_length"] == theirs["period"]
    assert config.gradient_steps == theirs["epochs"] and config.burn_in == theirs["burn_in_length"]
    sequence = config.burn_in + config.num_steps + config.n_step - 1
    assert sequence == theirs["sample_sequence_length"] and config.n_step == theirs["n_step"]
    assert config.learning_rate == theirs["q_lr"] and not config.anneal_lr
    assert config.prioritized_replay_alpha == theirs["priority_exponent"]
    assert config.prioritized_replay_eta == theirs["priority_eta"]
    assert config.epsilon == theirs["training_epsilon"] and config.epsilon_power == 0
    assert config.memory_size == stoix["network.actor_network.rnn_layer.hidden_state_dim"]
    layers = {
        name: stoix[f"network.actor_network.{name}"]["layer_sizes"]
        for name in ("pre_torso", "post_torso", "action_head")
    }
    assert layers == {"pre_torso": config.hidden_sizes, "post_torso": (), "action_head": ()}
    ours = r2d2.make(config).num_updates
    steps_per_update = config.num_envs * config.num_steps
    assert ours == stoix["arch.total_timesteps"] // steps_per_update


def test_stoix_gets_the_same_numbers_for_reinforce():
    settings = WORKS["reinforce"].equal(300_000)
    config, stoix = reinforce.Config(**settings[OURS]), settings["stoix"]
    theirs = {k.removeprefix("system."): x for k, x in stoix.items() if k.startswith("system.")}
    assert config.total_timesteps == stoix["arch.total_timesteps"]
    assert config.num_envs == stoix["arch.total_num_envs"]
    algorithm = reinforce.make(config)
    assert algorithm.steps_per_update == config.num_envs * theirs["rollout_length"]
    assert config.learning_rate == theirs["actor_lr"] and config.gamma == theirs["gamma"]
    assert config.critic_learning_rate == theirs["critic_lr"]
    assert config.anneal_lr == theirs["decay_learning_rates"]
    for name in ("actor", "critic"):
        assert stoix[f"network.{name}_network.pre_torso"]["layer_sizes"] == config.hidden_sizes


def test_ppo_does_the_same_work_everywhere():
    settings = WORKS["ppo"].equal(200_000)
    config = ppo.Config(**settings[OURS])
    ours, rejax, stable = (settings[name] for name in (OURS, "rejax", "sbx-rl"))
    steps = config.num_envs * config.num_steps
    assert (steps, config.update_epochs, config.num_minibatches) == (512, 4, 4)
    assert steps == rejax["num_envs"] * rejax["num_steps"] == stable["num_envs"] * stable["n_steps"]
    assert steps // stable["batch_size"] == rejax["num_minibatches"] == 4
    assert rejax["num_epochs"] == stable["n_epochs"] == 4 and not config.anneal_lr
    assert config.clip_coef == rejax["clip_eps"] == stable["clip_range"]
    for name in ("learning_rate", "gamma", "gae_lambda", "vf_coef", "ent_coef", "max_grad_norm"):
        assert ours[name] == rejax[name] == stable[name]


@pytest.mark.parametrize(("name", "module"), [("td3", td3), ("sac", sac)])
def test_td3_and_sac_do_the_same_work_everywhere(name, module):
    settings = WORKS[name].equal(20_000)
    config = module.Config(**settings[OURS])
    ours, rejax, stable = (settings[name] for name in (OURS, "rejax", "sbx-rl"))
    assert config.tau == stable["tau"] == pytest.approx(1 - rejax["polyak"])
    assert config.learning_starts == rejax["fill_buffer"] == stable["learning_starts"]
    assert rejax["num_epochs"] == stable["gradient_steps"] == stable["train_freq"] == 1
    for field in ("num_envs", "learning_rate", "gamma", "buffer_size", "batch_size"):
        assert ours[field] == rejax[field] == stable[field]
    if name == "sac":
        assert stable["ent_coef"] == f"auto_{config.alpha}"
    else:
        assert config.policy_frequency == rejax["policy_delay"] == stable["policy_delay"]
        assert config.policy_noise == rejax["target_noise"] == stable["target_policy_noise"]
        assert config.noise_clip == rejax["target_noise_clip"] == stable["target_noise_clip"]
        assert config.exploration_noise == rejax["exploration_noise"] == stable["action_noise"]


def test_ddpg_does_the_same_work_everywhere():
    settings = WORKS["ddpg"].equal(20_000)
    config = ddpg.Config(**settings[OURS])
    ours, stable = settings[OURS], settings["sbx-rl"]
    assert config.exploration_noise == stable["action_noise"] and config.ou_theta == 1
    for field in ("num_envs", "learning_rate", "gamma", "buffer_size", "batch_size", "tau"):
        assert ours[field] == stable[field]


def test_ppo_does_the_same_work_at_brax():
    settings = WORKS["ppo_brax"].equal(409_600)
    config, brax = ppo.Config(**settings[OURS]), settings["brax"]
    assert set(settings) == {OURS, OURS_ALONE, "brax"}
    assert config.num_envs == brax["num_minibatches"] * brax["batch_size"] == brax["num_envs"]
    assert config.num_steps == brax["unroll_length"]
    assert config.num_minibatches == brax["num_minibatches"]
    assert config.update_epochs == brax["num_updates_per_batch"]
    both = {"total_timesteps": "num_timesteps", "learning_rate": "learning_rate"}
    both |= {"gamma": "discounting", "gae_lambda": "gae_lambda", "clip_coef": "clipping_epsilon"}
    both |= {"ent_coef": "entropy_cost", "max_grad_norm": "max_grad_norm"}
    both |= {"vf_coef": "vf_loss_coefficient", "norm_obs": "normalize_observations"}
    for mine, theirs in both.items():
        assert getattr(config, mine) == brax[theirs]
    assert config.init_std == brax["network"]["init_noise_std"]
    for name in ("policy", "value"):
        assert brax["network"][f"{name}_hidden_layer_sizes"] == config.hidden_sizes


def test_a2c_does_the_same_work_everywhere():
    settings = WORKS["a2c"].equal(200_000)
    config, stable = a2c.Config(**settings[OURS]), settings["stable-baselines3"]
    assert config.num_steps == stable["n_steps"] and not config.anneal_lr
    assert config.norm_adv == stable["normalize_advantage"] and not stable["use_rms_prop"]
    same = "num_envs learning_rate gamma gae_lambda vf_coef ent_coef max_grad_norm"
    for field in same.split():
        assert getattr(config, field) == stable[field]


@pytest.mark.parametrize(("name", "module"), [("td3", td3), ("sac", sac), ("ddpg", ddpg)])
def test_stoix_gets_the_same_numbers_for_continuous_actions(name, module):
    settings = WORKS[name].equal(20_000)
    config, stoix = module.Config(**settings[OURS]), settings["stoix"]
    theirs = {k.removeprefix("system."): x for k, x in stoix.items() if k.startswith("system.")}
    warmup = theirs["warmup_steps"] * config.num_envs
    assert config.learning_starts == warmup
    assert config.total_timesteps == stoix["arch.total_timesteps"] + warmup
    assert config.num_envs == stoix["arch.total_num_envs"]
    assert config.buffer_size == theirs["total_buffer_size"]
    assert config.batch_size == theirs["total_batch_size"]
    assert (config.gamma, config.tau) == (theirs["gamma"], theirs["tau"])
    assert theirs["rollout_length"] == theirs["epochs"] == 1
    assert config.learning_rate == theirs["q_lr"] == theirs["actor_lr"]
    assert not theirs["decay_learning_rates"]
    for network in ("actor", "q"):
        assert stoix[f"network.{network}_network.pre_torso"]["layer_sizes"] == config.hidden_sizes
    if name == "sac":
        assert theirs["alpha_lr"] == config.learning_rate and config.alpha == 1  # as Stoix starts
    else:
        assert config.exploration_noise == theirs["exploration_noise"]
    if name == "td3":
        assert config.policy_frequency == theirs["policy_frequency"]
        assert config.policy_noise == theirs["policy_noise"]
        assert config.noise_clip == theirs["noise_clip"]


def test_medians_and_ratios():
    runs = [run(OURS, 8, x) for x in (100.0, 300.0)]
    runs += [run(OURS, 8, 200.0, cold=False)]
    runs += [run("rejax", 8, x) for x in (90.0, 80.0, 110.0)]
    runs += [run("sbx-rl", 1, 50.0), run("sbx-rl", 1, math.nan, "hung", reason="too long")]
    names = (OURS, "rejax", "sbx-rl")
    lines = [speed.equal_line(runs, name, 8) for name in names]
    speed.with_ratios(lines, "steps_per_second", max, lambda ours, peer: ours / peer)
    ours, rejax, sbx = lines
    assert ours["steps_per_second"] == 200 and ours["ratio"] == pytest.approx(200 / 90)
    assert (ours["compile_seconds"], ours["warm_compile_seconds"]) == (2.0, 0.5)
    assert math.isnan(rejax["ratio"]) and math.isnan(rejax["warm_compile_seconds"])
    assert sbx["steps_per_second"] == 50 and "one by one" in sbx["note"]
    assert (sbx["ok"], sbx["hung"], sbx["failed"], sbx["reason"]) == (1, 1, 0, "too long")


def test_time_to_the_target():
    curve = [[1_000, [500.0, 0.0, 0.0, 0.0]], [2_000, [500.0, 480.0, 470.0, 9.0]]]
    assert speed.steps_to(curve, 475.0) == 2_000  # the IQM drops the best and the worst seed
    assert math.isnan(speed.steps_to(curve, 476.0))
    assert speed.joined([[[5, [1.0]], [9, [2.0]]], [[5, [3.0]]]]) == [[5, [1.0, 3.0]]]
    ours = speed.best_line([run(OURS, 32, 6_400.0)], OURS, curve)
    peer = speed.best_line([run("rejax", 32, 1_600.0)], "rejax", curve)
    assert ours["seconds"] == 32 * 2_000 / 6_400 == ours["seconds_with_compile"] - 2
    lines = [ours, peer]
    speed.with_ratios(lines, "seconds_with_compile", min, lambda ours, peer: peer / ours)
    assert ours["ratio"] == pytest.approx(42 / 12)


def test_overhead_over_the_floor():
    times = {"environment_us": 1.0, "arithmetic_us": 50.0, "update_us": 80.0}
    runs = [{"status": "ok", "reason": "", "versions": {}, **times}]
    runs += [{"status": "failed", "reason": "why"}]
    line = speed.floor_line(runs, 32)
    assert line["overhead"] == pytest.approx(1.6)
    assert (line["ok"], line["failed"], line["reason"]) == (1, 1, "why")


@pytest.mark.parametrize(
    ("code", "timeout", "status", "reason"),
    [
        ("raise ValueError('no such thing')", 30, "failed", "ValueError: no such thing"),
        ("import time; time.sleep(60)", 0.5, "hung", "not finished after 0.5 s"),
        ("print('nothing')", 30, "failed", "printed no result"),
        ("raise SystemExit(3)", 30, "failed", "exit 3"),
        ("import os; os._exit(0)", 30, "failed", "printed no result"),
    ],
)
def test_a_run_that_goes_wrong_is_a_result(code, timeout, status, reason):
    done = speed.spawn([sys.executable, "-c", code], speed.child_environment(None), timeout)
    assert (done["status"], done["reason"]) == (status, reason)


def test_peers_that_are_broken_are_lines(monkeypatch, tmp_path):
    monkeypatch.setattr(speed, "PEERS_FOLDER", tmp_path / "nothing")
    numbers = {k: x for k, x in run("", 0, 100.0).items() if k not in ("contestant", "seeds")}
    monkeypatch.setattr(speed, "train_ours", lambda *_: numbers)
    arguments = speed.parse(["--seeds", "1", "2", "--rounds", "2", "--out", str(tmp_path)])
    shown = speed.race_equal(arguments, {"rejax": "does not install: no network"})
    with open(tmp_path / "speed_dqn.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(shown) - 1 == 2 * 5
    by_name = {line["contestant"]: line for line in lines if line["seeds"] == "2"}
    assert by_name[OURS]["ok"] == "2" and by_name[OURS]["ratio"] == ""
    assert by_name["rejax"]["failed"] == "2"
    assert by_name["rejax"]["reason"] == "does not install: no network"
    assert by_name["sbx-rl"]["reason"] == "No such file or directory"
    assert by_name["sbx-rl"]["steps_per_second"] == ""


def test_a_peer_that_does_not_install_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(speed, "PEERS_FOLDER", tmp_path)
    failed = {"status": "failed", "reason": "no matching distribution"}
    monkeypatch.setattr(speed, "spawn", lambda *_, **__: failed)
    assert speed.install(["rejax"]) == {"rejax": "does not install: no matching distribution"}
    assert speed.install([]) == {}


@pytest.mark.parametrize(
    "argv",
    [["--seeds", "0"], ["--rounds", "1.5"], ["--peers", "cleanrl"], ["--table", "worst"]]
    + [["--steps", "100"], ["--out", "no/such/folder"], ["--timeout", "-1"], ["--what"]]
    + [
        ["--work", "qr_dqn"],
        ["--work", "c51", "--table", "best"],
        ["--work", "td3", "--table", "best"],
        ["--work", "ppo", "--table", "floor"],
    ]
    + [["--purejaxrl", "no/such/clone"], ["--peers", "purejaxrl"]]
    + [["--stoix", "no/such/clone"], ["--peers", "stoix"]],
)
def test_bad_input_is_a_usage_error(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        speed.parse(argv)
    assert stop.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_ours_runs_as_users_run_it():
    settings = WORKS["dqn"].equal(4_000)[OURS] | {"hidden_sizes": (8,), "batch_size": 8}
    cache = speed.ROOT / ".cache" / "jax"
    job = speed.Job(OURS, WORKS["dqn"], 2, 0, settings, eval_every=2_000)
    done = speed.attempt(job, 120, cache, False, {})
    assert done["status"] == "ok", done["reason"]
    assert done["steps_per_second"] > 0 and done["compile_seconds"] > 0 and done["peak_mib"] > 50
    assert 5 < done["episode_return"] <= 500
    early, late = (steps for steps, _ in done["curve"])
    assert 2_000 <= early < 2_100 and late == 4_000
    assert all(len(returns) == 2 for _, returns in done["curve"])


def test_only_the_peers_ppo_asks_for_threads(tmp_path, monkeypatch):
    """Their orthogonal weights hang with two; everybody else has what users have."""
    seen = []

    def spy(words, environment, timeout, wants_json=True):
        seen.append(environment.get("NPROC"))
        return {"status": "failed", "reason": ""}

    monkeypatch.setattr(speed, "spawn", spy)
    monkeypatch.setenv("NPROC", "3")
    for name in ("dqn", "ppo"):
        for contestant in (OURS, OURS_ALONE, "rejax"):
            job = speed.Job(contestant, WORKS[name], 1, 0, WORKS[name].equal(1_000)[contestant])
            speed.attempt(job, 1, tmp_path, True, {})
    assert seen == [None] * 5 + ["4"]
