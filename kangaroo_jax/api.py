"""load, generate, stream: text in, text out. The only file that knows tokenizers and decoding."""

from __future__ import annotations

import dataclasses
import numbers
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import struct

from kangaroo_jax import decode as dec
from kangaroo_jax.checks import integer, token_ids
from kangaroo_jax.compiled import compiled
from kangaroo_jax.model import KangarooConfig, LlamaConfig
from kangaroo_jax.results import Generation, Stats
from kangaroo_jax.store import find_adapter, load_adapter, load_target
from kangaroo_jax.text import Detokenizer, Tokenizer, load_tokenizer

METHODS = ("kangaroo", "plain")
_UNBOUNDED = np.int32(2**31 - 1)
_FINISH = {dec.STOP: "stop", dec.LENGTH: "length"}


class Params(struct.PyTreeNode):
    """A loaded model: a pytree whose leaves are the weights; everything else is static.

    Attributes:
        target: params of the Llama decoder.
        adapter: params of the adapter, or None when the model has none (plain decoding only).
        config: shape of the target.
        draft: exit layer and default gamma and eta, or None without an adapter.
        tokenizer: turns text into ids and back.
        name: what it was loaded as, for messages.
    """

    target: Any
    adapter: Any
    config: LlamaConfig = struct.field(pytree_node=False)
    draft: KangarooConfig | None = struct.field(pytree_node=False)
    tokenizer: Tokenizer = struct.field(pytree_node=False)
    name: str = struct.field(pytree_node=False)


def load(name: str | Path = "joey", *, adapter: str | Path | None = None, dtype: Any = None) -> Params:
    """Load a model and its adapter onto the default device.

    Args:
        name: ``"joey"`` (the embedded model), a directory written by ``convert.hf_to_flax``, a Hugging Face directory,
            or an alias such as ``"vicuna-7b"`` once it is converted.
        adapter: an adapter directory; default: the one that lies in the model's directory, if there is one.
        dtype: dtype of the weights and of the arithmetic; default fp32 on a CPU, bf16 elsewhere.

    Raises:
        ValueError: if the name is unknown, a file is missing or damaged, or the adapter belongs to another model.
    """
    config, target, directory = load_target(name, dtype)
    draft, adapter_params = None, None
    if (path := find_adapter(directory, adapter)) is not None:
        draft, adapter_params = load_adapter(path, config, target["norm"]["scale"].dtype)
    return Params(target, adapter_params, config, draft, load_tokenizer(directory), str(name))


def generate(
    params: Params,
    prompt: str | Sequence[int],
    *,
    max_new_tokens: int = 128,
    gamma: int | None = None,
    eta: float | None = None,
    method: str = "kangaroo",
    eos_token_id: int | Sequence[int] | None = None,
) -> Generation:
    """Continue a prompt greedily; Kangaroo returns the very tokens plain decoding returns, sooner.

    Args:
        params: from ``load``.
        prompt: text, or token ids (used as they are: no BOS is added).
        max_new_tokens: token budget, at least 0. The text also ends, with "length", at the model's
            ``max_position_embeddings``.
        gamma: largest number of tokens drafted in a round; default: the adapter's.
        eta: confidence below which drafting stops; 0 never stops early, above 1 always; default: the adapter's.
        method: ``"kangaroo"``, or ``"plain"`` for decoding without a draft.
        eos_token_id: token or tokens that end the text; default: the model's own; ``()`` for none.

    Raises:
        ValueError: if an argument is out of range, or the prompt is empty or too long.
    """
    run = _Run(params, prompt, max_new_tokens, gamma, eta, method, eos_token_id)
    if not run.finished:  # With the first token: then nothing more need be compiled.
        run.advance(_UNBOUNDED)
    return run.result()


