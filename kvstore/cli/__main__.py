"""`python -m kvstore.cli` is `kvstore`."""

import sys

from kvstore.cli.main import main

sys.exit(main())
