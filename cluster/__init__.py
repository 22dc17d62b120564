"""Clusters, containers, continuous delivery. Talks to the running service only; imports none of it."""
