"""Where runs are kept. Add a file to add a store."""
