"""Settings of the whole suite.

No persistent compilation cache: a test that counts traces or reads compiled code must see its own compilation.
"""

from __future__ import annotations

from hypothesis import settings

# The first example of a test may load or compile something; how long that takes says nothing about the code.
settings.register_profile("suite", deadline=None, print_blob=True)
settings.load_profile("suite")
