"""What makes pages of the documentation from code; no part of the product."""
