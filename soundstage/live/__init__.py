"""Understanding audio while it is being said: the state of one stream, and what it tells. Knows nothing of networks."""
