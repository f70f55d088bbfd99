"""Looking at data and at runs: doctor, preview, search, prepare."""
