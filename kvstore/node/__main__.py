"""`python -m kvstore.node` is `kvstore-node`."""

import sys

from kvstore.node.main import main

sys.exit(main())
