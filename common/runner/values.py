"""Q and V of a state, from the parameters of a trained policy.

A table has V [S] or Q [S, A] by itself, or as the field `v` or `q` of its params. Of a file that
learns Q(s, a), as its docstring says of the metric `value`, and acts greedily in it, Q is the array
[A] whose argmax its `act` returns. A critic beside a policy is not needed to act, and so not in
policy.npz.
"""

import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun

from common.algorithm import Algorithm
from common.envs import Env

LEARNED = r"`value`,\s+mean\s+(Q\(s,\s+a\)|V\s+of\s+the\s+start|V\(s\)\s+of\s+the\s+states|table)"


def make_values(algorithm: Algorithm, params: Any, env: Env, what: str) -> Callable:
    """Return `obs -> Q [A]` for "q", or `obs -> V []` for "v", which is max_a Q(s, a) if the file
    learns Q. ValueError if the policy has no such values."""
    act = algorithm.act
    assert act is not None
    module = sys.modules[act.__module__]
    learned = re.search(LEARNED, module.__doc__ or "")
    if learned and algorithm.init_memory is None:
        v, q = getattr(params, "v", None), getattr(params, "q", None)
        if isinstance(params, jax.Array):
            v, q = (params if params.ndim == n else None for n in (1, 2))
        if what == "q" and q is not None:
            return lambda obs: q[obs]
        if what == "v" and v is not None:
            return lambda obs: v[obs]
        if what == "v" and q is not None:
            return lambda obs: jnp.max(q[obs])
        obs = jax.eval_shape(lambda key: env.reset(key).obs[0], jax.random.key(0))
        traced = greedy_values(act, params, obs)
        is_q = learned[1].startswith("Q") and not hasattr(module, "mode")  # of logits
        if is_q and traced and traced.out_avals[0].shape == (env.num_actions,):
            values = lambda obs: jaxpr_as_fun(traced)(*jax.tree.leaves((params, obs)))[0]
            return values if what == "q" else lambda obs: jnp.max(values(obs))
    name = module.__name__.rpartition(".")[2]
    raise ValueError(f"{name} acts without {what.upper()}: there is none in its policy.npz")


def greedy_values(act: Callable, params: Any, obs: Any) -> Any:
    """Return the jaxpr of `params, obs -> array` whose argmax the action is; None if it is none."""
    traced = jax.make_jaxpr(lambda *args: act(*args, jax.random.key(0)))(params, obs)
    jaxpr = traced.jaxpr
    last = next((x for x in reversed(jaxpr.eqns) if jaxpr.outvars[0] in x.outvars), None)
    if last is None or "argmax" not in (last.primitive.name, last.params.get("name")):
        return None
    return traced.replace(jaxpr=jaxpr.replace(outvars=last.invars[:1]))
