"""bench.roofline counts the right bytes, forces acceptance exactly, and reports what it measured."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kangaroo_jax
from bench import forced, machine, roofline, shapes
from bench.ties import ties
from bench.traffic import traffic
from kangaroo_jax.model import LlamaConfig, abstract_params
from workshop.published_shapes import SHAPES

SMALL = LlamaConfig(61, 22, 29, 2, 6, 3, 4, max_position_embeddings=150)
FEW = "--gamma 2 --acceptance 0 0.5 --rows 1 3 --tokens 23 --repeats 2 --megabytes 1"


@pytest.fixture(scope="module")
def small():
    return shapes.random_params("small", "float32", SMALL)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The file that the command writes, and what it prints."""
    out, printed = tmp_path_factory.mktemp("roofline") / "figures.json", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setitem(shapes.SHAPES, "tinyllama", SMALL)
        assert roofline.main(["--shape", "tinyllama", *FEW.split(), "--json", str(out)]) == 0
    return json.loads(out.read_text()), printed.getvalue()


@pytest.fixture(scope="module")
def figures(written):
    return written[0]


def test_a_plain_step_reads_all_weights_but_the_embedding_table(tiny_arrays):
    config = tiny_arrays.config
    heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    hidden = config.hidden_size
    attention = hidden * (heads + 2 * kv_heads) * width + heads * width * hidden
    layer = attention + 3 * hidden * config.intermediate_size + 2 * hidden
    head, adapter = hidden * config.vocab_size, attention + 2 * hidden
    parts = traffic(tiny_arrays)
    assert parts["plain"] == 4 * (config.num_hidden_layers * layer + hidden + head)
    assert parts["shallow"] == 4 * layer and parts["propose"] == 4 * (adapter + head)
    assert parts["draft"] == parts["shallow"] + parts["propose"]
    assert parts["verify"] == parts["plain"] - parts["shallow"]
    cache = 2 * 4 * 7 * kv_heads * width
    cached = traffic(tiny_arrays, slots=7)
    assert cached["plain"] - parts["plain"] == config.num_hidden_layers * cache
    assert cached["draft"] - parts["draft"] == 2 * cache
    assert set(traffic(tiny_arrays.replace(adapter=None, draft=None))) == {"plain"}


def test_weights_count_as_they_are_stored(tiny):
    """Packed where the native kernels were built: with the columns that fill up the last block."""
    weights = {name: part for name, part in tiny.target.items() if name != "embed_tokens"}
    parts = traffic(tiny)
    assert parts["plain"] == sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
    head = sum(leaf.nbytes for leaf in jax.tree.leaves(weights["lm_head"]))
    assert parts["propose"] == sum(leaf.nbytes for leaf in jax.tree.leaves(tiny.adapter)) + head


def test_a_tied_head_is_the_embedding_table(small):
    tied = dataclasses.replace(SMALL, tie_word_embeddings=True)
    assert traffic(shapes.random_params("tied", "float32", tied)) == traffic(small)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_random_weights_have_the_shape_and_no_zeros(dtype):
    params = shapes.random_params("small", dtype, SMALL)
    tree = jax.tree.map(lambda leaf: leaf.shape, params.target)
    assert tree == jax.tree.map(lambda leaf: leaf.shape, abstract_params(SMALL))
    assert all(leaf.dtype == dtype and (leaf != 0).all() for leaf in jax.tree.leaves((params.target, params.adapter)))
    gates = [params.target[f"layers_{index}"]["mlp"]["gate_up_proj"]["kernel"] for index in range(2)]
    assert 0.015 < float(jnp.std(gates[0].astype(jnp.float32))) < 0.025 and (gates[0] != gates[1]).any()
    with pytest.raises(ValueError, match="exit layer is 2; small has 2 layers"):
        shapes.random_params("small", dtype, SMALL, draft=2)


def test_shapes_leave_where_the_paper_does():
    exits = {name: shapes.exit_layer(SHAPES[name]) for name in ("vicuna-7b", "vicuna-13b", "joey", "small-100m")}
    assert exits == {"vicuna-7b": 2, "vicuna-13b": 3, "joey": 2, "small-100m": 2}
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(SHAPES["small-100m"])))
    assert 95e6 < count < 110e6


def test_joeys_shape_is_joeys():
    joey = kangaroo_jax.load("joey").config
    assert SHAPES["joey"] == joey


def test_rounds_follow_the_marks():
    marks = np.array([[0, 1, 1, 0, 1, 1, 1, 1, 0]])
    # From 1 on: 1 1 rejected, committed 1-3; 1 1 1 accepted, committed 4-7; rejected, committed 8.
    assert forced.rounds(marks, 1, 9, 3) == 3
    assert forced.rounds(marks, 1, 8, 3) == 2
    assert forced.rounds(np.zeros((1, 20), int), 3, 20, 5) == 17
    assert forced.rounds(np.ones((1, 20), int), 2, 20, 5) == 3


