"""What claims rest on: windows of measured runs and their regime, controls with known answers, descriptions of the runs."""
