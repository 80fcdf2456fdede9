"""Converters between checkpoint formats: ``python -m convert.hf_to_flax`` makes what ``kangaroo_jax.load`` reads."""
