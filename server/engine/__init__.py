"""The engine: one thread that owns the model and works on all requests at once.  It knows no HTTP."""
