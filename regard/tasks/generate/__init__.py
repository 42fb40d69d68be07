"""Language modelling: a text in, what follows it out."""
