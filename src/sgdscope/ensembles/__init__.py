"""Several walks that belong together. Add a file to add one."""
