"""Task families: distributions over episodes, each with its loss, its metrics and, where the prior is known, its oracle."""
