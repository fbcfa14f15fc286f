"""`python -m rnnkit_kernels.audit`."""

import sys

from rnnkit_kernels.audit.audit import main

sys.exit(main())
