"""The training room: how the demo's small Qwen2.5-VL learned what it knows, start to end."""
