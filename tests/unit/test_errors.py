from __future__ import annotations

import pytest

from edge import errors
from edge.errors import EdgeError, UsageError, first_line


def tree() -> list[type[EdgeError]]:
    return [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, EdgeError)]


def test_text_is_the_message_and_then_the_hint() -> None:
    assert str(EdgeError("no room for 3 GB", hint="free some space")) == "no room for 3 GB\nhint: free some space"
    assert str(EdgeError("no room for 3 GB")) == "no room for 3 GB"


def test_message_and_hint_stay_apart() -> None:
    error = UsageError("bad", hint="good")
    assert (error.message, error.hint) == ("bad", "good")


def test_only_the_users_call_exits_with_2() -> None:
    assert {e.__name__: e.exit_code for e in tree()} == {
        "EdgeError": 1,
        "UsageError": 2,
        "ImageError": 1,
        "CheckpointError": 1,
        "BundleError": 1,
        "EngineError": 1,
        "ProviderError": 1,
        "ContextError": 1,
        "SessionError": 1,
        "RemoteError": 1,
        "ParityError": 1,
    }


@pytest.mark.parametrize("error", tree(), ids=lambda e: e.__name__)
def test_drawn_in_the_docstring_with_its_exit_code(error: type[EdgeError]) -> None:
    line = next(line for line in str(errors.__doc__).splitlines() if error.__name__ in line.split())
    assert str(error.exit_code) in line.split()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\nno such kernel\nat x.cpp:3"), "no such kernel"),
        (ValueError(), "ValueError"),
        (OSError(" "), "OSError"),
    ],
)
def test_the_first_line_of_a_foreign_error(error: Exception, line: str) -> None:
    assert first_line(error) == line
