"""What a generation can be told, in one place: names, defaults, checks, and the form the device takes them in."""

from __future__ import annotations

import dataclasses
import secrets
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from kangaroo_jax import decode as dec
from kangaroo_jax.checks import integer, plain, real, text, token_ids
from kangaroo_jax.model import METHODS
from kangaroo_jax.params import Params, check_params


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a generation; ``generate`` explains them. What Hugging Face has too is named and meant as there."""

    max_new_tokens: int = 128
    gamma: int | None = None
    eta: float | None = None
    method: str | None = None
    eos_token_id: int | Sequence[int] | None = None
    stop_strings: str | Sequence[str] | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = 50
    top_p: float = 1.0
    min_p: float | None = None
    seed: int | None = None
    num_return_sequences: int = 1

    @classmethod
    def of(cls, caller: str, options: dict[str, Any]) -> Options:
        """Return the options that ``caller`` was given by name; raise TypeError for a name there is not."""
        try:
            return cls(**options)
        except TypeError as error:
            raise TypeError(str(error).replace("Options.__init__()", f"{caller}()")) from None


@dataclasses.dataclass(frozen=True)
class Plan:
    """Checked options, as the decoder takes them.

    Attributes:
        method: ``"kangaroo"`` or ``"plain"``.
        spec: what is static.
        eta: confidence below which drafting stops, as it was asked for.
        controls: what is traced.
        max_new_tokens: token budget.
        stop_strings: strings that end the text.
        seed: seed of the random numbers, or None for other ones each time.
        copies: sequences to draw for each prompt.
        drafter_weights: weights of a drafter other than Kangaroo's.
    """

    method: str
    spec: dec.DecodeSpec
    eta: float
    controls: dec.Controls
    max_new_tokens: int
    stop_strings: tuple[str, ...]
    seed: int | None
    copies: int
    drafter_weights: Any = None

    def keys(self, prompts: int) -> np.ndarray:
        """Return the random key of every sequence, ``[prompts * copies, 2]``.

        A given seed makes the same key for the same copy of any prompt: what a sequence draws does not depend on the
        batch around it. Without one, all keys differ.
        """
        if self.seed is None:
            entropy = secrets.randbits(128)
            sources = [np.random.SeedSequence(entropy, spawn_key=(row,)) for row in range(prompts * self.copies)]
        else:
            sources = [np.random.SeedSequence(self.seed, spawn_key=(copy,)) for copy in range(self.copies)] * prompts
        return np.stack([source.generate_state(2, np.uint32) for source in sources])


def plan(params: Params, options: Options) -> Plan:
    """Check options against a model.

    Raises:
        ValueError: if one is out of range; the message names it, its value and what is expected.
    """
    check_params(params)
    method = _method(params, options)
    spec, eta = _spec(params, options, method)
    sampling = _sampling(params, options)
    copies = integer("num_return_sequences", options.num_return_sequences, 1)
    # Temperature 0 is the limit of lower and lower ones: the most likely token.
    sample = bool(options.do_sample) and bool(sampling.temperature > 0)
    if copies > 1 and not sample:
        raise ValueError(
            f"num_return_sequences is {copies}, and greedy decoding has one result: pass do_sample=True "
            "with a temperature above 0"
        )
    truncate = sample and bool(sampling.top_k < params.config.vocab_size or sampling.top_p < 1)
    seed = None if options.seed is None else integer("seed", options.seed, 0)
    # All eta above 1 are one, and 2 fits fp32.
    traced: tuple[Any, ...] = (np.float32(min(eta, 2.0)), _eos_ids(params, options.eos_token_id), sampling)
    return Plan(
        method=method,
        spec=dataclasses.replace(spec, sample=sample, truncate=truncate),
        eta=eta,
        controls=dec.Controls(*traced),
        max_new_tokens=integer("max_new_tokens", options.max_new_tokens, 0),
        stop_strings=_stop_strings(params, options.stop_strings),
        seed=seed,
        copies=copies,
    )


def _method(params: Params, options: Options) -> str:
    """Return the method asked for, or the adapter's own choice."""
    if options.method is None:
        return "kangaroo" if params.draft is None else params.draft.method
    if options.method not in METHODS:
        raise ValueError(f"method is {options.method!r}; choose one of {', '.join(METHODS)}")
    return options.method


