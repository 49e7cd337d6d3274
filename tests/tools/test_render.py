"""render.py and drawings.py: frames are an episode's states, from the first to the last before the
reset, and files are small and of the right kind."""

import base64
import io
import json
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import run_here
from matplotlib.figure import Figure
from PIL import Image

from common.algorithm import Algorithm
from common.environments.games import make_game, perfect_player
from common.environments.tabular import TABULAR, make_mdp
from common.envs import make_env
from common.tools.drawings import make_drawing
from common.tools.render import MAX_BYTES, PAUSE, as_gif, brax_page, make_scene
from common.tools.render import Scene as SceneOf


def scene(env_id, act=None, key=0, max_steps=1_000):
    """An episode of `act(obs, key) -> action`, or of action 0, as it is drawn."""
    env = make_env(env_id, 1)
    env = env._replace(max_steps=min(env.max_steps, max_steps))
    return make_scene(env_id, env, member(env, act), jax.random.key(key))


def member(env, act=None):
    """A seed that acts so, as `load_member` returns it."""
    zero = 0 if env.num_actions is not None else jnp.zeros(env.action_shape)
    policy = lambda params, obs, key: act(obs, key) if act else zero
    return Algorithm(None, None, policy, 1, 1), (), {"seed": 3}


def drawn(env_id, states, t):
    """The axes with the drawing of a state."""
    axes = Figure().subplots()
    make_drawing(env_id).draw(axes, np.asarray(states), t)
    return axes


def test_the_last_state_is_the_one_before_the_reset():
    """Pushed to one side, the pole falls past 12 degrees; a reset would have it upright."""
    found = scene("CartPole-v1")
    assert found.end == "terminated" and found.label == "seed 3"
    angles = np.abs(found.states[:, 2])
    assert (angles[:-1] < 0.2094).all() and angles[-1] >= 0.2094
    np.testing.assert_array_equal(found.steps, np.arange(len(found.states)))
    np.testing.assert_array_equal(found.returns, np.arange(len(found.states)))


def test_an_episode_ends_at_its_time_limit_or_is_cut():
    whole, cut = scene("Pendulum-v1"), scene("Pendulum-v1", max_steps=50)
    assert whole.end == "time limit" and len(whole.states) == 201
    assert cut.end == "cut" and len(cut.states) == 51
    np.testing.assert_array_equal(whole.states[:51], cut.states)


def test_a_walk_in_a_grid_world_ends_on_the_goal():
    """Always right from the start falls off the cliff and back; up, eleven right, down arrives."""
    mdp = make_mdp("CliffWalking-tabular")
    moves = np.where(np.arange(48) == 36, 0, np.where(np.arange(48) % 12 == 11, 2, 1))
    found = scene("CliffWalking-tabular", lambda obs, key: jnp.asarray(moves)[obs])
    assert found.states[0] == 36 and found.states[-1] == 47 and mdp.terminal[47]
    assert len(found.states) == 14 and found.returns[-1] == -13
    axes = drawn("CliffWalking-tabular", found.states, 13)
    agent = axes.lines[-1]
    assert (agent.get_xdata()[0], agent.get_ydata()[0]) == (11, 3)
    texts = [text.get_text() for text in axes.texts]
    assert texts.count("C") == 10 and texts.count("G") == texts.count("S") == 1


@pytest.mark.parametrize("env_id", [x for x, entry in TABULAR.items() if entry.grid is not None])
def test_every_grid_world_is_drawn(env_id):
    axes = drawn(env_id, [0, 1], 1)
    assert axes.images and axes.lines


def test_a_game_shows_each_move_and_ends_with_the_move_that_ends_it():
    """`next_obs` has one more piece after the agent's last move."""
    game = make_game("TicTacToe-game")
    for key in range(4):
        found = scene("TicTacToe-game", perfect_player(game), key)
        pieces = np.abs(found.states).sum(1)
        np.testing.assert_array_equal(pieces, np.arange(len(pieces)))  # one more each time
        assert (found.states.sum(1) == pieces % 2).all()  # X, who is 1, moves first
        lines = np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 3, 6], [1, 4, 7], [2, 5, 8]])
        lines = np.concatenate([lines, [[0, 4, 8], [2, 4, 6]]])
        won = (found.states[:, lines].sum(-1) == 3).any(-1)
        assert not won[:-1].any() and won[-1] == (found.returns[-1] == 1)
        assert found.end == "terminated" and not found.returns[:-1].any()
    texts = [text.get_text() for text in drawn("TicTacToe-game", found.states, -1).texts]
    assert texts.count("X") - texts.count("O") == pieces[-1] % 2


