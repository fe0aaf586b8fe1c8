"""How much clients may ask for, what a request will take, and which requests are let in."""