def _spec(params: Params, options: Options, method: str) -> tuple[dec.DecodeSpec, float]:
    """Return the static description and eta."""
    gamma, eta = options.gamma, options.eta
    if gamma is not None:
        gamma = integer("gamma", gamma, 1, params.config.max_position_embeddings)
    if eta is not None:
        eta = real("eta", eta, "a probability threshold of 0 or more (0.6 is the paper's)")
    if method == "plain":
        # One exit layer for all plain runs, so that they share a program whatever the adapter.
        return dec.DecodeSpec(params.config, params.config.num_hidden_layers, 0), 0.0
    if params.draft is None or params.adapter is None:
        raise ValueError(
            f"{params.name} has no adapter; train one with 'python -m train.adapter --model {params.name}', "
            "pass load(..., adapter=DIR), or use method='plain'"
        )
    draft = params.draft
    spec = dec.DecodeSpec(params.config, draft.exit_layer, gamma or draft.gamma, draft.adapter)
    return spec, float(draft.eta if eta is None else eta)


def _sampling(params: Params, options: Options) -> dec.Sampling:
    """Return temperature and cuts."""
    if not isinstance(options.do_sample, bool | np.bool_):
        raise ValueError(f"do_sample is {options.do_sample!r:.60}; pass True or False")
    temperature = real("temperature", options.temperature, "0 or more (0 is greedy, 1 the model's own)")
    top_p = real("top_p", options.top_p, "a probability above 0 and up to 1 (1 keeps all tokens)", 1e-30, 1)
    least = 0 if options.min_p is None else options.min_p
    min_p = real("min_p", least, "a probability from 0 to 1 (0 keeps all tokens)", 0, 1)
    top_k = 0 if options.top_k is None else integer("top_k", options.top_k, 0)
    _warn_of_unused(options)
    vocab_size = params.config.vocab_size
    kept = min(top_k or vocab_size, vocab_size)
    traced: tuple[Any, ...] = (np.float32(min(temperature, 1e30)), np.int32(kept), np.float32(top_p), np.float32(min_p))
    return dec.Sampling(*traced)


def _warn_of_unused(options: Options) -> None:
    """Warn of settings that greedy decoding does not look at."""
    if options.do_sample:
        return
    defaults = {field.name: field.default for field in dataclasses.fields(Options)}
    given = [
        name
        for name in ("temperature", "top_k", "top_p", "min_p")
        # Temperature 0 asks for what greedy decoding does.
        if (value := getattr(options, name)) not in (defaults[name], None) and (name, value) != ("temperature", 0)
    ]
    if given:
        warnings.warn(f"{', '.join(given)} has no effect: pass do_sample=True to draw tokens", stacklevel=6)


def _eos_ids(params: Params, eos_token_id: int | Sequence[int] | None) -> np.ndarray:
    """Return the ids that end the text, padded with -1 so that their number compiles nothing anew."""
    config = params.config
    if eos_token_id is None:
        ids = list(config.eos_token_id)
    else:
        given = plain(eos_token_id)
        given = given if isinstance(given, list | tuple) else [given]
        ids = token_ids("eos_token_id", given, config.vocab_size, "a token id, a list of them, or () for none")
    return np.array(ids + [-1] * (-len(ids) % 4 or 4 * (not ids)), np.int32)


def _stop_strings(params: Params, stop_strings: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the strings that end the text."""
    if stop_strings is None:
        return ()
    expected = "a string or a list of strings, none of them empty"
    given = [stop_strings] if isinstance(stop_strings, str) else plain(stop_strings)
    if not isinstance(given, Sequence) or not all(isinstance(item, str) for item in given):
        raise ValueError(f"stop_strings is {stop_strings!r:.60}; pass {expected}")
    if "" in given:
        raise ValueError(f"stop_strings has an empty string, which is everywhere; pass {expected}")
    params.tokenizer.encode("")  # Raises where there is none: no text would ever hold them.
    return tuple(text("stop_strings", item) for item in given)
