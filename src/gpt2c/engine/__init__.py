"""What runs a model: the compiled engine, NumPy's, and the choice between them."""
