"""What two or more models share: projections around attention, feed-forward, norms, dropout, output heads."""
