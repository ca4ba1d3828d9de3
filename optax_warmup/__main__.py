"""`python -m optax_warmup`: the rates of a recipe, before anything is trained with it."""

import sys

from optax_warmup._preview import main

if __name__ == "__main__":
    sys.exit(main())
