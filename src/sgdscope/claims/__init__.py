"""One file a paper: its sentences as checks that can fail."""
