"""Steps 3 to 5 of attention (score, normalise, sum), what can be observed of them, and the record of what was."""
