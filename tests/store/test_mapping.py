"""The table reads and writes: round trips are bit-equal, and tensors that do not fit are four different errors."""

from __future__ import annotations

import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest

from kangaroo_jax.model import LlamaConfig, abstract_params
from kangaroo_jax.store.mapping import (
    DuplicateTensors,
    ExtraTensors,
    MisshapenTensors,
    MissingTensors,
    canonical,
    check_tied_head,
    entries,
    flatten,
    from_flax,
    matched,
    to_flax,
)
from kangaroo_jax.store.tables import ADAPTER, TARGET

# No two extents are equal, so that a swapped axis cannot go unnoticed.
GQA = LlamaConfig(31, 23, 29, 2, 6, 3, 2)
TIED = LlamaConfig(31, 23, 29, 1, 5, 5, 4, tie_word_embeddings=True)
QWEN2 = dataclasses.replace(GQA, model_type="qwen2")
QWEN3 = dataclasses.replace(GQA, model_type="qwen3")


def random_tensors(config, table=TARGET, dtype=np.float32):
    """Named random tensors of the shapes that torch would store."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=entry.shape).astype(dtype) for name, entry in entries(config, table).items()}


@pytest.mark.parametrize("config", [GQA, TIED, QWEN2, QWEN3], ids=["gqa", "tied", "qwen2", "qwen3"])
@pytest.mark.parametrize("table", [TARGET, ADAPTER], ids=["target", "adapter"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_there_and_back_is_bit_equal(config, table, dtype):
    tensors = random_tensors(config, table, dtype)
    params = to_flax(config, tensors, table=table)
    assert jax.tree.map(lambda leaf: tuple(leaf.shape), params) == jax.tree.map(
        lambda leaf: tuple(leaf.shape), table.abstract(config)
    )
    back = dict(from_flax(config, params, table))
    assert list(back) == list(tensors)
    for name, values in tensors.items():
        assert back[name].dtype == dtype and back[name].flags.c_contiguous
        np.testing.assert_array_equal(back[name], values)


def grouped(qkv):
    """Fuse q, k and v as GQA has them: two query heads of a key/value head, the key, the value; 2 columns each."""
    q, k, v = qkv
    heads = [(q[..., 4 * at : 4 * at + 4], k[..., 2 * at : 2 * at + 2], v[..., 2 * at : 2 * at + 2]) for at in range(3)]
    return np.concatenate([part for head in heads for part in head], axis=-1)


def test_every_tensor_lands_where_the_model_reads_it():
    tensors = random_tensors(GQA)
    params = to_flax(GQA, tensors)
    layer, name = params["layers_1"], "model.layers.1."
    qkv = grouped([tensors[f"{name}self_attn.{part}_proj.weight"].T for part in "qkv"])
    np.testing.assert_array_equal(layer["self_attn"]["qkv_proj"]["kernel"], qkv)
    np.testing.assert_array_equal(layer["self_attn"]["o_proj"]["kernel"], tensors[f"{name}self_attn.o_proj.weight"].T)
    gate_up = [tensors[f"{name}mlp.{part}_proj.weight"].T for part in ("gate", "up")]
    for part, values in enumerate(gate_up):  # A gate, its up, the next gate.
        np.testing.assert_array_equal(layer["mlp"]["gate_up_proj"]["kernel"][:, part::2], values)
    np.testing.assert_array_equal(layer["mlp"]["down_proj"]["kernel"], tensors[f"{name}mlp.down_proj.weight"].T)
    np.testing.assert_array_equal(layer["input_layernorm"]["scale"], tensors[f"{name}input_layernorm.weight"])
    norm = tensors[f"{name}post_attention_layernorm.weight"]
    np.testing.assert_array_equal(layer["post_attention_layernorm"]["scale"], norm)
    np.testing.assert_array_equal(params["embed_tokens"]["embedding"], tensors["model.embed_tokens.weight"])
    np.testing.assert_array_equal(params["lm_head"]["kernel"], tensors["lm_head.weight"].T)


def test_the_biases_of_qwen2_are_fused_as_its_kernels():
    tensors = random_tensors(QWEN2)
    assert {name for name in tensors if name not in entries(GQA)} == {
        f"model.layers.{layer}.self_attn.{part}_proj.bias" for layer in (0, 1) for part in "qkv"
    }
    fused = to_flax(QWEN2, tensors)["layers_1"]["self_attn"]["qkv_proj"]["bias"]
    biases = [tensors[f"model.layers.1.self_attn.{part}_proj.bias"] for part in "qkv"]
    np.testing.assert_array_equal(fused, grouped(biases))


def test_the_norms_of_qwen3_are_one_for_all_heads():
    tensors = random_tensors(QWEN3)
    assert {name for name in tensors if name not in entries(GQA)} == {
        f"model.layers.{layer}.self_attn.{part}_norm.weight" for layer in (0, 1) for part in "qk"
    }
    attention = to_flax(QWEN3, tensors)["layers_1"]["self_attn"]
    for part in "qk":
        norm = tensors[f"model.layers.1.self_attn.{part}_norm.weight"]
        np.testing.assert_array_equal(attention[f"{part}_norm"]["scale"], norm)
        assert norm.shape == (QWEN3.head_dim,)


def test_biases_have_no_place_in_a_llama_and_must_be_in_a_qwen2():
    name = "model.layers.0.self_attn.q_proj.bias"
    with pytest.raises(ExtraTensors, match=name):
        to_flax(GQA, random_tensors(GQA) | {name: np.zeros(12)})
    with pytest.raises(MissingTensors, match=name):
        to_flax(QWEN2, random_tensors(GQA))


@pytest.mark.parametrize("config", [GQA, QWEN2, QWEN3], ids=["llama", "qwen2", "qwen3"])
def test_the_adapter_has_the_names_of_its_authors(config):
    attention = {f"layers.0.self_attn.{part}_proj.weight" for part in "qkvo"}
    assert set(entries(config, ADAPTER)) == attention | {"norm.weight", "layers.0.input_layernorm.weight"}


@dataclasses.dataclass(frozen=True)
class Unread:
    """A tensor whose elements must not be asked for."""

    shape: tuple[int, ...]
    dtype: np.dtype = dataclasses.field(default_factory=lambda: np.dtype("float16"))

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("the elements were read")


def test_matching_pairs_tensors_with_their_places_in_the_order_given_and_reads_none():
    tensors = {name: Unread(entry.shape) for name, entry in reversed(entries(GQA).items())}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = Unread((1,))
    found = matched(GQA, tensors)
    assert [entry.name for entry, _ in found] == list(reversed(entries(GQA)))
    assert all(tensor is tensors[entry.name] for entry, tensor in found)
    with pytest.raises(AssertionError, match="were read"):
        to_flax(GQA, tensors)


def test_matching_leaves_the_values_of_a_tied_head_to_a_check_of_their_own():
    tensors = random_tensors(TIED)
    table = tensors["model.embed_tokens.weight"]
    same, other = tensors | {"lm_head.weight": table.copy()}, tensors | {"lm_head.weight": table + 1}
    assert [entry.name for entry, _ in matched(TIED, other)] == list(tensors)
    check_tied_head(TIED, same)
    check_tied_head(TIED, tensors)
    check_tied_head(GQA, random_tensors(GQA))
    with pytest.raises(ExtraTensors, match=r"lm_head.weight"):
        check_tied_head(TIED, other)


def test_a_head_of_another_shape_than_the_table_it_is_tied_to_is_extra():
    with pytest.raises(ExtraTensors, match=r"^1 tensors have no place in this model: lm_head.weight;"):
        matched(TIED, random_tensors(TIED) | {"lm_head.weight": np.zeros((23, 31))})


def test_an_adapter_has_no_place_for_table_and_head():
    more = {name: np.zeros((31, 23)) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    with pytest.raises(ExtraTensors, match=r"^2 tensors have no place"):
        matched(TIED, random_tensors(TIED, ADAPTER) | more, ADAPTER)


def test_missing_tensors_are_listed():
    tensors = random_tensors(GQA)
    del tensors["model.layers.1.self_attn.k_proj.weight"], tensors["model.norm.weight"]
    with pytest.raises(MissingTensors, match=r"^2 tensors are missing: .*k_proj.weight, model.norm.weight;") as caught:
        to_flax(GQA, tensors)
    assert caught.value.keys == ("model.layers.1.self_attn.k_proj.weight", "model.norm.weight")


def test_extra_tensors_are_listed():
    tensors = random_tensors(GQA) | {"model.layers.2.mlp.gate_proj.bias": np.zeros(29)}
    with pytest.raises(ExtraTensors, match=r"no place in this model: model.layers.2.mlp.gate_proj.bias;"):
        to_flax(GQA, tensors)


def test_duplicate_tensors_are_listed():
    pairs = [*random_tensors(GQA).items(), ("lm_head.weight", np.zeros((31, 23)))]
    with pytest.raises(DuplicateTensors, match=r"more than once: lm_head.weight;"):
        to_flax(GQA, pairs)


def test_misshapen_tensors_are_listed_with_both_shapes():
    tensors = random_tensors(GQA)
    tensors["model.layers.0.self_attn.q_proj.weight"] = np.zeros((23, 12))
    with pytest.raises(MisshapenTensors, match=r"q_proj.weight is \(23, 12\) instead of \(12, 23\);"):
        to_flax(GQA, tensors)


def test_a_long_list_is_shortened_in_the_message_only():
    tensors = random_tensors(GQA)
    kept = {name: tensors[name] for name in tensors if name.endswith("input_layernorm.weight")}
    with pytest.raises(MissingTensors, match=r"^19 tensors .* and 13 more;") as caught:
        to_flax(GQA, kept)
    assert len(caught.value.keys) == len(entries(GQA)) - 2 == 19
    assert "\n" not in str(caught.value)


def test_layers_without_tensors_are_listed():
    tensors = {name: values for name, values in random_tensors(GQA).items() if ".layers.1." not in name}
    with pytest.raises(MissingTensors, match=r"^1 layers of the 2 .* have no tensors: model.layers.1; are") as caught:
        to_flax(GQA, tensors)
    assert caught.value.keys == ("model.layers.1",)


def test_all_four_are_value_errors():
    assert all(issubclass(e, ValueError) for e in (MissingTensors, ExtraTensors, DuplicateTensors, MisshapenTensors))


def test_rotary_tables_of_old_checkpoints_are_ignored():
    tensors = random_tensors(GQA)
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(1)}
    np.testing.assert_equal(to_flax(GQA, tensors | extra), to_flax(GQA, tensors))


def test_a_stored_copy_of_tied_embeddings_is_ignored_and_another_head_is_refused():
    tensors = random_tensors(TIED)
    table = tensors["model.embed_tokens.weight"]
    assert "lm_head" not in to_flax(TIED, tensors | {"lm_head.weight": table.copy()})
    with pytest.raises(ExtraTensors, match=r"lm_head.weight; it differs .* set tie_word_embeddings to false to keep"):
        to_flax(TIED, tensors | {"lm_head.weight": table + 1})


WRAPPED = ["_orig_mod.{}", "module.{}", "module.module.{}", "_orig_mod.module.{}", "module._orig_mod.{}"]


@pytest.mark.parametrize("config", [GQA, TIED, QWEN2, QWEN3], ids=["gqa", "tied", "qwen2", "qwen3"])
@pytest.mark.parametrize("wrapped", ["{}", *WRAPPED])
def test_names_of_base_models_and_wrappers_are_read(config, wrapped):
    tensors, base = random_tensors(config), {}
    for name, values in tensors.items():
        base[wrapped.format(name.removeprefix("model."))] = values
    np.testing.assert_equal(to_flax(config, base), to_flax(config, tensors))
    whole = {wrapped.format(name): values for name, values in tensors.items()}
    np.testing.assert_equal(to_flax(config, whole), to_flax(config, tensors))


def test_layers_may_be_wrapped_one_by_one():
    tensors = random_tensors(GQA)
    layers = {
        name.replace(".self_attn.", "._orig_mod.self_attn.").replace(".mlp.", ".mlp._orig_mod."): values
        for name, values in tensors.items()
    }
    assert layers.keys() != tensors.keys()
    np.testing.assert_equal(to_flax(GQA, layers), to_flax(GQA, tensors))


@pytest.mark.parametrize("name", ["lm_head.weight", "model.norm.weight", "my_module.norm.weight", "layer.0.weight"])
def test_other_names_stay(name):
    assert canonical(name) == name


def test_a_tensor_under_two_names_is_a_duplicate():
    tensors = random_tensors(GQA)
    for name in ("norm.weight", "_orig_mod.model.norm.weight"):
        with pytest.raises(DuplicateTensors, match=r"more than once: model.norm.weight;"):
            to_flax(GQA, tensors | {name: tensors["model.norm.weight"]})


def test_a_tied_head_may_be_what_is_stored():
    tensors = random_tensors(TIED)
    alone = {name.replace("model.embed_tokens", "lm_head"): values for name, values in tensors.items()}
    np.testing.assert_equal(to_flax(TIED, alone), to_flax(TIED, tensors))
    with pytest.raises(MissingTensors, match=r"^1 tensors are missing: model.embed_tokens.weight; are config and"):
        to_flax(dataclasses.replace(TIED, tie_word_embeddings=False), alone)


def test_a_base_model_without_the_head_it_needs_is_named():
    base = {name.removeprefix("model."): values for name, values in random_tensors(GQA).items()}
    del base["lm_head.weight"]
    with pytest.raises(MissingTensors, match=r"^1 tensors are missing: lm_head.weight; this is a base model: save it"):
        to_flax(GQA, base)
    del base["norm.weight"]
    with pytest.raises(MissingTensors, match=r"^2 tensors are missing: .*; are config and weights those of one"):
        to_flax(GQA, base)


def test_dtypes_that_differ_become_float32_and_an_asked_one_is_given():
    tensors = random_tensors(GQA, dtype=ml_dtypes.bfloat16)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float32)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(to_flax(GQA, tensors))} == {"float32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(to_flax(GQA, tensors, "bfloat16"))} == {"bfloat16"}


def test_params_of_another_model_are_not_written():
    params = to_flax(GQA, random_tensors(GQA))
    with pytest.raises(MissingTensors, match="embed_tokens/embedding"):
        dict(from_flax(GQA, {name: leaf for name, leaf in params.items() if name != "embed_tokens"}))
    with pytest.raises(ExtraTensors, match="lm_head/kernel"):
        dict(from_flax(LlamaConfig(31, 23, 29, 2, 6, 3, 2, tie_word_embeddings=True), params))
    with pytest.raises(MisshapenTensors, match=r"gate_up_proj/kernel is \(23, 58\) instead of \(23, 62\)"):
        dict(from_flax(LlamaConfig(31, 23, 31, 2, 6, 3, 2), params))


@pytest.mark.parametrize("config", [GQA, QWEN2, QWEN3], ids=["llama", "qwen2", "qwen3"])
def test_the_table_covers_every_leaf_of_the_model(config):
    paths = {entry.path for entry in entries(config).values()}
    assert paths == set(flatten(abstract_params(config)))
