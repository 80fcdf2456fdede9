"""Text on one side, token ids on the other. Nothing here knows the network."""

from kangaroo_jax.text.characters import Characters
from kangaroo_jax.text.chat_template import answers, chat_ids, joined, own_template
from kangaroo_jax.text.detokenizer import Detokenizer
from kangaroo_jax.text.gguf_tokenizer import gguf_tokenizer_files
from kangaroo_jax.text.reader import Reader
from kangaroo_jax.text.stop import StopScanner
from kangaroo_jax.text.tokenizer import NoTokenizer, Tokenizer, find_tokenizer, load_tokenizer

__all__ = [
    "Characters",
    "Detokenizer",
    "NoTokenizer",
    "Reader",
    "StopScanner",
    "Tokenizer",
    "answers",
    "chat_ids",
    "find_tokenizer",
    "gguf_tokenizer_files",
    "joined",
    "load_tokenizer",
    "own_template",
]
