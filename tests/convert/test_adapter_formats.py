"""python -m convert.adapter: the authors' adapters in, ours out, bit by bit; what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from convert import adapter
from kangaroo_jax.model import ADAPTER_KINDS, AdapterConfig, KangarooConfig, init_adapter
from kangaroo_jax.store import from_flax, load_adapter, read_config, save_adapter
from kangaroo_jax.store.hf import stored_tensors, write_safetensors
from kangaroo_jax.store.tables import ADAPTER
from kangaroo_jax.store.torch_file import TorchFile, write_torch

TARGET = Path(__file__).parent.parent / "fixtures" / "llama" / "gqa"
INV_FREQ = "layers.0.self_attn.rotary_emb.inv_freq"
NAMES = {"norm.weight", "layers.0.input_layernorm.weight", *(f"layers.0.self_attn.{x}_proj.weight" for x in "qkvo")}


def make_tensors(dtype):
    config = read_config(TARGET)
    params = jax.device_get(init_adapter(config, jax.random.key(3)))
    return {name: values.astype(dtype) for name, values in from_flax(config, params, ADAPTER)}


def make_theirs(directory, tensors, **fields):
    """Write an adapter as the authors do."""
    directory.mkdir(parents=True)
    config = json.loads((TARGET / "config.json").read_text()) | {"num_hidden_layers": 1} | fields
    (directory / "config.json").write_text(json.dumps(config))
    write_torch(directory / "pytorch_model.bin", tensors)
    return directory


@pytest.fixture
def theirs(tmp_path):
    """An adapter as the authors publish them."""
    return make_theirs(tmp_path / "theirs", make_tensors(np.float16) | {INV_FREQ: np.ones(6, np.float32)})


def run(*argv):
    """Run the command for the target of these tests; return its status."""
    return adapter.main([*map(str, argv), "--target", str(TARGET)])


def failed(capsys, *argv):
    """Run the command, which must fail with one line; return it."""
    assert run(*argv) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("adapter: ") and captured.err.count("\n") == 1, captured
    return captured.err


def same_tensors(found, expected):
    assert sorted(found) == sorted(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        assert found[name].tobytes() == values.tobytes()


def test_an_import_has_their_tensors_and_what_was_asked_for(theirs, tmp_path, capsys):
    assert run("import", theirs, "--exit-layer", 2, "--gamma", 4, "--eta", 0.5, "--out", tmp_path / "ours") == 0
    assert "ours: exit layer 2, gamma 4, eta 0.5" in capsys.readouterr().out
    draft, params = load_adapter(tmp_path / "ours", read_config(TARGET), "float16")
    assert draft == KangarooConfig(2, 4, 0.5)
    expected = make_tensors(np.float16)
    assert set(expected) == NAMES
    same_tensors(dict(from_flax(read_config(TARGET), jax.device_get(params), ADAPTER)), expected)
    assert json.loads((tmp_path / "ours" / "adapter_config.json").read_text())["training"] == {
        "imported_from": "theirs"
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("form", adapter.FORMATS)
def test_there_and_back_is_bit_equal(tmp_path, dtype, form):
    source = make_theirs(tmp_path / "theirs", make_tensors(dtype))
    assert run("import", source, "--exit-layer", 1, "--out", tmp_path / "ours") == 0
    assert run("export", tmp_path / "ours", "--out", tmp_path / "given", "--format", form) == 0
    name = adapter.FORMATS[form][0]
    assert {path.name for path in (tmp_path / "given").iterdir()} == {"config.json", "README.md", name}
    stored = stored_tensors(tmp_path / "given" / name)
    same_tensors({tensor.name: np.asarray(tensor) for tensor in stored}, make_tensors(dtype))
    fields = json.loads((tmp_path / "given" / "config.json").read_text())
    assert fields["num_hidden_layers"] == 1 and fields["torch_dtype"] == np.dtype(dtype).name
    assert run("import", tmp_path / "given", "--out", tmp_path / "again") == 0
    for file in ("adapter.safetensors", "adapter_config.json"):
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_the_targets_own_adapter_is_exported_when_none_is_named(tmp_path, capsys):
    target = Path(shutil.copytree(TARGET, tmp_path / "target"))
    argv = ["export", "--target", str(target), "--out", str(tmp_path / "out")]
    assert adapter.main(argv) == 2
    assert "has no adapter of its own; give an adapter directory" in capsys.readouterr().err
    config = read_config(target)
    save_adapter(target / "adapter", config, KangarooConfig(1), init_adapter(config, jax.random.key(0)), {})
    assert adapter.main(argv) == 0
    same_tensors(
        load_file(tmp_path / "out" / "model.safetensors"), load_file(target / "adapter" / "adapter.safetensors")
    )


def test_another_tensor_is_refused(theirs, tmp_path, capsys):
    write_torch(
        theirs / "pytorch_model.bin", make_tensors(np.float16) | {"lm_head.weight": np.ones((97, 48), np.float16)}
    )
    line = failed(capsys, "import", theirs, "--exit-layer", 1, "--out", tmp_path / "ours")
    assert "1 tensors have no place in this model: lm_head.weight" in line
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_a_missing_or_misshapen_tensor_is_refused(theirs, tmp_path, capsys):
    tensors = make_tensors(np.float16)
    norm = tensors.pop("norm.weight")
    write_torch(theirs / "pytorch_model.bin", tensors)
    argv = ("import", theirs, "--exit-layer", 1, "--out", tmp_path / "ours")
    assert "1 tensors are missing: norm.weight" in failed(capsys, *argv)
    write_torch(theirs / "pytorch_model.bin", tensors | {"norm.weight": norm[1:]})
    assert "norm.weight is (47,) instead of (48,)" in failed(capsys, *argv)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("hidden_size", 60, "hidden_size 60 instead of 48"),
        ("num_attention_heads", 8, "num_attention_heads 8 instead of 4"),
        ("num_key_value_heads", 4, "num_key_value_heads 4 instead of 2"),
        ("head_dim", 14, "head_dim 14 instead of 12"),
        ("rms_norm_eps", 1e-5, "rms_norm_eps 1e-05 instead of 1e-06"),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 5e5}, "rope_theta 500000.0 instead of 10000.0"),
        ("rope_parameters", {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, "rope_scaling RopeScaling"),
    ],
)
def test_an_adapter_of_another_target_is_refused(tmp_path, capsys, field, value, said):
    source = make_theirs(tmp_path / "theirs", make_tensors(np.float16), **{field: value})
    line = failed(capsys, "import", source, "--exit-layer", 1, "--out", tmp_path / "ours")
    assert said in line and "use the adapter trained for this target" in line


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("exit-layer", 3, "exit_layer is 3"), ("gamma", 0, "gamma is 0"), ("eta", -1, "eta is")],
)
def test_numbers_that_make_no_draft_model(theirs, tmp_path, capsys, option, value, said):
    argv = ("import", theirs, "--exit-layer", 1, "--out", tmp_path / "ours", f"--{option}={value}")
    assert said in failed(capsys, *argv)
    assert not (tmp_path / "ours").exists()


@pytest.fixture
def trained(tmp_path):
    """An adapter of ours with a record of its training."""
    config = read_config(TARGET)
    training = {
        "steps": 7,
        "data": ["a", "b"],
        "held_out_acceptance": 1 / 3,
        "betas": [0.9, 0.95],
        "init_adapter": None,
    }
    params = init_adapter(config, jax.random.key(3))
    save_adapter(tmp_path / "trained", config, KangarooConfig(2, 5, 0.3), params, training)
    return tmp_path / "trained"


@pytest.mark.parametrize("form", adapter.FORMATS)
def test_an_export_carries_what_was_recorded_and_comes_back_bit_equal(trained, tmp_path, form):
    first, ours, second = tmp_path / "first", tmp_path / "ours", tmp_path / "second"
    give = ("--format", form, "--licence", "mit", "--base-model", "someone/model")
    assert run("export", trained, "--out", first, *give) == 0
    assert run("import", first, "--out", ours) == 0
    assert run("export", ours, "--out", second, *give) == 0
    assert (ours / "adapter_config.json").read_bytes() == (trained / "adapter_config.json").read_bytes()
    names = {path.name for path in first.iterdir()}
    assert names == {path.name for path in second.iterdir()} and len(names) == 3
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    recorded = json.loads((trained / "adapter_config.json").read_text())
    assert json.loads((first / "config.json").read_text())["kangaroo"] == recorded


def test_an_import_may_change_how_long_is_drafted_but_not_the_exit_layer(trained, tmp_path, capsys):
    assert run("export", trained, "--out", tmp_path / "given") == 0
    take = ("import", tmp_path / "given", "--out", tmp_path / "ours")
    assert run(*take, "--gamma", 3, "--exit-layer", 2) == 0
    draft, _ = load_adapter(tmp_path / "ours", read_config(TARGET))
    assert draft == KangarooConfig(2, 3, 0.3)
    capsys.readouterr()
    line = failed(capsys, *take, "--exit-layer", 1, "--force")
    assert "trained for exit_layer 2, and exit_layer 1 is asked for" in line


def test_an_export_of_an_export_is_the_same_in_another_format(trained, tmp_path, capsys):
    assert run("export", trained, "--out", tmp_path / "given") == 0
    assert run("export", tmp_path / "given", "--out", tmp_path / "again", "--format", "torch") == 0
    assert f"hf upload OWNER/NAME {tmp_path / 'again'}" in capsys.readouterr().out
    first, second = (load_adapter(tmp_path / name, read_config(TARGET)) for name in ("given", "again"))
    assert first[0] == second[0]
    jax.tree.map(np.testing.assert_array_equal, first[1], second[1])


def test_an_exit_layer_must_be_given_where_the_source_does_not_say_it(theirs, tmp_path, capsys):
    for command in ("import", "export"):
        line = failed(capsys, command, theirs, "--out", tmp_path / "out")
        assert "does not say after which layer the adapter was trained" in line and "--exit-layer" in line
    assert run("export", theirs, "--exit-layer", 2, "--out", tmp_path / "out") == 0
    assert load_adapter(tmp_path / "out", read_config(TARGET))[0] == KangarooConfig(2)


def test_sources_that_are_no_adapter(theirs, tmp_path, capsys):
    argv = ("--exit-layer", 1, "--out", tmp_path / "out")
    assert run("import", theirs, "--exit-layer", 1, "--out", tmp_path / "ours") == 0
    capsys.readouterr()
    assert "is an adapter of kangaroo_jax already" in failed(capsys, "import", tmp_path / "ours", *argv)
    assert "tensors are missing: layers.0.input_layernorm.weight" in failed(capsys, "import", TARGET, *argv)
    (theirs / "pytorch_model.bin").write_bytes(b"PK")
    assert "pytorch_model.bin is not a file of torch.save" in failed(capsys, "import", theirs, *argv)
    (theirs / "pytorch_model.bin").unlink()
    assert "has none of model.safetensors" in failed(capsys, "import", theirs, *argv)
    assert "no adapter directory" in failed(capsys, "export", tmp_path / "nowhere", "--out", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    line = failed(capsys, "export", tmp_path / "empty", "--out", tmp_path / "out")
    assert "has neither adapter_config.json nor config.json" in line
    assert not (tmp_path / "out").exists()


def test_nothing_is_replaced_unasked_and_nothing_else_ever(theirs, tmp_path, capsys):
    ours, given = tmp_path / "ours", tmp_path / "given"
    take = ("import", theirs, "--exit-layer", 1, "--out", ours)
    give = ("export", ours, "--out", given)
    for argv in (take, give):
        assert run(*argv) == 0
        capsys.readouterr()
        assert "exists; choose another --out, or replace it with --force" in failed(capsys, *argv)
        assert run(*argv, "--force") == 0
        capsys.readouterr()
        (argv[-1] / "thesis.txt").write_text("years of work")
    assert "is not an exported adapter" in failed(capsys, *give, "--force")
    assert "is not an exported adapter" in failed(capsys, "export", ours, "--out", ours, "--force")
    assert "is not an exported adapter" in failed(capsys, "export", ours, "--out", ours / "thesis.txt", "--force")
    assert "exists and is not an adapter" in failed(capsys, *take[:-1], given, "--force")
    assert (given / "thesis.txt").is_file() and (ours / "adapter.safetensors").is_file()


def test_an_export_that_came_back_from_the_hub_is_replaced(trained, tmp_path, capsys):
    given = tmp_path / "given"
    give = ("export", trained, "--out", given, "--force")
    assert run(*give) == 0
    (given / ".gitattributes").write_text("*.safetensors filter=lfs")
    (given / ".cache" / "huggingface").mkdir(parents=True)
    assert run(*give) == 0
    assert {path.name for path in given.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    (given / ".git").mkdir()
    capsys.readouterr()
    assert "is not an exported adapter" in failed(capsys, *give)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / ".notes").write_text("years of work")
    assert "is not an exported adapter" in failed(capsys, "export", trained, "--out", tmp_path / "own", "--force")


def test_a_small_model_is_not_taken_for_an_exported_adapter(trained, tmp_path, capsys):
    model = tmp_path / "model"
    model.mkdir()
    for name in ("README.md", "config.json", "model.safetensors"):
        (model / name).write_text("{}")
    give = ("export", trained, "--out", model, "--force")
    assert "is not an exported adapter" in failed(capsys, *give)
    (model / "config.json").unlink()
    assert "is not an exported adapter" in failed(capsys, *give)
    assert {path.name for path in model.iterdir()} == {"README.md", "model.safetensors"}


def test_an_adapter_of_another_target_is_not_exported(theirs, tmp_path, capsys):
    assert run("import", theirs, "--exit-layer", 1, "--out", tmp_path / "ours") == 0
    capsys.readouterr()
    other = str(TARGET.parent / "theta")
    assert adapter.main(["export", str(tmp_path / "ours"), "--target", other, "--out", str(tmp_path / "out")]) == 2
    assert "the adapter is for target" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_interruption_leaves_nothing(theirs, tmp_path, monkeypatch, capsys):
    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(adapter, "save_adapter", fail)
    assert run("import", theirs, "--exit-layer", 1, "--out", tmp_path / "ours") == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


def test_torchs_form_is_torchs(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", make_tensors(np.float32))
    write_torch(tmp_path / "a.bin", make_tensors(np.float32))
    file = TorchFile(tmp_path / "a.bin")
    same_tensors({name: file.get_tensor(name) for name in file.layouts}, load_file(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("kind", sorted(ADAPTER_KINDS.keys() - {"kangaroo"}))
def test_another_kind_than_the_authors_is_not_exported(tmp_path, kind, capsys):
    config, own = read_config(TARGET), AdapterConfig(kind)
    params = init_adapter(config, jax.random.key(3), own)
    save_adapter(tmp_path / "ours", config, KangarooConfig(2, adapter=own), params, {})
    line = failed(capsys, "export", tmp_path / "ours", "--out", tmp_path / "out")
    assert f"ours is of an adapter of kind '{kind}'; the authors' form holds 'kangaroo' alone" in line
    assert not (tmp_path / "out").exists()


def test_an_import_records_the_authors_base_and_there_and_back_it_stays(tmp_path):
    target = TARGET.parent / "theta"
    config = read_config(target)
    given, ours, again = tmp_path / "given", tmp_path / "ours", tmp_path / "again"
    tensors = {name: np.asarray(v) for name, v in from_flax(config, init_adapter(config, jax.random.key(3)), ADAPTER)}
    make_theirs(given, tensors, **json.loads((target / "config.json").read_text()) | {"num_hidden_layers": 1})
    argv = ("--target", str(target), "--out")
    assert adapter.main(["import", str(given), "--exit-layer", "2", *argv, str(ours)]) == 0
    assert json.loads((ours / "adapter_config.json").read_text())["rope_theta"] == 10000.0
    assert adapter.main(["export", str(ours), *argv, str(again)]) == 0
    drafts = [load_adapter(directory, config)[0] for directory in (ours, again)]
    assert drafts == [KangarooConfig(2, adapter=AdapterConfig(rope_theta=10000.0))] * 2
