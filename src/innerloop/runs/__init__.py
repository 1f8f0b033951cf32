"""From a configuration to a run directory: build, train, evaluate, record, report, and load again.

Importing this package imports nothing else: a command's `--help` needs some of its modules without torch.
"""
