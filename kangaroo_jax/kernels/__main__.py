"""``python -m kangaroo_jax.kernels``: say in one line whether native kernels are used on this machine."""

import sys

import jax.numpy as jnp

from kangaroo_jax.kernels import describe, use_native

try:
    print("kernels:", describe("native" if use_native("auto", jnp.dtype(jnp.float32)) else "xla"))
except ValueError as error:
    sys.exit(f"error: {error}")
