"""Deciding what to try, running it, remembering it, showing it."""
