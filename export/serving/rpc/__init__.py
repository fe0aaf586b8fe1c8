"""The gRPC interface: services, their methods, and protocol buffers to arrays and back."""
