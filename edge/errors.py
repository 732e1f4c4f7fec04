"""The error tree. The command line prints the message without a traceback and exits with `exit_code`.

EdgeError                    1   something failed
├── UsageError               2   the call cannot be carried out as given (also: an impossible target)
├── ImageError               1   a picture that cannot be read
├── CheckpointError          1   a checkpoint that is missing, incomplete or not understood
├── BundleError              1   a bundle that is missing, damaged, newer than the reader, or unsafe
├── EngineError              1   an engine that is missing, refuses a part, or fails while running
│   └── ProviderError        1   a card that cannot be used, or fails while it computes
├── ContextError             1   more positions than the context holds
├── SessionError             1   a saved conversation that is missing, damaged, or of another bundle
├── RemoteError              1   another machine that cannot be reached, drops, or fails
└── ParityError              1   an artifact that does not compute the same model
"""

from __future__ import annotations


class EdgeError(Exception):
    """What failed, with the value; why; and a hint: the command or change that fixes it."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class UsageError(EdgeError):
    exit_code = 2


class ImageError(EdgeError):
    pass


class CheckpointError(EdgeError):
    pass


class BundleError(EdgeError):
    pass


class EngineError(EdgeError):
    pass


class ProviderError(EngineError):
    pass


class ContextError(EdgeError):
    pass


class SessionError(EdgeError):
    pass


class RemoteError(EdgeError):
    pass


class ParityError(EdgeError):
    pass


def first_line(error: BaseException) -> str:
    """What a foreign error says, as part of our own message: its first line, or its name where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
