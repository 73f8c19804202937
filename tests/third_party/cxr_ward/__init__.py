"""A ward's own data set, losses and network for covidcxr."""
