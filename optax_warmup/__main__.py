"""`python -m optax_warmup`: preview of the learning rates of recipes."""

import sys

from optax_warmup._preview import main

if __name__ == "__main__":
    sys.exit(main())
