"""Where a classifier looked: heat maps as data and as pictures, and how faithful they are."""
