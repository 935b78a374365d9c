"""State-driven implicit modeling: from the states of a baseline network to a certified sparse implicit model."""
