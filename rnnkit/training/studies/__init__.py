"""Studies: what `rnnkit study` trains, and what it makes of it; a file for each."""
