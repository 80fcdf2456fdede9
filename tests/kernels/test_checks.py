"""The boundary to native code: arguments that do not fit are an exception that says which, and never a crash."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kangaroo_jax.kernels.library import ready

BATCH, TOKENS, WIDTH, HEADS, KV_HEADS, HEAD, INNER, SLOTS = 2, 3, 23, 4, 2, 6, 29, 11
F32, BF16, S32 = "float32", "bfloat16", "int32"


def stride(width: int) -> int:
    return -(-width // 16) * 16 + 16


@dataclasses.dataclass
class Call:
    """A call that is right, to be made wrong: arguments by name, results and attributes."""

    target: str
    arguments: dict[str, tuple[tuple[int, ...], str]]
    results: list[tuple[tuple[int, ...], str]]
    attributes: dict[str, Any]
    aliases: dict[str, int] = dataclasses.field(default_factory=dict)

    def run(self) -> Any:
        """Call the native function with ones."""
        ready()
        names = list(self.arguments)
        call = jax.ffi.ffi_call(
            self.target,
            [jax.ShapeDtypeStruct(*result) for result in self.results],
            input_output_aliases={names.index(name): result for name, result in self.aliases.items()},
        )
        return jax.block_until_ready(
            call(*(jnp.ones(*argument) for argument in self.arguments.values()), **self.attributes)
        )


def product_call(scaled: bool = False) -> Call:
    arguments = {"x": ((BATCH, TOKENS, WIDTH), F32), "count": ((BATCH,), S32), "matrix": ((2, WIDTH, 32), F32)}
    if scaled:
        arguments["scale"] = ((WIDTH,), F32)
    results = [((BATCH, TOKENS, 61), F32), ((BATCH * TOKENS * stride(WIDTH),), F32)]
    return Call("kangaroo_product", arguments, results, {"eps": np.float32(0.1)})


def layers_call() -> Call:
    """All parts that a layer can have, once."""
    qkv = (HEADS + 2 * KV_HEADS) * HEAD
    cache = ((BATCH * KV_HEADS, SLOTS, HEAD), F32)
    arguments = {
        "x": ((BATCH, TOKENS, WIDTH), F32),
        "cos": ((BATCH, TOKENS, HEAD // 2), F32),
        "sin": ((BATCH, TOKENS, HEAD // 2), F32),
        "mask": ((BATCH, TOKENS, SLOTS), "bool"),
        "start": ((BATCH,), S32),
        "count": ((BATCH,), S32),
        "twins": ((BATCH, TOKENS), S32),
        "input norm": ((WIDTH,), F32),
        "qkv": ((-(-qkv // 32), WIDTH, 32), F32),
        "bias": ((qkv,), F32),
        "q norm": ((HEAD,), F32),
        "k norm": ((HEAD,), F32),
        "o": ((1, HEADS * HEAD, 32), F32),
        "post norm": ((WIDTH,), F32),
        "gate and up": ((2, WIDTH, 32), F32),
        "down": ((1, INNER, 32), F32),
        "k": cache,
        "v": cache,
        "last norm": ((WIDTH,), F32),
    }
    numbers = {"layers": 1, "heads": HEADS, "kv_heads": KV_HEADS, "head_width": HEAD, "inner": INNER}
    flags = dict.fromkeys(("input_norm", "qkv_bias", "qk_norm", "last_norm", "has_twins"), True)
    workspace = BATCH * TOKENS * sum(map(stride, (WIDTH, WIDTH, qkv, HEADS * HEAD, INNER)))
    return Call(
        "kangaroo_layers",
        arguments,
        [((BATCH, TOKENS, WIDTH), F32), ((workspace,), F32), cache, cache],
        {name: np.int64(number) for name, number in numbers.items()} | flags | {"eps": np.float32(0.1)},
        {"k": 2, "v": 3},
    )


def search_call() -> Call:
    names = ("highest", "factor", "top_k", "top_p", "kth", "last")
    arguments = {"logits": ((BATCH, WIDTH), F32)} | dict.fromkeys(names, ((BATCH,), F32))
    arguments |= dict.fromkeys(("counted", "sought"), ((BATCH,), "bool"))
    return Call("kangaroo_search", arguments, [((BATCH,), F32), ((BATCH, WIDTH + 32), F32)], {})


def highest_call(more: int = 0) -> Call:
    arguments = {"x": ((BATCH, TOKENS, WIDTH), F32), "count": ((BATCH,), S32)}
    results = [((BATCH, TOKENS), S32), ((BATCH, TOKENS), F32), ((BATCH, TOKENS, 2), S32)][: 1 + more]
    return Call("kangaroo_highest", arguments, results, {})


def move_call() -> Call:
    cache = ((KV_HEADS * BATCH, SLOTS, HEAD), F32)
    arguments = {"start": ((BATCH,), S32), "path": ((BATCH, 3), S32), "k": cache, "v": cache}
    return Call("kangaroo_move", arguments, [cache, cache], {}, {"k": 0, "v": 1})


def refused(call: Call, words: str) -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"kernels: {words}"):
        call.run()


@pytest.mark.parametrize(
    "make",
    [
        product_call,
        lambda: product_call(True),
        layers_call,
        search_call,
        highest_call,
        lambda: highest_call(2),
        move_call,
    ],
)
def test_a_right_call_goes_through(make: Callable[[], Call]) -> None:
    assert all(np.isfinite(found).all() for found in make().run()[::2])


def changed(call: Call, name: str, shape: tuple[int, ...], dtype: str) -> Call:
    """Return a call with another argument; a result that shares its memory goes along."""
    call.arguments[name] = (shape, dtype)
    if name in call.aliases:
        call.results[call.aliases[name]] = (shape, dtype)
    return call


@pytest.mark.parametrize("make", [lambda: product_call(True), layers_call, search_call, highest_call])
def test_every_wrong_shape_is_noticed(make: Callable[[], Call]) -> None:
    """One more along any axis, and an axis less: of each argument."""
    for name, (shape, dtype) in make().arguments.items():
        larger = [tuple(size + (axis == at) for axis, size in enumerate(shape)) for at in range(len(shape))]
        if make is highest_call and name == "x":
            larger.pop()  # Any number of columns has a highest.
        for wrong in (*larger, shape[1:]):
            refused(changed(make(), name, wrong, dtype), ".*(has shape|columns, and the matrix)")


def test_a_move_is_checked() -> None:
    refused(changed(move_call(), "start", (BATCH, 1), S32), "start has shape")
    refused(changed(move_call(), "path", (BATCH + 1, 3), S32), "path has shape")
    refused(changed(move_call(), "path", (BATCH, 3), F32), "path has another dtype")
    refused(changed(move_call(), "k", (KV_HEADS * BATCH + 1, SLOTS, HEAD), F32), "a cache has shape")


@pytest.mark.parametrize("make", [lambda: product_call(True), layers_call, search_call, highest_call])
def test_every_wrong_dtype_is_noticed(make: Callable[[], Call]) -> None:
    for name, (shape, dtype) in make().arguments.items():
        for other in {F32, S32, "float16"} - {dtype}:
            refused(changed(make(), name, shape, other), ".*has another dtype")


def test_x_may_be_bf16_if_the_result_is() -> None:
    x = ((BATCH, TOKENS, WIDTH), BF16)
    assert changed(product_call(), "x", *x).run()[0].dtype == F32
    call = changed(layers_call(), "x", *x)
    refused(call, "the result has another dtype")
    call.results[0] = x
    assert call.run()[0].dtype == BF16


@pytest.mark.parametrize("make", [product_call, layers_call])
def test_every_wrong_result_is_noticed(make: Callable[[], Call]) -> None:
    for index, (shape, dtype) in enumerate(make().results[:2]):
        for wrong in ((*shape[:-1], shape[-1] + 32), (*shape, 1), (0, *shape[1:])):
            call = make()
            call.results[index] = (wrong, dtype)
            refused(call, ".*(has shape|columns, and the matrix)")
        call = make()
        call.results[index] = (shape, "float16")
        refused(call, ".*has another dtype")


@pytest.mark.parametrize("make", [product_call, layers_call])
def test_a_wrong_number_of_arrays_is_noticed(make: Callable[[], Call]) -> None:
    for name in make().arguments:
        call = make()
        del call.arguments[name]
        call.aliases = {}
        refused(call, ".*(takes 3 or 4 arrays|wrong number of arrays)")
    call = make()
    call.arguments |= {"more": ((1,), F32), "and more": ((1,), F32)}
    refused(call, ".*(takes 3 or 4 arrays|wrong number of arrays)")


@pytest.mark.parametrize("count", [1, 3])
def test_a_wrong_number_of_results_is_noticed(count: int) -> None:
    call = product_call()
    call.results = (call.results * 2)[:count]
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"expected 2 .*{count}"):
        call.run()
    call = layers_call()
    call.results, call.aliases = (call.results * 2)[:count], {}
    refused(call, "wrong number of results")


@pytest.mark.parametrize(
    ("name", "number", "words"),
    [
        ("layers", -1, "impossible numbers"),
        ("layers", 0, "wrong number of arrays"),
        ("layers", 2, "wrong number of arrays"),
        ("layers", 2**62, "impossible numbers"),
        ("heads", 0, "impossible numbers"),
        ("heads", 3, "impossible numbers"),
        ("heads", 6, "the bias of qkv has shape"),
        ("heads", 2**62, "impossible numbers"),
        ("kv_heads", 0, "impossible numbers"),
        ("kv_heads", 1, "the bias of qkv has shape"),
        ("kv_heads", -2, "impossible numbers"),
        ("head_width", 0, "impossible numbers"),
        ("head_width", 5, "impossible numbers"),
        ("head_width", 8, "cos has shape"),
        ("head_width", 2**62, "impossible numbers"),
        ("inner", -1, "impossible numbers"),
        ("inner", 0, "wrong number of arrays"),
        ("inner", 33, "gate and up has shape"),
        ("inner", 2**62, "impossible numbers"),
    ],
)
def test_wrong_numbers_are_noticed(name: str, number: int, words: str) -> None:
    call = layers_call()
    call.attributes[name] = np.int64(number)
    refused(call, words)


@pytest.mark.parametrize("flag", ["input_norm", "qkv_bias", "qk_norm", "last_norm"])
def test_wrong_flags_are_noticed(flag: str) -> None:
    call = layers_call()
    call.attributes[flag] = False
    refused(call, "wrong number of arrays")


@pytest.mark.parametrize(
    "wrong", [{}, {"eps": np.float64(0.1)}, {"eps": np.int64(1)}, {"eps": np.float32(1), "more": 1}]
)
def test_wrong_attributes_are_noticed(wrong: dict[str, Any]) -> None:
    call = product_call()
    call.attributes = wrong
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"[Aa]ttribute|scalar data type"):
        call.run()


def test_caches_have_to_be_those_that_are_returned() -> None:
    call = layers_call()
    call.aliases = {}
    refused(call, "the cache of keys is not updated in place")
    call.aliases = {"k": 3, "v": 2}
    refused(call, "the cache of keys is not updated in place")


def test_a_block_has_to_fit_the_cache() -> None:
    call = layers_call()
    few = ((BATCH * KV_HEADS, 2, HEAD), F32)
    call.arguments |= {"mask": ((BATCH, TOKENS, 2), "bool"), "k": few, "v": few}
    call.results[2:] = [few, few]
    refused(call, "a block of 3 tokens does not fit 2 slots")


def test_keys_and_values_have_one_dtype() -> None:
    call = layers_call()
    narrow = ((BATCH * KV_HEADS, SLOTS, HEAD), BF16)
    call.arguments["v"] = call.results[3] = narrow
    refused(call, "keys and values have different dtypes")


def test_after_a_refusal_calls_go_through() -> None:
    """In one program too: what fails is the program, not the process."""
    call = product_call()
    call.results[0] = ((BATCH, TOKENS, 65), F32)
    for _ in range(3):
        refused(call, "the result has 65 columns, and the matrix 2 blocks of 32")
        product_call().run()