def test_an_illegal_move_ends_a_game_on_the_board_it_was_made_on():
    found = scene("TicTacToe-game")  # always the first cell
    assert found.returns[-1] == -1 and found.steps[-1] == 2
    np.testing.assert_array_equal(found.states[-1], found.states[-2])


def test_acrobot_ends_above_the_line():
    """Energy is pumped in: the torque has the sign of the second joint's velocity."""
    found = scene("Acrobot-v1", lambda obs, key: 1 + jnp.sign(obs[5]).astype(int), max_steps=500)
    height = [drawn("Acrobot-v1", found.states, t).lines[-1].get_ydata()[-1] for t in (-2, -1)]
    assert found.end == "terminated" and height[0] <= 1 < height[1]


def test_the_car_ends_at_the_flag():
    env_id, goal = "MountainCar-v0", 0.5
    found = scene(env_id, lambda obs, key: 1 + jnp.sign(obs[1] + 1e-9).astype(int))
    axes = drawn(env_id, found.states, -1)
    assert found.end == "terminated" and axes.lines[-1].get_xdata()[0] >= goal
    assert axes.lines[1].get_xdata()[0] == goal
    assert (found.states[:-1, 0] < goal).all()


def test_the_pendulum_hangs_and_turns_as_gymnasium_draws_it():
    """θ grows anticlockwise from upright."""
    for angle, tip in ((0, (0, 1)), (np.pi / 2, (-1, 0)), (np.pi, (0, -1))):
        axes = drawn("Pendulum-v1", [[np.cos(angle), np.sin(angle), 0]], 0)
        np.testing.assert_allclose(axes.lines[1].get_xydata()[-1], tip, atol=1e-6)


def test_what_is_seen_through_a_window_or_without_velocities_is_drawn_alike():
    plain = scene("CartPole-v1", max_steps=5)
    for env_id in ("CartPole-v1-positions", "CartPole-v1-history3"):
        found = scene(env_id, max_steps=5)
        for t in (0, 3, 5):
            ours, theirs = drawn(env_id, found.states, t), drawn("CartPole-v1", plain.states, t)
            np.testing.assert_allclose(
                ours.lines[-1].get_xydata(), theirs.lines[-1].get_xydata(), rtol=1e-5
            )


def test_an_environment_with_other_parameters_is_drawn_alike():
    """The pole falls otherwise; a state's picture is that of CartPole."""
    found, usual = scene("CartPole-v1+gravity=30"), scene("CartPole-v1")
    assert found.end == "terminated" and np.abs(found.states[-1] - usual.states[-1]).max() > 0.1
    lines = drawn("CartPole-v1+gravity=30", found.states, 3).lines
    usual_lines = drawn("CartPole-v1", found.states, 3).lines
    for one, other in zip(lines, usual_lines, strict=True):
        np.testing.assert_array_equal(one.get_xydata(), other.get_xydata())


def test_an_image_has_a_colour_for_each_channel():
    states = np.zeros((1, 4, 4, 3), bool)
    states[0, 0, 1, 0] = states[0, 2, 3, 2] = True
    image = drawn("Breakout-MinAtar", states, 0).images[0].get_array()
    assert len(np.unique(image.reshape(-1, 3), axis=0)) == 3
    assert (image[0, 1] != image[0, 0]).any() and (image[2, 3] != image[0, 1]).any()
    with pytest.raises(ValueError, match="no drawing"):
        drawn("Breakout-MinAtar", states * 0.5, 0)


def test_a_linear_system_is_drawn_over_time_and_a_robot_in_its_room():
    system, robot = "DoubleIntegrator-linear", "PointRobot-obstacles"
    found = scene(system, max_steps=10)
    lines = drawn(system, found.states, 7).lines
    np.testing.assert_array_equal([line.get_ydata() for line in lines], found.states[:8].T)
    found = scene(robot, max_steps=10)
    way, agent = drawn(robot, found.states, 7).lines[-2:]
    np.testing.assert_array_equal(way.get_xydata(), found.states[:8, :2])
    np.testing.assert_array_equal(agent.get_xydata(), found.states[7:8, :2])


@pytest.mark.parametrize("env_id", ["MemoryChain-bsuite", "Taxi-tabular", "Blackjack-tabular"])
def test_what_has_no_drawing_is_refused_with_what_has(env_id):
    with pytest.raises(ValueError, match=f"{env_id} has no drawing; there is one of .*MinAtar"):
        make_drawing(env_id)


