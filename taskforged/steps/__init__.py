"""Step executors: the code that has effects, behind the protocol of `base`."""
