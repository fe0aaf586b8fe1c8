"""The REST interface: HTTP, the URL grammar, the verbs, and JSON to tensors and back."""
