"""Commands: python -m extras.NAME, and what they need. Everything else works without them."""
