"""The demo room: a small checkpoint, real photographs, and the main job on one machine."""
