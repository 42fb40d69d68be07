"""The attention of a run kept: records, their file, and what is read off them."""
