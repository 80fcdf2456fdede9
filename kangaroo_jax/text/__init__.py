"""Text on one side, token ids on the other. Nothing here knows the network."""

from kangaroo_jax.text.chat import chat_ids
from kangaroo_jax.text.detokenizer import Detokenizer
from kangaroo_jax.text.reader import Reader
from kangaroo_jax.text.stop import StopScanner
from kangaroo_jax.text.tokenizer import Tokenizer, find_tokenizer, load_tokenizer

__all__ = ["Detokenizer", "Reader", "StopScanner", "Tokenizer", "chat_ids", "find_tokenizer", "load_tokenizer"]
