"""`python -m halp_worker`, the same as `halp-worker`."""

from halp_worker.cli import main

if __name__ == "__main__":
    main()
