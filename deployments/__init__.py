"""The Ray Serve graph, and nothing that would make sense without Ray."""
