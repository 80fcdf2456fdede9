"""Lookahead decoding: its rounds are those of the published algorithm in plain Python, its ids plain decoding's."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kangaroo_jax
from bench.methods import make
from bench.methods.lookahead import Lookahead
from bench.methods.lookahead_rows import Layout
from kangaroo_jax import decode as dec
from kangaroo_jax.model import LlamaConfig, abstract_params
from kangaroo_jax.proof.compare import read_prompts

Next = Callable[[list[int]], int]
SMALL = {"W": 5, "N": 4, "G": 3}


class Published:
    """The algorithm in lists and dictionaries, a context written out for each token that is computed.

    ``levels[0]`` stands after the newest token, each other level one position later than the one before it.
    """

    def __init__(self, text: list[int], first: list[int], W: int, N: int, G: int, from_text: bool, model: Next) -> None:
        self.text, self.W, self.N, self.G, self.from_text, self.model = list(text), W, N, G, from_text, model
        self.levels: list[list[int]] = [list(first)]
        self.pool: dict[int, list[tuple[int, ...]]] = {}
        for end in range(N, len(text) + 1) if from_text else ():
            self.put(*text[end - N : end])

    def put(self, key: int, *rest: int) -> None:
        grams = self.pool.setdefault(key, [])
        if rest in grams:
            grams.remove(rest)
        grams.append(rest)
        del grams[: -self.G]

    def round(self) -> int:
        """Commit the tokens of a round, and return how many of them had been guessed."""
        complete = len(self.levels) == self.N - 1
        newest = self.text[-1]
        base, *upper = self.levels
        # Place i of the newest level sees level 0 up to the place below, then place i of the levels between.
        width = len(self.levels[-1])
        if upper:
            contexts = [base[:i] + [level[i] for level in upper] for i in range(width)]
        else:
            contexts = [base[: i + 1] for i in range(width)]
        computed = [self.model(self.text + context) for context in contexts]

        best: list[int] = [self.model(self.text)]
        for gram in self.pool.get(newest, []) if complete else []:
            right = [self.model(self.text + list(gram[:i])) for i in range(self.N)]
            hits = next((i for i, token in enumerate(gram) if token != right[i]), self.N - 1)
            best = max(best, right[: hits + 1], key=len)
        if complete:
            keys = [newest, *base]
            for i in range(self.W):
                self.put(keys[i], *(level[i] for level in upper), computed[i])
            self.levels = [upper[0][1:], *upper[1:], computed]
        elif not upper:
            self.levels = [base[1:], computed]
        else:
            self.levels = [level[1:] for level in self.levels] + [computed[1:]]
        for token in best:
            self.text.append(token)
            if self.from_text:
                self.put(*self.text[-self.N :])
        return len(best) - 1


def first_level(drafter: Lookahead, prompt: list[int]) -> list[int]:
    """Return the tokens that a window begins with, the newest token's place left out."""
    share = np.random.default_rng(10).random(drafter.layout.widest).astype(np.float32)
    return [prompt[int(np.float32(len(prompt)) * part)] for part in share][1:]


def test_the_mask_as_drawn() -> None:
    """Levels r a b and d e f, n-grams g h and i j."""
    layout, drawn = (
        Layout(3, 3, 2),
        """
        x . . . . . . . . .
        x x . . . . . . . .
        x x x . . . . . . .
        x . . x . . . . . .
        x x . . x . . . . .
        x x x . . x . . . .
        x . . . . . x . . .
        x . . . . . x x . .
        x . . . . . . . x .
        x . . . . . . . x x
        """,
    )
    candidate = jnp.arange(16)[None] // 6 == 1
    tree = layout.tree(layout.window(jnp.array([1])), candidate)
    wanted = [[mark == "x" for mark in line.split()] for line in drawn.split("\n")[1:-1]]
    assert layout.rows == 16 and tree.visible[0, :10, :10].tolist() == wanted and not tree.visible[0, :10, 10:].any()
    assert tree.depth[0, :10].tolist() == [0, 1, 2, 1, 2, 3, 1, 2, 1, 2]
    assert tree.parent[0, 6:10].tolist() == [0, 6, 0, 8]


def visible_text(tree: dec.Tree, tokens: np.ndarray, text: list[int], row: int, batch_row: int) -> list[int]:
    """Return the tokens that a row sees, by position; one at every position up to its own."""
    seen = np.flatnonzero(tree.visible[batch_row, row])
    depths = np.asarray(tree.depth[batch_row])[seen]
    seen = seen[np.argsort(depths)]
    assert sorted(depths) == list(range(int(tree.depth[batch_row, row]) + 1)) and seen[0] == 0
    return text[:-1] + tokens[seen].tolist()


