"""`covidcxr audit`."""
