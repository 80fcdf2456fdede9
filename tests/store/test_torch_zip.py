"""torch's archives: compressed, encrypted, cut, ambiguous or with names that climb; each refused in one line."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kangaroo_jax.store.torch_file import TorchFile
from kangaroo_jax.store.torch_zip import MAX_DIRECTORY, read_directory

FIXTURE = Path(__file__).parent.parent / "fixtures" / "torch" / "pytorch_model.bin"
GENUINE = FIXTURE.read_bytes()
DAMAGED = r"damaged|differ|is not where|runs into|ends before|ends too early|without its end|zip64|the name"


@pytest.fixture
def good(torch_parts, tmp_path):
    """An archive of one tensor, to damage; Python's zip module writes no zip64 records into it."""
    p = torch_parts
    return p.write(tmp_path / "a.bin", p.state(p.tensor(p.storage(6))))


def refused(file, match):
    """Opening fails with one line, which begins with the file's name."""
    with pytest.raises(ValueError, match=match) as caught:
        TorchFile(file)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(file))


def patch(file, at, data):
    """Overwrite bytes; negative offsets count from the end."""
    old = bytearray(file.read_bytes())
    at %= len(old)
    old[at : at + len(data)] = data
    file.write_bytes(old)


def central(file, number=0):
    """Offset of an entry in the directory."""
    data, at = file.read_bytes(), -1
    for _ in range(number + 1):
        at = data.index(b"PK\x01\x02", at + 1)
    return at


def test_the_entries_are_those_of_pythons_zip_module(tmp_path):
    file = tmp_path / "a.bin"
    file.write_bytes(GENUINE)
    entries = read_directory(file)
    with zipfile.ZipFile(file) as archive:
        assert [f"pytorch_model/{name}" for name in entries] == archive.namelist()
        for name, entry in entries.items():
            assert GENUINE[entry.start : entry.start + entry.size] == archive.read(f"pytorch_model/{name}")


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../evil",
        "archive/../../evil",
        "archive/./x",
        "archive//x",
        "archive\\x",
        "C:/x",
        "x",
        "archive/d/",
    ],
)
def test_names_that_are_no_plain_paths(good, tmp_path, name):
    with zipfile.ZipFile(good, "a") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"")
    refused(good, "has an entry with the name .*, which torch.save does not write")
    assert [*tmp_path.iterdir()] == [good]


def test_a_name_that_is_no_text(good):
    data = good.read_bytes()
    good.write_bytes(data.replace(b"archive/version", b"archive/\xff\xff\xff\xff\xff\xff\xff"))
    refused(good, "name is not text")


def test_a_name_with_a_line_break_is_shown_on_one_line(good):
    good.write_bytes(good.read_bytes().replace(b"archive/version", b"archive/\\er\nion"))
    refused(good, r"the name 'archive/\\\\er\\nion'")


def test_two_entries_of_one_name(good):
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(good, "a") as archive:
        archive.writestr("archive/data.pkl", b"")
    refused(good, "has two entries with the name 'archive/data.pkl'")


def test_two_folders(good):
    with zipfile.ZipFile(good, "a") as archive:
        archive.writestr("other/data.pkl", b"")
    refused(good, "has several top-level folders, 'archive', 'other'")


def test_an_archive_without_a_pickle(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.bin", "w") as archive:
        archive.writestr("archive/readme", b"")
    refused(tmp_path / "a.bin", r"has no data\.pkl")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_compressed_entries(good, method):
    with zipfile.ZipFile(good, "a", method) as archive:
        archive.writestr("archive/data/1", bytes(1000))
    refused(good, "has a compressed entry")


@pytest.mark.parametrize("flag", [0x1, 0x40, 0x2000])
def test_encrypted_entries(good, flag):
    patch(good, central(good) + 8, struct.pack("<H", flag))
    refused(good, "has an encrypted entry")


def test_big_endian_tensors(torch_parts, tmp_path):
    p = torch_parts
    file = p.write(tmp_path / "a.bin", p.state(p.tensor(p.storage(6))), byteorder=b"big")
    refused(file, "has the byte order 'big'; only 'little' is read")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (
            b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",
            "torch's legacy format, not zip; torch.load and",
        ),
        (bytes(257) + b"ustar\x0000" + bytes(500), "torch's legacy format, not zip"),
        (b"", "is not a file of torch.save"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is not a file of torch.save; download it again"),
        (b"PK\x03\x04", "zip archive without its end"),
        (b"PK\x03\x04" + bytes(100), "zip archive without its end"),
        (b"PK\x05\x06" + bytes(18), "is not a file of torch.save"),
        (b"#!/bin/sh\n" + GENUINE, "is not a file of torch.save"),
        (GENUINE + b"\n", "zip archive without its end, or with more behind it"),
        (GENUINE[:1000], "zip archive without its end"),
        (GENUINE[:1000] + GENUINE[1001:], DAMAGED),
        (GENUINE[:4] + b"x" + GENUINE[4:], DAMAGED),
    ],
)
def test_other_files(tmp_path, content, match):
    (tmp_path / "a.bin").write_bytes(content)
    refused(tmp_path / "a.bin", match)


def test_no_file_at_all(tmp_path):
    refused(tmp_path, r"cannot be read \(.*directory")
    refused(tmp_path / "a.bin", r"cannot be read \(.*No such file")


def test_a_comment(good):
    with zipfile.ZipFile(good, "a") as archive:
        archive.comment = b"PK"
    refused(good, "or with more behind it")


