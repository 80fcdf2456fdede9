"""torch's files: the tensors are those torch wrote, read without torch and one at a time; written ones read back."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kangaroo_jax.store.torch_file import TorchFile, write_torch

FIXTURE = Path(__file__).parent.parent / "fixtures" / "torch"


@pytest.fixture(scope="module")
def genuine():
    """A file that torch.save wrote."""
    return TorchFile(FIXTURE / "pytorch_model.bin")


def test_all_tensors_of_a_genuine_file_are_read_bit_by_bit(genuine):
    expected = np.load(FIXTURE / "tensors.npz")
    assert sorted(genuine.layouts) == sorted(expected)
    for name, bits in expected.items():
        values = genuine.get_tensor(name)
        layout = genuine.layouts[name]
        assert (values.dtype, values.shape) == (layout.dtype, layout.shape)
        if layout.dtype == ml_dtypes.bfloat16:
            values = values.view(np.int16)
        assert values.dtype == bits.dtype
        np.testing.assert_array_equal(values, bits)


def test_tied_tensors_share_a_storage_and_views_are_views(genuine):
    layouts = genuine.layouts
    assert len({layouts[name].storage for name in ("table", "tied", "transposed", "window")}) == 1
    assert genuine.get_tensor("transposed").flags.f_contiguous
    assert (layouts["window"].offset, layouts["window"].strides) == (11, (10, 1))


def test_a_tensor_is_a_read_only_view_of_the_file(genuine):
    values = genuine.get_tensor("table")
    assert not values.flags.owndata and not values.flags.writeable
    base = values
    while not isinstance(base, np.memmap):
        base = base.base
    assert Path(base.filename) == genuine.file


def test_a_file_that_becomes_shorter_while_it_is_read(tmp_path):
    file = Path(shutil.copy(FIXTURE / "pytorch_model.bin", tmp_path))
    opened = TorchFile(file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"pytorch_model\.bin changed while it was read"):
        opened.get_tensor("table")


def test_torch_is_not_imported(genuine):
    code = (
        "import sys; from kangaroo_jax.store.torch_file import TorchFile; from pathlib import Path\n"
        "print(len(TorchFile(Path(sys.argv[1])).layouts), 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(genuine.file)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.split() == [str(len(genuine.layouts)), "False"]


def test_a_pickle_of_a_newer_protocol(torch_parts, tmp_path):
    p = torch_parts
    short = b"\x8c\x01x\x94"  # "x", memorised
    function = b"\x8c\x0ctorch._utils\x8c\x12_rebuild_tensor_v2\x93"
    arguments = p.row(p.storage(6), p.number(0), p.numbers(2, 3), p.numbers(3, 1), b"\x89", p.hooks)
    file = p.write(tmp_path / "a.bin", b"\x80\x04}(" + short + function + arguments + b"Ru.")
    assert TorchFile(file).get_tensor("x").shape == (2, 3)


def test_the_metadata_of_a_state_dict_is_passed_over(torch_parts, tmp_path):
    p = torch_parts
    attributes = b"}" + p.text("_metadata") + p.hooks + b"s"
    file = p.write(
        tmp_path / "a.bin", b"\x80\x02" + p.hooks + p.text("a") + p.tensor(p.storage(6)) + b"s" + attributes + b"b."
    )
    assert [*TorchFile(file).layouts] == ["a"]


@given(data=st.data())
def test_any_view_within_a_storage_is_numpys(torch_parts, tmp_path_factory, data):
    p = torch_parts
    whole = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    view = data.draw(hnp.basic_indices(whole.shape, allow_ellipsis=False, allow_newaxis=True).map(lambda i: whole[i]))
    if not isinstance(view, np.ndarray) or any(stride < 0 for stride in view.strides):
        view = whole.transpose(data.draw(st.permutations(range(3))))
    offset = (view.__array_interface__["data"][0] - whole.__array_interface__["data"][0]) // 4
    strides = [stride // 4 for stride in view.strides]
    pickled = p.state(p.tensor(p.storage(60), offset, view.shape, strides))
    file = p.write(tmp_path_factory.mktemp("views") / "a.bin", pickled, [whole.tobytes()])
    np.testing.assert_array_equal(TorchFile(file).get_tensor("a"), view)


KINDS = st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16, np.float64, np.int64, np.uint8, np.bool_])


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=5),
        st.tuples(KINDS, hnp.array_shapes(min_dims=0, min_side=0)),
        max_size=4,
    )
)
def test_what_is_written_is_read_again(tmp_path_factory, kinds):
    rng = np.random.default_rng(0)
    tensors = {name: rng.integers(0, 2, shape).astype(kind) for name, (kind, shape) in kinds.items()}
    file = tmp_path_factory.mktemp("written") / "a.bin"
    write_torch(file, tensors)
    again = TorchFile(file)
    assert [*again.layouts] == [*tensors]
    for name, values in tensors.items():
        read = again.get_tensor(name)
        assert (read.dtype, read.shape) == (values.dtype, values.shape)
        np.testing.assert_array_equal(read, values)


def test_written_storages_are_aligned_and_the_file_is_always_the_same(tmp_path):
    tensors = {"a": np.ones(3, np.float16), "b": np.ones((2, 2)).T}
    for name in ("one", "two"):
        write_torch(tmp_path / name, tensors)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    file = TorchFile(tmp_path / "one")
    assert all(file.get_tensor(name).ctypes.data % 64 == 0 for name in tensors)


def test_a_dtype_torch_has_no_storage_for_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"^a is float8_e4m3fn; torch has no storage for it, cast it first$"):
        write_torch(tmp_path / "a.bin", {"a": np.zeros(2, ml_dtypes.float8_e4m3fn)})
    assert not (tmp_path / "a.bin").exists()
