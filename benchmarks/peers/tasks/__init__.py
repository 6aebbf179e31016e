"""One file a task: who competes, and what is divided by what."""
