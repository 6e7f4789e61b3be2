"""One trial: what a configuration is, and training it."""
