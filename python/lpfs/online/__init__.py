from lpfs.online.joining import take_over
from lpfs.online.lives import Event
from lpfs.online.loop import Online

__all__ = ["Event", "Online", "take_over"]
