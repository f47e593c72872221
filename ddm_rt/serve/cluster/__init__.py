"""Several replicas behind one interface, by Ray Serve."""
