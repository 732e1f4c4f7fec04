"""ask.py HERE OUT: pictures that Python was asked about, as PPM in OUT; a line for each question and its answer."""

import json
import sys
from pathlib import Path

here, out = map(Path, sys.argv[1:])
for asked in json.loads((here / "here.json").read_bytes())["answers"]:
    picture = out / f"{asked['picture']}.ppm"
    head = f"P6\n{asked['width']} {asked['height']}\n255\n".encode()
    picture.write_bytes(head + (here / f"{asked['picture']}.rgb").read_bytes())
    sys.stdout.write(f"{picture}\t{asked['question']}\t{asked['text']}\n")
