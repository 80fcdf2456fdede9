"""A conversation that keeps its caches: every turn prefills only what is new."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import jax

from kangaroo_jax import checks
from kangaroo_jax import decode as dec
from kangaroo_jax.api import pieces
from kangaroo_jax.engine import Generation, Kept, Options, Piece, Plan, Run, plan
from kangaroo_jax.params import Params
from kangaroo_jax.text import chat_ids, joined

_CHUNK = 64
_CONTEXT = 4096


class Chat:
    """A conversation with a model.

    >>> chat = kangaroo_jax.Chat(params)  # doctest: +SKIP
    >>> print(chat.send("What is a kangaroo?"))  # doctest: +SKIP
    >>> for piece in chat.send("And a wallaby?", stream=True):  # doctest: +SKIP
    ...     print(piece, end="")

    The prompt of a turn is what the chat template makes of the whole conversation. Caches are as long as the context
    from the start, and prompts are run a fixed number of tokens at a time, so that no turn compiles anything after the
    first as long as method, gamma, siblings, lookup and do_sample stay. As far as the new prompt repeats the tokens
    before it, their caches are kept.
    """

    def __init__(
        self,
        params: Params,
        *,
        system: str | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        context: int | None = None,
        max_new_tokens: int = 512,
        **options: Any,
    ) -> None:
        """Start an empty conversation.

        Args:
            params: from ``load``.
            system: text of the system message; default: the template's.
            chat_template: as for ``generate``.
            chat_template_kwargs: as for ``generate``.
            context: longest conversation, in tokens; default: the model's ``max_position_embeddings``, at most 4096.
            max_new_tokens: token budget of an answer.
            **options: as for ``generate``; they hold for all turns.

        Raises:
            ValueError: if an option is out of range, the model has no chat template, or the context has no room for a
                message.
        """
        self._params, self._template, self._variables = params, chat_template, chat_template_kwargs
        self._options = {"max_new_tokens": max_new_tokens, **options}
        self._plan("Chat", {})
        longest = params.config.max_position_embeddings
        self._context = min(longest, _CONTEXT) if context is None else checks.integer("context", context, 2, longest)
        self._system = [] if system is None else [{"role": "system", "content": checks.text("system", system)}]
        self._messages: list[dict[str, Any]] = []
        self._run: Run | None = None
        self._speaking: Generator[Piece, None, Generation] | None = None
        self._open: tuple[list[dict[str, Any]], Run] | None = None
        self._ids(_said("Hello"))  # Is there a template, does it take these messages, and is there room for more?

    @property
    def history(self) -> list[dict[str, Any]]:
        """The conversation so far, as messages; a copy. An answer that is being given is in it as far as it came."""
        return [dict(message) for message in (*self._system, *self._turns())]

    def reset(self) -> None:
        """Forget the conversation, all but the system message; what is compiled stays."""
        self._hush()
        self._messages = []

    def send(
        self,
        text: str | Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        stream: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Say something and return the answer.

        An answer that is cut short, by leaving its stream, by the next message or by Ctrl-C, stays in the history as
        far as it came. If nothing came, its message is not there either: it was never said. So it is with a stream
        of which no piece was asked for, and with a message that is refused.

        Args:
            text: the user's message, as text or as parts of content; or a message of any role, or several messages. If
                the last one is the assistant's, the answer goes on with it, and is one message with it in the history.
            stream: return an iterator of text pieces, as ``kangaroo_jax.stream`` does, and not the whole answer.
            chat_template_kwargs: for this turn only, beside those of the chat.
            **options: as for ``generate``, for this turn only.

        Returns:
            The ``Generation``, its text without white space around it in the history; or the iterator.

        Raises:
            ValueError: if an option is out of range, or the conversation is longer than the context.
        """
        checked, said = self._plan("send", options), _said(text)
        ids = self._ids(said, chat_template_kwargs)
        self._hush()
        self._speaking = self._answer(self._start(ids, checked), said)
        if stream:
            return self._speaking
        while True:
            try:
                next(self._speaking)
            except StopIteration as end:
                return end.value

    def _plan(self, caller: str, options: dict[str, Any]) -> Plan:
        checked = plan(self._params, Options.of(caller, self._options | options))
        if checked.copies > 1:
            raise ValueError(f"num_return_sequences is {checked.copies}; a chat has one answer: leave it out")
        return checked

    def _ids(self, said: list[dict[str, Any]], variables: Mapping[str, Any] | None = None) -> list[int]:
        """Return the prompt of a turn in which this is said; raise ValueError if it is too long."""
        messages = [*self._system, *self._turns(), *said]
        if isinstance(variables, Mapping):
            variables = {**(self._variables or {}), **variables}
        elif variables is None:
            variables = self._variables
        ids = chat_ids(self._params.tokenizer, self._params.name, messages, self._template, variables)
        if len(ids) >= self._context:
            longest = self._params.config.max_position_embeddings
            larger = f", or start a chat with a context of up to {longest}" if self._context < longest else ""
            raise ValueError(
                f"the conversation has {len(ids)} tokens with this message, and a context of {self._context} holds "
                f"{self._context - 1}: say less, reset() the chat{larger}"
            )
        return ids

    def _start(self, ids: list[int], checked: Plan) -> Run:
        """Prefill what the caches do not hold yet."""
        slots = dec.cache_slots(checked.spec, self._context)
        kept = Kept(slots, min(_CHUNK, slots), *self._reusable(ids, slots, checked.spec))
        self._run = None  # Its caches are about to be overwritten.
        self._run = Run(self._params, [ids], checked, kept, self._context)
        return self._run

    def _reusable(self, ids: list[int], slots: int, spec: dec.DecodeSpec) -> tuple[int, Any]:
        """Return how many positions of a prompt the last turn's caches hold, and these caches."""
        if self._run is None:
            return 0, None
        state = self._run.state
        # An interrupted call may have taken the state with it.
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(state)):
            return 0, None
        if state.slots != slots or self._run.plan.spec.drafter != spec.drafter:
            return 0, None
        # The newest token has no keys and values yet.
        held = self._run.committed()[:-1]
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(ids[:-1], held, strict=False))
        return sum(1 for _ in same), (state.caches, state.drafter)

    def _answer(self, run: Run, asked: list[dict[str, Any]]) -> Generator[Piece, None, Generation]:
        """Yield the answer's pieces; the turn is open meanwhile, and in the history afterwards."""
        self._open = asked, run
        try:
            return (yield from pieces(run))
        finally:
            self._messages, self._open = self._turns(), None

    def _turns(self) -> list[dict[str, Any]]:
        """Return the messages, those of an open turn too if anything came of it."""
        if self._open is None:
            return self._messages
        asked, run = self._open
        reply = run.readers[0].text
        if not reply.strip() and not run.finished:
            return self._messages
        *before, last = asked
        if last["role"] == "assistant":
            return [*self._messages, *before, {**last, "content": (joined(last["content"]) + reply).strip()}]
        return [*self._messages, *asked, {"role": "assistant", "content": reply.strip()}]

    def _hush(self) -> None:
        """End an answer that is still being given."""
        if self._speaking is not None:
            self._speaking.close()
            self._speaking = None


def _said(text: Any) -> list[dict[str, Any]]:
    """Return messages as they are, and text or parts of content as the user's message."""
    items = [text] if isinstance(text, Mapping) else text
    if isinstance(items, list | tuple) and items and all(isinstance(item, Mapping) for item in items):
        if any("role" in item for item in items):
            return [dict(item) for item in items]
        return [{"role": "user", "content": items}]
    return [{"role": "user", "content": checks.text("text", text)}]
