"""``python -m kangaroo_jax``; what it does stands in ``kangaroo_jax.cli``."""

from __future__ import annotations

import sys

from kangaroo_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
