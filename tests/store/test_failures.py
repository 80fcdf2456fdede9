"""The system's reason in an error of a library, and what of Orbax's threads reaches the terminal."""

from __future__ import annotations

import errno
import logging
import threading

import pytest

from kangaroo_jax.store.failures import quiet_orbax, system_error


@pytest.mark.parametrize(
    "text", ["I/O error: No space left (os error 28)", "Failed to write [os_error_code='28']", "[OS error 28: x]"]
)
def test_the_systems_reason_is_found_in_libraries_messages(text: str) -> None:
    try:
        try:
            raise ValueError(text)
        except ValueError as error:
            raise RuntimeError("wrapped") from error
    except RuntimeError as error:
        found = system_error(error)
    assert found is not None and found.errno == errno.ENOSPC and found.strerror == "No space left on device"
    assert system_error(ValueError("28 rows")) is None


def test_only_orbax_is_quiet() -> None:
    def fail() -> None:
        raise ValueError("of no library")

    seen: list[str] = []
    before = threading.excepthook
    threading.excepthook = lambda args: seen.append(str(args.exc_value))
    try:
        with quiet_orbax():
            assert logging.getLogger("absl").disabled
            for name in ("orbax.checkpoint", "train.training_loop"):
                # As code of that module would run.
                source = {"__name__": name, "fail": fail}
                exec("def run(): fail()", source)
                thread = threading.Thread(target=source["run"])
                thread.start()
                thread.join()
        assert not logging.getLogger("absl").disabled
    finally:
        threading.excepthook = before
    assert seen == ["of no library"]
