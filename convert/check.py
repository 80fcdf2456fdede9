"""Does a converted model compute what its source does? Logits, compared with a reference.

The model runs one decoder layer at a time, in fp32, with one piece of its params in memory: a model whose fp32 params
would not fit can be checked.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Float, Int

from convert.reference import Reference, read_reference, require_torch, transformers_reference
from kangaroo_jax.model import LlamaConfig, embed, line, run_layers
from kangaroo_jax.model import logits as final_logits
from kangaroo_jax.store import Params, checkpoint_tensors, common_dtype, matched, read_config, restore_params

# Limits of the relative error. Two right implementations differ by 1e-6 to 1e-5, the smallest mistake that was tried
# (eps 1e-6 instead of 1e-5) makes 5e-3. Rounding a model to bfloat16 makes 2e-2, to float16 2e-3.
EXACT = 1e-4
ROUNDED = {"float32": EXACT, "bfloat16": 0.05, "float16": 0.01}
LARGEST = 1e-3  # Limit of the largest error of an exact conversion, where logits are of the order of 1.
_BLOCK = 256


@dataclasses.dataclass(frozen=True)
class Report:
    """What a check found; ``str`` of it is a paragraph for the user.

    Attributes:
        reference: where the reference comes from.
        positions: number of positions compared.
        largest_error: the largest absolute difference of two logits.
        largest_limit: what it may be; infinite where values were rounded.
        relative_error: rms of the differences over rms of the reference's logits, centred at each position.
        limit: what the relative error may be.
        top1_agreement: share of the positions where both have the same id on top.
        rounded: dtype whose rounding the two sides do not share, or None.
    """

    reference: str
    positions: int
    largest_error: float
    largest_limit: float
    relative_error: float
    limit: float
    top1_agreement: float
    rounded: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the model computes what the reference does; NaN does not pass."""
        return self.largest_error <= self.largest_limit and self.relative_error <= self.limit

    def __str__(self) -> str:
        bound = "" if math.isinf(self.largest_limit) else f" (limit {self.largest_limit:.1e})"
        rounding = f", which allows for values rounded to {self.rounded}" if self.rounded else ""
        verdict = "the converted model computes what the reference does"
        return (
            f"check {'passed' if self.passed else 'FAILED'}: {self.positions} positions against {self.reference}: "
            f"relative error {self.relative_error:.1e} (limit {self.limit:.1e}{rounding}), largest error "
            f"{self.largest_error:.1e}{bound}, same id on top at {100 * self.top1_agreement:.1f} % of the positions; "
            f"{verdict if self.passed else 'the converted model is not what the reference was computed with'}"
        )


def check_reference(source: Path, reference: Path | None) -> None:
    """Raise what ``check`` would about its reference: before a conversion of minutes, not after it.

    Raises:
        ValueError: if the file is unusable, or torch is needed and not installed.
    """
    if reference is None:
        require_torch()
    else:
        read_reference(reference, read_config(source).vocab_size)


