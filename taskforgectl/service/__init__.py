"""Taskforge as a systemd service of a user: its units (`units`), and the manager that runs it (`manager`)."""
