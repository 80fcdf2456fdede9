"""``python -m kangaroo_jax``; what it does stands in ``kangaroo_jax.cli``."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from kangaroo_jax.cli import main
    except KeyboardInterrupt:  # While the libraries were being imported, which takes a second or two.
        sys.exit(130)
    sys.exit(main())
