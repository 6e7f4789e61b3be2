"""The network of a trial."""

from trainables.model.transformer import SpikingTransformer, build_model

__all__ = ["SpikingTransformer", "build_model"]
