"""The model room: loading, inputs, hooks, extraction. The only room that knows torch."""
