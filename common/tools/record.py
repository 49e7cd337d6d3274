"""Record whole episodes of trained policies, to learn from with --dataset.

    python -m common.record runs/... --out data.npz [--episodes 100] [--seed K]

The policies are those of all seeds of a run, of any algorithm that has a policy, or that of one
seed; the episodes are shared among them. For each step the file holds `obs`, `action` (in the
environment's units), `reward`, `next_obs` (before any reset), `terminated`, `truncated` and
`episode`, its number from 0. `header` is JSON: env_id, source, seeds, the return of each episode,
versions. `sha256` is of all that. Exit code 2 if the run or the file cannot be used.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from common.algorithm import Algorithm
from common.datasets import first_episodes
from common.envs import Env, make_env
from common.memory import rollout_with_memory
from common.runner.checkpoint import CheckpointError, load_header, save
from common.runner.cli import fail, tool_parser
from common.runner.evaluation import MAX_LENGTH, without_memory
from common.runner.results import env_id_of, load_member
from common.runner.run_folder import versions


def main() -> None:
    """Record what the command line asks for, and print what was recorded."""
    parser = tool_parser("record", __doc__)
    parser.add_argument("run", help="the folder of a run")
    parser.add_argument("--out", required=True, help="the file to write, .npz")
    parser.add_argument("--episodes", type=int, default=100, help="over all seeds (100)")
    parser.add_argument("--seed", type=int, help="only this seed; else all, in equal parts")
    parser.add_argument("--key", type=int, default=0, help="of the random numbers (0)")
    args = parser.parse_args()
    try:
        arrays, header = record(Path(args.run), args.episodes, args.seed, args.key)
        save(Path(args.out), arrays, header)
    except (CheckpointError, ValueError) as error:
        fail(2, str(error))
    except OSError as error:
        fail(2, f"cannot write {args.out}: {error.strerror}; choose another --out")
    returns = np.array(header["returns"])
    low, mean, high = (f"{x:.4g}" for x in (returns.min(), returns.mean(), returns.max()))
    print(f"{len(returns)} episodes, {len(arrays['reward']):,} steps of {header['env_id']}")
    print(f"returns: mean {mean}, from {low} to {high}; wrote {args.out}")


def record(
    run: Path, num_episodes: int, seed: int | None, key: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays [steps, ...] and the header of a file. ValueError or CheckpointError if the
    run has no policy that can be played."""
    path = run / "policy.npz"
    if not path.exists():
        raise ValueError(f"{run}: no trained policies there (it has no policy.npz)")
    stored, table = load_header(path, "member/")
    seeds = sorted({int(x) for x in table["member/seed"]}) if seed is None else [seed]
    if num_episodes < len(seeds):
        raise ValueError(f"--episodes {num_episodes}: at least one for each of {len(seeds)} seeds")
    parts, returns, env_id = [], [], ""
    for i, one in enumerate(seeds):
        algorithm, params, fields = load_member(path, one, {})
        if algorithm.act is None:
            raise ValueError(f"{run}: {stored['algorithm']} has no policy without its planner")
        env_id = env_id_of(path, fields)
        share = (num_episodes + i) // len(seeds)  # adds up to num_episodes
        env = make_env(env_id, share)
        seed_key = jax.random.fold_in(jax.random.key(key), one)
        rows, lengths = play(algorithm, params, env, seed_key)
        numbers = len(returns) + np.repeat(np.arange(share), lengths)
        parts.append({**rows._asdict(), "episode": numbers})
        returns += [float(x.sum()) for x in np.split(rows.reward, np.cumsum(lengths)[:-1])]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    header = {"env_id": env_id, "algorithm": stored["algorithm"], "run": run.name, "seeds": seeds}
    return arrays, header | {"returns": returns, "versions": versions()}


def play(algorithm: Algorithm, params: Any, env: Env, key: jax.Array) -> tuple[Any, np.ndarray]:
    """Play one episode in each environment; return its Transitions, episode after episode
    [steps, ...], and the lengths of the episodes [N]."""
    act, init_memory = algorithm.act, algorithm.init_memory
    assert act is not None
    policy, initial = (act, init_memory()) if init_memory else (without_memory(act), None)
    num_steps = min(env.max_steps, MAX_LENGTH)

    def act_in_all(memory, obs, key):
        return jax.vmap(policy, (None, 0, 0, 0))(
            params, memory, obs, jax.random.split(key, env.num_envs)
        )

    @jax.jit
    def run(key):
        key_reset, key_play = jax.random.split(key)
        memory = jax.tree.map(lambda x: jnp.broadcast_to(x, (env.num_envs, *x.shape)), initial)
        states = env.reset(key_reset), memory
        _, played, *_ = rollout_with_memory(env, act_in_all, states, initial, key_play, num_steps)
        done = played.terminated | played.truncated
        lengths = jnp.where(done.any(0), jnp.argmax(done, axis=0) + 1, num_steps)
        return first_episodes(played), lengths

    data, lengths = run(key)
    rows = jax.tree.map(lambda x: np.asarray(x)[: int(data.size)], data.transitions)
    return rows, np.asarray(lengths)


if __name__ == "__main__":
    main()
