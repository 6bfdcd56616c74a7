"""The gRPC control plane: thin servicers that check, call control and convert. Errors are raised and mapped once."""
