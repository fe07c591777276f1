"""Evidence: chunks, logs and completion markers as workers send them, stored byte for byte."""
