"""Draw an episode of a trained policy, as a moving picture.

    python -m common.render runs/... --out episode.gif [--seed K | --seeds K L M | --grid N]

The policy is that of the best seed, or of the seeds asked for, side by side and from the same
start. The file is a .gif of less than 1.5 MiB, or a .png of the last state; of a Brax environment
it is a .html, which a browser turns in three dimensions (it loads Brax's viewer from the net). The
last frame is the state in which the episode ended, before any reset. Exit code 2 if the run cannot
be played or drawn.
"""

import io
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from common.algorithm import Algorithm
from common.environments.env_parameters import asking, split_id
from common.environments.games import board, make_game
from common.environments.tabular import id_after
from common.envs import Env, Transition, make_env
from common.runner.checkpoint import CheckpointError, load_header, write_atomically
from common.runner.cli import fail, tool_parser
from common.runner.results import env_id_of, load_member
from common.tools.drawings import Drawing, make_drawing
from common.tools.record import play

MAX_BYTES = 3 * 2**19  # 1.5 MiB: pages with larger pictures are slow to load
MAX_FRAMES = 250  # of a .gif: of a longer episode it shows every k-th step
PAUSE = 1500  # milliseconds for which the last frame stays


class Scene(NamedTuple):
    """An episode as it is drawn, T states of it."""

    label: str  # whose policy it is
    states: np.ndarray  # [T, ...] observations, or the boards of a game
    steps: np.ndarray  # [T] int, taken before each
    returns: np.ndarray  # [T] before each
    end: str  # why it ended


def main() -> None:
    """Write what the command line asks for, and print what was drawn."""
    parser = tool_parser("render", __doc__)
    parser.add_argument("run", help="the folder of a run")
    parser.add_argument("--out", required=True, help="the file to write: .gif, .png or .html")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seed", type=int, help="of this seed; else of the best one")
    which.add_argument("--seeds", type=int, nargs="+", help="of these seeds, side by side")
    which.add_argument("--grid", type=int, help="of the first N seeds of the run, side by side")
    parser.add_argument("--fps", type=float, help="frames a second; else about the true speed")
    parser.add_argument("--max-steps", type=int, default=1_000, help="cut it then (1,000)")
    parser.add_argument("--key", type=int, default=0, help="of the random numbers (0)")
    args = parser.parse_args()
    if args.max_steps < 1 or (args.fps is not None and not 0 < args.fps <= 50):
        fail(2, "--max-steps must be at least 1, and --fps above 0 and at most 50")
    if (args.grid is not None and args.grid < 1) or len(args.seeds or ()) > 64:
        fail(2, "--grid and --seeds: from 1 to 64 seeds")
    try:
        data, message = render(Path(args.run), Path(args.out).suffix, args)
        write_atomically(Path(args.out), lambda file: file.write(data))
    except (CheckpointError, ValueError) as error:
        fail(2, str(error))
    except OSError as error:
        fail(2, f"cannot write {args.out}: {error.strerror}; choose another --out")
    print(f"{message}; wrote {args.out}, {len(data) / 1e3:,.0f} kB")


