"""Publish models, and answer requests with the present one."""

from lpfs.serving.publishing import publish

__all__ = ["publish"]
