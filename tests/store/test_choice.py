"""A choice of gamma, eta and method in an adapter's directory: all else stays as it is, whatever happens meanwhile."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from kangaroo_jax.model import AdapterConfig, KangarooConfig, LlamaConfig, init_adapter
from kangaroo_jax.store import check_writable, config_to_hf, from_flax, load_adapter, save_adapter, save_choice
from kangaroo_jax.store.adapter_record import adapter_record
from kangaroo_jax.store.adapters import read_adapter
from kangaroo_jax.store.hf import write_safetensors
from kangaroo_jax.store.names import embedded
from kangaroo_jax.store.tables import ADAPTER

CONFIG = LlamaConfig(31, 22, 29, 3, 6, 3, 4)
CHOICE = KangarooConfig(2, 3, 0.15, method="plain")
NOTE = {"measured_speedup": 0.9}


def ours(directory: Path) -> Path:
    params = jax.device_get(init_adapter(CONFIG, jax.random.key(1)))
    save_adapter(directory, CONFIG, KangarooConfig(2, 5, 0.4), params, {"steps": 7, "loss": 1.1798443794250488})
    record = json.loads((directory / "adapter_config.json").read_text())
    # What a later version, or somebody by hand, may have added.
    (directory / "adapter_config.json").write_text(json.dumps(record | {"more": "ü", "eta": 0.4}, indent=2) + "\n")
    return directory


def theirs(directory: Path, **fields: object) -> Path:
    directory.mkdir()
    params = jax.device_get(init_adapter(CONFIG, jax.random.key(1)))
    write_safetensors(directory / "model.safetensors", dict(from_flax(CONFIG, params, ADAPTER)))
    one = config_to_hf(dataclasses.replace(CONFIG, num_hidden_layers=1))
    (directory / "config.json").write_text(json.dumps(one | fields))
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_a_record_of_ours_keeps_all_but_the_choice(tmp_path: Path) -> None:
    directory = ours(tmp_path / "a")
    before, record = contents(directory), json.loads((directory / "adapter_config.json").read_text())
    assert save_choice(directory, CONFIG, CHOICE, NOTE) == directory
    after, written = contents(directory), json.loads((directory / "adapter_config.json").read_text())
    assert set(after) == set(before) and after["adapter.safetensors"] == before["adapter.safetensors"]
    assert written == record | {"gamma": 3, "eta": 0.15, "method": "plain", "tuning": NOTE}
    assert list(written)[: len(record)] == list(record)
    assert load_adapter(directory, CONFIG)[0] == CHOICE
    # Again, and back: an earlier note is replaced.
    save_choice(directory, CONFIG, KangarooConfig(2, 6, 0.2), {})
    assert load_adapter(directory, CONFIG)[0] == KangarooConfig(2, 6, 0.2)
    assert json.loads((directory / "adapter_config.json").read_text())["tuning"] == {}


def test_a_record_in_an_exported_adapter_is_rewritten_there(tmp_path: Path) -> None:
    directory = theirs(tmp_path / "a", kangaroo=adapter_record(CONFIG, KangarooConfig(2, 5, 0.4), {"steps": 7}))
    before = json.loads((directory / "config.json").read_text())
    save_choice(directory, CONFIG, CHOICE, NOTE)
    after = json.loads((directory / "config.json").read_text())
    assert after["kangaroo"] == before["kangaroo"] | {"gamma": 3, "eta": 0.15, "method": "plain", "tuning": NOTE}
    assert {**after, "kangaroo": 0} == {**before, "kangaroo": 0}
    assert load_adapter(directory, CONFIG)[0] == CHOICE


def test_the_authors_own_form_is_copied_and_not_written(tmp_path: Path) -> None:
    # Their rotary base is not this target's: the adapter's kind says so.
    config = dataclasses.replace(CONFIG, rope_theta=10000.0)
    directory = theirs(tmp_path / "a")
    before = contents(directory)
    with pytest.raises(ValueError, match="is in the authors' form, which has no place for gamma and eta: give a dir"):
        save_choice(directory, config, CHOICE, NOTE)
    save_choice(directory, config, CHOICE, NOTE, out=tmp_path / "b")
    assert contents(directory) == before
    draft, params = load_adapter(tmp_path / "b", config)
    assert draft == CHOICE
    jax.tree.map(np.testing.assert_array_equal, params, load_adapter(directory, config, exit_layer=2)[1])
    assert read_adapter(tmp_path / "b", config).training == {"imported_from": "a"}


def test_a_copy_has_the_choice_and_the_original_has_not(tmp_path: Path) -> None:
    directory = ours(tmp_path / "a")
    before = contents(directory)
    save_choice(directory, CONFIG, CHOICE, NOTE, out=tmp_path / "deep" / "b")
    assert contents(directory) == before
    assert contents(tmp_path / "deep" / "b")["adapter.safetensors"] == before["adapter.safetensors"]
    assert load_adapter(tmp_path / "deep" / "b", CONFIG)[0] == CHOICE
    with pytest.raises(ValueError, match="exists"):
        save_choice(directory, CONFIG, CHOICE, NOTE, out=tmp_path / "deep" / "b")


def test_the_embedded_adapter_is_not_written_to() -> None:
    with pytest.raises(ValueError, match="part of the installed package"):
        check_writable(embedded("joey") / "adapter")


def test_what_is_not_for_this_adapter_is_refused(tmp_path: Path) -> None:
    directory = ours(tmp_path / "a")
    before = contents(directory)
    wrong = [
        (dataclasses.replace(CHOICE, exit_layer=1), "was trained for exit_layer 2, and exit_layer 1 is asked for"),
        (dataclasses.replace(CHOICE, gamma=0), "gamma is 0"),
        (dataclasses.replace(CHOICE, method="magic"), "method is 'magic'; it must be one of kangaroo, plain"),
        (dataclasses.replace(CHOICE, adapter=AdapterConfig("linear")), "an adapter of another kind"),
    ]
    for draft, message in wrong:
        with pytest.raises(ValueError, match=message):
            save_choice(directory, CONFIG, draft, NOTE)
    with pytest.raises(ValueError, match="neither adapter_config"):
        save_choice(tmp_path, CONFIG, CHOICE, NOTE)
    with pytest.raises(ValueError, match="not a finite number"):
        save_choice(directory, CONFIG, CHOICE, {"speedup": float("nan")})
    assert contents(directory) == before


@pytest.mark.parametrize("out", [None, "b"])
def test_ctrl_c_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str | None) -> None:
    directory = ours(tmp_path / "a")
    before = contents(directory)

    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", pressed)  # The last step of a write.
        save_choice(directory, CONFIG, CHOICE, NOTE, None if out is None else tmp_path / out)
    assert contents(directory) == before
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("method", ["magic", 3, None])
def test_a_damaged_method_is_refused(tmp_path: Path, method: object) -> None:
    directory = ours(tmp_path / "a")
    file = directory / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"method": method}))
    with pytest.raises(ValueError, match="method"):
        load_adapter(directory, CONFIG)
