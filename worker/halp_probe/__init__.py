"""The probe room: labels, probes on hidden states, and how good they are. Never torch, never redis.

Importing this package costs nothing. Stores are read through `halp_store` only.
"""
