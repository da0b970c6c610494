"""Energy and initializer networks."""
