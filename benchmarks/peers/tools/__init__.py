"""One worker a tool; each runs in its tool's own environment and answers the driver in JSON lines."""
