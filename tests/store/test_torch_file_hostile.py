"""torch files made to do harm or damaged, the pickle in them: refused in one line, and nothing in them has run."""

from __future__ import annotations

import pickle
import time

import pytest

from kangaroo_jax.store.torch_file import MAX_PICKLE, TorchFile

ATTACKS = (
    "os.system",
    "posix.system",
    "builtins.exec",
    "builtins.eval",
    "builtins.getattr",
    "subprocess.call",
    "os.mkdir",
)
BIG = 1 << 61


@pytest.fixture
def p(torch_parts):
    return torch_parts


def refused(file, match):
    """Opening fails with one short line, which begins with the file's name."""
    with pytest.raises(ValueError, match=match) as caught:
        TorchFile(file)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(str(file)) and len(message) < len(str(file)) + 300


def attack(p, what, canary):
    """Return opcodes that name ``what`` first, and make the file ``canary`` where they are run."""

    def call(module, function, *arguments):
        return p.name(module, function) + p.row(*arguments) + b"R"

    touch, code = p.text(f"touch '{canary}'"), p.text(f"open({str(canary)!r}, 'w').close()")
    module, function = what.split(".")
    named = p.name(module, function)
    return {
        "os.system": named + p.row(touch) + b"R",
        "posix.system": b"(" + touch + f"i{module}\n{function}\n".encode(),  # INST
        "builtins.exec": named + p.row(code) + b"R",
        "builtins.eval": b"(" + named + code + b"o",  # OBJ
        "builtins.getattr": named
        + p.row(call("builtins", "__import__", p.text("os")), p.text("system"))
        + b"R"
        + p.row(touch)
        + b"R",
        "subprocess.call": named + p.row(b"]" + p.text("touch") + b"a" + p.text(str(canary)) + b"a") + b"R",
        "os.mkdir": p.text(module) + p.text(function) + b"\x93" + p.row(p.text(str(canary))) + b"R",  # STACK_GLOBAL
    }[what]


@pytest.mark.parametrize("place", ["value", "key", "inside a tensor", "inside a list", "after a tensor"])
@pytest.mark.parametrize("what", ATTACKS)
def test_code_is_refused_by_name_and_does_not_run(p, tmp_path, what, place):
    canary = tmp_path / "canary"
    code = attack(p, what, canary)
    pickled = {
        "value": p.state(code),
        "key": b"\x80\x02}" + code + p.tensor(p.storage(6)) + b"s.",
        "inside a tensor": p.state(p.tensor(code)),
        "inside a list": p.state(b"](" + code + b"e"),
        "after a tensor": p.state(p.tensor(p.storage(6)), code),
    }[place]
    match = "has a pickle with the opcode INST" if what == "posix.system" else f"names '{what}', which is no part"
    refused(p.write(tmp_path / "a.bin", pickled), match)
    assert not canary.exists()


@pytest.mark.parametrize("what", ATTACKS)
def test_the_canary_would_have_told(p, tmp_path, what):
    canary = tmp_path / "canary"
    pickle.loads(b"\x80\x02" + attack(p, what, canary) + b".")
    assert canary.exists()


