"""The command line: which command is meant, and how all of them end. One file per command.

A command is a module with ``build_parser()`` and ``run(args)``, which returns the exit status.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence

__all__ = ["main"]

DEFAULT = "kangaroo_jax.cli.write_command"
COMMANDS = {
    "chat": "kangaroo_jax.cli.chat_command",
    "tune": "kangaroo_jax.cli.tune_command",
    "verify": "kangaroo_jax.cli.verify_command",
}
"""Commands by their first word; a module is imported when it is needed, without a word ``DEFAULT``."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names, or write text.

    Args:
        argv: the arguments; default: those of the process. Only the very first one can name a command: after ``--``,
            or after an option, the same word is a prompt.

    Returns:
        The exit status: what the command says, 2 on bad input, 130 if interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # Not every terminal has every character a model writes.
    try:
        module = COMMANDS.get(words[0]) if words else None
        command = importlib.import_module(module or DEFAULT)
        status: int = command.run(command.build_parser().parse_args(words[1:] if module else words))
        sys.stdout.flush()  # Here, where a closed pipe is known, and not at the end of the process.
        return status
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # Whoever reads, "head" for one, has read enough.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - or Python complains once more when it flushes at its end.
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
