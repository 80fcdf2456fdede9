"""REST: the retrieval against brute force, the datastore and its command, and the method on the engine."""

from __future__ import annotations

import collections
import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kangaroo_jax
from bench import datastore
from bench.methods import make
from bench.methods.rest import Datastore, continuations, frequent_prefixes, longest_match
from kangaroo_jax.store.names import companion
from workshop.held_out import is_held_out

NEW_TOKENS = 40
SMALL = {"num_draft": 7, "matches": 50, "continuation": 4}

Tree = dict[tuple[int, ...], int]


@partial(jax.jit, static_argnums=(3, 4, 5, 6))
def retrieve(store: Datastore, text: Any, length: Any, span: int, matches: int, depth: int, number: int) -> Any:
    match = longest_match(store, text, length, span)
    lines, valid = continuations(store, *match, matches, depth)
    return match, lines, valid, frequent_prefixes(lines, valid, number)


def stored(tokens: list[int]) -> Datastore:
    order = sorted(range(len(tokens)), key=lambda place: tokens[place:])
    return Datastore(jnp.array(tokens, jnp.uint16), jnp.array(order, jnp.int32))


def brute_force(tokens: list[int], text: list[int], longest_span: int, depth: int) -> tuple[int, Tree]:
    """Return the span, and all prefixes of what follows it in the datastore with their numbers."""
    for span in range(min(longest_span, len(text)), 1, -1):
        places = [i + span for i in range(len(tokens) - span + 1) if tokens[i : i + span] == text[-span:]]
        if places:
            follow = [tuple(tokens[place : place + depth]) for place in places]
            return span, collections.Counter(line[:n] for line in follow for n in range(1, len(line) + 1))
    return 0, {}


def as_tree(prefixes: Any) -> Tree:
    """Return the prefixes as they are spelled, each with its number; every parent has come before its child."""
    spelled: list[tuple[int, ...]] = [()]
    found: Tree = {}
    rows = zip(*(np.array(leaf).tolist() for leaf in jax.tree.leaves(prefixes)), strict=True)
    for token, parent, depth, count in rows:
        if not count:
            continue
        spelled.append((*spelled[parent], token))
        assert len(spelled[-1]) == depth and spelled[-1] not in found
        found[spelled[-1]] = count
    return found


@pytest.mark.parametrize(("vocab", "number", "depth"), [(2, 9, 3), (3, 64, 5), (40, 5, 4)])
def test_the_most_frequent_continuations_of_the_longest_suffix(vocab: int, number: int, depth: int) -> None:
    rng = np.random.default_rng(vocab)
    tokens = rng.integers(0, vocab, 307).tolist()
    store, spans = stored(tokens), set()
    for _ in range(60):
        length = int(rng.integers(1, 20))
        text = np.array([*rng.integers(0, vocab, length), *rng.integers(0, vocab, 23 - length)], np.int32)
        (_, found, span), _, _, prefixes = retrieve(store, text, length, 7, 311, depth, number)
        expected_span, counts = brute_force(tokens, text[:length].tolist(), 7, depth)
        tree = as_tree(prefixes)
        assert (int(span) if found else 0) == expected_span
        ranked = sorted(counts.items(), key=lambda item: (-item[1], len(item[0]), item[0]))
        assert list(tree.items()) == ranked[:number]
        spans.add(expected_span)
    assert len(spans) > 1


def test_the_end_of_the_datastore_is_the_end_of_a_continuation() -> None:
    store = stored([1, 2, 3, 9, 1, 2])
    (_, found, span), lines, valid, prefixes = retrieve(store, jnp.array([7, 1, 2, 0]), 3, 16, 4, 3, 5)
    assert (int(found), int(span), int(valid)) == (2, 2, 2)
    assert lines[:2].tolist() == [[-1, -1, -1], [3, 9, 1]]
    assert as_tree(prefixes) == {(3,): 1, (3, 9): 1, (3, 9, 1): 1}


