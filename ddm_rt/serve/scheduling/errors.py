"""Why a server takes a request not in, or not to its end."""

from ddm_rt.errors import DdmError


class QueueFull(Exception):
    """As much waits as may wait. The same request may be taken in after `retry_after_s` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s)  # both, so that it can go from process to process
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class TooMany(QueueFull):
    """The key has as many requests under way as one key may have."""


class Draining(Exception):
    """The server is stopping: it ends what it has taken in, and takes in nothing more."""


class DeadlineExceeded(DdmError):
    """The request wasn't done in the time it had, or can't be however little waits."""