def bad_pickles(p):
    """Return name -> a pickle and what the message says."""
    good, hooks = p.tensor(p.storage(6)), p.hooks
    rebuild = p.name("torch._utils", "_rebuild_tensor_v2")
    place = (p.number(0), p.numbers(6), p.numbers(1), b"\x89")
    odd = p.storage(6)[:-1]
    stored = p.name("torch", "FloatStorage")
    return {
        "an attribute of something known": (
            p.state(p.name("collections", "OrderedDict.fromkeys")),
            "names 'collections.OrderedDict.fromkeys'",
        ),
        "a name that is a trick": (
            p.state(p.name("torch._utils _rebuild_tensor_v2", "")),
            "names 'torch._utils._rebuild_tensor_v2 '",
        ),
        "a very long name": (p.state(p.name("x" * 9999, "y")), r"names 'x+\.\.\.', which"),
        "a name with an escape": (p.state(p.name("x\x1b[2J", "\r")), r"names 'x\\x1b\[2J.\\r'"),
        "a name of a number": (p.state(p.number(1) + p.text("system") + b"\x93"), "a name that is not text"),
        "a name of a tuple": (p.state(p.text("os") + b")" + b"\x93"), "a name that is not text"),
        "a storage that is called": (p.state(stored + b")R"), "calls torch.FloatStorage with other arguments"),
        "a number that is called": (p.state(p.number(1) + b")R"), "calls something that is not a name"),
        "a call with a list": (p.state(rebuild + b"]R"), "calls something that is not a name"),
        "a dict with contents at once": (
            p.state(p.name("collections", "OrderedDict") + p.row(b"]") + b"R"),
            "calls collections.OrderedDict with other",
        ),
        "a tensor of a number": (p.state(p.tensor(p.number(3))), "calls torch._utils._rebuild_tensor_v2 with other"),
        "a tensor of a tensor": (p.state(p.tensor(good)), "calls torch._utils._rebuild_tensor_v2 with other"),
        "hooks": (
            p.state(rebuild + p.row(p.storage(6), *place, hooks + p.text("x") + p.text("y") + b"s") + b"R"),
            "with other arguments",
        ),
        "a conjugated tensor": (
            p.state(p.tensor(p.storage(6), more=b"}" + p.text("conj") + b"\x88s")),
            "with other arguments",
        ),
        "a negative offset": (p.state(p.tensor(p.storage(6), -1)), "offset, extent or stride that is -1"),
        "a negative extent": (p.state(p.tensor(p.storage(6), 0, (-6,))), "offset, extent or stride that is -6"),
        "a negative stride": (p.state(p.tensor(p.storage(6), 5, (6,), (-1,))), "offset, extent or stride that is -1"),
        "an extent that is a bool": (
            p.state(rebuild + p.row(p.storage(6), p.number(0), p.row(b"\x88"), p.numbers(1), b"\x89", hooks) + b"R"),
            "stride that is out of range",
        ),
        "extents without strides": (
            p.state(p.tensor(p.storage(6), 0, (2, 3), (1,))),
            "shape and strides are not",
        ),
        "too many extents": (p.state(p.tensor(p.storage(6), 0, (1,) * 65, (1,) * 65)), "shape and strides are not"),
        "an offset past the end": (p.state(p.tensor(p.storage(6), 1)), "in a storage of only 6 elements"),
        "a stride past the end": (p.state(p.tensor(p.storage(6), 0, (2,), (6,))), "in a storage of only 6 elements"),
        "a huge shape": (p.state(p.tensor(p.storage(6), 0, (BIG, BIG), (0, 0))), "in a storage of only 6 elements"),
        "a huge shape, empty": (p.state(p.tensor(p.storage(6), 0, (0, BIG, BIG), (0, 0, 0))), "impossible shape"),
        "an extent beyond 64 bits": (
            p.state(p.tensor(p.storage(6), 0, (1 << 2000,), (0,))),
            "stride that is out of range",
        ),
        "a storage larger than its entry": (
            p.state(p.tensor(p.storage(7), 0, (7,))),
            "24 bytes in storage '0' instead of 28",
        ),
        "a storage smaller than its entry": (
            p.state(p.tensor(p.storage(5), 0, (5,))),
            "24 bytes in storage '0' instead of 20",
        ),
        "a storage of impossible size": (p.state(p.tensor(p.storage(1 << 2000))), "instead of an impossible number"),
        "a storage of negative size": (p.state(p.tensor(p.storage(-6))), "instead of an impossible number"),
        "a storage that is not there": (p.state(p.tensor(p.storage(6, "1"))), "lacks the storage '1'"),
        "a storage outside of its folder": (
            p.state(p.tensor(p.storage(6, "../data.pkl"))),
            "lacks the storage '../data.pkl'",
        ),
        "a storage with an absolute name": (
            p.state(p.tensor(p.storage(6, "/etc/passwd"))),
            "lacks the storage '/etc/passwd'",
        ),
        "bytes as a typed tensor": (
            p.state(p.tensor(p.storage(24, kind="UntypedStorage", module="torch.storage"))),
            "with other arguments",
        ),
        "a quantised storage": (p.state(p.tensor(p.storage(24, kind="QInt8Storage"))), "names 'torch.QInt8Storage'"),
        "a reference that is text": (p.state(p.text("0") + b"Q"), "something else than a storage"),
        "a reference that is short": (p.state(p.row(p.text("storage")) + b"Q"), "something else than a storage"),
        "a reference to a module": (
            p.state(odd.replace(b"storage", b"modules") + b"Q"),
            "something else than a storage",
        ),
        "a reference of another type": (p.state(odd.replace(stored, hooks) + b"Q"), "something else than a storage"),
        "a reference in text": (p.state(b"P0\n"), "opcode PERSID"),
        "a key that is a name": (b"\x80\x02}" + p.name("torch", "float32") + good + b"s.", "a key that is a Name"),
        "a key that is a tuple": (b"\x80\x02}" + p.row(p.text("a")) + good + b"s.", "a key that is a tuple"),
        "two values for a key": (b"\x80\x02}" + (p.text("a") + good + b"s") * 2 + b".", "two values for 'a'"),
        "attributes of a tensor": (p.state(good + b"}b"), "sets attributes"),
        "attributes of a dict": (p.state(hooks + b"}" + p.text("__class__") + p.number(1) + b"sb"), "sets attributes"),
        "items of a tensor": (p.state(good + p.text("a") + p.text("b") + b"s"), "sets items of a Layout"),
        "an append to a tensor": (p.state(good + p.text("a") + b"a"), "appends to a Layout"),
        "an instance": (p.state(p.name("collections", "OrderedDict") + b")\x81"), "opcode NEWOBJ"),
        "an extension": (p.state(b"\x82\x01"), "opcode EXT1"),
        "bytes": (p.state(b"C\x01x"), "opcode SHORT_BINBYTES"),
        "a number instead of a tensor": (p.state(p.number(3)), "'a' is a value of type int; only named tensors"),
        "a tensor alone": (b"\x80\x02" + good + b".", "holds a Layout, not a state dict"),
        "a dict that is cut off": (b"\x80\x02}(" + p.text("a"), "damaged pickle"),
        "text that is longer than the file": (b"\x80\x02X\xff\xff\xff\xffab", "damaged pickle"),
        "text that is no text": (p.state(p.text(b"\xff")), "damaged pickle"),
        "a key without a value": (b"\x80\x02}(" + p.text("a") + b"u.", "damaged pickle"),
        "an empty stack": (b"\x80\x020.", "opcode POP,"),
        "nothing to return": (b"\x80\x02.", "damaged pickle"),
        "more marks than ends": (b"\x80\x02(}.", "damaged pickle"),
        "more ends than marks": (b"\x80\x02tt.", "damaged pickle"),
        "what lies below a mark": (b"\x80\x02}(\x85.", "damaged pickle"),
        "a memo that is not set": (b"\x80\x02h\x07.", "damaged pickle"),
        "no pickle": (b"", "damaged pickle"),
        "an unknown opcode": (b"\x80\x02\xff.", "damaged pickle"),
    }