def stream(
    params: Params, prompt: str | Sequence[int], *, rounds_per_call: int = 4, **options: Any
) -> Generator[str, None, Generation]:
    """Yield the text of ``generate`` piece by piece, as rounds commit it.

    A piece never holds half a UTF-8 character. All pieces joined are ``generate(...).text``, and the iterator's return
    value (``StopIteration.value``, or what ``yield from`` gives) is that ``Generation``.

    Args:
        params: from ``load``.
        prompt: text or token ids.
        rounds_per_call: rounds between two looks of the host; fewer give smoother text, more give speed.
        **options: as for ``generate``.

    Raises:
        ValueError: as ``generate``, and if ``rounds_per_call`` is not positive; at the call, not at the first piece.
    """
    rounds = integer("rounds_per_call", rounds_per_call, 1)
    defaults: dict[str, Any] = {"max_new_tokens": 128, "gamma": None, "eta": None, "method": "kangaroo"}
    if unknown := set(options) - {*defaults, "eos_token_id"}:
        raise TypeError(f"stream() got unexpected arguments {sorted(unknown)}")
    return _pieces(_Run(params, prompt, **(defaults | {"eos_token_id": None} | options)), rounds)


def _pieces(run: _Run, rounds: int) -> Generator[str, None, Generation]:
    detokenizer = Detokenizer(run.params.tokenizer, run.prompt)
    shown = 0
    while True:
        ids = run.new_tokens()
        if piece := detokenizer.push(ids[shown:]):
            yield piece
        shown = len(ids)
        if run.finished:
            break
        run.advance(np.int32(min(rounds, int(_UNBOUNDED))))
    if piece := detokenizer.finish():
        yield piece
    return run.result()


class _Run:
    """One generation from checked arguments to its result; the host's side of the device loop."""

    def __init__(
        self,
        params: Params,
        prompt: str | Sequence[int],
        max_new_tokens: int,
        gamma: int | None,
        eta: float | None,
        method: str,
        eos_token_id: int | Sequence[int] | None,
    ) -> None:
        if not isinstance(params, Params):
            raise ValueError(f"params is {params!r:.60}; pass what kangaroo_jax.load returns")
        self.params = params
        self.prompt = _prompt_ids(params, prompt)
        self.method = method
        self.spec, self.eta = _spec(params, method, gamma, eta)
        budget = integer("max_new_tokens", max_new_tokens, 0)
        longest = min(len(self.prompt) + budget, params.config.max_position_embeddings)
        self.eos = _eos_ids(params.config, eos_token_id)
        # Weights go in once; a plain run does not see the adapter at all.
        self.weights = {"target": params.target, "adapter": params.adapter if self.spec.gamma else None}
        self._prefill(longest - len(self.prompt))

    def _prefill(self, budget: int) -> None:
        width = dec.bucket(len(self.prompt))
        slots = dec.cache_slots(self.spec, width, len(self.prompt) + budget)
        padded = np.zeros((1, width), np.int32)
        padded[0, : len(self.prompt)] = self.prompt
        length = np.array([len(self.prompt)], np.int32)
        args = (self.weights, padded, length, np.array([budget], np.int32), self.eos)
        # The prefill is the same for every gamma but 0.
        spec = dataclasses.replace(self.spec, gamma=min(self.spec.gamma, 1))
        program, self.compile_seconds = compiled(dec.prefill, {0: spec, 6: slots}, *args)
        start = time.perf_counter()
        self.state = jax.block_until_ready(program(*args))
        self.prefill_seconds = time.perf_counter() - start
        self.decode_seconds = 0.0

    @property
    def finished(self) -> bool:
        """Whether the text has ended."""
        return int(self.state.finish[0]) != dec.RUNNING

    def advance(self, rounds: np.int32) -> None:
        """Run at most this many rounds on the device."""
        eta = np.float32(min(self.eta, 2.0))  # All above 1 are one, and this one fits fp32.
        args = (self.weights, self.state, eta, self.eos, rounds)
        program, seconds = compiled(dec.decode, {0: self.spec}, *args)
        self.compile_seconds += seconds
        start = time.perf_counter()
        self.state = jax.block_until_ready(program(*args))
        self.decode_seconds += time.perf_counter() - start

    def new_tokens(self) -> list[int]:
        """Return the ids generated so far."""
        row = np.asarray(self.state.tokens[0])
        return row[len(self.prompt) : int(self.state.length[0])].tolist()

    def result(self) -> Generation:
        """Return the finished generation."""
        counters = jax.tree.map(lambda leaf: np.asarray(leaf[0]), self.state.stats)
        rounds, ids = int(counters.rounds), self.new_tokens()
        stats = Stats(
            method=self.method,
            gamma=self.spec.gamma,
            eta=self.eta,
            new_tokens=len(ids),
            accept_lengths=tuple(counters.accept_lengths[:rounds].tolist()),
            draft_lengths=tuple(counters.draft_lengths[:rounds].tolist()),
            accepted=int(counters.accepted),
            prefill_seconds=self.prefill_seconds,
            decode_seconds=self.decode_seconds,
            compile_seconds=self.compile_seconds,
        )
        detokenizer = Detokenizer(self.params.tokenizer, self.prompt)
        text = detokenizer.push(ids) + detokenizer.finish()
        return Generation(text, tuple(ids), _FINISH[int(self.state.finish[0])], stats)


