"""`python -m benchmarks`."""

import sys

from .end_to_end import main

sys.exit(main())
