"""`python -m halp_probe`."""

from halp_probe.cli import main

main()
