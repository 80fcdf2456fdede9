"""generate and stream: text in, text out."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np

from kangaroo_jax.checks import integer
from kangaroo_jax.engine import Generation, Options, Piece, Plan, Run, plan, prompt_ids
from kangaroo_jax.params import Params

LOOK_SECONDS = 0.05
"""Time between two looks of the host at the text, where it has to look (docs/decisions.md has the measurement)."""


def generate(
    params: Params,
    prompt: Any,
    *,
    max_new_tokens: int = 128,
    gamma: int | None = None,
    eta: float | None = None,
    siblings: int | None = None,
    lookup: int | None = None,
    method: str | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    stop_strings: str | Sequence[str] | None = None,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = 50,
    top_p: float = 1.0,
    min_p: float | None = None,
    seed: int | None = None,
    num_return_sequences: int = 1,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    per_prompt: Sequence[Mapping[str, Any]] | None = None,
    streamer: Any = None,
) -> Any:
    """Continue one prompt or several; Kangaroo returns what plain decoding returns, sooner.

    Greedy texts are the very tokens of plain decoding; sampled ones have exactly its distribution, that of the model
    after temperature and the cuts asked for (top_k is 50 unless told otherwise, as in transformers). In a batch every
    sequence has its own length, drafts and end, and its text is the one it would have alone.

    Args:
        params: from ``load``.
        prompt: text, as the tokenizer takes it: where that puts BOS in front, text that has one already gets two, and a
            warning; token ids (used as they are: no BOS is added); a conversation, as messages ``{"role", "content"}``,
            which the assistant goes on with: with a reply, or within its own message, if that is the last one; or a
            list of several of one kind. Roles, and content in parts, are what the chat template takes.
        max_new_tokens: token budget of each sequence, at least 0. A text also ends, with "length", at the model's
            ``max_position_embeddings``.
        gamma: largest number of tokens drafted in a round; default: the adapter's.
        eta: confidence below which drafting stops; 0 never stops early, above 1 always; default: the adapter's. It
            looks at the draft model's own top-1 probability, before temperature and cuts.
        siblings: the draft model's next choices for the first drafted token, so many, which are verified with it: where
            the target chooses one of them, that is one token more; default: the adapter's. They are used where one
            sequence is decoded greedily.
        lookup: so many of the newest tokens are looked up in the text, where that is decoded greedily: where they stood
            before, what followed them is the draft, and the draft model drafts nothing; 0: never; default: the
            adapter's.
        method: ``"kangaroo"``, or ``"plain"`` for decoding without a draft; default: the adapter's, which is Kangaroo
            unless ``tune`` found that no drafting pays and that was saved.
        eos_token_id: token or tokens that end the text; default: the model's own; ``()`` for none.
        stop_strings: string or strings that end the text, wherever they fall between tokens. The text ends before the
            string, as with OpenAI's API and vLLM (transformers keeps it); ``token_ids`` go up to the token that
            completed it. What the prompt holds does not count. A special token's text (``"<|eot_id|>"``) means that
            token, also within a string; alone it ends the text as if it were among ``eos_token_id``.
        do_sample: draw tokens at random; otherwise the most likely one is taken, and the next five have no effect.
        temperature: divides the logits; 0 is greedy.
        top_k: draw from the k most likely tokens only; 0 or None for all.
        top_p: draw from the smallest set of most likely tokens only whose probabilities sum to at least top_p.
        min_p: draw only from tokens at least min_p times as likely as the most likely one; None or 0 for all.
        seed: a whole number; the same seed gives a prompt the same text again, whatever batch it is in. Without one,
            each call draws anew.
        num_return_sequences: sequences to draw for each prompt; above 1 the result is a list, prompt by prompt.
        chat_template: Jinja, as transformers takes it, or the name of one of several that the model has; default: the
            tokenizer's, or Vicuna's for models named so. Only for conversations.
        chat_template_kwargs: variables for the chat template, such as ``{"enable_thinking": False}``; also ``tools``
            and ``documents``. Only for conversations.
        per_prompt: what is different for single prompts of a list: for each of them a mapping of some of the options
            above to values, empty for none. A batch may so hold greedy and sampled texts, with budgets, ends and seeds
            of their own; each is what its prompt gives alone. gamma, siblings, lookup, method and
            num_return_sequences are the batch's.
        streamer: an object with Hugging Face's ``put`` and ``end``: gets the prompt's ids, then new ids as they are
            committed; for one sequence.

    Returns:
        A ``Generation``; a list of them, in order, for a list of prompts or for several sequences of a prompt.

    Raises:
        ValueError: if an argument is out of range, a prompt is empty or too long, or the batch does not fit the memory.
    """
    options = Options(
        max_new_tokens=max_new_tokens,
        gamma=gamma,
        eta=eta,
        siblings=siblings,
        lookup=lookup,
        method=method,
        eos_token_id=eos_token_id,
        stop_strings=stop_strings,
        do_sample=do_sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        num_return_sequences=num_return_sequences,
    )
    chat = (chat_template, chat_template_kwargs)
    checked, prompts, many = _check(params, prompt, options, per_prompt, chat)
    if streamer is not None:
        if not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
            raise ValueError(f"streamer is {streamer!r:.60}; pass an object with put(ids) and end()")
        _only_one(prompts, checked, "a streamer")
    run = Run(params, prompts, checked)
    if streamer is not None:
        _feed(run, streamer)
    # Where the text decides when to end, the host has to look.
    look: dict[str, Any] = {"seconds": LOOK_SECONDS} if any(each.stop_strings for each in checked.settings) else {}
    while not run.finished:
        run.advance(**look)
    results = run.results()
    return results if many or len(results) > 1 else results[0]


def stream(
    params: Params,
    prompt: Any,
    *,
    rounds_per_call: int | None = None,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Generator[Piece, None, Generation]:
    """Yield the text of ``generate`` piece by piece, as rounds commit it.

    A piece is a string that also has ``spans``: its runs of one origin, as ``(text, drafted)``. It never holds half a
    UTF-8 character, nor any part of a stop string. All pieces joined are ``generate(...).text``, and the iterator's
    return value (``StopIteration.value``, or what ``yield from`` gives) is that ``Generation``. Nothing runs between
    two pieces: a stream that is left or interrupted leaves nothing behind.

    Args:
        params: from ``load``.
        prompt: as for ``generate``; one prompt.
        rounds_per_call: rounds between two looks of the host; fewer give smoother text, more give speed. Default: as
            many as take about a twentieth of a second, which costs 1 to 3 % (``python -m bench.generation stream``).
        chat_template: as for ``generate``.
        chat_template_kwargs: as for ``generate``.
        **options: as for ``generate``; all but ``streamer``.

    Raises:
        ValueError: as ``generate``, and if ``rounds_per_call`` is not positive; at the call, not at the first piece.
    """
    rounds = None if rounds_per_call is None else integer("rounds_per_call", rounds_per_call, 1)
    chat = (chat_template, chat_template_kwargs)
    checked, prompts, _ = _check(params, prompt, Options.of("stream", options), None, chat)
    _only_one(prompts, checked, "stream")
    return pieces(Run(params, prompts, checked), rounds)


def pieces(run: Run, rounds: int | None = None) -> Generator[Piece, None, Generation]:
    """Yield the text of a run of one sequence; return its ``Generation``."""
    if text := run.first[0]:
        yield run.piece(text)
    while not run.finished:
        if text := run.advance(rounds, LOOK_SECONDS)[0]:
            yield run.piece(text)
    return run.results()[0]


def _check(
    params: Params, prompt: Any, options: Options, per_prompt: Any, chat: tuple[Any, Any]
) -> tuple[Plan, list[list[int]], bool]:
    """Return checked options, the ids of all prompts, and whether a list of prompts was given."""
    checked = plan(params, options, per_prompt)
    prompts, many = prompt_ids(params, prompt, *chat)
    if per_prompt is not None and len(per_prompt) != len(prompts):
        raise ValueError(f"per_prompt has {len(per_prompt)} entries for {len(prompts)} prompts; pass one for each")
    return checked, prompts, many


def _only_one(prompts: list[list[int]], checked: Plan, taker: str) -> None:
    if (count := len(prompts) * checked.copies) > 1:
        raise ValueError(f"{taker} takes one sequence at a time, and here are {count}; use generate without it")


def _feed(run: Run, streamer: Any) -> None:
    """Run to the end, and put the prompt's ids and all new ids into a Hugging Face streamer."""
    streamer.put(np.array([run.prompts[0]]))
    given = 0
    while True:
        ids = run.new_tokens(0)
        if len(ids) > given:
            streamer.put(np.array(ids[given:]))
        given = len(ids)
        if run.finished:
            break
        run.advance(seconds=LOOK_SECONDS)
    streamer.end()
