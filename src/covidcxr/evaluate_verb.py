"""`covidcxr evaluate`."""
