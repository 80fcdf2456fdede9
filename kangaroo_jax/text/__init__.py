"""Text on one side, token ids on the other. Nothing here knows the network."""

from kangaroo_jax.text.detokenizer import Detokenizer
from kangaroo_jax.text.tokenizer import Tokenizer, load_tokenizer

__all__ = ["Detokenizer", "Tokenizer", "load_tokenizer"]
