"""``python -m kangaroo_jax.kernels``: say in one line whether native kernels are used on this machine."""

from kangaroo_jax.kernels import describe, why_not

print("kernels:", describe("native" if why_not() is None else "xla"))
