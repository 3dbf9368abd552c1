"""`python -m modelrollout`."""

from modelrollout.cli import main

main()
