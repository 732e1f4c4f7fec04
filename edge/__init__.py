"""Edge VLM: run an exported vision-language model on a small device, and prove that it is the same model.

import edge
with edge.load("bundle") as session:
    print(session.ask("cat.jpg", "What is this?"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.inference.session import Session, load

__all__ = ["Session", "load"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    # The session pulls in numpy, Pillow and tokenizers; `import edge` alone stays instant.
    if name in __all__:
        from edge.inference import session

        return getattr(session, name)
    raise AttributeError(f"module 'edge' has no attribute {name!r}")
