"""labrig: pinned, proven PyTorch lab environments from one table of targets."""

__version__ = "0.1.0"
