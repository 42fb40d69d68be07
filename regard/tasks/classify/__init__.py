"""Classification: an input in, a label and its probability out."""
