"""The export formats: each with its writer, its loader and its tolerance."""
