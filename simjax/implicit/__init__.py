"""The implicit model x = φ(Ax + Bu), ŷ = Cx + Du, whoever made it."""
