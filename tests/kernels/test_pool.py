"""A pool whose queue is full of helpers that never got to work."""

from __future__ import annotations

import threading

import jax
import jax.numpy as jnp
import numpy as np

from kangaroo_jax.kernels import pack, product


def test_products_go_on_while_another_program_has_the_pool(normal) -> None:
    # More calls than a queue of XLA's pool holds: what does not fit is run at once, in the thread that brings it.
    matrix = pack(jnp.asarray(normal(0, 256, 256) * 0.01))
    many = jax.jit(lambda x: jax.lax.fori_loop(0, 6000, lambda _, y: product(y, matrix), x)).lower(jnp.ones((1, 256)))
    # Long enough to last through them, however many threads there are.
    width = 1500
    busy = jax.jit(lambda x: jax.lax.fori_loop(0, 12, lambda _, y: y @ y * 0.001, x)).lower(jnp.ones((width, width)))
    products, others = many.compile(), busy.compile()
    other = threading.Thread(target=lambda: jax.block_until_ready(others(jnp.ones((width, width)))))
    other.start()
    found = np.asarray(products(jnp.ones((1, 256))))
    other.join()
    assert np.isfinite(found).all()
