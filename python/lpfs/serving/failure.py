"""What is wrong with a request."""

from __future__ import annotations


class RequestError(Exception):
    """The request cannot be answered: a status of HTTP and one line that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(" ".join(message.split()))
        self.status = status