def test_of_many_matches_some_are_looked_at_from_end_to_end() -> None:
    """After 1 1 come 0 to 99, in this order in the suffix array."""
    store = stored([token for i in range(100) for token in (101, 101, i)])
    _, lines, valid, _ = retrieve(store, jnp.array([101, 101]), 2, 16, 30, 1, 5)
    assert int(valid) == 30 and lines[:, 0].tolist() == [i * 100 // 30 for i in range(30)]


@pytest.fixture
def model(tiny: kangaroo_jax.Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> kangaroo_jax.Params:
    """The tiny model, in a home folder of its own."""
    monkeypatch.setenv("KANGAROO_HOME", str(tmp_path / "home"))
    return tiny


def test_output_is_that_of_plain_decoding(model: kangaroo_jax.Params) -> None:
    """The datastore holds what the model will write after the first prompt, among other text."""
    plain, prompts = make("plain", model), [[70, 80, 90], [100, 101, 102, 103], [40, 41]]
    texts = [plain.generate(prompt, NEW_TOKENS, ()).token_ids for prompt in prompts]
    datastore.make_datastore(companion(model.name, "rest"), ["text"], model.tokenizer, 259, "here")
    rest = make("rest", model, SMALL)
    assert rest.added_parameters == 0 and rest.spec.rows == 8 and rest.spec.gamma == 4
    assert rest.settings == SMALL | {
        "max_token_span": 16,
        "datastore_tokens": 5,
        "datastore_bytes": 30,
        "datastore": "here",
    }
    known = [*prompts[0], *texts[0]]
    wrong = np.random.default_rng(3).integers(3, 259, 500).tolist()
    forks = [token for place in range(0, 40, 3) for token in (*known[place : place + 3], 1, 2, 1)]
    rest = dataclasses.replace(rest, weights=stored([*forks, *known, *wrong, *known[:20], *texts[1][5:30]]))
    stats = []
    for prompt, text in zip(prompts, texts, strict=True):
        found = rest.generate(prompt, NEW_TOKENS, ())
        assert found.token_ids == text
        stats.append(found.stats)
    assert 4 in stats[0].accepted_drafts and max(stats[0].draft_lengths) == 7
    assert max(stats[1].accepted_drafts) > 0
    assert 0 in stats[2].draft_lengths


def test_the_command_leaves_held_out_files_out(
    model: kangaroo_jax.Params, text_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--model", model.name, "--data", str(text_folder)]
    assert datastore.main(args) == 0
    assert f"{companion(model.name, 'rest')}" in capsys.readouterr().out
    tokens, suffixes, record = datastore.load_datastore(model)
    text = bytes(max(int(token) - 3, 0) for token in tokens)
    names = [file.relative_to(text_folder).as_posix() for file in sorted(text_folder.rglob("*.py"))]
    for name in names:
        assert ((text_folder / name).read_bytes() in text) != is_held_out(name)
    assert record["texts"] == sum(not is_held_out(name) for name in names) < 30
    assert suffixes.tolist() == sorted(range(len(tokens)), key=lambda place: tokens[place:].tolist())
    assert datastore.main(args) == 2
    assert "exists; replace it with --force" in capsys.readouterr().err
    assert datastore.main([*args[:2], "--data", str(text_folder / names[0]), "--force"]) == 0
    assert datastore.load_datastore(model)[2]["texts"] == 1


def test_messages_of_conversations_are_texts(tmp_path: Path) -> None:
    chats = tmp_path / "own.jsonl"
    row = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So.\n"}]}
    chats.write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    assert datastore.read_texts([chats]) == (["Why?", "So.\n"] * 2, "own.jsonl")
    chats.write_text("[1]\n")
    with pytest.raises(ValueError, match="has a line that is not"):
        datastore.read_texts([chats])


def test_what_is_wrong_with_a_datastore_is_said(model: kangaroo_jax.Params, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"make it: python -m bench\.datastore --model"):
        make("rest", model)
    folder, size = companion(model.name, "rest"), model.config.vocab_size
    datastore.make_datastore(folder, ["some text\n" * 9], model.tokenizer, size, "here")
    make("rest", model, SMALL)
    other = model.replace(config=dataclasses.replace(model.config, vocab_size=260))
    with pytest.raises(ValueError, match="made with another tokenizer"):
        make("rest", other)

    class Shifted:
        def encode(self, text: str) -> list[int]:
            return [token ^ 1 for token in model.tokenizer.encode(text)]

    with pytest.raises(ValueError, match="made with another tokenizer"):
        make("rest", model.replace(tokenizer=Shifted()))
    np.save(folder / "tokens.npy", np.zeros(3, np.uint16))
    with pytest.raises(ValueError, match="differ in length"):
        make("rest", model)
    (folder / "tokens.npy").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"cannot be read .* --force"):
        make("rest", model)


@pytest.mark.parametrize(
    ("name", "content", "message"), [("gone", None, "cannot be read"), ("latin.txt", b"caf\xe9", "pass UTF-8 text")]
)
def test_unusable_text_is_refused(
    model: kangaroo_jax.Params, tmp_path: Path, capsys: Any, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert datastore.main(["--model", model.name, "--data", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not companion(model.name, "rest").exists()


@pytest.mark.parametrize("settings", [{"num_draft": 0}, {"max_token_span": 1}, {"matches": 40000}])
def test_bad_settings_are_refused(model: kangaroo_jax.Params, settings: Any) -> None:
    with pytest.raises(ValueError, match=f"rest: {next(iter(settings))} is "):
        make("rest", model, settings)
