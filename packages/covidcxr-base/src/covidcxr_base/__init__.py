"""Research weights `base` for covidcxr: `covidcxr.Pipeline.from_pretrained("base")`."""