def test_tokens_per_round_are_as_expected():
    assert forced.expected(1.0, 6) == 7 and forced.expected(0.0, 6) == 1
    assert forced.expected(0.7, 4) == pytest.approx((1 - 0.7**5) / (1 - 0.7))
    many = 10**5
    assert many / forced.rounds(forced.marks(0.7, many), 0, many, 4) == pytest.approx(forced.expected(0.7, 4), rel=0.02)


def test_the_decode_loop_accepts_what_is_marked(small):
    loop = forced.Loop(small, 3, [5, 7, 11], 40, 128)
    for rate in (0.0, 0.6, 1.0):
        marks = forced.marks(rate, 128, seed=3)
        for _ in range(2):  # A second run starts from the same place.
            assert loop.seconds(marks) > 0
            stats = jax.device_get(loop.state.stats)
            rounds = forced.rounds(marks, loop.start, loop.end, 3)
            assert stats.rounds[0] == rounds and loop.state.length[0] == loop.end == 3 + 1 + 40
            assert (stats.draft_lengths[0, :rounds] == 3).all()
            assert stats.accept_lengths[0, :rounds].sum() == 40


def test_ties_are_counted(small):
    plain = forced.Loop(small, 0, [5, 7, 11], 40, 128)
    plain.seconds()
    different, compared = ties(small, plain)
    assert compared == 35 and different <= 1
    wrong = plain.state.tokens.at[:, 20].add(1)  # One token that the model did not choose changes itself, at least.
    plain.state = plain.state.replace(tokens=wrong)
    assert ties(small, plain)[0] > different


def test_bandwidth_is_a_rate():
    assert machine.matvec(1)() > 0 and machine.copy(1)() > 0 and 0 < machine.iteration()() < 1


def test_everything_is_measured(figures):
    found = figures["graphs"]["default"]
    costs = found["costs"]
    assert set(costs["verify"]) == {"1", "3", "8"} and costs["slots"] == figures["slots"] == 128
    assert figures["turns"] == 2 and figures["exit_layer"] == 1 and figures["ties"]["compared"] == 21
    assert [(row["gamma"], row["acceptance"]) for row in found["forced"]] == [(2, 0.0), (2, 0.5)]
    nothing = found["forced"][0]
    parts = figures["bytes"]
    assert nothing["tokens_per_round"] == nothing["expected_tokens_per_round"] == 1
    assert nothing["by_bytes"] == pytest.approx(parts["plain"] / (2 * parts["draft"] + parts["plain"]))
    assert nothing["by_rounds"] == pytest.approx(costs["plain"] / (costs["round"]["8"] + 2 * costs["draft"]["8"]))
    # Each part was timed in a loop of its own, and a round is one.
    draft, once = costs["shallow"] + costs["propose"], found["iteration"]
    whole = costs["shallow"] + costs["verify"]["8"] - once + 2 * (draft - once)
    assert nothing["by_parts"] == pytest.approx(costs["plain"] / whole)
    assert all(row["lowest"] <= row["measured"] <= row["highest"] for row in found["forced"])


def test_lines_show_the_figures(figures):
    lines = list(roofline.report(figures))
    assert lines[0].startswith("tinyllama: 0.0M parameters, float32, exit layer 1")
    for name in (
        "matrix-vector",
        "copy",
        "plain decoding",
        "draft step",
        "verify, 1 row ",
        "verify, 3 rows",
        "an empty",
    ):
        assert sum(line.startswith(name) for line in lines) == 1, name
    step = next(line for line in lines if line.startswith("plain step")).split()
    costs, read = figures["graphs"]["default"]["costs"], figures["bytes"]["plain"]
    best = max(figures["matvec"], figures["copy"])
    shown = [float(number) for number in step if number.replace(".", "").isdigit()]
    expected = (1e3 * costs["plain"], 1, read / 1e6, read / costs["plain"] / 1e9, 100 * read / costs["plain"] / best)
    assert shown == pytest.approx(expected, abs=0.51)


def test_the_command_writes_what_it_prints(written):
    figures, printed = written
    assert printed.splitlines() == list(roofline.report(figures))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--graph one", "--graph is one, which needs an NVIDIA GPU, and JAX runs on cpu"),
        ("--graph both", "--graph is both, which needs"),
        ("--gamma 3 0", "--gamma is 0; it must be at least 1"),
        ("--acceptance 1.5", "--acceptance is 1.5; give a probability"),
        ("--tokens 1000", "--tokens is 1000; after 64 tokens joey takes at most 959"),
        ("--json none/there.json", "there is no directory none: make it first"),
        ("--json tests", "--json is tests, and that is a directory"),
        ("--model nobody", "unknown model 'nobody'"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message, capsys):
    assert roofline.main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_model_without_adapter_is_refused(tiny_model, tmp_path, capsys):
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare)
    shutil.rmtree(bare / "adapter")
    assert roofline.main(["--model", str(bare), "--tokens", "9", "--megabytes", "1"]) == 2
    assert "has no adapter" in capsys.readouterr().err