@pytest.mark.parametrize(
    ("at", "data", "match"),
    [
        (20, struct.pack("<2I", 1 << 30, 1 << 30), "ends before its entry 'archive/data.pkl' of 1073741824 bytes"),
        (20, struct.pack("<2I", 300, 300), "'archive/data.pkl' of 300 bytes that runs into the next one"),
        (20, struct.pack("<2I", 24, 25), "has a compressed entry"),
        (20, b"\xff" * 8, "zip64 sizes are missing"),
        (28, b"\xff\xff", "has a damaged directory"),
        (30, b"\xff\xff", "has a damaged directory"),
        (34, b"\x01", "of several parts"),
        (42, struct.pack("<I", 1 << 31), "ends before its entry"),
        (42, struct.pack("<I", 7), "differs from the archive's directory"),
        (46, b"A", "differs from the archive's directory"),
        (0, b"PK\x01\x03", "has a damaged directory"),
    ],
)
def test_a_directory_that_lies(good, at, data, match):
    patch(good, central(good) + at, data)
    refused(good, match)


@pytest.mark.parametrize(
    ("at", "data", "match"),
    [
        (-22 + 4, b"\x01", "of several parts"),
        (-22 + 8, struct.pack("<2H", 3, 3), "has zip and zip64 records that differ"),
        (-22 + 12, struct.pack("<I", 1), "has zip and zip64 records that differ"),
        (-22 + 16, struct.pack("<I", 1), "has zip and zip64 records that differ"),
        (-42 + 8, struct.pack("<Q", 1 << 62), "has a damaged zip64 record"),
        (-42 + 16, b"\x02", "has a damaged zip64 record"),
        (-98, b"PK\x06\x08", "has a damaged zip64 record"),
        (-98 + 4, b"\xff", "has zip and zip64 records that differ"),
        (-98 + 40, struct.pack("<Q", 1 << 62), "has zip and zip64 records that differ"),
    ],
)
def test_zip64_records_that_lie(tmp_path, at, data, match):
    file = tmp_path / "a.bin"
    file.write_bytes(GENUINE)
    patch(file, at, data)
    refused(file, match)


def test_zip64_records_alone_may_be_used(tmp_path):
    file = tmp_path / "a.bin"
    file.write_bytes(GENUINE)
    patch(file, -22 + 8, b"\xff" * 12)
    assert TorchFile(file).layouts.keys() == TorchFile(FIXTURE).layouts.keys()


def sparse(file, entries, hole):
    """Write an archive with all sizes and offsets in zip64 fields, and a hole at the end of its second entry."""
    directory = b""
    with file.open("wb") as archive:
        for number, (name, data) in enumerate(entries.items()):
            header, size = archive.tell(), len(data) + hole * (number == 1)
            archive.write(b"PK\x03\x04" + bytes(22) + struct.pack("<2H", len(name), 0) + name + data)
            archive.seek(size - len(data), 1)
            directory += b"PK\x01\x02" + bytes(16) + b"\xff" * 8 + struct.pack("<2H", len(name), 28) + bytes(10)
            directory += b"\xff" * 4 + name + struct.pack("<2H3Q", 1, 24, size, size, header)
        start = archive.tell()
        wide = struct.pack("<Q2H2I4Q", 44, 45, 45, 0, 0, len(entries), len(entries), len(directory), start)
        archive.write(directory + b"PK\x06\x06" + wide)
        archive.write(b"PK\x06\x07" + struct.pack("<IQI", 0, start + len(directory), 1))
        archive.write(b"PK\x05\x06" + bytes(4) + b"\xff" * 12 + bytes(2))


def test_sizes_and_offsets_of_more_than_32_bits(torch_parts, tmp_path):
    p, size = torch_parts, 5 << 30
    behind = p.tensor(p.storage(2, "1", "ByteStorage"), 0, (2,))
    pickled = p.state(p.tensor(p.storage(size, kind="ByteStorage"), size - 3, (3,)), behind)
    entries = {b"archive/data.pkl": pickled, b"archive/data/0": b"", b"archive/data/1": b"ab"}
    sparse(tmp_path / "a.bin", entries, size)
    file = TorchFile(tmp_path / "a.bin")
    assert file.get_tensor("a").tolist() == [0, 0, 0]
    assert file.get_tensor("b").tolist() == [*b"ab"]
    (tmp_path / "a.bin").unlink()


def test_a_large_directory_is_not_read(good):
    with zipfile.ZipFile(good, "a") as archive:
        for number in range(20):
            entry = zipfile.ZipInfo(f"archive/{number}")
            entry.extra = b"FB" + struct.pack("<H", 65_000) + bytes(65_000)
            archive.writestr(entry, b"")
    refused(good, f"has a directory of [0-9]+ bytes; at most {MAX_DIRECTORY}")


@given(st.integers(0, len(GENUINE) - 1), st.binary(min_size=1, max_size=8))
def test_any_damage_is_refused_or_harmless(tmp_path_factory, at, data):
    file = tmp_path_factory.mktemp("damaged") / "a.bin"
    file.write_bytes(GENUINE)
    patch(file, at, data[: len(GENUINE) - at])
    try:
        opened = TorchFile(file)
    except ValueError as error:
        assert "\n" not in str(error) and str(error).startswith(str(file))
    else:
        for name, layout in opened.layouts.items():
            assert opened.get_tensor(name).shape == layout.shape