def test_bad_pickles_are_refused(p, tmp_path):
    for number, (what, (pickled, match)) in enumerate(bad_pickles(p).items()):
        print(what)  # Shown when it fails.
        refused(p.write(tmp_path / f"{number}.bin", pickled), match)


def test_a_large_pickle_is_not_read(p, tmp_path):
    refused(p.write(tmp_path / "a.bin", bytes(MAX_PICKLE + 1)), f"data.pkl of {MAX_PICKLE + 1} bytes; at most")


@pytest.mark.parametrize("bomb", ["memo", "nesting", "doubling", "containers"])
def test_bombs_cost_no_more_than_their_length(p, tmp_path, bomb):
    pickled = {
        "memo": b"\x80\x02}r\xff\xff\xff\x7f.",  # Python's unpickler allocates a memo of 16 GiB here.
        "nesting": b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
        "doubling": b"\x80\x02)q\x00"
        + b"h\x00h\x00\x86q\x00" * 10_000
        + b"}h\x00K\x01s.",  # Would take forever to hash.
        "containers": b"\x80\x02(" + b"}" * 50_000 + b"t.",
    }[bomb]
    began = time.process_time()
    if bomb == "memo":
        assert TorchFile(p.write(tmp_path / "a.bin", pickled)).layouts == {}
    else:
        refused(p.write(tmp_path / "a.bin", pickled), "holds a|with a key that is")
    assert time.process_time() - began < 5
