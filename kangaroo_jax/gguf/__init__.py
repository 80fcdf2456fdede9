"""GGUF, the format of llama.cpp: what a file says of itself, its tensors and its vocabulary; not what they mean."""

from kangaroo_jax.gguf.container import AGAIN, Gguf, GgufTensor, is_gguf, whole_name
from kangaroo_jax.gguf.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    read_merges,
    read_vocabulary,
)

__all__ = [
    "AGAIN",
    "BYTE",
    "CONTROL",
    "NORMAL",
    "UNKNOWN",
    "UNUSED",
    "USER_DEFINED",
    "Gguf",
    "GgufTensor",
    "Vocabulary",
    "is_gguf",
    "read_merges",
    "read_vocabulary",
    "whole_name",
]
