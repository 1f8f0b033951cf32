"""What one run needs of the machine: processes that share it, numerical precision, memory."""
