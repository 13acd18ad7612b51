"""Planted worlds of the studies, written before the methods that are tried on them; three a claim, one of them to defeat it."""
