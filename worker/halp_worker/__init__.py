"""The worker room: takes jobs from the stream, runs the model, hands rows to the store.

Importing this package loads nothing heavy; `halp_worker.model` is the only room that knows torch,
`halp_worker.consumer` and `halp_worker.heartbeat` the only ones that talk to the server (and
`halp_worker.dashboard`, which only looks).
"""
