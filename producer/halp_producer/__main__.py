"""`python -m halp_producer` is `halp-producer`."""

from halp_producer.cli import main

main()
