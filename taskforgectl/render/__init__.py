"""What a person or a program gets to see: plain values, tables, JSON, the live view."""