@pytest.mark.parametrize("from_text", [False, True])
@pytest.mark.parametrize(("W", "N", "G"), [(5, 4, 3), (2, 6, 2), (7, 3, 1)])
def test_rounds_are_the_published_ones(W: int, N: int, G: int, from_text: bool) -> None:
    """The model here is a table of what follows three tokens; each row is asked with the text that it sees."""
    table = np.random.default_rng(1).integers(0, 7, (7, 7, 7)).tolist()

    def model(text: list[int]) -> int:
        return int(table[text[-3]][text[-2]][text[-1]])

    drafter = Lookahead(W, N, G, from_text)
    config = LlamaConfig(7, 1, 1, 1, 1, 1, 2)
    spec = dec.DecodeSpec(config, drafter, N - 1)
    weights = {"target": {"embed_tokens": {"embedding": jnp.zeros((7, 1))}}}
    prompts = [[3, 1, 4, 1, 5, 0, 2, 6, 5, 3, 5], [2, 6, 1, 0, 2, 0]]
    texts = [[*prompt, model(prompt)] for prompt in prompts]
    sides = [
        Published(text, first_level(drafter, prompt), W, N, G, from_text, model)
        for text, prompt in zip(texts, prompts, strict=True)
    ]
    drafts, learns = jax.jit(drafter.draft, static_argnums=0), jax.jit(drafter.learn, static_argnums=0)
    accepts = jax.jit(dec.accept_tree, static_argnums=3)
    memory, accepted = drafter.allocate(spec, 2, 256, jnp.dtype(jnp.float32)), []
    for _ in range(40):
        padded = jnp.array([text + [0] * (256 - len(text)) for text in texts], jnp.int32)
        length = jnp.array([len(text) for text in texts], jnp.int32)
        state: Any = dec.DecodeState(padded, length, None, None, None, (), memory, None)  # type: ignore[arg-type]
        draft = jax.device_get(drafts(spec, weights, state, None))
        tree = draft.tree
        assert draft.tokens.shape == (2, spec.rows - 1) and spec.rows % 8 == 0
        tokens = np.concatenate([np.array([[text[-1]] for text in texts]), draft.tokens], axis=1)
        asked = tree.candidate | ((np.arange(spec.rows) < drafter.layout.window_rows) & (tree.depth > 0))
        asked[:, 0] = True
        target = np.zeros((2, spec.rows), np.int32)
        for b, row in zip(*np.nonzero(asked), strict=True):
            target[b, row] = model(visible_text(tree, tokens[b], texts[b], row, b))
        for b, side in enumerate(sides):  # The n-grams of what was committed are in the pool by now.
            compare(draft.drafter, b, side, N)
        hits, path = accepts(draft.tokens, tree, target, spec.gamma)
        found = dec.Verified(jnp.array(tokens), None, jnp.array(target), path, hits, length)  # type: ignore[arg-type]
        memory = learns(spec, weights, draft, found)
        for b, side in enumerate(sides):
            texts[b] += target[b, np.asarray(path)[b, : int(hits[b]) + 1]].tolist()
            assert side.round() == hits[b] and side.text == texts[b]
        accepted.append(hits.tolist())
    assert np.array(accepted)[: N - 1 - from_text].max() == 0
    assert np.array(accepted).max(0).tolist() == [N - 1, N - 1] and np.array(accepted)[N:].min() == 0


def compare(memory: Any, row: int, side: Published, N: int) -> None:
    """Assert that window and pool are those of the lists and dictionaries."""
    filled = int(memory.filled[row])
    assert filled == len(side.levels) - 1
    for index, level in enumerate(side.levels):
        start = int(index == 0)
        assert memory.window[row, index, start : start + len(level)].tolist() == level
    for token in range(memory.pool.shape[1]):
        places = memory.pool[row, token].tolist()
        grams = [list(gram) for gram in side.pool.get(token, [])]
        assert places == [[-1] * (N - 1)] * (len(places) - len(grams)) + grams


