"""`covidcxr explain`."""
