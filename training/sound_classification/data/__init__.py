"""Training material: clips, voices, music and silence, and the examples that are mixed from them."""
