"""Persona in, small role-playing model out."""

import sys

__version__ = '0.1.0'

# `python -m ppjax.VERB` imports this first, and then for seconds what it needs.
if sys.argv[:1] == ['-m']:
    from ppjax.base import interrupts

    interrupts.end_at_once()
