"""What `make bench` runs: puts the repository on the path, then `tests.bench.suite`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.bench.suite import main

    main(sys.argv[1:])
