"""What a generation can be told, in one place: names, defaults, checks, and the form the device takes them in."""

from __future__ import annotations

import dataclasses
import math
import secrets
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kangaroo_jax import decode as dec
from kangaroo_jax.checks import integer, plain, real, text, token_ids
from kangaroo_jax.model import LOOKUP, METHODS, SIBLINGS
from kangaroo_jax.params import Params, check_params


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a generation; ``generate`` explains them. What Hugging Face has too is named and meant as there."""

    max_new_tokens: int = 128
    gamma: int | None = None
    eta: float | None = None
    siblings: int | None = None
    lookup: int | None = None
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


LINES: dict[str, Any] = {"siblings": 0, "lookup": 0}
"""Options with which Kangaroo is the paper's: what it drafts is one line, and the draft model's own."""
OF_A_BATCH = ("gamma", "siblings", "lookup", "method", "num_return_sequences")
"""Options that all prompts of a call share; every other one may differ from prompt to prompt."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Checked options of one prompt: what is traced, or looked at by the host; none of it compiles anything.

    Attributes:
        eta: confidence below which drafting stops, as it was asked for.
        eos_token_id: tokens that end the text, those among the stop strings included.
        max_new_tokens: token budget.
        stop_strings: strings that end the text.
        seed: seed of the random numbers, or None for other ones each time.
        temperature: divides the logits; 0 for greedy decoding, whatever asked for it.
        top_k: tokens to draw from at most; the vocabulary's size for all.
        top_p: probability that the tokens to draw from have together, at least.
        min_p: probability of a token to draw from over that of the most likely one, at least.
    """

    eta: float
    eos_token_id: tuple[int, ...]
    max_new_tokens: int
    stop_strings: tuple[str, ...]
    seed: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn; a temperature of 0 is the limit of lower and lower ones: the most likely token."""
        return bool(np.float32(self.temperature) > 0)

    def truncates(self, vocab_size: int) -> bool:
        """Return whether top_k or top_p leave out anything that is drawn."""
        return self.samples and (self.top_k < vocab_size or self.top_p < 1)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Checked options, as the decoder takes them.

    Attributes:
        method: ``"kangaroo"`` or ``"plain"``.
        spec: what is static.
        settings: of each prompt, in order; one alone is for all.
        copies: sequences to draw for each prompt.
        drafter_weights: weights of a drafter other than Kangaroo's.
    """

    method: str
    spec: dec.DecodeSpec
    settings: tuple[Settings, ...]
    copies: int
    drafter_weights: Any = None

    def each(self, prompts: int) -> tuple[Settings, ...]:
        """Return the settings of every prompt."""
        each = self.settings * prompts if len(self.settings) == 1 else self.settings
        assert len(each) == prompts
        return each

    def rows(self, prompts: int) -> list[Settings]:
        """Return the settings of every sequence, ``prompts * copies`` of them."""
        return [settings for settings in self.each(prompts) for _ in range(self.copies)]

    def controls(self, prompts: int) -> dec.Controls:
        """Return what is traced of every sequence; B is ``prompts * copies``.

        EOS tokens are padded with -1 to a multiple of 4, so that their number compiles nothing anew.
        """
        rows = self.rows(prompts)
        width = max(-(-max(len(row.eos_token_id) for row in rows) // 4) * 4, 4)
        eos = [[*row.eos_token_id] + [-1] * (width - len(row.eos_token_id)) for row in rows]

        def column(name: str, dtype: Any = np.float32, most: float = math.inf) -> Any:
            return np.array([min(getattr(row, name), most) for row in rows], dtype)

        # The bounds fit fp32; all eta above 1 are one.
        sampling = dec.Sampling(
            column("temperature", most=1e30), column("top_k", np.int32), column("top_p"), column("min_p")
        )
        ends: Any = np.array(eos, np.int32)
        return dec.Controls(column("eta", most=2.0), ends, sampling)

    def keys(self, prompts: int) -> np.ndarray:
        """Return the random key of every sequence, ``[prompts * copies, 2]``.

        A given seed makes the same key for the same copy of any prompt: what a sequence draws does not depend on the
        batch around it. Without one, all keys differ.
        """
        entropy, sources = secrets.randbits(128), []
        for row, settings in enumerate(self.rows(prompts)):
            seed, key = (entropy, row) if settings.seed is None else (settings.seed, row % self.copies)
            sources.append(np.random.SeedSequence(seed, spawn_key=(key,)))
        return np.stack([source.generate_state(2, np.uint32) for source in sources])


def plan(params: Params, options: Options, per_prompt: Sequence[Mapping[str, Any]] | None = None) -> Plan:
    """Check options against a model.

    Args:
        params: from ``load``.
        options: of all prompts.
        per_prompt: what differs, by prompt: some of the options by name, all but those of ``OF_A_BATCH``.

    Raises:
        ValueError: if one is out of range; the message names it, its value and what is expected.
        TypeError: if there is no option of a name.
    """
    check_params(params)
    method = _method(params, options)
    settings: list[Settings] = []
    for each in _each(options, per_prompt):  # No comprehension: a warning counts the frames up to the caller.
        settings.append(_settings(params, each, method))
    copies = integer("num_return_sequences", options.num_return_sequences, 1)
    if copies > 1 and not all(row.samples for row in settings):
        raise ValueError(
            f"num_return_sequences is {copies}, and greedy decoding has one result: pass do_sample=True "
            "with a temperature above 0"
        )
    drafter, gamma = _drafter(params, options, method)
    sample = any(row.samples for row in settings)
    truncate = any(row.truncates(params.config.vocab_size) for row in settings) * (
        dec.NATIVE if params.kernels == "native" else 1
    )
    return Plan(method, dec.DecodeSpec(params.config, drafter, gamma, sample, truncate), tuple(settings), copies)


def _each(options: Options, per_prompt: Sequence[Mapping[str, Any]] | None) -> list[Options]:
    """Return the options of every prompt; of all together where nothing differs."""
    if per_prompt is None:
        return [options]
    expected = "one mapping of option names to values for each prompt"
    if isinstance(per_prompt, str | Mapping) or not isinstance(per_prompt, Sequence) or not per_prompt:
        raise ValueError(f"per_prompt is {per_prompt!r:.60}; pass {expected}")
    each = []
    for index, given in enumerate(per_prompt):
        if not isinstance(given, Mapping):
            raise ValueError(f"per_prompt has {given!r:.60} at {index}; pass {expected}")
        if shared := [name for name in OF_A_BATCH if name in given]:
            raise ValueError(f"per_prompt has {shared[0]} at {index}; all prompts of a call share it, pass it beside")
        each.append(Options.of("generate", {**dataclasses.asdict(options), **given}))
    return each


def _method(params: Params, options: Options) -> str:
    """Return the method asked for, or the adapter's own choice."""
    if options.method is None:
        return "kangaroo" if params.draft is None else params.draft.method
    if options.method not in METHODS:
        raise ValueError(f"method is {options.method!r}; choose one of {', '.join(METHODS)}")
    return options.method


