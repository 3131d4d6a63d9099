"""cupyx: pinned memory alone."""

from .memory import empty_like_pinned, empty_pinned, zeros_like_pinned, zeros_pinned

__all__ = ["empty_like_pinned", "empty_pinned", "zeros_like_pinned", "zeros_pinned"]