def render(run: Path, kind: str, args: Any) -> tuple[bytes, str]:
    """Return the contents of a file of a kind, ".gif", ".png" or ".html", and what it shows, in
    words. ValueError or CheckpointError if the run cannot be played or drawn."""
    path = run / "policy.npz"
    if not path.exists():
        raise ValueError(f"{run}: no trained policies there (it has no policy.npz)")
    stored, table = load_header(path, "member/")
    seeds = [args.seed] if args.seeds is None else list(dict.fromkeys(args.seeds))
    if args.grid is not None:
        seeds = sorted({int(x) for x in table["member/seed"]})[: min(args.grid, 64)]
    members = [load_member(path, seed, {}) for seed in seeds]
    if members[0][0].act is None:
        raise ValueError(f"{run}: {stored['algorithm']} has no policy without its planner")
    env_ids = {played_id(path, algorithm, fields) for algorithm, _, fields in members}
    if len(env_ids) > 1:
        raise ValueError(f"{run}: these seeds have different environments; choose one --seed")
    env_id, key = env_ids.pop(), jax.random.key(args.key)
    is_brax = "-brax" in env_id
    if (kind == ".html") != is_brax or kind not in (".gif", ".png", ".html"):
        wanted = ".html" if is_brax else ".gif or .png"
        raise ValueError(f"--out: {env_id} is drawn as {wanted}, not as {kind or 'that'}")
    if is_brax and len(seeds) > 1:
        raise ValueError(f"{env_id} is drawn for one --seed at a time")
    title = f"{stored['algorithm']} on {env_id}"
    drawing = None if is_brax else make_drawing(env_id)
    env = make_env(env_id, 1)
    env = env._replace(max_steps=min(env.max_steps, args.max_steps))
    if drawing is None:
        return brax_page(env_id, env, members[0], key)
    scenes = [make_scene(env_id, env, member, key) for member in members]
    ends = "; ".join(
        f"{scene.label}: {scene.steps[-1]:,} steps, return {scene.returns[-1]:.4g}, {scene.end}"
        for scene in scenes
    )
    num_states = max(len(scene.states) for scene in scenes)
    if kind == ".png":
        image = draw_frames(drawing, scenes, title, [num_states - 1])[0]
        return as_png(image), f"{title}; {ends}"
    data, every = as_gif(drawing, scenes, title, args.fps)
    return data, f"{title}; {ends}" + (f"; every {every} steps" if every > 1 else "")


def played_id(path: Path, algorithm: Algorithm, fields: dict) -> str:
    """Return the id of the environment of a member of policy.npz, as it is after training."""
    num_steps = algorithm.initial_steps + algorithm.num_updates * algorithm.steps_per_update
    return id_after(env_id_of(path, fields), num_steps)


def make_scene(env_id: str, env: Env, member: tuple, key: jax.Array) -> Scene:
    """Play one episode in an Env of one environment. Its last state is the one before the reset."""
    algorithm, params, fields = member
    rows = play(algorithm, params, env, key)[0]
    states, steps = np.concatenate([rows.obs[:1], rows.next_obs]), np.arange(len(rows.reward) + 1)
    if env_id.endswith("-game"):
        states, steps = boards_of(env_id, rows)
    returns = np.concatenate([[0], np.cumsum(rows.reward)])[steps]
    return Scene(f"seed {fields['seed']}", states, steps, returns, end_of(rows))


def end_of(rows: Transition) -> str:
    """Return why the episode [T, ...] ended."""
    if rows.terminated[-1]:
        return "terminated"
    return "time limit" if rows.truncated[-1] else "cut"


def boards_of(env_id: str, rows: Transition) -> tuple[np.ndarray, np.ndarray]:
    """Return the boards [T, C] of a game, one after each move of either player, and the steps of
    the agent that were over then [T]. (After the agent's last move `next_obs` has one more.)"""
    game = make_game(env_id)
    boards, steps = [board(rows.obs[0])], [0]
    for t, (obs, action) in enumerate(zip(rows.obs, rows.action, strict=True)):
        if not game.legal(obs)[action]:  # which loses
            return np.array([*boards, boards[-1]]), np.array([*steps, t + 1])
        after, _, has_ended = game.step(obs, action)
        boards.append(board(after))
        steps.append(t + bool(has_ended))
        if not has_ended:
            boards.append(board(rows.next_obs[t]))
            steps.append(t + 1)
    return np.array(boards), np.array(steps)


# Pictures