def _drafter(params: Params, options: Options, method: str) -> tuple[dec.Drafter, int]:
    """Return what drafts, and the largest number of tokens it drafts in a round."""
    gamma = options.gamma
    if gamma is not None:
        gamma = integer("gamma", gamma, 1, params.config.max_position_embeddings)
    siblings, lookup = options.siblings, options.lookup
    if siblings is not None:
        siblings = integer("siblings", siblings, 0, SIBLINGS)
    if lookup is not None:
        lookup = integer("lookup", lookup, 0, LOOKUP)
    if method == "plain":
        return dec.PLAIN, 0
    draft = params.draft
    if draft is None or params.adapter is None:
        raise ValueError(
            f"{params.name} has no adapter; train one with 'python -m train.adapter --model {params.name}', "
            "pass load(..., adapter=DIR), or use method='plain'"
        )
    siblings = draft.siblings if siblings is None else siblings
    lookup = draft.lookup if lookup is None else lookup
    return dec.Kangaroo(draft.adapter, siblings, lookup, exit_layer=draft.exit_layer), gamma or draft.gamma


def _settings(params: Params, options: Options, method: str) -> Settings:
    """Return the checked options of one prompt."""
    eta = 0.0 if method == "plain" or params.draft is None else params.draft.eta
    if options.eta is not None:
        asked = real("eta", options.eta, "a probability threshold of 0 or more (0.6 is the paper's)")
        eta = 0.0 if method == "plain" else asked
    if not isinstance(options.do_sample, bool | np.bool_):
        raise ValueError(f"do_sample is {options.do_sample!r:.60}; pass True or False")
    temperature = real("temperature", options.temperature, "0 or more (0 is greedy, 1 the model's own)")
    top_p = real("top_p", options.top_p, "a probability above 0 and up to 1 (1 keeps all tokens)", 1e-30, 1)
    least = 0 if options.min_p is None else options.min_p
    min_p = real("min_p", least, "a probability from 0 to 1 (0 keeps all tokens)", 0, 1)
    top_k = 0 if options.top_k is None else integer("top_k", options.top_k, 0)
    _warn_of_unused(options)
    vocab_size = params.config.vocab_size
    stops, special = _stop_strings(params, options.stop_strings), params.tokenizer.special_tokens
    ends = (special[stop] for stop in stops if stop in special)
    return Settings(
        eta=float(eta),
        eos_token_id=tuple(dict.fromkeys((*_eos_ids(params, options.eos_token_id), *ends))),
        max_new_tokens=integer("max_new_tokens", options.max_new_tokens, 0),
        stop_strings=stops,
        seed=None if options.seed is None else integer("seed", options.seed, 0),
        temperature=temperature if options.do_sample else 0.0,
        top_k=min(top_k or vocab_size, vocab_size),
        top_p=top_p,
        min_p=min_p,
    )


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


def _eos_ids(params: Params, eos_token_id: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return the ids that end the text."""
    config = params.config
    if eos_token_id is None:
        return config.eos_token_id
    given = plain(eos_token_id)
    given = given if isinstance(given, list | tuple) else [given]
    expected = "a token id, a list of them, or () for none"
    return tuple(token_ids("eos_token_id", given, config.vocab_size, expected))


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
