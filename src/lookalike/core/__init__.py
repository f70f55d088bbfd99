"""What everything stands on: devices, processes, randomness, files, errors."""
