"""Products with a policy's Fisher matrix, and the linear systems that they are enough to solve."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from common.distributions import kl_divergence


def fisher_vector_product(policy: Callable, params: jax.Array, damping: float) -> Callable:
    """Return the function v [P] -> (F + damping I) v, where F is the Fisher matrix at params [P] of
    the distributions `policy(params)`, a mean over their batch.

    F = E[∇ln π ∇ln πᵀ] = E[Jᵀ M J], J being the Jacobian of the logits or of mean and log_std, and
    M the second derivative by them of the KL divergence from the distributions themselves (Schulman
    et al. 2015, App. C.1, https://arxiv.org/abs/1502.05477).
    """
    distribution, jacobian = jax.linearize(policy, params)
    transposed = jax.linear_transpose(jacobian, params)
    kl_gradient = jax.grad(lambda new: kl_divergence(distribution, new).mean())

    def product(v):
        _, change = jax.jvp(kl_gradient, (distribution,), (jacobian(v),))
        return transposed(change)[0] + damping * v

    return product


def conjugate_gradient(product: Callable, b: jax.Array, num_iterations: int) -> tuple:
    """Solve A x = b, where `product(v)` is A v and A is symmetric and positive definite; return x
    [P] and A x [P], which is b less the residual.

    Hestenes & Stiefel 1952, https://doi.org/10.6028/jres.049.044. In exact arithmetic it takes at
    most P iterations; once the residual is rounding error, further ones leave x as it is.
    """
    smallest = jnp.square(jnp.finfo(b.dtype).eps) * (b @ b)

    def iterate(carry, _):
        x, residual, direction = carry
        image = product(direction)
        old, curvature = residual @ residual, direction @ image
        goes_on = (old > smallest) & (curvature > 0)
        size = jnp.where(goes_on, old / curvature, 0)
        x, residual = x + size * direction, residual - size * image
        direction = residual + jnp.where(goes_on, residual @ residual / old, 0) * direction
        return (x, residual, direction), None

    x, residual, _ = jax.lax.scan(iterate, (0 * b, b, b), length=num_iterations)[0]
    return x, b - residual
