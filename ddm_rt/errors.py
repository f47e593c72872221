"""Errors that a user can act on. The CLI prints one line and exits with 2 for each of them."""

from collections.abc import Iterable


class DdmError(ValueError):
    """Bad input: the message names the file or field, what was found and what was expected."""


class BundleError(DdmError):
    """A bundle or run directory is missing something, altered, truncated or foreign."""


class LedgerError(DdmError):
    """A ledger can't be used: damaged, locked, of another bundle, closed."""


class BackendUnavailable(DdmError):
    """A backend that was asked for by name can't run here; nothing else is taken in its place."""

    def __init__(self, name: str, reason: str, available: Iterable[str]) -> None:
        self.name, self.reason, self.available = name, reason, tuple(available)
        choices = ", ".join(self.available) or "none"
        super().__init__(f"backend {name!r} is not available: {reason}; available here: {choices}")
