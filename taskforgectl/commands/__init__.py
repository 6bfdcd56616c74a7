"""One module per noun, loaded when its command is used. Each exports `command`."""
