"""Networks that several models share, with the state-dict names of their upstream."""
