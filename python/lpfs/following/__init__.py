"""A log that grows, followed day by day: predict, then learn, and say what has changed."""

from lpfs.following.day import Day
from lpfs.following.follow import follow
from lpfs.following.record import Followed, Record

__all__ = ["Day", "Followed", "Record", "follow"]
