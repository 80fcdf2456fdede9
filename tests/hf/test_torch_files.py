"""torch's own reader and writer against ours: every dtype, views, shared storages, old and new containers, adapters."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from convert import adapter
from kangaroo_jax.model import KangarooConfig, init_adapter
from kangaroo_jax.store import load_adapter, read_config, read_hf, save_adapter
from kangaroo_jax.store.hf import stored_tensors
from kangaroo_jax.store.torch_file import TorchFile, write_torch

pytestmark = pytest.mark.hf

FIXTURES = Path(__file__).parent.parent / "fixtures"
STORED = ["float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"]


def as_numpy(tensor):
    """The tensor for NumPy, which knows no bfloat16 of its own."""
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()


def same(file, tensors):
    found = TorchFile(file)
    assert [*found.layouts] == [*tensors]
    for name, tensor in tensors.items():
        values, expected = found.get_tensor(name), as_numpy(tensor)
        assert (values.dtype, values.shape) == (expected.dtype, expected.shape), name
        np.testing.assert_array_equal(values, expected, err_msg=name)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [*STORED, "uint16", "uint32", "uint64"])
def test_what_torch_saves_is_read(tmp_path, dtype, protocol):
    import torch

    whole = (torch.arange(60).reshape(3, 4, 5) % 7).to(getattr(torch, dtype))
    tensors = OrderedDict(
        whole=whole,
        tied=whole,
        permuted=whole.permute(2, 0, 1),
        window=whole[1:, ::2, 1:4],
        column=whole[:, 1, 3],
        wide=whole[:1].expand(1, 4, 5),
        scalar=whole[2, 3, 4],
        empty=whole[:, :0],
    )
    tensors._metadata = OrderedDict({"": {"version": 1}})
    torch.save(tensors, tmp_path / "a.bin", pickle_protocol=protocol)
    same(tmp_path / "a.bin", tensors)


def test_a_state_dict_and_parameters_are_read(tmp_path):
    import torch

    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    torch.save(module.state_dict(), tmp_path / "a.bin")
    same(tmp_path / "a.bin", module.state_dict())
    torch.save(dict(module.named_parameters()), tmp_path / "b.bin")
    same(tmp_path / "b.bin", dict(module.named_parameters()))


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_what_is_written(tmp_path, mmap):
    import torch

    rng = np.random.default_rng(0)
    kinds = {name: ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name) for name in STORED}
    tensors = {f"{name}.ä": rng.integers(0, 2, (3, 4, 5)).astype(kind) for name, kind in kinds.items()}
    tensors |= {"scalar": np.float32(3) * np.ones(()), "empty": np.zeros((2, 0)), "turned": np.ones((2, 3)).cumsum(1).T}
    write_torch(tmp_path / "a.bin", tensors)
    found = torch.load(tmp_path / "a.bin", weights_only=True, mmap=mmap)
    assert [*found] == [*tensors]
    for name, values in tensors.items():
        assert found[name].is_contiguous()
        read = as_numpy(found[name])
        assert (read.dtype, read.shape) == (values.dtype, values.shape)
        np.testing.assert_array_equal(read, values)


def test_other_things_that_torch_saves_are_refused_by_name(tmp_path):
    import torch

    file = tmp_path / "a.bin"
    for value, match in [
        (torch.nn.Linear(2, 2), r"names 'torch\.nn\.modules\.linear\.Linear'"),
        ({"a": torch.eye(2).to_sparse()}, r"names 'torch\._utils\._rebuild_sparse_tensor'"),
        (
            {"a": torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)},
            r"names 'torch\._utils\._rebuild_qtensor'",
        ),
        ({"a": torch.ones(2, dtype=torch.complex64).conj()}, r"names 'torch\.ComplexFloatStorage'"),
        ({"a": torch.ones(2).to(torch.float8_e4m3fn)}, r"names 'torch\.float8_e4m3fn'"),
        ({"a": torch.ones(1).expand(9)}, "in a storage of only 1 elements"),
        ({"a": {"b": torch.ones(2)}}, "'a' is a value of type dict"),
        ([torch.ones(2)], "holds a list, not a state dict"),
    ]:
        torch.save(value, file)
        with pytest.raises(ValueError, match=match):
            TorchFile(file)
    torch.save({"a": torch.ones(2)}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="torch's legacy format, not zip"):
        TorchFile(file)


@pytest.mark.parametrize("case", ["tied", "sharded"])
def test_a_model_saved_by_torch_is_what_safetensors_give(case, tmp_path):
    import torch
    from safetensors.torch import load_file

    source = FIXTURES / "llama" / case
    weight_map = {}
    for file in sorted(source.glob("*.safetensors")):
        name = "pytorch_" + file.name.replace(".safetensors", ".bin")
        tensors = load_file(file)
        if case == "tied":
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        weight_map |= dict.fromkeys(tensors, name)
        torch.save(tensors, tmp_path / name)
    if case == "sharded":
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    jax.tree.map(np.testing.assert_array_equal, read_hf(tmp_path)[1], read_hf(source)[1])


def test_an_adapter_goes_to_torch_and_comes_back(tmp_path):
    import torch

    target = FIXTURES / "llama" / "gqa"
    config = read_config(target)
    save_adapter(tmp_path / "ours", config, KangarooConfig(1), init_adapter(config, jax.random.key(0)), {})
    adapter.export_adapter(tmp_path / "ours", config, tmp_path / "given", "torch")
    found = torch.load(tmp_path / "given" / "pytorch_model.bin", weights_only=True)
    for tensor in stored_tensors(tmp_path / "ours" / "adapter.safetensors"):
        np.testing.assert_array_equal(found[tensor.name].numpy(), np.asarray(tensor))
    torch.save(OrderedDict(found), tmp_path / "given" / "pytorch_model.bin")
    adapter.import_adapter(tmp_path / "given", config, tmp_path / "again")
    again, ours = (load_adapter(tmp_path / name, config)[1] for name in ("again", "ours"))
    jax.tree.map(np.testing.assert_array_equal, again, ours)


def test_an_exported_adapter_is_read_by_transformers_and_torch(tmp_path):
    import torch
    from transformers import LlamaConfig

    config = read_config(FIXTURES / "llama" / "gqa")
    params = init_adapter(config, jax.random.key(0))
    save_adapter(tmp_path / "ours", config, KangarooConfig(2, 5, 0.3), params, {"steps": 7})
    adapter.export_adapter(tmp_path / "ours", config, tmp_path / "given", "torch")
    theirs = LlamaConfig.from_pretrained(tmp_path / "given")
    assert (theirs.num_hidden_layers, theirs.hidden_size) == (1, config.hidden_size)
    assert theirs.rms_norm_eps == config.rms_norm_eps
    assert theirs.kangaroo["exit_layer"] == 2 and theirs.kangaroo["training"] == {"steps": 7}
    state = torch.load(tmp_path / "given" / "pytorch_model.bin", weights_only=True)
    heads = theirs.num_attention_heads * theirs.head_dim
    assert state["layers.0.self_attn.q_proj.weight"].shape == (heads, config.hidden_size)
    theirs.save_pretrained(tmp_path / "given")  # Written by transformers, it still says what it said.
    draft, loaded = load_adapter(tmp_path / "given", config, "float32")
    assert draft == KangarooConfig(2, 5, 0.3)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
