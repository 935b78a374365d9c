"""Trained linear layers made sparse, and the weights that are left refitted, with a certificate for every row."""
