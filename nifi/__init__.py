"""The NiFi flow that carries rushes to captions, as code; it talks to the running service and imports nothing of it."""
