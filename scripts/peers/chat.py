"""Three pictures in a chat, a question and a short answer each: chat.py BUNDLE THREADS [ENGINE].

Prints the seconds from the first picture to the first token about the third.
"""

from __future__ import annotations

import sys
import time

from common import PICTURES, QUESTION, REPOSITORY

sys.path.insert(0, str(REPOSITORY))

import edge
from edge.inputs.prompt import Turn

_ANSWER = 8  # tokens


def main(bundle: str, threads: int, engine: str | None) -> float:
    with edge.load(bundle, threads=threads, engine=engine) as session:
        session.ask(str(PICTURES[0]), QUESTION, max_tokens=1)
        session.forget()
        turns: list[Turn] = []
        start = time.perf_counter()
        for number, picture in enumerate(PICTURES, 1):
            turns.append(Turn.about(QUESTION, (session.encode_image(str(picture)),)))
            for _ in session.converse(turns, max_tokens=1 if number == len(PICTURES) else _ANSWER):
                pass
            turns[-1] = Turn(turns[-1].content, session.last.text, session.last.token_ids)
        return time.perf_counter() - start


if __name__ == "__main__":
    print(main(sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None))
