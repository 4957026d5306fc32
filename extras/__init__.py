"""Commands (python -m extras.NAME) and their helpers. Everything else works without them."""
