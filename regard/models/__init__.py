"""The models: one readable file an architecture part, its frozen configuration beside its class."""
