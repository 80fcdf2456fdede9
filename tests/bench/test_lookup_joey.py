"""prompt-lookup and rest on the embedded model: ids are plain decoding's."""

from __future__ import annotations

import pytest

import kangaroo_jax
from bench import datastore
from bench.methods import make
from kangaroo_jax.proof.compare import read_prompts
from kangaroo_jax.store.names import companion
from workshop.held_out import split_sources, standard_library

SMALL = {"prompt-lookup": {}, "rest": {"num_draft": 7, "matches": 64}}


@pytest.fixture(scope="module")
def joey(tmp_path_factory: pytest.TempPathFactory) -> kangaroo_jax.Params:
    """joey, in a home folder with a datastore of some of its training text."""
    params = kangaroo_jax.load("joey", dtype="float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KANGAROO_HOME", str(tmp_path_factory.mktemp("home")))
        texts = datastore.read_texts([])[0]
        datastore.make_datastore(companion("joey", "rest"), texts[:40], params.tokenizer, 259, "some")
        yield params


def compression(joey: kangaroo_jax.Params, name: str, count: int, new_tokens: int, settings: dict) -> float:
    """Return tokens for each round; every text is the one of plain decoding."""
    plain, method, stats = make("plain", joey), make(name, joey, settings), []
    for row in read_prompts()[:count]:
        ids = joey.tokenizer.encode(row["prompt"])
        found = method.generate(ids, new_tokens)
        assert found.token_ids == plain.generate(ids, new_tokens).token_ids
        stats.append(found.stats)
    return sum(sum(one.accept_lengths) for one in stats) / sum(one.rounds for one in stats)


@pytest.mark.full
@pytest.mark.parametrize("name", SMALL)
def test_built_in_prompts(joey: kangaroo_jax.Params, name: str) -> None:
    assert compression(joey, name, 3, 32, SMALL[name]) > 1.3


def test_the_standard_librarys_held_out_files_are_left_out() -> None:
    held = {file.data.decode() for file in split_sources([standard_library()])[1] if len(file.data) > 500}
    texts, about = datastore.read_texts([])
    assert len(texts) > 1000 and len(held) > 30 and not held.intersection(texts) and "standard library" in about


@pytest.mark.full
@pytest.mark.parametrize("settings", [{}, {"num_draft": 7}], ids=str)
def test_rest_with_the_whole_datastore(joey: kangaroo_jax.Params, settings: dict) -> None:
    assert datastore.main(["--model", "joey", "--force"]) == 0
    assert compression(joey, "rest", 100, 128, settings) > 2


@pytest.mark.full
def test_prompt_lookup_on_all_prompts(joey: kangaroo_jax.Params) -> None:
    assert compression(joey, "prompt-lookup", 100, 128, {}) > 1.3