def draw_frames(drawing: Drawing, scenes: list[Scene], title: str, indices: Any) -> list:
    """Return an image for each index of a state. A scene that has ended stays as it is."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    columns = int(np.ceil(np.sqrt(len(scenes))))
    rows, width = -(-len(scenes) // columns), min(3.2, 7.2 / columns)
    size = columns * width, rows * (width * drawing.aspect + 0.3) + 0.3
    figure = Figure(size, dpi=100, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.02, ha="left", size=9)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(scenes) :]:
        axes.axis("off")
    images = []
    for index in indices:
        for axes, scene in zip(panels, scenes, strict=False):
            t = min(index, len(scene.states) - 1)
            for kind in (axes.lines, axes.collections, axes.patches, axes.texts, axes.images):
                for x in [*kind]:  # axes.clear() would take longer than all else
                    x.remove()
            drawing.draw(axes, scene.states, t)
            end = f", {scene.end}" if t == len(scene.states) - 1 else ""
            caption = f"{scene.label}: step {scene.steps[t]}, return {scene.returns[t]:.4g}{end}"
            axes.set_title(caption, loc="left", size=min(8, 2.5 * width), color="0.25")
        canvas.draw()
        figure.set_layout_engine("none")  # so that nothing moves from frame to frame
        images.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]))
    return images


def as_gif(drawing: Drawing, scenes: list[Scene], title: str, fps: float | None) -> tuple:
    """Return a GIF of less than MAX_BYTES, and how many steps lie between its frames."""
    num_states = max(len(scene.states) for scene in scenes)
    every = -(-num_states // MAX_FRAMES)
    indices = np.unique([*range(0, num_states, every), num_states - 1])
    images = draw_frames(drawing, scenes, title, indices)
    while True:
        speed = fps or max(drawing.speed / every, min(drawing.speed, 12))
        data = encode(images, 1000 / speed)
        if len(data) < MAX_BYTES or len(images) < 3:
            return data, every
        images, every = [*images[:-1:2], images[-1]], 2 * every


def encode(images: list, milliseconds: float) -> bytes:
    """Return a GIF that repeats for ever. All frames have the same 64 colours, so that only what
    moves is stored."""
    from PIL import Image

    some = [images[0], images[len(images) // 2], images[-1]]
    together = np.concatenate([np.asarray(image) for image in some])
    palette = Image.fromarray(together).quantize(64)
    frames = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    times = [round(milliseconds)] * (len(frames) - 1) + [PAUSE]
    file = io.BytesIO()
    frames[0].save(
        file, "gif", save_all=True, append_images=frames[1:], duration=times, loop=0, disposal=1
    )
    return file.getvalue()


def as_png(image: Any) -> bytes:
    """Return the contents of a PNG file."""
    file = io.BytesIO()
    image.save(file, "png", optimize=True)
    return file.getvalue()


def brax_page(env_id: str, env: Env, member: tuple, key: jax.Array) -> tuple[bytes, str]:
    """Return Brax's page of an episode, HTML, and what it shows, in words."""
    from brax.io import html

    from common.environments.brax_envs import load
    from common.environments.brax_parameters import with_parameters

    base, texts = split_id(env_id)
    base = base.partition("-history")[0]
    model, max_steps = load(base)
    if not hasattr(model, "sys"):
        raise ValueError(f"{env_id} has no bodies to draw; choose another of Brax")
    with asking(texts):
        brax_env, _ = with_parameters(base, model, max_steps)

    def step(state, action, key):
        after, transition = env.step(state, action, key)
        return after, transition._replace(obs=state.inner[0])  # Brax's own state

    algorithm, params, fields = member
    rows = play(algorithm, params, env._replace(step=step), key)[0]
    length = len(rows.reward)
    states = [jax.tree.map(lambda x, t=t: x[t], rows.obs) for t in range(length)]
    states.append(jax.jit(brax_env.step)(states[-1], rows.action[-1]))  # before any reset
    system = model.sys.tree_replace({"opt.timestep": model.dt})
    page = html.render(system, [state.pipeline_state for state in states])
    shown = f"{length:,} steps, return {rows.reward.sum():.4g}, {end_of(rows)}"
    return page.encode(), f"{env_id}; seed {fields['seed']}: {shown}"


if __name__ == "__main__":
    main()
