"""Task families: distributions over episodes with their loss, their metrics and, where it is known, their oracle."""
