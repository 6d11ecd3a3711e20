"""Publish models, and answer requests with the present one."""

from lpfs.serving.present import Live, Reader
from lpfs.serving.publishing import publish

__all__ = ["Live", "Reader", "publish"]
