"""`python -m othink_jax` is `othink-jax`."""

from othink_jax.cli import main

main()
