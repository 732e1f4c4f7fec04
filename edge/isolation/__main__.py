"""`python -m edge.isolation`: an isolated process, which confines itself before a library has started a thread."""

import sys

from edge.devices import confine

if __name__ == "__main__":
    confine.alone()
    from edge.isolation.child import main

    sys.exit(main())
