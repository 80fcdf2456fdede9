"""The compiled library: where it is, whether it can be used here, and its functions as XLA's FFI knows them."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import struct

import jax

SWITCH = "KANGAROO_KERNELS"
CHOICES = ("auto", "xla", "native")
DRAFT_WEIGHTS = ("auto", "int8", "full")
ISA_SWITCH = "KANGAROO_KERNELS_ISA"
ISAS = ("AVX-512 BF16", "AVX-512", "AVX2", "portable")
_FUNCTIONS = {
    "kangaroo_product": "KangarooProduct3",
    "kangaroo_layers": "KangarooLayers4",
    "kangaroo_highest": "KangarooHighest2",
    "kangaroo_move": "KangarooMove",
    "kangaroo_search": "KangarooSearch",
}


@functools.cache
def library() -> ctypes.CDLL | str:
    """Return the library, its functions known to XLA, or why there is none; in a sentence without an end."""
    found = importlib.util.find_spec("kangaroo_jax.kernels._native")
    if found is None or found.origin is None:
        return "they were not built: the package was not installed, or without a C++ compiler (see pip install -v)"
    try:
        _check_whole(found.origin)
        opened = ctypes.CDLL(found.origin)
        for target, function in _FUNCTIONS.items():
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(opened, function)), platform="cpu")
        opened.kangaroo_kernels_isa.restype = ctypes.c_char_p
    except (OSError, AttributeError, RuntimeError, ValueError) as error:  # XLA refuses another version's functions.
        return f"{found.origin} cannot be used ({error}); install the package again, with --no-build-isolation"
    return opened


def _check_whole(file: str) -> None:
    """Raise OSError if the end of an ELF file is missing: to load it would end the process (SIGBUS)."""
    with open(file, "rb") as opened:
        header, size = opened.read(64), opened.seek(0, os.SEEK_END)
    if len(header) == 64 and header[:6] == b"\x7fELF\2\1":  # 64 bits, little-endian.
        # The table of sections is the last thing in the file.
        start, each, count = (*struct.unpack_from("<Q", header, 40), *struct.unpack_from("<HH", header, 58))
        if size < start + each * count:
            raise OSError(f"it ends after {size} of {start + each * count} bytes")


def ready() -> None:
    """Make the functions known to XLA; the weights are packed, so that there has to be a library.

    Raises:
        RuntimeError: if there is none.
    """
    if isinstance(found := library(), str):
        raise RuntimeError(f"the weights are packed for native kernels, and {found}")


def why_not() -> str | None:
    """Return why products are XLA's on this machine, or None where native ones can be used."""
    if (backend := jax.default_backend()) != "cpu":
        return f"they are for CPUs, and JAX runs on {backend}"
    found = library()
    return found if isinstance(found, str) else None


def instruction_set() -> str:
    """Return what the native kernels use here, one of ``ISAS``; ``why_not`` must be None."""
    found = library()
    assert not isinstance(found, str), found
    return found.kangaroo_kernels_isa().decode()


def describe(kernels: str) -> str:
    """Return ``Params.kernels`` with what stands behind it, for people."""
    if kernels == "native":
        return f"native, {instruction_set()}"
    return "XLA" if (reason := why_not()) is None else f"XLA; native ones cannot be used: {reason}"


def use_native(kernels: str, dtype: jax.numpy.dtype, spread: bool = False) -> bool:
    """Return whether weights of this dtype are to be packed for the native kernels.

    Args:
        kernels: "auto", "xla" or "native". "auto" is what the environment variable ``KANGAROO_KERNELS`` says, and else
            native kernels wherever they can be used.
        dtype: dtype of the model.
        spread: whether the user has said which devices the weights go to.

    Raises:
        ValueError: if it is none of the three, or "native" and that is not possible.
    """
    wanted = kernels
    if kernels not in CHOICES:
        raise ValueError(f"kernels is {kernels!r:.60}; pass one of {', '.join(CHOICES)}")
    if kernels == "auto" and (wanted := os.environ.get(SWITCH, "auto") or "auto") not in CHOICES:
        raise ValueError(f"{SWITCH} is {wanted!r:.60}; set it to one of {', '.join(CHOICES)}")
    if wanted == "xla":
        return False
    if (isa := os.environ.get(ISA_SWITCH)) and isa not in ISAS:
        raise ValueError(f"{ISA_SWITCH} is {isa!r:.60}; set it to one of {', '.join(ISAS)}")
    reason = why_not()
    if dtype not in (jax.numpy.float32, jax.numpy.bfloat16):
        reason = f"they multiply float32 and bfloat16, and dtype is {jax.numpy.dtype(dtype).name}"
    if spread:
        reason = "they run on one device, and sharding says where the weights go"
    if reason and wanted == "native":
        fix = "pass kernels='xla', or leave it out" if kernels == "native" else f"set {SWITCH} to xla or auto"
        raise ValueError(f"native kernels cannot be used: {reason}; {fix}")
    return reason is None