def _prompt_ids(params: Params, prompt: str | Sequence[int]) -> list[int]:
    """Return the prompt's ids, checked against vocabulary and context."""
    config = params.config
    if isinstance(prompt, str):
        if lone := next((character for character in prompt if "\ud800" <= character <= "\udfff"), None):
            raise ValueError(f"prompt has {lone!r}, half of a surrogate pair, which is no text; pass valid Unicode")
        ids = params.tokenizer.encode(prompt)
    else:
        ids = token_ids("prompt", prompt, config.vocab_size, "a string or a list of token ids")
    if not ids:
        raise ValueError("prompt is empty; pass at least one token (text gets a BOS token if the tokenizer has one)")
    if len(ids) >= config.max_position_embeddings:
        raise ValueError(
            f"prompt has {len(ids)} tokens; {params.name} takes at most {config.max_position_embeddings - 1} "
            f"(max_position_embeddings less one): shorten the prompt"
        )
    return ids


def _eos_ids(config: LlamaConfig, eos_token_id: int | Sequence[int] | None) -> np.ndarray:
    """Return the ids that end the text, padded with -1 so that their number compiles nothing anew."""
    if eos_token_id is None:
        ids = list(config.eos_token_id)
    else:
        given = [eos_token_id] if isinstance(eos_token_id, numbers.Integral) else eos_token_id
        ids = token_ids("eos_token_id", given, config.vocab_size, "a token id, a list of them, or () for none")
    return np.array(ids + [-1] * (-len(ids) % 4 or 4 * (not ids)), np.int32)


def _spec(params: Params, method: str, gamma: int | None, eta: float | None) -> tuple[dec.DecodeSpec, float]:
    """Return the static description and eta, checked."""
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; choose one of {', '.join(METHODS)}")
    if gamma is not None:
        gamma = integer("gamma", gamma, 1, params.config.max_position_embeddings)
    if eta is not None and not (isinstance(eta, numbers.Real) and 0 <= eta < float("inf")):
        raise ValueError(f"eta is {eta!r}; it is a probability threshold: pass 0 or more (0.6 is the paper's)")
    if method == "plain":
        # One exit layer for all plain runs, so that they share a program whatever the adapter.
        return dec.DecodeSpec(params.config, params.config.num_hidden_layers, 0), 0.0
    if params.draft is None or params.adapter is None:
        raise ValueError(
            f"{params.name} has no adapter; train one with 'python -m train.adapter --model {params.name}', "
            "pass load(..., adapter=DIR), or use method='plain'"
        )
    spec = dec.DecodeSpec(params.config, params.draft.exit_layer, gamma or params.draft.gamma)
    return spec, float(params.draft.eta if eta is None else eta)
