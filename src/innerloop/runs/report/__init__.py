"""What a run leaves for people to read: tables of results, and plots."""
