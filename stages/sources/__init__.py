"""Models and data from outside: embedded packages, local folders, hubs. Checked, converted once, cached."""
