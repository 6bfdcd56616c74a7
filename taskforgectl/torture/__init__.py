"""`taskforgectl torture`: a daemon of its own under load and faults, and proof that it kept its promises."""