def run(spec: dec.DecodeSpec, target: Any, prompts: list[list[int]], new_tokens: int) -> dec.DecodeState:
    """Decode a batch to its end."""
    tokens = np.zeros((len(prompts), 256), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    one = np.ones(len(prompts), np.float32)
    sampling = dec.Sampling(one, np.ones_like(lengths), one, one)
    controls = dec.Controls(0 * one, np.full((len(prompts), 1), -1, np.int32), sampling)
    caches = dec.allocate(spec, len(prompts), 256, jnp.dtype(jnp.float32))
    budget, seed = np.full_like(lengths, new_tokens), np.zeros((len(prompts), 2), np.uint32)
    state = dec.prefill(
        spec, 16, {"target": target}, caches, tokens, np.zeros_like(lengths), lengths, budget, seed, controls
    )
    return dec.decode(spec, {"target": target}, state, controls, np.int32(2**31 - 1))


def test_a_text_with_a_period_is_accepted_whole() -> None:
    """A model that counts round and round: each layer adds nothing, and the head's matrix says what follows a token."""
    size = 12
    config = LlamaConfig(size, size, 4, 1, 2, 1, 6, eos_token_id=())
    zero = jnp.zeros
    layer = {
        "self_attn": {"qkv_proj": {"kernel": zero((size, 24))}, "o_proj": {"kernel": zero((size, size))}},
        "mlp": {"gate_up_proj": {"kernel": zero((size, 8))}, "down_proj": {"kernel": zero((4, size))}},
        "input_layernorm": {"scale": jnp.ones(size)},
        "post_attention_layernorm": {"scale": jnp.ones(size)},
    }
    target = {
        "embed_tokens": {"embedding": jnp.eye(size)},
        "layers_0": layer,
        "norm": {"scale": jnp.ones(size)},
        "lm_head": {"kernel": jnp.roll(jnp.eye(size), 1, axis=1)},
    }
    spec = dec.DecodeSpec(config, Lookahead(15, 5, 2), 4)
    state = run(spec, target, [list(range(size)) * 2], 50)
    assert state.tokens[0, :74].tolist() == [token % size for token in range(74)]
    # One from the prefill, three rounds to fill the window, one to fill the pool; then whole n-grams.
    accepted = state.stats.accept_lengths[0, : int(state.stats.rounds[0])].tolist()
    assert accepted == [1, 1, 1, 1, *[5] * 9]
    assert set(state.stats.accepted_drafts[0, 4:13].tolist()) == {4}


@pytest.mark.full
def test_a_random_model_gives_plain_decodings_ids(tiny: kangaroo_jax.Params) -> None:
    prompts = [[*b"import os\nimport sys\n"], [*b"def f(x):\n    return x"]]
    plain, ready = make("plain", tiny), make("lookahead", tiny, {"W": 3, "N": 5, "G": 2, "from_text": True})
    state = run(ready.spec, tiny.target, prompts, 60)
    for row, prompt in enumerate(prompts):
        ids = plain.generate(prompt, 60, eos_token_id=[]).token_ids
        assert state.tokens[row, len(prompt) : state.length[row]].tolist() == list(ids)


def differences(settings: Any, prompts: list[str], new_tokens: int) -> list[str]:
    joey = kangaroo_jax.load("joey", dtype="float32")
    plain, ready = make("plain", joey), make("lookahead", joey, settings)
    wrong = []
    for prompt in prompts:
        ids = joey.tokenizer.encode(prompt)
        here, there = ready.generate(ids, new_tokens), plain.generate(ids, new_tokens)
        if (here.token_ids, here.finish_reason) != (there.token_ids, there.finish_reason):
            wrong.append(prompt)
    return wrong


@pytest.mark.full
def test_joey_gives_plain_decodings_ids() -> None:
    assert differences(SMALL, [row["prompt"] for row in read_prompts()][:2], 40) == []


@pytest.mark.full
@pytest.mark.parametrize("settings", [{}, {"W": 7, "N": 5, "G": 7}, SMALL | {"from_text": True}])
def test_joey_gives_plain_decodings_ids_on_every_prompt(settings: Any) -> None:
    assert differences(settings, [row["prompt"] for row in read_prompts()], 128) == []


@pytest.mark.parametrize(("batch", "from_text"), [(1, True), (2, False)])
def test_the_pool_is_updated_in_place(batch: int, from_text: bool) -> None:
    shape, drafter = jax.ShapeDtypeStruct, Lookahead(3, 4, 11, from_text)
    config = LlamaConfig(3001, 8, 4, 1, 2, 1, 6)
    spec = dec.DecodeSpec(config, drafter, 3)
    weights = {"target": abstract_params(config)}
    row, one, seed = shape((batch,), jnp.int32), shape((batch,), jnp.float32), shape((batch, 2), jnp.uint32)
    controls = dec.Controls(one, shape((batch, 1), jnp.int32), dec.Sampling(one, row, one, one))
    caches = jax.eval_shape(lambda: dec.allocate(spec, batch, 256, jnp.dtype(jnp.float32)))
    prompt = (weights, caches, shape((batch, 256), jnp.int32), row, row, row, seed, controls)
    state = jax.eval_shape(lambda *traced: dec.prefill(spec, 16, *traced), *prompt)
    program = dec.decode.lower(spec, weights, state, controls, shape((), jnp.int32)).compile()
    found = re.findall(r"= s32\[([\d,]*)\]\S* ([\w\-]+)\(", program.as_text() or "")
    size = state.drafter.pool.size
    made = [opcode for extents, opcode in found if math.prod(int(n) for n in extents.split(",") if n) == size]
    # The update, and names for it.
    assert set(made) <= {"scatter", "dynamic-update-slice", "fusion", "bitcast", "get-tuple-element", "parameter"}
    assert made.count("scatter") + made.count("dynamic-update-slice") == 1 + from_text


@pytest.mark.parametrize(
    ("settings", "message"), [({"N": 2}, "N is 2"), ({"W": 0}, "W is 0"), ({"G": 1.5}, "G is 1.5")]
)
def test_settings_out_of_range_are_refused(tiny: kangaroo_jax.Params, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("lookahead", tiny, settings)
