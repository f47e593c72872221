"""The errors with which a server refuses a request, or ends it early."""

from ddm_rt.errors import DdmError


class QueueFull(Exception):
    """The queue has no room for the request, which may be taken in after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)  # both, so that it can go from process to process
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class TooMany(QueueFull):
    """The key has as many requests under way as one key may have."""


class Draining(Exception):
    """The server is stopping: it finishes the requests that it has taken in, and takes in no more."""


class DeadlineExceeded(DdmError):
    """The request wasn't done in the time it had, or can't be however little waits."""