def as_scene(num_states):
    """A pole that swings for ever."""
    angle = np.sin(np.arange(num_states) / 5)
    states = np.stack([angle, angle * 0, angle, angle * 0], 1)
    return SceneOf("seed 0", states, np.arange(num_states), np.arange(num_states), "time limit")


def test_a_gif_is_small_ends_with_the_last_state_and_leaves_out_steps_of_a_long_episode(
    monkeypatch,
):
    monkeypatch.setattr("common.tools.render.MAX_FRAMES", 20)
    for num_states, every in ((19, 1), (22, 2)):
        drawing = make_drawing("CartPole-v1")
        scenes = [as_scene(num_states), as_scene(num_states // 2)]
        data, found = as_gif(drawing, scenes, "title", None)
        gif = Image.open(io.BytesIO(data))
        assert found == every and len(data) < MAX_BYTES
        assert gif.n_frames == len({*range(0, num_states, every), num_states - 1})
        gif.seek(gif.n_frames - 1)
        assert gif.info["duration"] == PAUSE and gif.info["loop"] == 0
        gif.seek(1)
        assert gif.info["duration"] == (20 if every == 1 else 40)  # 50 steps a second


def test_a_gif_too_large_shows_fewer_steps(monkeypatch):
    drawing, scenes = make_drawing("CartPole-v1"), [as_scene(30)]
    data, _ = as_gif(drawing, scenes, "title", 10)
    monkeypatch.setattr("common.tools.render.MAX_BYTES", len(data))
    smaller, every = as_gif(drawing, scenes, "title", 10)
    assert len(smaller) < len(data) and every == 2


@pytest.mark.slow
@pytest.mark.parametrize("parameters", ["", "+gravity=5:12"])
def test_the_page_of_brax_has_each_state_and_the_one_that_ended_the_episode(parameters):
    """The pole of Brax's pendulum, let go, falls past .2 radians."""
    env_id = f"InvertedPendulum-brax{parameters}"
    env = make_env(env_id, 1)
    page, shown = brax_page(env_id, env, member(env), jax.random.key(0))
    packed = re.search(r"\"(eJ[\w+/=]{500,})\"", page.decode())[1]
    system = json.loads(zlib.decompress(base64.b64decode(packed)))
    states = system["states"]["x"]
    num_steps = int(re.search(r"(\d+) steps, return .*, terminated", shown)[1])
    assert len(states) == num_steps + 1
    w = [np.abs(state["rot"][1][0]) for state in states]  # of the pole's quaternion
    assert 2 * np.arccos(w[-2]) <= 0.2 < 2 * np.arccos(w[-1])


def test_brax_without_bodies_is_refused():
    env = make_env("Fast-brax", 1)
    with pytest.raises(ValueError, match="Fast-brax has no bodies to draw"):
        brax_page("Fast-brax", env, member(env), jax.random.key(0))


def test_a_run_is_rendered_from_the_command_line(tmp_path):
    flags = "--env-id FourRooms-tabular --total-timesteps 5000 --num-seeds 3 --eval-episodes 2"
    run_here("algorithms.q_learning", *flags.split(), "--quiet", "--out", tmp_path / "run")
    best = run_here("common.render", tmp_path / "run", "--out", tmp_path / "a.gif")
    assert "q_learning on FourRooms-tabular; seed" in best.stdout and "a.gif" in best.stdout
    with Image.open(tmp_path / "a.gif") as gif:
        size, num_frames = gif.size, gif.n_frames
    assert f"{num_frames - 1} steps" in best.stdout and size[0] == 320
    flags = ["--grid", "3", "--out", tmp_path / "b.png"]
    side_by_side = run_here("common.render", tmp_path / "run", *flags)
    assert all(f"seed {k}: " in side_by_side.stdout for k in range(3))
    with Image.open(tmp_path / "b.png") as image:
        assert image.size[0] == 640 and image.size[1] > size[1]
    for arguments, message in [
        (["--seed", "9", "--out", "a.gif"], "no member with"),
        (["--out", "a.html"], "FourRooms-tabular is drawn as .gif or .png, not as .html"),
        (["--out", "a"], "drawn as .gif or .png"),
        (["--out", tmp_path / "none" / "a.gif"], "cannot write"),
        (["--grid", "0", "--out", "a.gif"], "from 1 to 64 seeds"),
        (["--fps", "0", "--out", "a.gif"], "--fps above 0"),
        ([], "--out"),
    ]:
        done = run_here("common.render", tmp_path / "run", *arguments, check=2)
        assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    done = run_here("common.render", tmp_path / "none", "--out", "a.gif", check=2)
    assert "no trained policies there" in done.stderr
