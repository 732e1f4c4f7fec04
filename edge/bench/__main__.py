"""`python -m edge.bench REQUEST`: a measuring process; one that is bounded confines itself before there are threads."""

import json
import sys

from edge.devices import confine

if __name__ == "__main__":
    if json.loads(sys.argv[1])["bounded"]:
        confine.alone()
    from edge.bench.request import Request
    from edge.bench.worker import main

    sys.exit(main(Request.from_text(sys.argv[1])))