def check(
    directory: Path,
    source: Path,
    reference: Path | None = None,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> Report:
    """Compare a converted model with a reference.

    transformers gets the source's weights rounded as the conversion rounded them, so that its logits are those of an
    exact conversion. A file of the user's is taken to be the source's own.

    Args:
        directory: what the converter wrote: ``params/`` and ``config.json``.
        source: what it was made from, in Hugging Face's layout.
        reference: a file as ``read_reference`` takes it; None: computed with transformers, which needs torch.
        progress: wraps the sequence of layers while they run, as ``tqdm`` does.

    Raises:
        ValueError: if there is no usable reference, or files of the model are absent or damaged.
    """
    config = read_config(directory)
    part = stored_part(directory, config)
    kept, written = source_dtype(source), part("norm")["scale"].dtype
    exact = holds(written, kept)
    if reference is None:
        expected, rounded = transformers_reference(source, config, (kept if exact else written).name), None
    else:
        expected = read_reference(reference, config.vocab_size)
        kinds = {expected.dtype, "float32" if exact else written.name} - {"float32"}
        rounded = max(kinds, key=ROUNDED.__getitem__, default=None)
    return compare(layerwise_logits(config, part, expected.tokens, progress), expected, rounded)


def layerwise_logits(
    config: LlamaConfig,
    part: Callable[[str], Params],
    tokens: Int[np.ndarray, "B T"],
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> Float[np.ndarray, "B T V"]:
    """Return what ``forward`` does, in fp32, with one top-level piece of the params in memory at a time.

    Args:
        config: shape of the model.
        part: returns a piece by its name, as ``layers_3``, in any dtype; nothing here keeps it.
        tokens: sequences that start at position 0.
        progress: wraps the sequence of layers while they run, as ``tqdm`` does.
    """
    x = _embed(part("embed_tokens"), tokens).block_until_ready()
    for index in progress(range(config.num_hidden_layers)):
        # Without waiting, the next layer would be read while this one is still in use.
        x = _layer(config, part(f"layers_{index}"), x).block_until_ready()
    head = "embed_tokens" if config.tie_word_embeddings else "lm_head"
    return np.asarray(_logits(config, {name: part(name) for name in ("norm", head)}, x))


def compare(ours: Float[np.ndarray, "B T V"], reference: Reference, rounded: str | None = None) -> Report:
    """Measure how far logits are from a reference's.

    Args:
        ours: logits of the reference's tokens.
        reference: what they should be.
        rounded: a key of ``ROUNDED`` if the two sides differ by rounding to that dtype; None for equal values.
    """
    largest = errors = centred = squares = agreed = 0.0
    for mine, theirs in zip(_blocks(ours), _blocks(reference.logits), strict=True):
        difference = mine - theirs
        largest = float(np.maximum(largest, np.abs(difference).max()))  # Unlike max, it lets NaN through.
        errors += float(np.square(difference).sum())
        squares += float(np.square(theirs).sum())
        centred += float(np.square(theirs - theirs.mean(axis=-1, keepdims=True)).sum())
        agreed += int((mine.argmax(axis=-1) == theirs.argmax(axis=-1)).sum())
    positions = reference.tokens.size
    scale = max(1.0, math.sqrt(squares / reference.logits.size))
    return Report(
        reference=reference.name,
        positions=positions,
        largest_error=largest,
        largest_limit=math.inf if rounded else LARGEST * scale,
        relative_error=math.sqrt(errors / centred) if centred else math.inf,
        limit=ROUNDED[rounded] if rounded else EXACT,
        top1_agreement=agreed / positions,
        rounded=rounded,
    )


def holds(dtype: Any, other: Any) -> bool:
    """Return whether every value of the floating-point type ``other`` is one of ``dtype``."""
    wide, narrow = ml_dtypes.finfo(dtype), ml_dtypes.finfo(other)
    return wide.nmant >= narrow.nmant and wide.maxexp >= narrow.maxexp and wide.minexp <= narrow.minexp


def source_dtype(source: Path) -> np.dtype:
    """Return the dtype that holds all values of a checkpoint in Hugging Face's layout; nothing is read."""
    tensors = [(tensor.name, tensor) for tensor in checkpoint_tensors(source)]
    return common_dtype(tensor.dtype for _, tensor in matched(read_config(source), tensors))


def stored_part(directory: Path, config: LlamaConfig) -> Callable[[str], Params]:
    """Return what gives the top-level pieces of a converted model's params by name, in the dtype stored."""
    return lambda name: restore_params(directory / "params", config, only=[name])[name]


def _fp32(tree: Params) -> Params:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


@jax.jit
def _embed(piece: Params, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    return embed({"embed_tokens": piece}, tokens).astype(jnp.float32)


@partial(jax.jit, static_argnums=0)
def _layer(config: LlamaConfig, piece: Params, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Run any layer as the first one: all have the same shapes, so that one program does for all."""
    context = line(jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2]), None)
    return run_layers(config, {"layers_0": _fp32(piece)}, x, context, None, 0, 1)[0]


@partial(jax.jit, static_argnums=0)
def _logits(config: LlamaConfig, pieces: Params, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    return final_logits(config, _fp32(pieces), x)


def _blocks(logits: Float[np.ndarray, "B T V"]) -> Iterator[Float[np.ndarray, "P V"]]:
    """Yield all positions in fp64, some at a time."""
    rows = logits.reshape(-1, logits.shape[-1])
    for start in range(0, len(rows), _BLOCK):
        yield rows[start : start + _BLOCK].astype(np.float64)
