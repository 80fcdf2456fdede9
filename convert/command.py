"""How the converters' commands end: with a status, and one line for whatever went wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from kangaroo_jax.files import first_line


def ended(name: str, work: Callable[[], None], out: Path, afterwards: str = "nothing was written") -> int:
    """Run a command's work and return the exit status: 0, 2 for bad input or a full disk, 130 for Ctrl-C.

    Args:
        name: what messages begin with.
        work: prints its own results.
        out: where it writes.
        afterwards: what is true when it was interrupted.
    """
    try:
        work()
    except ValueError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        advice = f"is {out} a place that can be written, with room? Then: {afterwards}"
        print(f"{name}: {first_line(error, 400)}; {advice}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted; {afterwards}", file=sys.stderr)
        return 130
    return 0
